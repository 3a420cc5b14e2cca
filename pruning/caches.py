"""Caches: what the Prepare scripts write and the runners read.

A cache is one file that holds a dictionary of plain tensors and plain types, read with
`weights_only=True`: opening one never runs code. It is written whole or not at all.

    layout        number of this format
    task, model   "mrpc", "bert"
    settings      what the Prepare script was told (length limit, casing, size of the vocabulary)
    fingerprints  file → SHA-256, of everything the cache was made from
    sample        whether the data is the project's own sample
    vocabulary    list of words; the place in it is the id
    counts        (V,) int64, how often each id stands in the training text
    splits        "train", "dev", … → columns (see `batches.Examples`)
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from pruning.errors import UserError

LAYOUT = 1
CACHE = Path("cache")
SAMPLE_MARK = Path("data/SAMPLE")  # stands in the sample's data/, so that its records can say so


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprints(paths: Iterable[Path]) -> dict[str, str]:
    """File, as a path with forward slashes → SHA-256."""
    return {path.as_posix(): fingerprint(path) for path in paths}


@contextmanager
def whole_file(path: Path):
    """Opens a file for writing bytes that appears under its name only when it is complete.

    It is written under a temporary name in the same folder, flushed to the disk and renamed; an
    exception or a kill in the middle leaves the old file, or none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def path_of(model: str, task: str) -> Path:
    """Where the cache of a task lies: cache/<model>/<task>.pt."""
    return CACHE / model / f"{task}.pt"


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a cache, whole or not at all."""
    file: IO[bytes]
    with whole_file(path) as file:
        torch.save({"layout": LAYOUT, **content}, file)


def load(path: Path, prepared_by: str) -> dict[str, Any]:
    """Reads a cache.

    Args:
        prepared_by: the script to name if there is something wrong.

    Raises:
        UserError: if there is none, it cannot be read, or its layout is not today's.
    """
    if not path.is_file():
        raise UserError(f"no cache {path.absolute()}. Run: python {prepared_by}")
    try:
        cache = torch.load(path, weights_only=True)
        layout = cache["layout"]
    except Exception:  # damaged, no cache at all, or one that would run code: never opened further
        raise UserError(f"{path} cannot be read as a cache. Run: python {prepared_by}") from None
    if layout != LAYOUT:
        raise UserError(f"{path} has layout {layout}, this version reads {LAYOUT}. Run: python {prepared_by}")
    return cache


def check_sources(cache: dict[str, Any], path: Path, prepared_by: str) -> None:
    """Raises UserError if a file that the cache was made from is there and has changed since."""
    for source, was in cache["fingerprints"].items():
        if Path(source).is_file() and fingerprint(Path(source)) != was:
            raise UserError(f"{source} has changed since {path} was made. Run: python {prepared_by}")


def identity(cache: dict[str, Any]) -> str:
    """SHA-256 of everything that a cache was made from; the same cache made again has the same."""
    made_from = {name: cache[name] for name in ("layout", "task", "model", "settings", "fingerprints")}
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def is_current(path: Path, settings: dict[str, Any], prints: dict[str, str]) -> bool:
    """Whether `path` holds a cache made from these settings and these files."""
    if not path.is_file():
        return False
    try:
        cache = load(path, "")
        return cache["settings"] == settings and cache["fingerprints"] == prints
    except (UserError, KeyError):
        return False
