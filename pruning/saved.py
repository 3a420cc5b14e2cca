"""A model to keep: what a run writes to its folder's model/, and what comes back from there.

config.json         sizes, labels by name; of a pruned model schedule, methods, what removed tokens become
model.safetensors   weights, fp32
tokenizer*.json     BERT; the LSTM has vocab.txt
README.md           the model card, as a hub reads it: metrics, token-layers and speed of the record
*.py                a pruned BERT: the code that `trust_remote_code=True` runs

answers = saved.load(Path("records/BERT/sst-2/…")).answer(["a gripping film"])
"""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor

from pruning import bert, lstm
from pruning.batches import Examples
from pruning.caches import whole_folder
from pruning.devices import say
from pruning.errors import UserError
from pruning.records import PRUNED
from pruning.tasks import TASKS, Rows
from pruning.training import Inputs, predict

MODEL = "model"
CONFIG = "config.json"
CARD = "README.md"
TEMPLATE = Path(__file__).with_name("templates") / "card.md"
KINDS: dict[str, Any] = {"bert": bert, "pruned_bert": bert, "pruned_lstm": lstm}  # by model_type
FIELDS = {"task", "kind", "id2label", "problem_type"}  # that config.json has to have too
DAMAGE = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError)  # what else files cause
REST = 1.1  # of a model's size by its weights: pruners, tokenizer
BATCH = 32

Text = str | tuple[str, str]  # a sentence, or a pair of them


# --- Writing ---------------------------------------------------------------------------------


def write(folder: Path, builder: Any, model: Any, record: dict[str, Any]) -> dict[str, int]:
    """Writes `folder`/model/, whole or not at all: file → bytes, for the record. Raises UserError if the
    system refuses to write there."""
    with whole_folder(folder / MODEL) as unfinished:
        try:
            builder.save(model, unfinished)
        except SafetensorError as error:  # a full disk, for one
            raise UserError(f"{folder / MODEL} cannot be written: {error}") from None
        card(record).save(unfinished / CARD)
        paths = sorted(path for path in unfinished.iterdir() if path.name != CARD)  # which tells of the clock
        return {path.name: path.stat().st_size for path in paths}


def is_whole(folder: Path, files: dict[str, int] | None) -> bool:
    """Whether `folder`/model/ holds these files, of these sizes. files: what `write` returned."""
    paths = {folder / MODEL / name: size for name, size in (files or {}).items()}
    return bool(paths) and all(path.is_file() and path.stat().st_size == paths[path] for path in paths)


def check_room(folder: Path, sizes: Sequence[int]) -> None:
    """Prints what models with these bytes of weights will take. Raises UserError if the disk lacks it."""
    total = int(REST * sum(sizes))
    if not total:
        return
    free = shutil.disk_usage(folder if folder.exists() else folder.absolute().parent).free
    say(f"Models to be kept: {len(sizes)}, {total / 1e9:.2f} GB in {folder}/")
    if total > free:
        what = f"{folder.absolute()} has room for {free / 1e9:.2f} GB, these models take {total / 1e9:.2f}"
        raise UserError(f"{what}. Make room, or set save_models = False at the top of the script")


def card(record: dict[str, Any]) -> ModelCard:
    """The model card of a run: front matter with a `model-index`, and how the model is used."""
    name = f"{record['task']}, {record['method']}"
    fast = (record["timings"] or {}).get(PRUNED, {}).get("speedup")
    results = []
    for split, part in record["splits"].items():
        shown = part["metrics"] | {"token_layers_kept": part["token_layers_kept"], "speedup": fast}
        dataset = {"dataset_type": record["task"], "dataset_name": record["task"], "dataset_split": split}
        results += [
            EvalResult("text-classification", metric_type=kind, metric_value=value, **dataset)
            for kind, value in shown.items()
            if value is not None
        ]
    data = ModelCardData(
        model_name=name,
        pipeline_tag="text-classification",
        library_name="transformers" if record["model"] == "BERT" else "pytorch",
        tags=["sequence-pruning"],
        eval_results=results,
    )
    own: dict[str, Any] = {"record": record, "title": name, "fast": fast}
    own["is_pair"] = TASKS[record["task"]].kind == "pair"
    return ModelCard.from_template(data, template_path=str(TEMPLATE), **own)


# --- Reading ---------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a model says of one text: the label, or a score with two decimals; the label's probability (None
    of a score); for each sentence, if asked for, its words and the layer before which each was dropped (None:
    never)."""

    label: str
    probability: float | None
    sentences: list[dict[str, list]]


@dataclass
class SavedModel:
    """A model that was kept.

    Attributes:
        folder: its own, model/.
        config: the fields of config.json.
        model: in evaluation mode.
        vocabulary: the words by their ids.
        encode_rows: rows to the model's inputs.
        sentences: the model's words and what becomes of them, see `bert.sentences`.
    """

    folder: Path
    config: dict[str, Any]
    model: Any
    vocabulary: list[str]
    encode_rows: Callable[[Rows], Examples]
    sentences: Callable[..., list[dict[str, list]]]

    @property
    def task(self) -> str:
        return self.config["task"]

    @property
    def is_pair(self) -> bool:
        return self.config["kind"] == "pair"

    @property
    def labels(self) -> list[str]:
        """The classes by number; none for a score."""
        return [] if self.config["problem_type"] == "regression" else [*self.config["id2label"].values()]

    def encode(self, texts: Sequence[Text]) -> Examples:
        """Sentences or pairs as the model reads them; labels 0. Raises UserError for one where the other is
        wanted."""
        for text in texts:
            if isinstance(text, str) == self.is_pair or (self.is_pair and len(text) != 2):
                wanted = "pairs of sentences (a tab between)" if self.is_pair else "single sentences"
                raise UserError(f"{self.folder} answers {wanted}; this is none: {text!r}")
        first, second = zip(*texts, strict=True) if self.is_pair else (texts, None)
        rows = Rows([*first], None if second is None else [*second], [0.0] * len(texts), [])
        return self.encode_rows(rows)

    def logits(
        self, examples: Examples, with_words: bool = True
    ) -> tuple[Tensor, list[list[dict[str, list]]]]:
        """(N, C) fp32, and the words of each example as in `Answer`, which take longer than the model where
        there are many."""
        device = next(self.model.parameters()).device
        size = min(BATCH, len(examples))
        logits, kept = predict(
            self.model, Inputs(examples), batch_size=size, device=device, with_kept=with_words
        )
        words = [
            self.sentences(self.vocabulary, examples, row, kept) if with_words else []
            for row in range(len(examples))
        ]
        return logits, words

    def answer(self, texts: Sequence[Text], with_words: bool = True) -> list[Answer]:
        """The model's answers, one for each text. Raises UserError for pairs where sentences are wanted, and
        the other way round."""
        if not texts:
            return []
        logits, words = self.logits(self.encode(texts), with_words)
        if not self.labels:
            return [
                Answer(f"{score:.2f}", None, w) for score, w in zip(logits[:, 0].tolist(), words, strict=True)
            ]
        best, classes = (part.tolist() for part in logits.softmax(dim=1).max(dim=1))
        return [Answer(self.labels[c], p, w) for c, p, w in zip(classes, best, words, strict=True)]


def load(folder: Path) -> SavedModel:
    """A model that a run kept. folder: the run's, or model/ in it. Raises UserError if there is none."""
    folder = folder / MODEL if (folder / MODEL).is_dir() else folder
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = KINDS[config["model_type"]]
        if not ({*config} >= FIELDS and isinstance(config["id2label"], dict)):
            raise ValueError
    except OSError as error:
        raise UserError(
            f"{folder / CONFIG} cannot be read: {error.strerror}; is {folder} a run's folder?"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{folder} holds no model of this project") from None
    try:
        model, vocabulary, encode_rows = kind.load(folder, config)
    except (*DAMAGE, SafetensorError, StrictDataclassError) as error:
        line = re.sub(r"\s+", " ", str(error))
        raise UserError(f"{folder} is damaged: {line}") from None
    return SavedModel(folder, config, model.eval(), vocabulary, encode_rows, kind.sentences)
