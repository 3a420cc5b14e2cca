"""What an experiment keeps in cache/, so that it is made once, and which process works on which run."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from pruning import caches, records


@dataclass
class Store:
    """cache/<model>/<kind>/<name>-<key>.pt, each under everything that decides it.

    Attributes:
        folder: cache/<model>.
        name: that of task and seed.
        writes: whether this process is the one that writes.
        seconds: kind → processor seconds, of all threads, that the latest of this kind took to make.
    """

    folder: Path
    name: str
    writes: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def _path(self, kind: str, fields: dict[str, Any]) -> Path:
        return self.folder / kind / f"{self.name}-{records.key_of(fields)}.pt"

    def load(self, kind: str, fields: dict[str, Any]) -> Any:
        """What `keep` wrote; None where there is nothing sound."""
        stored = caches.load_if_good(self._path(kind, fields))
        if stored is None:
            return None
        self.seconds[kind] = stored["seconds"]
        return stored["content"]

    @contextmanager
    def clock(self, kind: str) -> Iterator[None]:
        """Counts the `seconds` in which something of this kind is made."""
        started = time.process_time()
        yield
        self.seconds[kind] = time.process_time() - started

    def keep(self, kind: str, fields: dict[str, Any], content: Any) -> None:
        """Writes `content`, which `clock` saw made, under everything that decides it, `fields`."""
        if self.writes:
            caches.save(self._path(kind, fields), {"content": content, "seconds": self.seconds[kind]})

    def made_once(self, kind: str, fields: dict[str, Any], make: Callable[[], Any]) -> Any:
        """What is kept under `fields`; where nothing is, what `make` makes."""
        content = self.load(kind, fields)
        if content is None:
            with self.clock(kind):
                content = make()
            self.keep(kind, fields, content)
        return content


@contextmanager
def claim(fields: dict[str, Any], wait: bool) -> Iterator[bool]:
    """Claims the work that `fields` identify, for this process (for all that train together). Yields False,
    at once, if another process holds the claim; with `wait`, it waits until the claim is free. A process that
    dies holds nothing."""
    lock = FileLock(caches.CACHE / "locks" / f"{records.key_of(fields)}.lock")
    held = [True]
    if PartialState().is_main_process:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            held = [False]
    try:
        yield broadcast_object_list(held)[0]
    finally:
        lock.release()
