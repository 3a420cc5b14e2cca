"""The recipe on a planted task: one word in twenty decides, and only it."""

import random

import pytest
from conftest import BAD, GOOD, PLAIN, write_task
from running import found, runner

import PrepareGlue4Bert
import PrepareGlue4Lstm
import RunBert4Glue
import RunLstm4Glue

COMMON = {
    "task_names": ["sst-2"],
    "seeds": [0],
    "batch_size": 16,
    "timing_examples": 4,
    "timing_passes": 1,
    "shown_examples": 50,
}
BERT = COMMON | {
    "pruning_schedule": [0.8, 0, 0],
    "layers": None,
    "pruning_methods": ["ideal gradients student", "random"],
    "removed_tokens": "gone",  # so that only the choice counts: the mean of what goes tells of the word too
    "learning_rate": 2e-3,
    "dense_epochs": 8,
    "pruned_epochs": 4,
}
LSTM = COMMON | {
    "target_prune_rate": 0.8,
    "pruning_methods": ["integrated gradients student", "random"],
    "removed_tokens": "gone",
    "dense_epochs": 6,
    "pruned_epochs": 3,
}


def planted_row(rng: random.Random, index: int) -> str:
    words = rng.choices(PLAIN, k=rng.randint(17, 23))
    words[rng.randrange(len(words))] = rng.choice(GOOD if index % 2 else BAD)
    return f"{' '.join(words)}\t{index % 2}"


def accuracy(record: dict) -> float:
    return record["splits"]["dev"]["metrics"]["accuracy"]


def share_of_deciding_words_kept(record: dict) -> float:
    """Of the sentences shown, how many keep the word that decides. (All of one class need not: that there
    is no word of the other class says the same.)"""
    kept = []
    for shown in record["shown"]:
        [sentence] = shown["sentences"]
        positions = [i for i, word in enumerate(sentence["words"]) if word in GOOD + BAD]
        kept.append(all(sentence["dropped"][i] is None for i in positions))
    return sum(kept) / len(kept)


@pytest.mark.parametrize(
    ("script", "prepare", "settings"),
    [(RunBert4Glue, PrepareGlue4Bert, BERT), (RunLstm4Glue, PrepareGlue4Lstm, LSTM)],
)
def test_students_find_the_words_that_decide(world, monkeypatch, script, prepare, settings):
    write_task(world / "data/SST-2", "sentence\tlabel", planted_row, train=400, dev=100)
    prepare.main()
    runner(script, settings, monkeypatch)()
    made = found("BERT" if script is RunBert4Glue else "LSTM")
    assert accuracy(made["dense"]) > 0.97
    for method in settings["pruning_methods"]:
        record = made[method]
        assert record["splits"]["dev"]["token_layers_kept"] < 0.3
        if method in ("ideal gradients student", "integrated gradients student"):
            assert accuracy(record) > 0.95 and share_of_deciding_words_kept(record) > 0.6
        elif method == "random":
            assert accuracy(record) < 0.85 and share_of_deciding_words_kept(record) < 0.4
