"""The speed benchmark: what it counts, what it refuses, and that all of it runs and leaves its record."""

import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from pruning import teachers, timing
from pruning.errors import UserError
from pruning.flops import bert_head, bert_layer, lstm_layer, token_fusion
from pruning.layers import FastPaths
from pruning.timing import Variant
from studies import benchmark, tables, workloads
from studies.workloads import Berts, variant_of

TINY = {"hidden_size": 24, "num_hidden_layers": 6, "intermediate_size": 32, "num_attention_heads": 2}
CPU = torch.device("cpu")
STUDENT = "ideal gradients student"


@pytest.fixture
def berts(monkeypatch):
    monkeypatch.setitem(workloads.SHAPES, "tiny", TINY)
    torch.manual_seed(0)
    return Berts("tiny", CPU, torch.float32)


def batch_of(lengths):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.randint(1_000, 2_000, mask.shape) * mask, "attention_mask": mask.long()}


def test_flops_and_token_layers_are_those_of_what_runs(berts):
    batch, config = batch_of([20, 20, 10]), berts.dense.config
    head = 3 * bert_head(config)
    stock = variant_of(berts.stock, [batch])
    assert stock.flops == 3 * 6 * bert_layer(config, [(1, 20, 20)]) + head  # with the padding
    assert stock.token_layers == 6 * 50
    dense = variant_of(berts.dense, [batch])
    assert dense.flops == head + sum(5 * bert_layer(config, [(1, n, n)]) for n in (20, 20, 10)) + sum(
        bert_layer(config, [(1, n, 1)]) for n in (20, 20, 10)
    )
    pruned = berts.pruned(benchmark.schedules["heavy"], STUDENT)  # 0.8 before layer 1, 0.5 before layer 3
    assert variant_of(pruned, [batch]).token_layers == 50 + 2 * (4 + 4 + 2) + 3 * (2 + 2 + 1)
    plain = workloads.with_gains(pruned, FastPaths(unpadding=False, cls_only=False))
    student = 2 * (24 * 64 + 64)  # a multiplication and an addition for each weight
    assert variant_of(plain, [batch]).flops == head + 3 * (
        bert_layer(config, [(1, 20, 20)])
        + 20 * student
        + token_fusion(config.hidden_size)
        + 2 * bert_layer(config, [(1, 4, 4)])
        + 4 * student
        + token_fusion(config.hidden_size)
        + 3 * bert_layer(config, [(1, 2, 2)])
    )


def test_words_that_the_lstm_reads_are_counted(monkeypatch):
    monkeypatch.setattr(workloads, "draw_lengths", lambda _: torch.full((workloads.EXAMPLES,), 20))
    few, many = (workloads.lstms([0.9], size, 60, CPU, torch.float32) for size in (4, 32))
    dense, pruned = few["dense, padded"], few["0.9 removed, frequency"]
    assert (dense.examples, dense.token_layers) == (4, 80)
    assert dense.flops == few["dense, word table"].flops == 4 * lstm_layer(300, 300, 20)
    assert many["dense, word table"].flops == 32 * 19 * 2 * 4 * 300 * 300
    assert pruned.token_layers == 4 * 2 and pruned.flops == 4 * 2 * 4 * 300 * 300


def test_all_variants_of_a_shape_have_the_same_weights(berts):
    batch = batch_of([9, 5])
    whole = berts.pruned([], STUDENT)
    with torch.inference_mode():
        stock, dense, unpruned = (model(**batch).logits for model in (berts.stock, berts.dense, whole))
        plain = workloads.with_gains(berts.dense, None)(**batch).logits
    for logits in (dense, unpruned, plain):
        assert torch.allclose(logits, stock, atol=1e-6)
    assert berts.dense.bert.encoder.fast_paths == FastPaths()


def test_bf16_variants_hold_bf16_weights_and_pruners_of_fp32(monkeypatch):
    monkeypatch.setitem(workloads.SHAPES, "tiny", TINY)
    berts = Berts("tiny", CPU, torch.bfloat16)
    pruned = berts.pruned(benchmark.schedules["half"], STUDENT)
    for model in (berts.stock, berts.dense, pruned):
        assert model.bert.encoder.layer[0].intermediate.dense.weight.dtype == torch.bfloat16
    assert pruned.bert.encoder.pruners["1"].inner.weight.dtype == torch.float32
    with torch.inference_mode():
        assert pruned(**batch_of([20, 10])).logits.dtype == torch.bfloat16


def test_speed_ups_are_ratios_of_medians(monkeypatch):
    seconds = {"stock": [1.0, 2.0, 9.0], "ours": [0.5, 1.0, 3.0], "slow": [2.0, 4.0, 9.0]}
    monkeypatch.setattr(timing, "interleaved", lambda *_: seconds)
    variants = {
        name: Variant(lambda: None, 10, flops) for name, flops in zip(seconds, (40, 20, 40), strict=True)
    }
    rows = timing.measure(variants, fair=["stock", "slow"], dense="ours", device=CPU, passes=3)
    stock, ours, slow = rows["stock"], rows["ours"], rows["slow"]
    assert stock["speedup"] == 1 and ours["speedup"] == 2 and slow["speedup"] == 0.5
    assert ours["ms"] == 100 and ours["spread"] == [10 / 3, 20]  # examples per second
    assert slow["against_dense"] == 0.25 and slow["bound"] == 0.5 and slow["share_of_bound"] == 0.5


def test_lengths_follow_the_table():
    lengths = workloads.draw_lengths("sst-2").double()
    assert abs(lengths.mean() - 25.2) < 0.5 and lengths.min() == 4 and lengths.max() == 55
    assert set(workloads.draw_lengths("512").tolist()) == {512}


def test_the_shipped_schedules_keep_what_their_comments_say():
    for layers in (6, 12, 24):
        for name, share in {"light": 0.8, "half": 0.5, "heavy": 0.28}.items():
            alive, total = 1.0, 0.0
            for rate in workloads.schedule_of(benchmark.schedules[name], layers):
                alive *= 1 - rate
                total += alive / layers
            assert abs(total - share) < 0.01


def test_the_first_codes_teacher_is_the_ideal_emission_rate_and_no_more(berts):
    batch = batch_of([12, 7])
    wanted = dict.fromkeys((1, 4), "ideal emission rate")
    expected = teachers.score(berts.dense, batch, wanted, teachers.BERT_TEACHERS)
    eager = workloads.with_gains(berts.dense, None)
    eager.set_attn_implementation("eager")
    with torch.inference_mode():
        rates = workloads.emission_rates(eager, batch)
    assert len(rates) == 6
    for layer, scores in expected.items():
        assert torch.allclose(rates[layer], scores, atol=1e-6)
    assert berts.dense.config._attn_implementation == "sdpa"  # its own is left as it is


def test_the_first_code_prunes_padding_as_if_it_were_words(berts):
    [inputs] = workloads.first_code(berts, benchmark.schedules["half"], 4, 1)["the first code's way"].run.args
    seen = berts.pruned(benchmark.schedules["half"], "head")(**inputs[0])
    kept = [int((places >= 0).sum(dim=1).min()) for places in seen.kept]
    assert kept[0] == timing.PADDED and kept[-1] > timing.PADDED / 4  # whatever the sentences' lengths


def test_a_training_step_moves_the_model_and_its_student(berts):
    variants = workloads.training_steps(berts, benchmark.schedules, 4, Accelerator(cpu=True))
    model, before = variants[f"half, {STUDENT}"].run.args[0], berts.weights
    untrained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for variant in variants.values():
        variant.run()
    for name in ("bert.encoder.layer.5.output.dense.weight", "bert.encoder.pruners.1.inner.weight"):
        assert not torch.equal(model.state_dict()[name], untrained[name])
    for timed_elsewhere in (berts.stock, berts.dense):
        for name, tensor in timed_elsewhere.state_dict().items():
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("bert_shapes", ["huge"], ", entry 0: unknown name 'huge'"),
        ("lengths_of", ["sst-2", "qqp"], ", entry 1: unknown name 'qqp'"),
        ("lengths_of", ["513"], ", entry 0: unknown name '513'"),
        ("pruning_methods", ["ideal gradients"], ", entry 0: unknown name 'ideal gradients'"),
        ("schedules", {"light": [(0.5, 0.5)]}, ": one has to be called 'half'"),
        ("fewest_passes", 0, ": it should be greater than 0"),
    ],
)
def test_a_setting_that_cannot_work_stops_the_benchmark_at_once(monkeypatch, name, value, sentence):
    monkeypatch.setattr(benchmark, name, value)
    with pytest.raises(UserError) as stopped:
        benchmark.main()
    assert str(stopped.value).startswith(f"{name} in benchmark.py{sentence}")


SMALL = {
    "bert_shapes": ["tiny"],
    "lengths_of": ["sst-2", "128"],
    "batch_sizes": [1, 4],
    "pruning_methods": ["head", STUDENT],
    "lstm_batch_sizes": [4],
    "lstm_rates": [0.9],
    "tokens_a_pass": 60,
    "seconds_a_cell": 0,
    "fewest_passes": 1,
}


def run_small(monkeypatch, world):
    """A small run in fp32. Returns the folders of all runs in `world`."""
    monkeypatch.chdir(world)
    monkeypatch.setitem(workloads.SHAPES, "tiny", TINY)
    monkeypatch.setattr("pruning.devices.best_precision", lambda _: ("no", "this is a test"))
    for name, value in SMALL.items():
        monkeypatch.setattr(benchmark, name, value)
    AcceleratorState._reset_state(True)  # whatever other tests trained in
    benchmark.main()
    AcceleratorState._reset_state(True)
    return list(world.glob("records/benchmark/*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        [folder] = run_small(monkeypatch, tmp_path_factory.mktemp("benchmark"))
    return folder


@pytest.fixture(scope="module")
def record(folder):
    return json.loads((folder / "record.json").read_text())


def test_a_run_leaves_its_record_tables_and_picture_in_a_folder(folder, record):
    assert folder.name.startswith("CPU-1-thread-")
    assert {path.name for path in folder.iterdir()} == {"record.json", "tables.md", "speed.png"}
    for cell in record["cells"]:
        assert f"## {cell['title']}\n" in (folder / "tables.md").read_text()


def test_a_run_with_other_settings_has_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setitem(SMALL, "bert_shapes", [])
    assert len(run_small(monkeypatch, tmp_path)) == 1
    assert len(run_small(monkeypatch, tmp_path)) == 1
    monkeypatch.setitem(SMALL, "lstm_rates", [0.5])
    assert len(run_small(monkeypatch, tmp_path)) == 2


def test_all_of_it_runs(record):
    assert record["settings"] == json.loads(json.dumps(SMALL | {"schedules": benchmark.schedules}))
    assert record["processor"] and record["precision"] == "fp32"
    cells = {cell["title"]: cell for cell in record["cells"]}
    assert [cell["kind"] for cell in cells.values()] == [
        *("bert", "bert", "bert", "gains", "gains", "first code", "training", "lstm")
    ]
    schedules = ["light, " + STUDENT, "half, head", "half, " + STUDENT, "heavy, " + STUDENT]
    rows = cells["tiny, fp32, lengths of sst-2, batches of 4"]["rows"]
    assert list(rows) == ["stock, padded to 128", "stock, length-sorted", "ours, dense", *schedules]
    assert rows["stock, length-sorted"]["speedup"] == 1 and rows["ours, dense"]["token_layers_kept"] == 1
    assert "token_layers_kept" not in rows["stock, padded to 128"]  # it may be timed on fewer examples
    assert "stock, padded to 128" not in cells["tiny, fp32, lengths of 128, batches of 1"]["rows"]
    gains = cells["tiny, fp32, each gain, sst-2, batches of 32"]["rows"]
    assert list(gains)[:2] == ["stock (sorted)", "stock layers (sorted)"]
    assert [name for name in gains if name.endswith("(as they come)")] == [
        "stock (as they come)",
        "only unpadding (as they come)",
        "all (as they come)",
    ]


def test_the_lstms_speed_ups_are_against_the_fastest_dense_one(monkeypatch, tmp_path):
    seconds = {"dense, packed": [2.0], "dense, padded": [3.0], "dense, word table": [1.0]}
    monkeypatch.setattr(timing, "interleaved", lambda runs, *_: {name: [4.0] for name in runs} | seconds)
    monkeypatch.setitem(SMALL, "bert_shapes", [])
    [folder] = run_small(monkeypatch, tmp_path)
    [cell] = json.loads((folder / "record.json").read_text())["cells"]
    assert {name: row["speedup"] for name, row in cell["rows"].items()} == {
        "dense, packed": 0.5,
        "dense, padded": 1 / 3,
        "dense, word table": 1,
        "0.9 removed, student": 0.25,
        "0.9 removed, frequency": 0.25,
        "0.9 removed, student, no fast paths": 0.25,
    }
    assert cell["rows"]["0.9 removed, student"]["against_dense"] == 0.25  # the one of the word table: ours


def test_a_record_has_the_form_of_the_published_one(record):
    [published, gpu] = tables.published("benchmark")["records"]
    assert set(gpu) == set(published) and tables.is_gpu(gpu) and not tables.is_gpu(published)
    assert set(record) == set(published)
    kinds = {cell["kind"]: set(cell) for cell in published["cells"]}
    assert {cell["kind"]: set(cell) for cell in record["cells"]} == kinds
    for kind in ("bert", "lstm"):
        [row, *_] = tables.cells_of(published, kind=kind)[0]["rows"].values()
        [own, *_] = tables.cells_of(record, kind=kind)[0]["rows"].values()
        assert set(row) == set(own)


def test_the_tables_of_the_pages_can_be_made_of_a_record(record):
    made = {name: tables.TABLES[name][0]([record]) for name in ("speed", "pruners", "lstm-speed", "gains")}
    sizes = ["tiny, sst-2, fp32, batch 1", "tiny, sst-2, fp32, batch 4", "tiny, 128, fp32, batch 1"]
    assert [row[0] for row in made["speed"][1]] == sizes
    assert made["pruners"][0][1:] == ["half, head", f"half, {STUDENT}"]
    header, rows = made["lstm-speed"]
    assert header[1:] == ["fp32, batch 4"] and rows[0][0] == "dense, packed"
    assert made["gains"][1][0][0] == "stock (sorted)"


def test_bf16_is_timed_too_where_the_device_computes_in_it(monkeypatch):
    accelerator = Accelerator(cpu=True)
    for precision, names in {"bf16": ["fp32", "bf16"], "fp32": ["fp32"]}.items():
        monkeypatch.setattr("pruning.devices.precision_name", lambda _, name=precision: name)
        assert list(benchmark.Benchmark(None, accelerator).precisions) == names
