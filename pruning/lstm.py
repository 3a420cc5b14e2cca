"""What is special to the LSTM in the grid: what is built, which teachers it has; a bag of words beside it."""

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import Tensor, nn

from pruning import methods
from pruning.batches import Examples, LstmExamples, Ragged
from pruning.caches import TaskData
from pruning.lstm_model import PrunedLstmClassifier
from pruning.records import OURS
from pruning.settings import LstmSettings
from pruning.tasks import Rows
from pruning.teachers import LSTM_TEACHERS, Place
from pruning.text import UNKNOWN, split_words


def sentences(
    vocabulary: Sequence[str], examples: Examples, row: int, kept: list[Ragged] | None
) -> list[dict[str, list]]:
    """One example as people read it: for each sentence its words, and "the LSTM" beside each that was
    dropped. kept: as `training.Predictions`."""
    shown = []
    for i, sentence in enumerate(examples.sentences()):
        words = [vocabulary[word] for word in sentence.row(row)]
        alive = set(range(len(words))) if kept is None else set(kept[i].row(row).tolist())
        dropped = [None if position in alive else "the LSTM" for position in range(len(words))]
        shown.append({"words": words, "dropped": dropped})
    return shown


class LstmBuilder:
    """The LSTMs of one task, dense and pruned by a `rate`. `key_fields` decide the outcome of every run,
    and `pruning_fields` too that of pruned ones."""

    name = "LSTM"
    teachers = LSTM_TEACHERS
    special_tokens = ()
    layers = dense_layers = 1
    most_tokens = sys.maxsize
    pruned_layers = ("the LSTM",)
    sentences = staticmethod(sentences)

    def __init__(self, data: TaskData, settings: LstmSettings):
        self.data, self.rate, self.is_pair = data, settings.target_prune_rate, data.task.kind == "pair"
        self.key_fields: dict[str, Any] = {}
        of_pruning = {"pruning": self.rate, "removed_tokens": settings.removed_tokens}
        self.pruning_fields: dict[str, Any] = of_pruning

    def methods_used(self, method: Any) -> dict[Place, str]:
        """Sentence → its method, where words are removed."""
        places: tuple[Place, ...] = ("first", "second") if self.is_pair else ("first",)
        return dict.fromkeys(places, method) if self.rate > 0 else {}

    def build(self, method: Any, seed: int, state: dict[str, Tensor] | None = None) -> PrunedLstmClassifier:
        """A model for the task: dense for no method; fresh, or from the `state` of a dense one."""
        sizes = len(self.data.vocabulary), self.data.task.outputs
        pruning = {"rate": self.rate, "removed_tokens": self.pruning_fields["removed_tokens"]}
        model = PrunedLstmClassifier(*sizes, pair=self.is_pair, method=method, seed=seed, **pruning)
        if state is not None:
            model.load_state_dict(state, strict=False)
        methods.set_frequencies(model, self.data.counts)
        return model

    def dense_variants(self, dense: nn.Module) -> dict[str, nn.Module]:
        """What a pruned model is timed beside: variant → model."""
        plain, packed = copy.deepcopy(dense), copy.deepcopy(dense)
        plain.fast, packed.packed = False, True  # type: ignore[assignment]
        by_name = dict.fromkeys(("dense, padded to 128", "dense, stock"), plain)
        return by_name | {"dense, packed": packed, OURS: dense}

    def weight_bytes(self, _method: Any) -> int:
        """What the weights of a model take."""
        with torch.device("meta"):
            return sum(tensor.nbytes for tensor in self.build(None, 0).state_dict().values())

    def save(self, model: PrunedLstmClassifier, folder: Path) -> None:
        """Writes config.json, the weights and the vocabulary."""
        config = {"model_type": "pruned_lstm", **self.data.task.config_fields, "lstm": model.config}
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        (folder / "vocab.txt").write_text("\n".join(self.data.vocabulary), encoding="utf-8")
        state = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, config: dict[str, Any]) -> tuple[nn.Module, list[str], Callable[[Rows], Examples]]:
    """What `LstmBuilder.save` wrote: the model, its vocabulary, and what turns rows into its input."""
    model = PrunedLstmClassifier(**config["lstm"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
    ids = {word: i for i, word in enumerate(vocabulary)}

    def ragged(texts: list[str]) -> Ragged:
        words = [split_words(text) or [UNKNOWN] for text in texts]
        flat = [ids.get(word, ids[UNKNOWN]) for of_text in words for word in of_text]
        return Ragged.of(flat, torch.tensor([*map(len, words)]))

    def encode(rows: Rows) -> LstmExamples:
        second = None if rows.second is None else ragged(rows.second)
        examples = LstmExamples(ragged(rows.first), torch.tensor(rows.labels), second)
        # as much work as that: `pruning.predict` with three sentences makes no table
        model.tabled = int(examples.lengths.sum()) >= len(vocabulary)
        return examples

    return model, vocabulary, encode


def bag_of_words(data: TaskData, training: Examples) -> dict[str, list[float]]:
    """The answers of a logistic regression on word counts, log(1 + count): dev split → predictions. The words
    of a second sentence count apart."""
    model = make_pipeline(
        CountVectorizer(analyzer=lambda words: words, dtype=np.float32),
        FunctionTransformer(np.log1p, accept_sparse=True),
        LogisticRegression(max_iter=1_000) if training.labels.unique().numel() > 1 else DummyClassifier(),
    )
    size = len(data.vocabulary)
    model.fit(_words(training, size), training.labels.numpy())
    return {name: model.predict(_words(data.splits[name], size)).tolist() for name in data.task.dev_splits}


def _words(examples: Examples, vocabulary_size: int) -> list[list[int]]:
    """The ids of each example's words; those of a second sentence above all of the first."""
    parts = [(i * vocabulary_size, part) for i, part in enumerate(examples.sentences())]
    rows = range(len(examples))
    return [[word + first for first, part in parts for word in part.row(row).tolist()] for row in rows]
