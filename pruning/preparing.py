"""What the three Prepare scripts share: the check of a setting, the caches that are due, what is printed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pruning import caches, readers, tasks
from pruning.batches import Examples
from pruning.errors import UserError
from pruning.tasks import Rows, Task

SHOWN_BROKEN = 5


def check_number(script: str, name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises UserError if a setting is no whole number from `least` to `most` (None: no upper limit)."""
    if not isinstance(value, int) or value < least or (most is not None and value > most):
        wanted = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} in {script} is {value!r}; it must be a whole number {wanted}")


def prepare(
    model: str,
    all_tasks: Iterable[Task],
    settings: dict[str, Any],
    encode: Callable[[dict[str, Rows]], tuple[list[str], Mapping[str, Examples]]],
    sources: Sequence[Path] = (),
) -> None:
    """Writes the cache of every task whose data is there and whose cache is not up to date.

    Args:
        model: "bert" or "lstm".
        settings: what the script was told; kept in the cache.
        encode: split → rows, to the vocabulary and split → examples.
        sources: files beside the data that the cache depends on (a vocabulary).

    Raises:
        UserError: if no data is there, a file cannot be read, or training rows are of one class only.
    """
    for task in tasks.available(all_tasks):
        path = caches.path_of(model, task.name)
        try:
            made_from = [*task.paths().values(), *sources]
            files = {file.as_posix(): caches.fingerprint(file) for file in made_from}
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        fingerprints = files | caches.fingerprint_of_entry(task)
        if caches.is_current(path, settings, fingerprints):
            print(f"{task.name}: {path} is up to date, nothing to do")
            continue
        vocabulary, examples = encode(read(task))
        ids = torch.cat([sentence.flat for sentence in examples["train"].sentences()])
        cache = {
            "task": task.name,
            "model": model,
            "settings": settings,
            "fingerprints": fingerprints,
            "sample": caches.SAMPLE_MARK.is_file(),
            "vocabulary": vocabulary,
            "counts": ids.bincount(minlength=len(vocabulary)),
            "splits": {split: part.to_columns() for split, part in examples.items()},
        }
        caches.save(path, cache)
        report(task, examples, vocabulary)
        print(f"{task.name}: written to {path} ({path.stat().st_size / 1e6:.1f} MB)\n")


def read(task: Task) -> dict[str, Rows]:
    """Split → rows; prints how many each file gave, and its broken ones with their places."""
    rows = {}
    for split, path in task.paths().items():
        rows[split] = readers.read(task, path)
        broken = rows[split].broken
        print(f"{task.name}: {path}: {len(rows[split]):,} rows, {len(broken):,} broken and skipped")
        for line, why in broken[:SHOWN_BROKEN]:
            print(f"    {readers.place_of(path, line)}: {why}")
        if len(broken) > SHOWN_BROKEN:
            print(f"    and {len(broken) - SHOWN_BROKEN} more")
    labels = set(rows["train"].labels)
    if len(labels) == 1 and not task.is_regression:
        name = task.label_name(labels.pop())
        raise UserError(f"{task.paths()['train']}: all rows are of the class {name!r}; training needs two")
    return rows


def report(task: Task, examples: Mapping[str, Examples], vocabulary: list[str]) -> None:
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
