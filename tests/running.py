"""What the tests of the runners share: small settings, and the records that a run leaves."""

import gc

import RunBert4Glue
from pruning import bert, devices, grid, records, settings
from pruning.tasks import GLUE

SMALL = {
    "seeds": [0],
    "dense_epochs": 1,
    "pruned_epochs": 1,
    "batch_size": 8,
    "timing_examples": 4,
    "timing_passes": 1,
    "shown_examples": 3,
}
BERT = SMALL | {
    "pruning_schedule": [0, 0.5, 0.5],
    "layers": None,
    "removed_tokens": "fused",
    "task_names": ["sst-2"],
    "pruning_methods": ["head"],
}
LSTM = SMALL | {"target_prune_rate": 0.5, "pruning_methods": ["lstm student"], "removed_tokens": "fused"}


def runner(module, chosen, monkeypatch):
    """main() of a runner with these settings and whatever else is given for one call."""
    shipped = {name: value for name, value in vars(module).items() if isinstance(value, settings.PLAIN)}
    shipped = {name: value for name, value in shipped.items() if name[0].islower()}
    gc.freeze()  # every training collects garbage: not among what was imported

    def main(**changes):
        for name, value in (shipped | chosen | changes).items():
            monkeypatch.setattr(module, name, value)
        module.main()

    return main


def found(model, **wanted):
    """Records by method, of those with these fields."""
    chosen = [r for r in records.read_all(model) if all(r[k] == v for k, v in wanted.items())]
    return {r["method"]: r for r in chosen}


def files(world, model):
    """Every record's file, and when it was written."""
    return {p: p.stat().st_mtime_ns for p in (world / "records" / model).glob("*/*/record.json")}


def experiment(**changes):
    """One task and seed of RunBert4Glue, not yet trained, in a world with sst-2."""
    block = settings.Block.read(vars(RunBert4Glue) | BERT | changes, settings.BertSettings)
    values, pretrained = block.for_task("sst-2"), bert.Pretrained.read()
    [data] = bert.open_tasks(pretrained, [GLUE["sst-2"]])
    builder = bert.BertBuilder(pretrained, data, values, block.script)
    return grid.Experiment(builder, values, 0, devices.pick_device())


def without_times(record):
    """A record, less what differs from run to run."""
    timings = record["timings"] or {}
    flops = {name: row["flops"] for name, row in timings.items()}
    left_out = ("wall_seconds", "environment")
    return {name: value for name, value in record.items() if name not in left_out} | {"timings": flops}
