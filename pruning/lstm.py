"""What is special to the LSTM in the grid: what is built, which teachers it has; a bag of words beside it."""

import copy
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import Tensor, nn

from pruning import flops, methods
from pruning.batches import Examples
from pruning.caches import TaskData
from pruning.lstm_model import PrunedLstmClassifier
from pruning.teachers import LSTM_TEACHERS, Place


class Lstm:
    """The LSTMs of one task, dense and pruned by a `rate`. `key_fields` decide the outcome of every run,
    `pruning_fields` that of pruned ones besides."""

    name = "LSTM"
    teachers = LSTM_TEACHERS
    special_tokens = ()
    layers = 1
    pruned_layers = ("the LSTM",)

    def __init__(self, data: TaskData, target_prune_rate: float):
        self.data, self.rate = data, target_prune_rate
        self.is_pair = data.task.kind == "pair"
        self.key_fields: dict[str, Any] = {}
        self.pruning_fields = {"pruning": target_prune_rate}
        self.pruning_text = str(target_prune_rate)

    def build(self, method: Any, seed: int, state: dict[str, Tensor] | None = None) -> PrunedLstmClassifier:
        """A model for the task: dense for no method; fresh, or from the `state` of a dense one."""
        sizes = len(self.data.vocabulary), self.data.task.outputs
        model = PrunedLstmClassifier(*sizes, pair=self.is_pair, method=method, rate=self.rate, seed=seed)
        if state is not None:
            model.load_state_dict(state, strict=False)
        methods.set_frequencies(model, self.data.counts)
        return model

    def method_name(self, method: Any) -> str:
        """A method's name in records and tables."""
        return method

    def teachers_of(self, method: Any) -> dict[Place, str]:
        """Which sentence needs which teacher's scores."""
        teacher = methods.teacher_of(method)
        if teacher is None or self.rate == 0:
            return {}
        return dict.fromkeys(("first", "second") if self.is_pair else ("first",), teacher)

    def sentences(
        self, examples: Examples, row: int, kept: tuple[Tensor, ...] | None
    ) -> list[dict[str, list]]:
        """One example for the page: for each sentence its words, and "the LSTM" beside each that was dropped.
        kept: of a model's output; None of a dense one."""
        shown = []
        for i, sentence in enumerate(examples.sentences()):
            words = [self.data.vocabulary[word] for word in sentence.row(row)]
            alive = set(range(len(words))) if kept is None else set(kept[i][row].tolist())
            dropped = [None if position in alive else "the LSTM" for position in range(len(words))]
            shown.append({"words": words, "dropped": dropped})
        return shown

    @property
    def flops_of(self) -> dict[str, Any]:
        """Variant → function of a model and a batch."""
        names = ("dense, padded to 128", "dense, stock", "dense, packed", "dense, ours", "pruned")
        return dict.fromkeys(names, flops.pruned_lstm)

    def dense_variants(self, dense: nn.Module) -> dict[str, nn.Module]:
        """What a pruned model is timed beside: variant → model."""
        packed: Any = copy.deepcopy(dense)
        packed.packed = True
        ours = dict.fromkeys(("dense, padded to 128", "dense, stock", "dense, ours"), dense)
        return ours | {"dense, packed": packed}


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
