"""What a pruned model learns from the dense one: its answers, and a teacher's scores of every token."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from pruning import batches, metrics
from pruning.batches import Examples, Ragged
from pruning.devices import halving
from pruning.tasks import Task
from pruning.teachers import Batch, Place
from pruning.training import Arguments, Inputs


@dataclass
class DistillationSet:
    """Training examples with the answers of the dense model."""

    examples: Examples  # the originals, then their augmented copies
    logits: Tensor  # (N, C)
    kept: list[Tensor]  # for every copy, which tokens of the originals it has; see `batches.drop_words`

    def with_scores(self, scores: dict[Place, Ragged] | None) -> Inputs:
        """To train on, with the scores of the originals' tokens: a token of a copy has the score that it has
        in the whole sentence."""
        if scores is not None:
            scores = {
                place: Ragged.joined([originals, *(originals.only(kept) for kept in self.kept)])
                for place, originals in scores.items()
            }
        return Inputs(self.examples, scores, self.logits)


def with_copies(
    originals: Any, arguments: Arguments, special: Sequence[int], seed: int
) -> tuple[Any, list[Tensor]]:
    """The examples, then augmented copies of them; and for every copy, which tokens of the originals it has.
    (TinyBERT, Jiao et al., 2020, learns from altered sentences in the same way.)

    Args:
        arguments: how many copies there are, and what they lack.
        special: ids of special tokens, which no copy lacks.
    """
    share, numbers = arguments.word_dropout, range(1, 1 + arguments.augmented_copies)
    copies = [batches.drop_words(originals, share, special, 1_000 * seed + number) for number in numbers]
    examples = batches.joined([originals, *(copy for copy, _ in copies)]) if copies else originals
    return examples, [kept for _, kept in copies]


def with_answers(task: Task, examples: Any, logits: Tensor, first: int) -> Any:
    """The examples; from `first` on, where the copies begin, the labels are the dense model's answers (N, C):
    missing words may change what is true."""
    answers = torch.tensor(metrics.predictions_of(task, logits[first:]))
    labels = torch.cat([examples.labels[:first], answers.to(examples.labels.dtype)])
    return replace(examples, labels=labels)


@halving
def score_examples(
    examples: Examples,
    score: Callable[[Batch], dict[Any, Tensor]],
    *,
    batch_size: int,
    device: torch.device,
) -> dict[Any, Ragged]:
    """What `score` says of every batch (place → (B, T)), as place → one row of fp32 for each example."""
    by_length = batches.sorted_batches(examples.lengths, batch_size)
    found: dict[Any, list[Ragged]] = defaultdict(list)
    for rows in tqdm(by_length, desc="teacher", leave=None, disable=not PartialState().is_main_process):
        for place, scores in score(batches.to_device(examples.batch(rows), device)).items():
            lengths = sequences_of(examples, place).lengths[rows]
            real = torch.arange(scores.shape[1]) < lengths[:, None]
            found[place].append(Ragged.of_padded(scores.float().cpu(), real))
    back = torch.cat(by_length).argsort()
    return {place: Ragged.joined(parts)[back] for place, parts in found.items()}


def sequences_of(examples: Examples, place: Place) -> Ragged:
    """The sequences that scores used at `place` belong to."""
    return examples.sentences()[1 if place == "second" else 0]
