"""What the three Prepare scripts share: which caches are due, and what is printed about them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pruning import caches, tasks
from pruning.batches import Examples
from pruning.tasks import Rows, Task

SHOWN_BROKEN = 5
Reader = Callable[[Task, Path], Rows]


def prepare(
    all_tasks: Sequence[Task],
    model: str,
    settings: dict[str, Any],
    sources: Sequence[Path],
    read: Reader,
    encode: Callable[[dict[str, Rows]], tuple[list[str], dict[str, Examples]]],
) -> None:
    """Makes the cache of every task whose data is there, unless it is there already.

    Args:
        model: "bert" or "lstm".
        settings: what the script was told; kept in the cache.
        sources: files beside the data that the cache depends on (a vocabulary).
        read: reads one file.
        encode: split → rows, to the vocabulary and split → examples.

    Raises:
        UserError: if no data is there, or a file cannot be read.
    """
    for task in tasks.available(all_tasks):
        path = caches.path_of(model, task.name)
        prints = caches.fingerprints([*task.paths().values(), *sources])
        if caches.is_current(path, settings, prints):
            print(f"{task.name}: {path} is up to date, nothing to do")
            continue
        rows = {split: read(task, file) for split, file in task.paths().items()}
        report_rows(task, rows)
        vocabulary, examples = encode(rows)
        cache = {
            "task": task.name,
            "model": model,
            "settings": settings,
            "fingerprints": prints,
            "sample": caches.SAMPLE_MARK.is_file(),
            "vocabulary": vocabulary,
            "counts": count_words(examples["train"], len(vocabulary)),
            "splits": {split: part.to_columns() for split, part in examples.items()},
        }
        caches.save(path, cache)
        report_examples(task, examples, vocabulary)
        print(f"{task.name}: written to {path} ({path.stat().st_size / 1e6:.1f} MB)\n")


def count_words(examples: Examples, vocabulary_size: int):
    """(V,) int64, how often each id stands in these examples."""
    counts = examples.ids.flat.bincount(minlength=vocabulary_size)
    if examples.second_ids is not None:
        counts += examples.second_ids.flat.bincount(minlength=vocabulary_size)
    return counts


def report_rows(task: Task, rows: dict[str, Rows]) -> None:
    """Prints how many rows each file gave, and its broken ones with their line numbers."""
    for split, part in rows.items():
        path = task.paths()[split]
        print(f"{task.name}: {path}: {len(part):,} rows, {len(part.broken):,} broken and skipped")
        for line, why in part.broken[:SHOWN_BROKEN]:
            print(f"    line {line}: {why}")
        if len(part.broken) > SHOWN_BROKEN:
            print(f"    and {len(part.broken) - SHOWN_BROKEN} more")


def report_examples(task: Task, examples: dict[str, Examples], vocabulary: list[str]) -> None:
    """Prints lengths, the share of each class, and three examples decoded from their ids."""
    for split, part in examples.items():
        lengths = part.lengths.float()
        print(
            f"{task.name}: {split}: {len(part):,} examples of {lengths.mean():.1f} tokens "
            f"(longest {int(lengths.max())}), {label_shares(task, part)}"
        )
    train = examples["train"]
    for row in range(min(3, len(train))):
        print(f"    [{label_name(task, float(train.labels[row]))}] {decode(train, row, vocabulary)}")


def label_name(task: Task, label: float) -> str:
    """How a label is shown: the class's name, or the score."""
    return f"{label:g}" if task.is_regression else list(task.classes.values())[int(label)]


def label_shares(task: Task, examples: Examples) -> str:
    """The share of each class, or the mean score."""
    if task.is_regression:
        return f"mean score {examples.labels.mean():.2f}"
    shares = examples.labels.long().bincount(minlength=task.outputs) / len(examples)
    names = task.classes.values()
    return ", ".join(f"{share:.0%} {name}" for name, share in zip(names, shares, strict=True))


def decode(examples: Examples, row: int, vocabulary: list[str]) -> str:
    """The words of one example as the model sees them, the sentences of a pair divided by a bar."""
    text = " ".join(vocabulary[i] for i in examples.ids.row(row))
    if examples.second_ids is not None:
        text += " | " + " ".join(vocabulary[i] for i in examples.second_ids.row(row))
    return text
