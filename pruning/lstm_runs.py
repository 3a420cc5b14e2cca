"""What the two LSTM runners share: the LSTM's side of the grid (see `runs`)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from pruning import pruners, runs, selection, tasks, training
from pruning.batches import Examples, Ragged, lstm_batch, to_device
from pruning.errors import UserError
from pruning.lstm import PrunedLstmClassifier, pick_packing
from pruning.metrics import answer_margin
from pruning.records import BAG_OF_WORDS
from pruning.runs import Method, Plan, State, TaskData
from pruning.teachers import Batch, Place

IG_STEPS = 4


class LstmFamily(runs.Family):
    """The LSTM on GLUE or AG News."""

    name = "LSTM"
    cache_folder = "lstm"
    layers = 1
    make_batch = staticmethod(lstm_batch)

    def __init__(self, target_prune_rate: float):
        self.rate = target_prune_rate
        self.affects = {}

    def build(self, data: TaskData, method: Method | None, seed: int, start: State | None) -> nn.Module:
        assert not isinstance(method, list)
        model = PrunedLstmClassifier(
            len(data.vocabulary),
            data.task.outputs,
            pair=data.splits["train"].second_ids is not None,
            method=method,
            rate=self.rate,
            seed=seed,
        )
        if start is not None:
            model.load_state_dict(start, strict=False)
        model.set_frequencies(data.counts)
        return model

    def teachers_of(self, method: Method, data: TaskData) -> dict[Place, str]:
        teacher = pruners.teacher_of(str(method))
        if teacher is None or self.rate == 0:
            return {}
        pair = data.splits["train"].second_ids is not None
        return dict.fromkeys(("first", "second") if pair else ("first",), teacher)

    def score(self, dense: Any, batch: Batch, wanted: dict[Place, str]) -> dict[Place, Tensor]:
        places = ("first", "second")[: len(wanted)]
        if set(wanted.values()) == {"integrated gradients"}:
            return dict(zip(places, contributions(dense, batch), strict=True))
        names = {"first": ("ids", "mask"), "second": ("second_ids", "second_mask")}
        with torch.no_grad():
            return {place: dense.input_gates(*(batch[name] for name in names[place])) for place in places}

    def pruning(self) -> float:
        return self.rate

    def method_name(self, method: Method) -> str:
        return str(method)

    def stages(self, data: TaskData) -> list[str]:
        return ["the LSTM"]

    def sentences(
        self, data: TaskData, examples: Examples, row: int, kept: tuple[Tensor, ...] | None
    ) -> list[dict[str, list]]:
        columns: list[Ragged] = [examples.ids]
        if examples.second_ids is not None:
            columns.append(examples.second_ids)
        shown = []
        for i, column in enumerate(columns):
            words = [data.vocabulary[word] for word in column.row(row)]
            alive = set(range(len(words))) if kept is None else set(kept[i][row].tolist())
            dropped = [None if place in alive else "the LSTM" for place in range(len(words))]
            shown.append({"words": words, "dropped": dropped})
        return shown

    def time(
        self, data: TaskData, dense: Any, pruned: Any, plan: Plan, accelerator: Accelerator
    ) -> dict[str, Any]:
        models = {"dense, padded to 128": dense, "dense, stock": dense, "dense, ours": dense}
        if pruned is not None:
            models["pruned"] = pruned
        examples = runs.timing_subset(data.splits["dev"], plan)
        longest = max(part.lengths.max() for part in (examples.ids, examples.second_ids) if part is not None)
        sample = to_device(lstm_batch(examples, torch.arange(len(examples))), accelerator.device)
        for model in models.values():
            pick_packing(model.to(accelerator.device).eval(), sample["ids"], sample["mask"])
        return runs.time_variants(
            models,
            examples,
            lambda examples, rows, width: lstm_batch(examples, rows, width and max(width, int(longest))),
            flops_of,
            plan,
            accelerator,
        )

    def reference(self, data: TaskData, training_examples: Examples) -> dict[str, Any] | None:
        """A bag of words with logistic regression, from scikit-learn; not for scores."""
        if data.task.is_regression:
            return None
        size = len(data.vocabulary)
        model = LogisticRegression(max_iter=1_000)
        model.fit(bag_of_words(training_examples, size), training_examples.labels.numpy())
        answers = {
            split: model.predict(bag_of_words(data.splits[split], size)).tolist()
            for split in data.task.dev_splits
        }
        return {"name": BAG_OF_WORDS, "predictions": answers}


def contributions(model: PrunedLstmClassifier, batch: Batch) -> list[Tensor]:
    """Integrated gradients (Sundararajan et al., ICML 2017): what each word contributes to the model's own
    answer, x · the mean gradient on the way from no word at all (0) to its embedding x.

    IG_STEPS steps by the midpoint rule. The sign stays: a word that speaks against the answer is worth less
    than one that says nothing. (At the words themselves, the gradient of a model that is sure of its answer
    says little: used for pruning, its length loses 20 points on AG News where this loses none.)

    Args:
        model: a dense one, in evaluation mode.

    Returns:
        For each sentence (B, T), 0 at padding.
    """
    masks = [batch[name] for name in ("mask", "second_mask") if name in batch]
    totals = [torch.zeros(mask.shape, device=mask.device) for mask in masks]
    with torch.no_grad():
        answers = model(**batch).logits.argmax(dim=1)
    for step in range(IG_STEPS):
        share = (step + 0.5) / IG_STEPS
        words: list[Tensor] = []

        def shrink(_module: nn.Module, _ids: Any, embedded: Tensor, share=share, words=words) -> Tensor:
            words.append(share * embedded)
            return words[-1]

        hook = model.embedding.register_forward_hook(shrink)
        try:
            with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # cuDNN wants training mode
                margin = answer_margin(model(**batch).logits.float(), answers)
                gradients = torch.autograd.grad(margin.sum(), words)
        finally:
            hook.remove()
        for total, gradient, at in zip(totals, gradients, words, strict=True):
            total += (gradient * at.detach()).sum(dim=2).float() / (share * IG_STEPS)
    return [total * mask for total, mask in zip(totals, masks, strict=True)]


def bag_of_words(examples: Examples, vocabulary_size: int) -> scipy.sparse.csr_matrix:
    """Word counts, damped as log(1 + count); the words of a second sentence count apart."""
    parts = [examples.ids] + ([examples.second_ids] if examples.second_ids is not None else [])
    matrices = []
    for part in parts:
        ones = np.ones(len(part.flat), dtype=np.float32)
        shape = (len(part), vocabulary_size)
        columns = (ones, part.flat.numpy(), part.offsets.numpy())
        matrix = scipy.sparse.csr_matrix(columns, shape, copy=True)  # the next line works in place
        matrix.sum_duplicates()
        matrix.data = np.log1p(matrix.data)
        matrices.append(matrix)
    return scipy.sparse.hstack(matrices, format="csr")


def flops_of(model: PrunedLstmClassifier, batch: Batch) -> int:
    """FLOPs of one batch, both sentences of a pair."""
    return sum(model.flops(batch[name]) for name in ("mask", "second_mask") if name in batch)


def run(script: str, prepared_by: str, task_list: Sequence[tasks.Task], settings: dict[str, Any]) -> None:
    """Checks the settings, opens the caches, does every run and prints the table.

    Args:
        script, prepared_by: the runner and the preparation to name if something is wrong.
        settings: the runner's block.

    Raises:
        UserError: for a rate outside [0, 1], an unknown method, a missing or stale cache.
    """
    rate = settings["target_prune_rate"]
    try:
        selection.check_rate(rate)
    except ValueError as error:
        raise UserError(f"target_prune_rate in {script}: {error}") from None
    known = pruners.LSTM_METHODS
    for method in settings["pruning_methods"]:
        if method not in known:
            raise UserError(
                f"pruning_methods in {script}: unknown pruning method {method!r}; "
                f"the LSTM knows: {', '.join(known)}"
            )
    family = LstmFamily(rate)
    prepared = [(family, runs.open_cache("lstm", task, prepared_by)) for task in task_list]
    runs.run(settings, prepared, training.pick_device())
