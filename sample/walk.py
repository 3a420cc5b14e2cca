"""Walks through the sample world with every script: prepare, convert, train, record.

    sample/world/data, sample/world/bert  →  sample/world/cache  →  sample/world/records

    python -m sample.walk

It runs the scripts as a user does, but in the folder sample/world/ and with small settings, and prints one
table in the end. The user's own data/, bert/, cache/ and records/ are not touched.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import ConvertBert4Torch
import PrepareAgnews4Lstm
import PrepareGlue4Bert
import PrepareGlue4Lstm
import RunBert4Glue
import RunLstm4Agnews
import RunLstm4Glue
from pruning import records
from pruning.errors import UserError, run_script
from pruning.settings import PLAIN
from sample.make import WORLD

# ----------------------------------------------------------------------------------------------
# Settings: what differs from the runners' own
bert_settings = {
    "pruning_schedule": [0, 0, 0.5, 0, 0.5, 0],  # one rate for each of the six layers of the sample's BERT
    "removed_tokens": "fused",  # it was trained to be read by the mean of its tokens
    "pruning_methods": [
        *("random", "head", "tail", "frequency", "column mean"),
        *("ideal emission rate student", "ideal gradients student"),
        *("ideal emission rate", "ideal gradients"),
    ],
    "task_names": ["sst-2", "mrpc", "sts-b"],
    "training_rows": 224,
    "dense_epochs": 5,
    "pruned_epochs": 1,
    "learning_rate": 1e-4,
    "fusion_learning_rate": 1e-4,  # at 1e-3 the few steps on pairs end in one answer for every pair
    "ramp_share": 0.5,
    "augmented_copies": 0,
    "timing_examples": 16,
    "timing_passes": 2,
    "save_models": {"sst-2": True, "other": False},  # 0.1 GB each
}
lstm_settings = {
    "target_prune_rate": 0.5,
    "pruning_methods": [
        *("random", "head", "tail", "frequency"),
        *("lstm student", "integrated gradients student"),
        *("lstm", "integrated gradients"),
    ],
    "removed_tokens": "gone",  # what is fused tells of the deciding words too, whatever the choice
    "dense_epochs": 4,
    "pruned_epochs": 1,
    "timing_examples": 64,
    "timing_passes": 3,
}
lstm_glue_settings = {**lstm_settings, "task_names": ["sst-2"]}
# ----------------------------------------------------------------------------------------------

PREPARE = (PrepareGlue4Bert, PrepareGlue4Lstm, PrepareAgnews4Lstm)
COLUMNS = (
    *("task", "method", "metric", "value", "against dense"),
    *("token-layers kept", "examples/s", "speed-up"),
)


def configure(runner: ModuleType, settings: dict[str, Any]) -> None:
    """Sets a runner's settings, as a user does in its source. Raises UserError for a name that is none."""
    for name, value in settings.items():
        if not name.islower() or not isinstance(getattr(runner, name, runner), PLAIN):
            raise UserError(f"sample/walk.py sets {name}, which is not a setting of {runner.__name__}.py")
        setattr(runner, name, value)


def run(script: ModuleType, *arguments: list[str]) -> None:
    print(f"\n=== {script.__name__}.py ===", flush=True)
    script.main(*arguments)


def table() -> str:
    """One row for each model, task and method with a record in the current folder."""
    rows = [
        [model, *(line.cells[name] for name in COLUMNS)]
        for model in records.MODELS
        for line in records.summary_lines(records.read_all(model))
    ]
    return records.markdown(["model", *COLUMNS], rows)


def main() -> None:
    started = time.time()
    if not (WORLD / "bert" / "vocab.txt").is_file():
        raise UserError(f"no sample in {WORLD}. Run: python -m sample.make")
    configure(RunBert4Glue, bert_settings)
    configure(RunLstm4Glue, lstm_glue_settings)
    configure(RunLstm4Agnews, lstm_settings)
    with contextlib.chdir(WORLD):
        for script in PREPARE:
            run(script)
        run(ConvertBert4Torch, [])
        for runner in (RunBert4Glue, RunLstm4Glue, RunLstm4Agnews):
            run(runner)
        print(f"\n=== The sample's records ===\n{table()}\n\n{records.LEGEND}")
        kept = [*records.RECORDS.glob("BERT/sst-2/ideal-gradients-student-*")]
    print("The sample shows that everything works, not how accurate it is.")
    world = Path(os.path.relpath(WORLD))
    print(f"Every run and its page of sentences: {world / records.RECORDS / records.INDEX}")
    for folder in kept:
        ask = f"{sys.executable} -m pruning.predict {world / folder}"
        print(f'A sentence of yours: {ask} "what a lovely film" --words')
    print(f"Done in {(time.time() - started) / 60:.1f} minutes.")


if __name__ == "__main__":
    run_script(main)
