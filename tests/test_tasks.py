"""Readers, on files in the official layouts with what is wrong with them in real life."""

import pytest
from conftest import SHARED

import PrepareAgnews4Lstm
from pruning import tasks
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
    return tasks.read_tsv(tasks.GLUE[name], path)


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
    rows = tasks.read_tsv(tasks.GLUE["mnli"], path)
    assert [rows.first[0], rows.second[0]] == sentences and rows.labels == [label]
    assert tasks.GLUE["mnli"].dev_splits == ("dev", "dev_mismatched")


@pytest.mark.parametrize("name", list(tasks.GLUE))
def test_broken_rows_are_skipped_counted_and_named(tmp_path, name):
    _, row, sentences, _ = ROWS[name]
    fields = row.split("\t")
    empty = [f if f.strip() != sentences[-1] else "  " for f in fields]
    lines = [row] * 398 + ["\t".join(fields[:-1]), row, "\t".join(empty), row, ""]
    rows = read(tmp_path, name, lines)
    first = 399 + (ROWS[name][0] is not None)
    assert len(rows) == 400
    assert [line for line, _ in rows.broken] == [first, first + 2, first + 4]
    assert "fields" in rows.broken[0][1] and rows.broken[1][1] == "empty sentence"


def test_more_than_one_percent_of_broken_rows_is_an_error(tmp_path):
    row = ROWS["sst-2"][1]
    with pytest.raises(UserError, match=r"train\.tsv: 2 of 100 rows .* line 100: unknown label '7'"):
        read(tmp_path, "sst-2", [row] * 98 + ["fine\t7"] * 2)


def test_a_wrong_header_is_an_error(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\nfine\t1\n")
    with pytest.raises(UserError, match=r"line 1: the header has no column 'sentence'; it reads: text"):
        tasks.read_tsv(tasks.GLUE["sst-2"], path)


def test_undecodable_bytes_are_an_error_with_their_line(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(b"sentence\tlabel\nfine\t1\ncaf\xe9\t1\n")
    with pytest.raises(UserError, match=r"train\.tsv, line 3: not UTF-8"):
        tasks.read_tsv(tasks.GLUE["sst-2"], path)


@pytest.mark.parametrize("score", ["5.1", "-1", "nan", "high", ""])
def test_scores_outside_the_range_are_broken(tmp_path, score):
    row = ROWS["sts-b"][1]
    rows = read(tmp_path, "sts-b", [row] * 200 + [row.replace("2.800", score)])
    assert len(rows) == 200 and len(rows.broken) == 1


def test_line_separators_within_a_sentence_do_not_break_a_row(tmp_path):
    rows = read(tmp_path, "sst-2", ["one\u2028two\x0cthree\t1"])
    assert rows.first == ["one\u2028two\x0cthree"]


def agnews(tmp_path, text):
    path = tmp_path / "train.csv"
    path.write_bytes(text.encode("utf-8-sig"))
    return PrepareAgnews4Lstm.read_csv(tasks.AGNEWS, path)


def test_agnews_reads_title_and_text(tmp_path):
    rows = agnews(
        tmp_path,
        '"3","Wall ""St."" Bears","Short-sellers, Wall Street\'s\\band"\r\n'
        '"1","N/A","the Web #39;s &lt;b&gt;"\r\n',
    )
    assert rows.first == ['Wall "St." Bears Short-sellers, Wall Street\'s\\band', "N/A the Web's <b>"]
    assert rows.labels == [2, 0] and rows.second is None


def test_agnews_broken_rows_keep_their_line_numbers(tmp_path):
    good = '"1","A","two\nlines"'
    rows = agnews(tmp_path, "\n".join([good, '"1","only"', '"9","a","b"', '"1","","x"', '"1","a","b","c"']
                                      + [good] * 500) + "\n")  # fmt: skip
    assert len(rows) == 501
    assert [line for line, _ in rows.broken] == [3, 4, 5, 6]


def test_agnews_with_a_quote_that_never_closes_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"train\.csv"):
        agnews(tmp_path, '"1","a","b"\n"2","c","d\n')


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no ../shared/data beside the checkout")
@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [
        ("sst-2", 67349, 872),
        ("cola", 8551, 1043),
        ("mrpc", 3668, 408),
        ("sts-b", 5749, 1500),
        ("wnli", 635, 71),
    ],
)
def test_the_real_files_read_whole(name, train, dev):
    task = tasks.GLUE[name]
    rows = {s: tasks.read_tsv(task, p) for s, p in task.paths(SHARED / "data").items()}
    assert (len(rows["train"]), len(rows["dev"])) == (train, dev)
    assert not rows["train"].broken and not rows["dev"].broken
    if task.is_regression:
        assert any(label % 1 for label in rows["train"].labels)


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="no ../shared/data beside the checkout")
def test_the_real_agnews_reads_whole():
    for path, count in zip(tasks.AGNEWS.paths(SHARED / "data").values(), (14929, 7600), strict=True):
        rows = PrepareAgnews4Lstm.read_csv(tasks.AGNEWS, path)
        assert len(rows) == count and not rows.broken
        assert set(rows.labels) == {0, 1, 2, 3}
        assert not any("#39;" in text for text in rows.first)
