"""Data and a BERT from the Hugging Face hub, by its own client.

    python -m pruning.download data          →  data/<TASK>/train.parquet, dev.parquet, test.parquet
    python -m pruning.download bert [NAME]   →  bert/config.json, vocab.txt, model.safetensors

What is there already is left alone. A file has its name only when it is complete and its checksum is right.
The client resumes what a connection drops, and takes HF_ENDPOINT, HF_TOKEN and proxies from the environment.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, logging
from huggingface_hub.utils.sha import git_hash

from pruning import caches, tasks
from pruning.bert_folder import BERT, CONFIGS, WEIGHTS, read_config
from pruning.errors import OF_THE_SYSTEM, UserError, run_script
from pruning.tasks import AGNEWS, GLUE, Task

HUB = HfApi()
STAGING = caches.CACHE / "download"  # beside the client's own notes, which neither data/ nor bert/ is to hold
ATTEMPTS = 3
SECONDS = 10  # to wait for an answer
REFUSALS = (401, 403, 404)  # the hub answers 401 for what does not exist, too
BY_HAND = "By hand: data/README.md and bert/README.md say how"
REPOSITORIES: dict[str, dict[str, Task]] = {  # folder in the repository → task
    "nyu-mll/glue": {name.replace("-", ""): task for name, task in GLUE.items() if task.hub},
    "fancyzhx/ag_news": {"data": AGNEWS},
}
LICENCES = {
    "nyu-mll/glue": "each task has a licence of its own, see https://gluebenchmark.com",
    "fancyzhx/ag_news": "for research, not for commercial use",
}
BERT_BASE = "google-bert/bert-base-uncased"

T = TypeVar("T")


def ask(call: Callable[[], T], wanted: str) -> T:
    """What a call of the client returns. What fails is tried again, unless hub or system refuse it.

    Raises UserError: why `wanted` could not be had, and what to do.
    """
    why = ""
    for _ in range(ATTEMPTS):
        try:
            return call()
        except Exception as error:  # the client raises its own, those of its HTTP library and the system's
            cause = error.__cause__ or error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in REFUSALS:
            why = f"the answer was {status}: it is not there, or may not be read without a login (HF_TOKEN)"
            break
        told = next(iter(str(cause).strip().splitlines()), type(cause).__name__)
        why = f"the answer was {status}" if status else told.rstrip(".")
        if getattr(cause, "errno", None) in OF_THE_SYSTEM:  # a full disk: it would be so the next time
            break
    raise UserError(f"{wanted} could not be fetched from {HUB.endpoint}: {why}. {BY_HAND}")


class Repository:
    """A repository of the hub as it is now. kind: "dataset" or "model"."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind = name, kind
        look = partial(HUB.repo_info, name, repo_type=kind, files_metadata=True, timeout=SECONDS)
        info: Any = ask(look, name)
        self.commit = info.sha
        self.files = {file.rfilename: file for file in info.siblings or ()}
        self.licence = getattr(info.card_data, "license", None)

    def fetch(self, file: str) -> Path:
        """A file, in STAGING. Raises UserError if it is not to be had, or has another checksum every time."""
        if file not in self.files:
            raise UserError(f"{self.name} on {HUB.endpoint} has no file {file}. {BY_HAND}")
        get = partial(HUB.hf_hub_download, self.name, file, repo_type=self.kind, revision=self.commit)
        cached: Path | None = None  # the client's own cache, at first: it may have the file, or a wrong one
        for _ in range(ATTEMPTS):
            path = Path(ask(partial(get, local_dir=STAGING, cache_dir=cached), f"{file} of {self.name}"))
            if self._is_right(file, path):
                return path
            path.unlink()
            cached = STAGING
        raise UserError(f"{file} of {self.name} comes from {HUB.endpoint} with a wrong checksum. {BY_HAND}")

    def _is_right(self, file: str, path: Path) -> bool:
        """Whether a large file has its SHA-256, a small one git's hash; the client checks the size only."""
        expected = self.files[file]
        if expected.lfs:
            return caches.fingerprint(path) == expected.lfs.sha256
        return expected.blob_id in (None, git_hash(path.read_bytes()))

    def place(self, files: dict[str, Path]) -> None:
        """Fetches files, file in the repository → where it belongs; none is placed before all are there."""
        staged = {self.fetch(file): target for file, target in files.items()}
        for source, target in staged.items():
            with caches.whole_file(target) as file, source.open("rb") as content:
                shutil.copyfileobj(content, file)
            print(f"    {target} ({target.stat().st_size / 1e6:.1f} MB)")


@contextmanager
def staging() -> Iterator[None]:
    """STAGING, empty, for this process alone; it is removed in the end. Raises UserError if it is taken."""
    lock = FileLock(caches.CACHE / "locks" / "download.lock", blocking=False)
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout:
        raise UserError("another download is running in this folder; wait for its end") from None
    try:
        shutil.rmtree(STAGING, ignore_errors=True)  # of a download that was killed
        for folder in (tasks.DATA, BERT):
            caches.remove_leftovers(folder)
        yield
    finally:
        shutil.rmtree(STAGING, ignore_errors=True)
        lock.release()


def missing_files(folder: str, task: Task) -> dict[str, Path]:
    """File in the repository → where it belongs, of those that a task lacks: none where it is there in its
    classic form. GLUE's test sets have no labels: they are for predictions only."""
    paths = task.paths()
    if all(path.is_file() and path.suffix != ".parquet" for path in paths.values()):
        return {}
    files = [*task.hub_files.values(), *task.test_files.values()]
    targets = [tasks.DATA / task.folder / f"{Path(file).stem}.parquet" for file in files]
    return {
        f"{folder}/{target.stem.replace('dev', 'validation')}-00000-of-00001.parquet": target
        for target in targets
        if not target.exists()
    }


def fetch_data() -> None:
    """Fetches what data/ lacks of the nine GLUE tasks and AG News. Raises UserError if it cannot."""
    for name, folders in REPOSITORIES.items():
        repository = None
        for folder, task in folders.items():
            missing = missing_files(folder, task)
            if not missing:
                print(f"{task.name}: {tasks.DATA / task.folder} has it already and is left alone")
                continue
            if repository is None:
                repository = Repository(name, "dataset")
                print(f"{name}: {LICENCES[name]}")
            repository.place(missing)


def has_room_for(name: str) -> bool:
    """Whether bert/ is empty; says so where a BERT is in it. Raises UserError if it holds something else."""
    held = sorted(path.name for path in BERT.glob("[!.]*") if path.name != "README.md")
    if not held:
        return True
    weights = [*BERT.glob("*.ckpt.index"), *(path for path in WEIGHTS if path.parent == BERT)]
    parts = ([BERT / "vocab.txt"], CONFIGS, weights)
    if all(any(path.is_file() for path in part) for part in parts):
        print(f"{BERT} holds a BERT already and is left alone; to have {name}, empty the folder first")
        return False
    raise UserError(f"{BERT} holds {', '.join(held)}, but no whole BERT; empty the folder first")


def fetch_bert(name: str) -> None:
    """Fetches a BERT of the hub into bert/, if that is empty. Raises UserError if it cannot, or `name` is no
    BERT that can be pruned: its configuration is read before anything large is fetched."""
    if not has_room_for(name):
        return
    repository = Repository(name, "model")
    config = repository.fetch("config.json")
    try:
        read_config(config)
    except UserError as error:
        raise UserError(f"{name}: {str(error).replace(str(config), config.name)}") from None
    print(f"{name}: licence {repository.licence or 'not stated'}, see {HUB.endpoint}/{name}")
    weights = "model.safetensors" if "model.safetensors" in repository.files else "pytorch_model.bin"
    optional = [file for file in ("tokenizer_config.json",) if file in repository.files]
    files = ["config.json", "vocab.txt", *optional, weights]
    repository.place({file: BERT / file for file in files})


def main() -> None:
    logging.set_verbosity_error()  # the client tells of every attempt in several lines
    with staging():
        match sys.argv[1:]:
            case ["data"]:
                fetch_data()
            case ["bert", *names] if len(names) <= 1:
                fetch_bert(next(iter(names), BERT_BASE))
            case _:
                raise UserError("say what: python -m pruning.download data, or bert, or bert NAME")


if __name__ == "__main__":
    run_script(main)
