"""Answers of a model that a run kept.

    python -m pruning.predict FOLDER "a gripping film" "dull"       label, probability, sentence
    python -m pruning.predict FOLDER --words < sentences.txt        and the words that each layer dropped
    python -m pruning.predict FOLDER --glue                         GLUE's test file, as its server takes it

FOLDER is a run's, such as records/BERT/sst-2/head-seed0-1a2b3c4d. A pair is two sentences with a tab between.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from pruning import devices, errors, readers, records, saved
from pruning.errors import UserError
from pruning.saved import Answer, SavedModel, Text
from pruning.tasks import task_of


def line_of(text: Text, answer: Answer) -> str:
    """Label, probability (none of a score), text."""
    probability = [] if answer.probability is None else [f"{answer.probability:.3f}"]
    return "\t".join([answer.label, *probability, text if isinstance(text, str) else "\t".join(text)])


def dropped_words(answer: Answer) -> list[str]:
    """A line for each layer before which words went, in the order of the layers; one for the others."""
    by_layer: dict[str | None, list[str]] = {}
    for sentence in answer.sentences:
        for word, layer in zip(sentence["words"], sentence["dropped"], strict=True):
            by_layer.setdefault(layer, []).append(word)
    stayed = by_layer.pop(None, [])
    layers = sorted(filter(None, by_layer), key=lambda layer: (len(layer), layer))  # layer 9 before layer 10
    dropped = [f"    dropped before {layer}: {' '.join(by_layer[layer])}" for layer in layers]
    return [*dropped, f"    kept: {' '.join(stayed)}"]


def lines_of_input() -> list[str]:
    """The lines of standard input, in UTF-8 whatever the console's own letters are."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is no text in UTF-8: {error}") from None
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []


def write_glue(model: SavedModel) -> None:
    """Answers GLUE's test files of the model's task, in the run's folder: index, prediction. Raises UserError
    where there is none."""
    task = task_of(model.task)
    files = task.test_paths()
    if not files:
        raise UserError(f"there is no test file of {task.name} in data/{task.folder}")
    model.model.to(devices.find_device())  # a test file may have 391,000 pairs
    as_in_file = {shown: in_file for in_file, shown in task.classes.items()}
    for name, path in files.items():
        answers = model.answer(readers.read_test(task, path), with_words=False)
        labels = [answer.label for answer in answers]
        lines = [f"{i}\t{as_in_file.get(label, label)}" for i, label in enumerate(labels)]
        target = model.folder.parent / f"{name}.tsv"
        records.write_text(target, "\n".join(["index\tprediction", *lines, ""]))
        print(f"{target}: {len(lines):,} answers to {path}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pruning.predict", description="Answers of a model that a run kept."
    )
    parser.add_argument("folder", type=Path, help="a run's folder in records/")
    parser.add_argument("texts", nargs="*", help="sentences; none: one a line from standard input")
    parser.add_argument("--words", action="store_true", help="also the words that each layer dropped")
    parser.add_argument("--glue", action="store_true", help="answer GLUE's test file of the model's task")
    given = parser.parse_intermixed_args(arguments)
    model = saved.load(given.folder)
    if given.glue:
        write_glue(model)
        return
    lines = given.texts or lines_of_input()
    try:
        "".join(given.texts).encode()
    except UnicodeEncodeError:
        raise UserError("a sentence on the command line is no text in UTF-8") from None
    texts: list[Any] = [tuple(line.split("\t")) if model.is_pair else line for line in lines]
    for text, answer in zip(texts, model.answer(texts, given.words), strict=True):
        print(line_of(text, answer), *(dropped_words(answer) if given.words else []), sep="\n")


if __name__ == "__main__":
    errors.run_script(main)
