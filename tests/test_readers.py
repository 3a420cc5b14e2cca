"""Readers, on files in the official layouts with what is wrong with them in real life."""

import re

import pyarrow
import pytest
from conftest import SHARED
from hub import as_parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pruning import readers, tasks
from pruning.errors import UserError

ROWS = {  # task → header, a good row, its sentences and its label
    "cola": (None, "gj04\t1\t\tThey know \"it\" .", ["They know \"it\" ."], 1),
    "sst-2": ("sentence\tlabel", "a \" joy \t1", ["a \" joy"], 1),
    "mrpc": ("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t7\t8\tHe \" said .\tNo .",
             ["He \" said .", "No ."], 0),
    "sts-b": ("index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
              "0\ta\tb\t2012\t1\tnone\tnone\tA man.\tA dog.\t2.800", ["A man.", "A dog."], 2.8),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tHow?\t1",
            ["Why?", "How?"], 1),
    "mnli": ("index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
             "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
             "0\t1\t1\tfiction\t( a )\t( b )\t(A)\t(B)\tIt is.\tNot.\tneutral\tneutral",
             ["It is.", "Not."], 2),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWho?\tHe did.\tnot_entailment", ["Who?", "He did."], 1),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tentailment", ["A.", "B."], 0),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", ["A.", "B."], 1),
}  # fmt: skip


def read(tmp_path, name, lines, ending="\n"):
    path = tmp_path / "train.tsv"
    header = [ROWS[name][0]] if ROWS[name][0] else []
    path.write_bytes((ending.join(header + lines) + ending).encode())
    return readers.read_tsv(tasks.GLUE[name], path)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("name", list(tasks.GLUE))
def test_official_layouts(tmp_path, name, ending):
    _, row, sentences, label = ROWS[name]
    rows = read(tmp_path, name, [row] * 3, ending)
    assert [rows.first[2], *([rows.second[2]] if rows.second else [])] == sentences
    assert rows.labels == [label] * 3
    assert not rows.broken


def test_mnli_dev_has_more_columns(tmp_path):
    header, row, sentences, label = ROWS["mnli"]
    path = tmp_path / "dev_matched.tsv"
    more = "\tlabel2\tlabel3\tlabel4\tlabel5"
    header = header.replace("\tgold_label", more + "\tgold_label")
    row = row.replace("neutral\tneutral", "neutral\ta\tb\tc\td\tneutral")
    path.write_text(f"{header}\n{row}\n")
    rows = readers.read_tsv(tasks.GLUE["mnli"], path)
    assert [rows.first[0], rows.second[0]] == sentences and rows.labels == [label]


@pytest.mark.parametrize("name", list(tasks.GLUE))
def test_broken_rows_are_skipped_counted_and_named(tmp_path, name):
    _, row, sentences, _ = ROWS[name]
    fields = row.split("\t")
    empty = [f if f.strip() != sentences[-1] else "  " for f in fields]
    lines = [row] * 398 + ["\t".join(fields[:-1]), row, "\t".join(empty), row, "", row]
    rows = read(tmp_path, name, lines)
    first = 399 + (ROWS[name][0] is not None)
    assert len(rows) == 401
    assert [line for line, _ in rows.broken] == [first, first + 2, first + 4]
    assert "fields" in rows.broken[0][1] and rows.broken[1][1] == "empty sentence"


def test_blank_lines_at_the_end_are_no_rows(tmp_path):
    assert not read(tmp_path, "wnli", [ROWS["wnli"][1]] * 3 + ["", " ", ""]).broken


def test_more_than_one_percent_of_broken_rows_is_an_error(tmp_path):
    row = ROWS["sst-2"][1]
    assert len(read(tmp_path, "sst-2", [row] * 99 + ["fine\t7"])) == 99
    with pytest.raises(UserError, match=r"train\.tsv: 2 of 100 rows .* line 100: unknown label '7'"):
        read(tmp_path, "sst-2", [row] * 98 + ["fine\t7"] * 2)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\n\n", "the file is empty"),
        (b"sentence\tlabel\n", "no rows"),
        (b"text\tlabel\nfine\t1\n", "line 1: the header has no column 'sentence'; it reads: text | label"),
        (b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n", "line 3: not UTF-8 text (invalid continuation byte)"),
        (
            b"te\xc2\x85xt" + b"x" * 1000 + b"\tlabel\n",
            f"line 1: the header has no column 'sentence'; it reads: te xt{'x' * 195}",
        ),
        ("sentence\tlabel\nfine\t1\n".encode("utf-16"), "line 1: not UTF-8 text (invalid start byte)"),
        ("sentence\tlabel\n".encode("utf-16-le"), "line 1: not UTF-8 text (a zero byte; is it UTF-16?)"),
        (b"sentence\tlabel\nfine\t1\nfi\0ne\t1\n", "line 3: not UTF-8 text (a zero byte; is it UTF-16?)"),
    ],
)
def test_a_file_that_is_no_table_is_an_error_of_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        readers.read_tsv(tasks.GLUE["sst-2"], path)
    assert re.fullmatch(f"{re.escape(str(path))}(, |: ){re.escape(sentence)}", str(error.value))


def test_a_folder_in_place_of_a_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        readers.read_tsv(tasks.GLUE["sst-2"], tmp_path)


def test_line_separators_within_a_sentence_do_not_break_a_row(tmp_path):
    rows = read(tmp_path, "sst-2", ["one\u2028two\x0cthree\x85four\t1"])
    assert rows.first == ["one\u2028two\x0cthree\x85four"]


GOOD = '"1","A","good one"'


def agnews(tmp_path, *lines, ending="\n"):
    path = tmp_path / "train.csv"
    path.write_bytes((ending.join(lines) + ending).encode("utf-8-sig"))
    return readers.read_agnews(tasks.AGNEWS, path)


def test_agnews_reads_title_and_text(tmp_path):
    rows = agnews(
        tmp_path,
        '"3","Wall ""St."" Bears","Short-sellers, Wall Street\'s\\band"',
        '"1","N/A","the Web #39;s &lt;b&gt;"',
        '2,no quotes,"a, ""b"""',
        r'"4","say ""hi""","he said \"no\""',
        ending="\r\n",
    )
    assert rows.first == [
        'Wall "St." Bears Short-sellers, Wall Street\'s\\band',
        "N/A the Web's <b>",
        'no quotes a, "b"',
        'say "hi" he said "no"',
    ]
    assert rows.labels == [2, 0, 1, 3] and rows.second is None


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (r'"2","t","he said \"no\" today"', 't he said "no" today'),
        (r'"2","t","he said \"no\""', 't he said "no"'),
        (r'"2","5\"","x"', '5" x'),
        (r'"2","t","ends with a backslash\"', "t ends with a backslash\\"),
        (r'"2","the "big" one","x"', 'the "big" one x'),
        (r'"2","t",""', "t"),
        (r'"2","","d"', "d"),
        ('"2","t","two\nlines, ""quoted""\n\n1,200 people"', 't two\nlines, "quoted"\n\n1,200 people'),
        ('"2","t","' + "long\n" * 40_000 + '"', "t" + " long" + "\nlong" * 39_999),
    ],
    ids=lambda text: text[:20],
)
def test_agnews_reads_every_kind_of_row(tmp_path, row, text):
    rows = agnews(tmp_path, GOOD, row, GOOD)
    assert rows.first == ["A good one", text, "A good one"] and not rows.broken


@pytest.mark.parametrize(
    "row",
    [
        '"1","only"',
        '"9","a","b"',
        '"1",""," "',
        '"1","a","b","c"',
        '"1";"a";"b"',
        '"1"\t"a"\t"b"',
        '"1","a","never closed',
        '"1","a","never closed ""',
        '"1","the "big" one","never closed',
        '"1","say "yes","no" now","d"',
        "",
    ],
)
def test_agnews_counts_every_other_row_as_broken_with_its_line(tmp_path, row):
    rows = agnews(tmp_path, '"1","A","two\nlines"', row, *[GOOD] * 500, row, GOOD)
    assert len(rows) == 502 and [line for line, _ in rows.broken] == [3, 504]


def test_agnews_without_quotes_has_a_row_on_every_line(tmp_path):
    rows = agnews(tmp_path, *["1,a,b"] * 500, '2,t,"never closed', *["1,a,b"] * 500, '2,t,never opened"')
    assert len(rows) == 1001 and [line for line, _ in rows.broken] == [501]


def test_agnews_with_other_separators_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv: 3 of 3 rows .* line 1: 1 fields instead of 3"):
        agnews(tmp_path, *['"1";"a";"b"'] * 3)


# --- Parquet, as the hub has it --------------------------------------------------------------

ENTITIES = '"2","N/A","the Web #39;s &lt;b&gt;"'
HUB_NAMES = {  # whose order is another than the table's
    "mnli": ["entailment", "neutral", "contradiction"],
    "agnews": ["Sci/Tech", "World", "Sports", "Business"],
    "wnli": ["entailment", "not_entailment"],
}
SST2 = tasks.GLUE["sst-2"]
ON_THE_HUB = [name for name, task in tasks.GLUE.items() if task.hub]


def read_hub(tmp_path, task, labels, *texts, names=None):
    path = tmp_path / "train.parquet"
    path.write_bytes(as_parquet(task, labels, *texts, names=names))
    return readers.read(task, path)


@pytest.mark.parametrize("name", [*ON_THE_HUB, "agnews"])
def test_a_row_of_the_hub_is_the_row_of_the_classic_file(tmp_path, name):
    task = (tasks.GLUE | {"agnews": tasks.AGNEWS})[name]
    if name == "agnews":
        classic, texts = agnews(tmp_path, ENTITIES), [["N/A the Web #39;s &lt;b&gt;"]]
    else:
        classic = read(tmp_path, name, [ROWS[name][1]])
        texts = [[f"{text} "] for text in ROWS[name][2]]
    names = HUB_NAMES.get(name, [*task.classes.values()])
    [label] = classic.labels
    rows = read_hub(
        tmp_path,
        task,
        [label if task.is_regression else names.index(task.label_name(label))],
        *texts,
        names=names,
    )
    assert (rows.first, rows.second, rows.broken) == (classic.first, classic.second, [])
    assert rows.labels == pytest.approx(classic.labels, rel=1e-7)  # the hub's scores are fp32


@pytest.mark.parametrize(
    ("label", "text", "why"),
    [
        *((-1, "fine", "unknown label 'number -1'"), (2, "fine", "unknown label 'number 2'")),
        *(
            (None, "fine", "unknown label 'number None'"),
            (1, " ", "empty sentence"),
            (1, None, "empty sentence"),
        ),
    ],
)
def test_broken_rows_of_parquet_are_counted_with_their_number(tmp_path, label, text, why):
    rows = read_hub(tmp_path, SST2, [0] * 99 + [label], ["fine"] * 99 + [text])
    assert len(rows) == 99 and rows.broken == [(100, why)]
    with pytest.raises(UserError) as error:
        read_hub(tmp_path, SST2, [0] * 98 + [label] * 2, ["fine"] * 98 + [text] * 2)
    assert str(error.value).endswith(
        f"train.parquet: 2 of 100 rows are broken, more than 1%; the first is row 99: {why}"
    )


def test_a_number_of_the_hub_is_no_label_of_the_classic_file(tmp_path):
    with pytest.raises(UserError, match=r"row 1: unknown label 'number 4'"):
        read_hub(tmp_path, tasks.AGNEWS, [4], ["fine"])


def test_scores_of_the_hub_are_in_their_range(tmp_path):
    stsb = tasks.GLUE["sts-b"]
    assert read_hub(tmp_path, stsb, [5.0, 0.0], ["a"] * 2, ["b"] * 2).labels == [5, 0]
    for score, why in ((5.5, r"score 5\.5 outside"), (None, "no score: 'None'"), (float("nan"), "score nan")):
        with pytest.raises(UserError, match=f"row 1: {why}"):
            read_hub(tmp_path, stsb, [score], ["a"], ["b"])


@pytest.mark.parametrize("names", [["negative"], ["negative", "neutral"], ["positive"] * 2, [1, 2]])
def test_other_names_of_classes_are_an_error_of_one_sentence(tmp_path, names):
    with pytest.raises(UserError) as error:
        read_hub(tmp_path, SST2, [0], ["fine"], names=names)
    assert str(error.value) == (
        f"{tmp_path / 'train.parquet'} names the classes {names}; those of sst-2 are ['negative', 'positive']"
    )


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"huggingface": "no JSON"},
        {"huggingface": "[]"},
        {"huggingface": '{"info": {"features": null}}'},
    ],
)
def test_a_file_that_does_not_name_its_classes_is_an_error(tmp_path, metadata):
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table({"sentence": ["fine"], "label": [0]}, metadata=metadata), path)
    with pytest.raises(UserError, match=r"train\.parquet names the classes None; those of sst-2 are"):
        readers.read(SST2, path)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"text": ["fine"], "label": [0]}, "has no column 'sentence'; it has: text, label"),
        ({"sentence": ["fine"]}, "has no column 'label'; it has: sentence"),
        ({"sentence": [["fine"]], "label": [0]}, "cannot be read: it is damaged, or no parquet with"),
        ({"sentence": ["fine"], "label": ["good"]}, "cannot be read: it is damaged, or no parquet with"),
        ({"sentence": [b"caf\xe9"], "label": [0]}, "cannot be read: it is damaged, or no parquet with"),
    ],
)
def test_parquet_of_another_kind_is_an_error_of_one_sentence(tmp_path, columns, sentence):
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    with pytest.raises(UserError) as error:
        readers.read(SST2, path)
    assert str(error.value).startswith(f"{path} {sentence}") and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"sentence\tlabel\nfine\t1\n", b"PAR1", "cut"])
def test_what_is_no_parquet_is_an_error_of_one_sentence(tmp_path, content):
    path = tmp_path / "train.parquet"
    path.write_bytes(as_parquet(SST2, [0], ["fine"])[:-5] if content == "cut" else content)
    with pytest.raises(UserError) as error:
        readers.read(SST2, path)
    assert str(error.value).startswith(f"{path} cannot be read: it is damaged, or no parquet with")
    path.unlink()
    with pytest.raises(UserError, match=r"train\.parquet cannot be read: No such file or directory"):
        readers.read(SST2, path)


# --- GLUE's test files, without labels -------------------------------------------------------

TEST_HEADERS = {
    **dict.fromkeys(("cola", "sst-2"), "index\tsentence"),
    "mrpc": "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tquestion1\tquestion2",
    "qnli": "index\tquestion\tsentence",
    **{name: ROWS[name][0].rsplit("\t", end)[0] for name, end in (("sts-b", 1), ("mnli", 2))},
    **dict.fromkeys(("rte", "wnli"), "index\tsentence1\tsentence2"),
}


@pytest.mark.parametrize("name", ON_THE_HUB)
def test_every_row_of_a_test_file_is_read_in_both_forms(tmp_path, name):
    task, header = tasks.GLUE[name], TEST_HEADERS[name]
    rows = [[f'0{i} "{column}" ' for i in range(2)] for column in task.hub]
    rows[-1][1] = " "
    path = tmp_path / "test.tsv"
    first = len(header.split("\t")) - len(rows)
    lines = ["\t".join(["x"] * first + list(row)) for row in zip(*rows, strict=True)]
    path.write_text("\n".join([header, *lines, ""]))
    texts = [[text.strip() for text in row] for row in zip(*rows, strict=True)]
    expected = [row[0] if len(row) == 1 else tuple(row) for row in texts]
    assert readers.read_test(task, path) == expected and len(expected) == 2
    path = tmp_path / "test.parquet"
    rows[-1][1] = None
    path.write_bytes(as_parquet(task, [-1, -1], *rows))
    assert readers.read_test(task, path) == expected


def test_a_broken_row_of_a_test_file_is_an_error(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("index\tsentence\n0\tfine\n1\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 3: 1 fields instead of 2"):
        readers.read_test(SST2, path)
    path.write_text("index\ttext\n0\tfine\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 1: the header has no column 'sentence'"):
        readers.read_test(SST2, path)


# What follows are properties: true for any text, and any damage to one row.

TEXTS = st.text(
    st.one_of(st.sampled_from('",;\\\t 1a'), st.characters(codec="utf-8", exclude_characters="\0\r\n"))
)
LONG_TEXTS = st.lists(TEXTS, max_size=3).map("\n".join)
DAMAGES = st.sampled_from(["a byte dropped", "a quote inserted", "cut", "other separators"])
any_text = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def damage(row: bytes, kind: str, at: int, separator: bytes) -> bytes:
    """One row, its line end included, with something wrong with it."""
    at %= len(row)
    if kind == "other separators":
        return row.replace(separator, separator.replace(separator.strip(b'"'), b";"))
    return (
        row[:at] + {"a byte dropped": row[at + 1 :], "a quote inserted": b'"' + row[at:], "cut": b"\n"}[kind]
    )


def read_or_refuse(reader, task, path, share, monkeypatch):
    """The rows, or None where the reader says in one line why it will not read the file."""
    monkeypatch.setattr(readers, "BROKEN_SHARE", share)
    try:
        return reader(task, path)
    except UserError as error:
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
        return None


@any_text
@given(
    texts=st.lists(st.tuples(LONG_TEXTS, LONG_TEXTS), min_size=3, max_size=8),
    kind=DAMAGES,
    row=st.integers(0, 7),
    at=st.integers(0, 1000),
    share=st.sampled_from([0.01, 1]),
)
def test_damage_to_a_row_of_agnews_costs_that_row_only(tmp_path, monkeypatch, texts, kind, row, at, share):
    lines = ['"1","T{}","{}"\n'.format(*(t.replace('"', '""') for t in pair)).encode() for pair in texts]
    clean = [" ".join(map(readers.put_back_characters, (f"T{title}", text))).strip() for title, text in texts]
    path = tmp_path / "train.csv"
    path.write_bytes(b"".join(lines))
    assert readers.read_agnews(tasks.AGNEWS, path).first == clean

    row %= len(lines)
    lines[row] = damage(lines[row], kind, at, b'","')
    content = b"".join(lines)
    path.write_bytes(content)
    rows = read_or_refuse(readers.read_agnews, tasks.AGNEWS, path, share, monkeypatch)
    if rows is None:
        return
    assert len(rows) + len(rows.broken) >= len(re.findall(rb'^"1"', content, re.MULTILINE))
    assert rows.first[:row] == clean[:row]
    after = clean[
        row + 1 if lines[row].endswith(b"\n") else row + 2 :
    ]  # no line end: it took the next row along
    assert rows.first[len(rows) - len(after) :] == after


@any_text
@given(
    texts=st.lists(st.tuples(TEXTS, TEXTS), min_size=3, max_size=8),
    kind=DAMAGES,
    row=st.integers(0, 8),
    at=st.integers(0, 1000),
    share=st.sampled_from([0.01, 1]),
)
def test_every_line_of_a_damaged_tsv_file_is_read_or_broken(
    tmp_path, monkeypatch, texts, kind, row, at, share
):
    pairs = [[text.replace("\t", " ") for text in pair] for pair in texts]
    lines = [b"index\tsentence1\tsentence2\tlabel\n"]
    lines += ["0\tA{}\tB{}\t1\n".format(*pair).encode() for pair in pairs]
    path = tmp_path / "train.tsv"
    path.write_bytes(b"".join(lines))
    rows = readers.read_tsv(tasks.GLUE["wnli"], path)
    assert rows.first == [f"A{first}".strip() for first, _ in pairs]
    assert rows.second == [f"B{second}".strip() for _, second in pairs]

    row %= len(lines)
    lines[row] = damage(lines[row], kind, at, b"\t")
    path.write_bytes(b"".join(lines))
    rows = read_or_refuse(readers.read_tsv, tasks.GLUE["wnli"], path, share, monkeypatch)
    if rows is not None:
        assert len(rows) + len(rows.broken) == len(b"".join(lines).rstrip(b"\n").split(b"\n")) - 1


def real(task):
    """Split → rows of the real files, beside the checkout."""
    paths = task.paths(SHARED / "data")
    reader = readers.read_agnews if task is tasks.AGNEWS else readers.read_tsv
    return {split: reader(task, path) for split, path in paths.items()}


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no ../shared/data beside the checkout")
@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("sst-2", 67349, 872),
        ("cola", 8551, 1043),
        ("mrpc", 3668, 408),
        ("sts-b", 5749, 1500),
        ("wnli", 635, 71),
        ("agnews", 14929, 7600),
    ],
)
def test_the_real_files_read_whole(name, train, dev):
    task = (tasks.GLUE | {"agnews": tasks.AGNEWS})[name]
    rows = real(task)
    assert (len(rows["train"]), len(rows["dev"])) == (train, dev)
    assert not rows["train"].broken and not rows["dev"].broken
    if task.is_regression:
        assert any(label % 1 for label in rows["train"].labels)
    else:
        assert {*rows["dev"].labels} == {*range(task.outputs)}
    assert not any("#39;" in text for text in rows["train"].first)
