"""Caches: what the Prepare scripts write and the runners read; what a runner keeps for the next one.

A cache is one file: a line that names the layout, a line with the SHA-256 of the rest, and a dictionary of
plain tensors and plain types, read with `weights_only=True`: opening one never runs code. It is written whole
or not at all. A prepared task holds

    task, model   "mrpc", "bert"
    settings      of the Prepare script (length limit, casing, size of the vocabulary)
    fingerprints  file → SHA-256, of everything that the cache was made from; the table's entry among it
    sample        whether the data is the project's own sample
    vocabulary    list of words; the place in it is the id
    counts        (V,) int64, how often each id stands in the training text
    splits        "train", "dev", … → columns (see `batches.Examples`)
"""

import hashlib
import io
import json
import os
import pickle
import platform
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import torch
from torch import Tensor

from pruning.batches import BertExamples, Examples, LstmExamples, Ragged
from pruning.devices import say
from pruning.errors import UserError
from pruning.tasks import TASKS, Task

LAYOUT = b"sequence pruning, cache layout 2\n"
CACHE = Path("cache")
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"  # folders may be shared with other machines
SAMPLE_MARK = Path("data/SAMPLE")  # stands in the sample's data/, so that its records can say so
RETRIES = 10 if os.name == "nt" else 0  # of a name that is refused, a tenth of a second each
DTYPES = {  # of the columns
    **dict.fromkeys(("ids", "second_ids", "second_starts"), torch.int32),
    **dict.fromkeys(("offsets", "second_offsets"), torch.int64),
    "labels": torch.float32,
}
EXAMPLES: dict[str, type[Examples]] = {"bert": BertExamples, "lstm": LstmExamples}


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors and their names, as hex."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(name.encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def fingerprint_of_entry(task: Task) -> dict[str, str]:
    """The task's entry in the table (columns, classes, files), named and hashed as if it were a file."""
    return {f"pruning/tasks.py, {task.name}": hashlib.sha256(repr(task).encode()).hexdigest()}


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for writing bytes that appears under its name only when it is complete.

    It is written under a temporary name in the same folder, flushed to the disk and renamed; an exception or
    a kill in the middle leaves the old file, or none. Raises UserError if the system refuses to write there
    (a full disk, a folder in place of the file).
    """
    with _in_place_of(path) as temporary, open(temporary, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `path` when all of it is written; otherwise as
    `whole_file`."""
    with _in_place_of(path) as temporary:
        temporary.mkdir()
        yield temporary
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder, made of machine and process. What is written under it
    takes the place of `path`, or is deleted if that fails."""
    temporary = path.with_name(f".{path.name}.{MACHINE}-{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _rename(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # of a file nothing happens
        with suppress(OSError):
            temporary.unlink()


def _rename(temporary: Path, path: Path) -> None:
    """Windows refuses while another process reads the file, or a virus scanner does: for moments."""
    for _ in range(RETRIES):
        with suppress(PermissionError):
            temporary.replace(path)
            return
        time.sleep(0.1)
    temporary.replace(path)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders of this machine's processes that were killed."""
    found: list[Path] = []
    with suppress(FileNotFoundError):  # another process removes them too
        found += folder.rglob(f".*.{MACHINE}-*.tmp")
    for path in found:
        process = path.name.split(".")[-3].removeprefix(f"{MACHINE}-")
        if process.isdigit() and not psutil.pid_exists(int(process)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def path_of(model: str, task: str) -> Path:
    """Where the cache of a task lies: cache/<model>/<task>.pt."""
    return CACHE / model / f"{task}.pt"


def as_bytes(content: dict[str, Any]) -> memoryview:
    """What `torch.save` writes; of a full disk it would make a RuntimeError."""
    body = io.BytesIO()
    torch.save(content, body)
    return body.getbuffer()


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a cache, whole or not at all."""
    body = as_bytes(content)
    checksum = hashlib.sha256(body).hexdigest()
    with whole_file(path) as file:
        file.write(LAYOUT + checksum.encode() + b"\n")
        file.write(body)


def load(path: Path, prepared_by: str) -> dict[str, Any]:
    """Reads a cache.

    Raises UserError, which names the script `prepared_by`, if there is none, its layout is not today's, or
    it is damaged.
    """
    remedy = f"Run: python {prepared_by}"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no cache {path.absolute()}. {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. {remedy}") from None
    if not data.startswith(LAYOUT):
        raise UserError(f"{path} is not a cache of this version. {remedy}")
    checksum, _, body = data.removeprefix(LAYOUT).partition(b"\n")
    try:
        if hashlib.sha256(body).hexdigest().encode() == checksum:
            return torch.load(io.BytesIO(body), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):  # it holds more than plain types
        pass
    raise UserError(f"{path} is damaged. {remedy}")


def load_if_good(path: Path) -> dict[str, Any] | None:
    """What `load` reads; None where the file is missing or damaged, so that it is made again."""
    try:
        return load(path, "")
    except UserError:
        return None


def check_sources(cache: dict[str, Any], task: Task, path: Path, prepared_by: str) -> None:
    """Raises UserError if a file that the cache was made from is there and has changed since, or if the
    task's data is there in other files."""
    for source, was in cache["fingerprints"].items():
        if Path(source).is_file() and fingerprint(Path(source)) != was:
            raise UserError(f"{source} has changed since {path} was made. Run: python {prepared_by}")
    paths = task.paths().values()
    others = [source for source in paths if source.as_posix() not in cache["fingerprints"]]
    if others and all(source.is_file() for source in paths):
        raise UserError(
            f"{path} was not made from {others[0]}, which is there now. Run: python {prepared_by}"
        )


def is_current(path: Path, settings: dict[str, Any], sources: dict[str, str]) -> bool:
    """Whether `path` holds a cache made from these settings and these files (path → SHA-256)."""
    cache = load_if_good(path) or {}
    return cache.get("settings") == settings and cache.get("fingerprints") == sources


def script_of(model: str, task: Task) -> str:
    """The Prepare script that makes a task's cache for a model."""
    return f"Prepare{'Agnews' if task.name == 'agnews' else 'Glue'}4{model.title()}.py"


@dataclass
class TaskData:
    """A prepared task: its splits ("train", "dev", …), more of what its cache holds, and the SHA-256 of
    everything that the cache was made from."""

    task: Task
    splits: dict[str, Examples]
    vocabulary: list[str]
    counts: Tensor
    settings: dict[str, Any]
    sample: bool
    fingerprint: str


def open_tasks(model: str, tasks: Sequence[Task]) -> list[TaskData]:
    """Every task that is prepared; prints a line for one that is not. Raises UserError if none is."""
    opened = []
    for task in tasks:
        if path_of(model, task.name).exists():
            opened.append(open_task(model, task))
        else:
            say(f"{task.name}: skipped, it is not prepared (no {path_of(model, task.name)})")
    if not opened:
        script = script_of(model, tasks[0])
        if there := [name for name in TASKS if path_of(model, name).exists()]:
            lacks = f"prepared are {', '.join(there)}, and task_names has none of them"
            raise UserError(f"{lacks}. Edit it, or run: python {script}")
        raise UserError(f"no task is prepared in {(CACHE / model).absolute()}. Run: python {script}")
    return opened


def open_task(model: str, task: Task) -> TaskData:
    """The task as it was prepared for a model, "bert" or "lstm".

    Raises UserError, which names the script to run, if it is missing, damaged, of another task, or older than
    the data.
    """
    path, script = path_of(model, task.name), script_of(model, task)
    cache = load(path, script)
    try:
        check_sources(cache, task, path, script)
        return _task_data(cache, model, task)
    except (LookupError, TypeError, AttributeError, ValueError):
        again = f"Run: python {script}"
        raise UserError(f"{path} does not hold {task.name} for this version. {again}") from None


def _task_data(cache: dict[str, Any], model: str, task: Task) -> TaskData:
    """What a cache holds. Raises LookupError, TypeError, AttributeError or ValueError for other contents."""
    splits = {name: EXAMPLES[model].from_columns(part) for name, part in cache["splits"].items()}
    size = len(cache["vocabulary"])
    if not (
        (cache["task"], cache["model"]) == (task.name, model)
        and splits.keys() == task.files.keys()
        and cache["fingerprints"].items() >= fingerprint_of_entry(task).items()
        and all(_is_sound(part, task, size) for part in splits.values())
        and cache["counts"].shape == (size,)
    ):
        raise ValueError
    made_from = {name: cache[name] for name in ("task", "model", "settings", "fingerprints")}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    details = {name: cache[name] for name in ("vocabulary", "counts", "settings", "sample")}
    return TaskData(task, splits, fingerprint=digest, **details)


def _is_sound(examples: Examples, task: Task, vocabulary_size: int) -> bool:
    """Whether lengths add up, ids are in the vocabulary and labels are those of the task."""
    columns, labels = examples.to_columns(), examples.labels
    good = all(column.dim() == 1 and column.dtype == DTYPES[name] for name, column in columns.items())
    good = good and len(labels) > 0 and bool(labels.isfinite().all())
    if not task.is_regression:
        good = good and bool(((labels >= 0) & (labels < task.outputs) & (labels % 1 == 0)).all())
    good = good and all(_fits(part, len(labels), vocabulary_size) for part in examples.sentences())
    if good and isinstance(examples, BertExamples):
        seconds, lengths = examples.second_starts, examples.lengths
        good = len(seconds) == len(lengths) and bool(((seconds >= 0) & (seconds <= lengths)).all())
    return good


def _fits(rows: Ragged, count: int, vocabulary_size: int) -> bool:
    """Whether ragged ids are `count` rows of at least one word each, all in the vocabulary."""
    flat, offsets = rows.flat, rows.offsets
    adds_up = len(rows) == count and int(offsets[0]) == 0 and int(offsets[-1]) == len(flat)
    return adds_up and bool((rows.lengths > 0).all() and ((flat >= 0) & (flat < vocabulary_size)).all())
