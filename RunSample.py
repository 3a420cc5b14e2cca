"""Walks the whole way on the sample that MakeSample.py made: prepare, convert, train, record.

    sample/data, sample/bert  →  sample/cache  →  sample/records

It calls the scripts as a user would run them, from the folder sample/ and with small settings, and prints
one table in the end. A user's own data/, bert/, cache/ and records/ are not touched.
"""

import os
import time
from pathlib import Path

import ConvertBert4Torch
import PrepareAgnews4Lstm
import PrepareGlue4Bert
import PrepareGlue4Lstm
import RunBert4Glue
import RunLstm4Agnews
import RunLstm4Glue
from MakeSample import SAMPLE
from pruning import records
from pruning.errors import UserError

# ----------------------------------------------------------------------------------------------
# Settings: what differs from the runners' own
deployable = ["random", "head", "tail", "frequency"]
bert_settings = {
    "pruning_methods": [
        *deployable,
        "column mean",
        "ideal emission rate student",
        "ideal gradients student",
        "ideal emission rate",
        "ideal gradients",
    ],
    "pruning_schedule": [0, 0, 0.5, 0, 0.5, 0],  # one rate for each of the sample BERT's six layers
    "task_names": ["sst-2", "mrpc", "sts-b"],
    "training_rows": 224,
    "dense_epochs": 5,
    "pruned_epochs": 1,
    "ramp_share": 0.5,
    "copies": 0,
    "learning_rate": 1e-4,
    "residue_learning_rate": 1e-4,  # at 1e-3 the few steps of the sample's pairs end in one answer for all
    "timing_examples": 16,
    "timing_passes": 2,
}
lstm_settings = {
    "pruning_methods": [
        *deployable,
        "lstm student",
        "integrated gradients student",
        "lstm",
        "integrated gradients",
    ],
    "target_prune_rate": 0.5,
    "dense_epochs": 4,
    "pruned_epochs": 1,
    "timing_examples": 64,
    "timing_passes": 3,
}
lstm_task_names = ["sst-2"]
# ----------------------------------------------------------------------------------------------

COLUMNS = (
    "task",
    "method",
    "metric",
    "value",
    "against dense",
    "token-layers kept",
    "examples/s",
    "speed-up",
)


def announce(text: str) -> None:
    print(f"\n=== {text} ===", flush=True)


def configure(runner, settings: dict) -> None:
    """Sets a runner's settings, as a user does in its source."""
    for name, value in settings.items():
        if not hasattr(runner, name):
            raise UserError(f"RunSample.py sets {name}, which {runner.__name__} does not have")
        setattr(runner, name, value)


def short_table(model: str) -> str:
    """One line for each task and method of all records of a model."""
    wanted = [records.HEADER.index(name) for name in COLUMNS]
    rows = records.summary_rows(records.read_all(model))
    return records.markdown(list(COLUMNS), [[row[i] for i in wanted] for row in rows])


def main() -> None:
    started = time.time()
    if not (SAMPLE / "bert" / "vocab.txt").is_file():
        raise UserError(f"no sample in {SAMPLE.absolute()}. Run: python MakeSample.py")
    home = Path.cwd()
    os.chdir(SAMPLE)
    for script in (PrepareGlue4Bert, PrepareGlue4Lstm, PrepareAgnews4Lstm, ConvertBert4Torch):
        announce(f"{script.__name__}.py")
        script.main([]) if script is ConvertBert4Torch else script.main()
    configure(RunBert4Glue, bert_settings)
    configure(RunLstm4Glue, {**lstm_settings, "task_names": lstm_task_names})
    configure(RunLstm4Agnews, lstm_settings)
    for runner in (RunBert4Glue, RunLstm4Glue, RunLstm4Agnews):
        announce(f"{runner.__name__}.py")
        runner.main()
    announce("The sample's records")
    for model in ("BERT", "LSTM"):
        print(f"{model}:\n{short_table(model)}\n")
    print(f"{records.LEGEND}\nThe sample shows that everything works, not how accurate it is.")
    print(f"Records, plots and pages of sentences: {Path.cwd() / records.RECORDS}")
    print(f"Done in {(time.time() - started) / 60:.1f} minutes.")
    os.chdir(home)


if __name__ == "__main__":
    main()
