"""What the three Prepare scripts share: the settings' check, which caches are due, what is printed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning import caches, tasks
from pruning.batches import Examples
from pruning.errors import UserError
from pruning.tasks import Rows, Task

SHOWN_BROKEN = 5


def check_number(script: str, name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises UserError if a setting is no whole number from `least` to `most` (None: no upper limit)."""
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} in {script} is {value!r}; it must be a whole number {wanted}")


def due(
    all_tasks: Iterable[Task], model: str, settings: dict[str, Any], sources: Sequence[Path] = ()
) -> Iterator[tuple[Task, dict[str, str]]]:
    """The tasks whose data is there and whose cache is not up to date.

    Args:
        model: "bert" or "lstm".
        settings: what the script was told; kept in the cache.
        sources: files beside the data that the cache depends on (a vocabulary).

    Yields:
        Each task and the fingerprints of the files that its cache is made from.

    Raises:
        UserError: if no data is there, or a file cannot be read.
    """
    for task in tasks.available(all_tasks):
        path = caches.path_of(model, task.name)
        try:
            fingerprints = caches.fingerprints([*task.paths().values(), *sources])
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        if caches.is_current(path, settings, fingerprints):
            print(f"{task.name}: {path} is up to date, nothing to do")
        else:
            yield task, fingerprints


def read(task: Task, reader: Callable[[Task, Path], Rows]) -> dict[str, Rows]:
    """Split → rows, with a report of how many each file gave and which were broken.

    Raises:
        UserError: for a file that cannot be read, or training rows of one class only.
    """
    rows = {split: reader(task, path) for split, path in task.paths().items()}
    report_rows(task, rows)
    labels = set(rows["train"].labels)
    if len(labels) == 1 and not task.is_regression:
        name = task.label_name(labels.pop())
        raise UserError(f"{task.paths()['train']}: all rows are of the class {name!r}; training needs two")
    return rows


def save(
    task: Task,
    model: str,
    settings: dict[str, Any],
    fingerprints: dict[str, str],
    vocabulary: list[str],
    examples: Mapping[str, Examples],
) -> None:
    """Writes the cache of a task and prints what is in it."""
    path = caches.path_of(model, task.name)
    cache = {
        "task": task.name,
        "model": model,
        "settings": settings,
        "fingerprints": fingerprints,
        "sample": caches.SAMPLE_MARK.is_file(),
        "vocabulary": vocabulary,
        "counts": count_words(examples["train"], len(vocabulary)),
        "splits": {split: part.to_columns() for split, part in examples.items()},
    }
    caches.save(path, cache)
    report_examples(task, examples, vocabulary)
    print(f"{task.name}: written to {path} ({path.stat().st_size / 1e6:.1f} MB)\n")


def count_words(examples: Examples, vocabulary_size: int) -> Tensor:
    """(V,) int64, how often each id stands in these examples."""
    ids = torch.cat([sentence.flat for sentence in examples.sentences()])
    return ids.bincount(minlength=vocabulary_size)


def report_rows(task: Task, rows: dict[str, Rows]) -> None:
    """Prints how many rows each file gave, and its broken ones with their line numbers."""
    for split, part in rows.items():
        path = task.paths()[split]
        print(f"{task.name}: {path}: {len(part):,} rows, {len(part.broken):,} broken and skipped")
        for line, why in part.broken[:SHOWN_BROKEN]:
            print(f"    line {line}: {why}")
        if len(part.broken) > SHOWN_BROKEN:
            print(f"    and {len(part.broken) - SHOWN_BROKEN} more")


def report_examples(task: Task, examples: Mapping[str, Examples], vocabulary: list[str]) -> None:
    """Prints lengths, the share of each class, and three examples decoded from their ids."""
    for split, part in examples.items():
        lengths = part.lengths.float()
        print(
            f"{task.name}: {split}: {len(part):,} examples of {lengths.mean():.1f} tokens "
            f"(longest {int(lengths.max())}), {label_shares(task, part)}"
        )
    train = examples["train"]
    for row in range(min(3, len(train))):
        print(f"    [{task.label_name(float(train.labels[row]))}] {decode(train, row, vocabulary)}")


def label_shares(task: Task, examples: Examples) -> str:
    """The share of each class, or the mean score."""
    if task.is_regression:
        return f"mean score {examples.labels.mean():.2f}"
    shares = examples.labels.long().bincount(minlength=task.outputs) / len(examples)
    names = task.classes.values()
    return ", ".join(f"{share:.0%} {name}" for name, share in zip(names, shares, strict=True))


def decode(examples: Examples, row: int, vocabulary: list[str]) -> str:
    """The words of one example as the model sees them, the sentences of a pair divided by a bar."""
    texts = [" ".join(vocabulary[i] for i in sentence.row(row)) for sentence in examples.sentences()]
    return " | ".join(texts)
