"""Starts scripts in processes of their own, and kills the runners at random moments.

    python tests/kills.py 50

A runner is killed at any time, or while it writes a file, or by Ctrl-C; started again, and so on until it
finishes; BERT and the LSTM in turn, 50 times in all. What is left must be what a run leaves that nobody
disturbed. Needs Linux.
"""

import contextlib
import gc
import importlib
import io
import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from conftest import ROOT, make_world, write_data
from running import BERT, LSTM, without_times
from torch.utils._pytree import tree_map_only

from pruning import caches, errors, records, saved, wordpieces

SEED = 0
MOST = 3  # kills of one grid
IMPORTED = ["kills", "PrepareGlue4Bert", "RunBert4Glue", "RunLstm4Glue"]
RUNNERS = {
    "BERT": ("RunBert4Glue", BERT | {"pruning_methods": ["ideal gradients student"]}),
    "LSTM": ("RunLstm4Glue", LSTM | {"task_names": ["sst-2"]}),
}
OF_THE_CLOCK = ("summary.md", records.PAGE, saved.CARD)  # they tell of speed
KEPT = ("dense", "answers", "scores")  # in cache/<model>/, by a runner
STOPPED = "\nStopped. What is finished is kept: start the script again to go on.\n"


# --- A script in a process -------------------------------------------------------------------


@dataclass
class Ended:
    """A process that has ended.

    Attributes:
        status: of its exit; below 0, the signal that killed it.
        seconds: that it took, without its imports.
        said, complained: what it wrote to standard output and to standard error.
    """

    status: int
    seconds: float
    said: str
    complained: str


def fork_server() -> Any:
    """A context whose processes begin at once: they are forked from one that has imported the scripts."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(IMPORTED)
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    quiet = "ignore:resource_tracker"  # of the locks of what is killed
    with mock.patch.dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1", PYTHONWARNINGS=quiet):
        multiprocessing.forkserver.ensure_running()
    return forks


def start(
    script: str,
    changes: dict[str, Any],
    world: Path,
    kill_after: float = 120,
    by: str = "SIGKILL",
    *,
    dies_at_file: int | None = None,
    output: str = "stdout.txt",
) -> Ended:
    """Runs a script in `world`, with some names in it changed.

    Args:
        kill_after: seconds until the signal `by` is sent, unless it has ended.
        dies_at_file: see `watch`.
        output: where standard output goes; standard error goes to stderr.txt.
    """
    forks = fork_server()
    ready, begin = forks.Pipe(duplex=False)
    process = forks.Process(target=as_script, args=(begin, script, changes, world, dies_at_file, output))
    process.start()
    begin.close()
    with contextlib.suppress(EOFError):  # it ended at once
        ready.recv()
    began = time.monotonic()
    process.join(kill_after)
    if process.exitcode is None:
        os.kill(process.pid, signal.Signals[by])
        process.join(60)
    seconds = time.monotonic() - began
    files = (world / name for name in (output, "stderr.txt"))
    texts = [path.read_text() if path.is_file() else "" for path in files]
    return Ended(process.exitcode, seconds, *texts)


def as_script(
    begin: Any, script: str, changes: dict[str, Any], world: Path, dies_at_file: int | None, output: str
) -> None:
    """What `python <script>.py` does in `world`. Sends a word when it begins."""
    os.chdir(world)
    for number, name in ((1, output), (2, "stderr.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    gc.freeze()  # every training collects garbage: not among what was imported
    torch.set_num_threads(1)
    module: Any = importlib.import_module(script)
    vars(module).update(changes)
    watch(dies_at_file)

    def main() -> None:
        begin.send("begins")
        module.main()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it has finished

    signal.signal(signal.SIGINT, signal.default_int_handler)
    errors.run_script(main)


def watch(dies_at_file: int | None) -> None:
    """Kills this process when the file of this number (1, 2, …) is written, but not yet under its name; ends
    it with status 99 if it writes to a file under the name that others read."""
    count = itertools.count(1)

    def look(event: str, arguments: tuple) -> None:
        if event == "os.rename" and next(count) == dies_at_file:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            parts = Path(str(arguments[0])).parts
            unseen = any(part.endswith((".tmp", ".lock")) for part in parts)
            if parts[:1] in (("cache",), ("records",)) and not unseen:
                os._exit(99)

    sys.addaudithook(look)


def ctrl_c(*_: Any) -> None:
    """In place of a function of a script, Ctrl-C while it works."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)


class CtrlCInTokenizer:
    """In place of `wordpieces` in PrepareGlue4Bert."""

    build_tokenizer = staticmethod(wordpieces.build_tokenizer)
    encode = staticmethod(ctrl_c)


# --- A grid that is killed until it finishes -------------------------------------------------


def prepare(world: Path) -> None:
    """The tests' world, with caches for BERT and the LSTM."""
    fork_server()  # it imports the scripts meanwhile
    make_world(world)
    write_data(world / "data")
    nothing = io.StringIO()
    with contextlib.chdir(world), contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        for script in ("PrepareGlue4Bert", "PrepareGlue4Lstm"):
            importlib.import_module(script).main()


def made(world: Path, model: str) -> dict[Path, Any]:
    """Every file that a runner has made → what of it is the same in every run: all but times.

    Records and caches must be whole, at any moment.
    """
    found: dict[Path, Any] = {}
    places = (world / "records" / model, *(world / "cache" / model.lower() / kind for kind in KEPT))
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        same = None if path.name in OF_THE_CLOCK else caches.fingerprint(path)
        if path.suffix == ".pt":
            content = caches.load(path, "")["content"]
            same = tree_map_only(torch.Tensor, lambda tensor: tensor.numpy().tobytes(), content)
        if path.name == records.RECORD:
            record = records.read(path.parent)
            assert record is not None, f"{path} is damaged"
            same = without_times(record)
        found[path.relative_to(world)] = same
    return found


def finished(world: Path, model: str) -> set[str]:
    """The folders of finished runs, but for the bag of words, which is passed over without a line."""
    folders = {path.parent for path in made(world, model) if path.name == records.RECORD}
    return {str(folder) for folder in folders if not folder.name.startswith("bag-of-words")}


def kill_until_it_finishes(
    world: Path, model: str, most: int, seconds: float, chance: random.Random
) -> list[str]:
    """Starts a runner that has made nothing yet again and again, until it finishes.

    Args:
        most: after so many kills it is left alone.
        seconds: that it takes when it is left alone; it is killed within them.

    Returns:
        For each kill what it was by, and after how many seconds or at which file.
    """
    script, settings = RUNNERS[model]
    kills: list[str] = []
    while True:
        before = finished(world, model)
        by = chance.choice(["SIGKILL", "SIGINT", "SIGKILL at file"])
        moment = chance.random() * seconds / (2 if kills else 1)  # a part of it is finished
        if len(kills) == most:
            ended = start(script, settings, world)
        elif by == "SIGKILL at file":
            moment = chance.randint(1, 6)
            ended = start(script, settings, world, dies_at_file=moment)
        else:
            ended = start(script, settings, world, kill_after=moment, by=by)
        skipped = {line.split(" is there: ")[0] for line in ended.said.splitlines() if " is there: " in line}
        if ended.status == 0:
            assert skipped == before
            return kills
        assert skipped <= before
        assert ended.status == (130 if by == "SIGINT" else -signal.SIGKILL), ended
        if by == "SIGINT":
            assert ended.complained.endswith(STOPPED)
            assert "Traceback" not in ended.complained and "Exception" not in ended.complained, ended
        kills.append(f"{by} {moment:.2g}")


def run(world: Path, count: int) -> int:
    """Kills the runners `count` times, and prints a line for each grid that they finished."""
    prepare(world)
    alone, seconds = {}, {}
    for model, (script, settings) in RUNNERS.items():
        ended = start(script, settings, world)
        assert ended.status == 0, ended.complained
        alone[model], seconds[model] = made(world, model), ended.seconds
        print(f"{model}: undisturbed, {len(alone[model])} files in {ended.seconds:.1f} s", flush=True)
    chance, done = random.Random(SEED), 0
    for model in itertools.cycle(RUNNERS):
        for path in alone[model]:
            (world / path).unlink()
        kills = kill_until_it_finishes(world, model, min(MOST, count - done), seconds[model], chance)
        after = made(world, model)
        different = {path for path in {*after, *alone[model]} if after.get(path) != alone[model].get(path)}
        assert after.keys() == alone[model].keys() and not different
        assert not list(world.rglob("*.tmp"))
        print(f"{model}: {', '.join(kills) or 'not killed in time'}; it finished, all the same", flush=True)
        done += len(kills)
        if done >= count:
            return done
    raise AssertionError


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"Killed {run(Path(folder), int(sys.argv[1]))} times, nothing was lost.")
