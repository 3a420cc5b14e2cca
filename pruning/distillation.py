"""What a pruned model learns from the dense one: its answers, and a teacher's scores of every token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pruning import batches, metrics, training
from pruning.batches import Examples, Ragged
from pruning.tasks import Task
from pruning.teachers import Batch, Place, Scores, teacher_scores
from pruning.training import Arguments, TrainingSet


@dataclass
class DistillationSet:
    """Training examples with the answers of the dense model.

    Attributes:
        examples: the originals, then their augmented copies.
        logits: (N, C) the dense model's answers.
        kept: for every copy, which tokens of the originals it has; see `batches.drop_words`.
    """

    examples: Examples
    logits: Tensor
    kept: list[Tensor]

    def with_scores(self, scores: dict[Place, Ragged] | None) -> TrainingSet:
        """To train on. A token of a copy has the score that it has in the whole sentence.

        Args:
            scores: place → scores of the originals' tokens.
        """
        if scores is not None:
            scores = {
                place: Ragged.joined([originals, *(originals.only(kept) for kept in self.kept)])
                for place, originals in scores.items()
            }
        return TrainingSet(self.examples, scores, self.logits)


def distillation_set(
    dense: nn.Module,
    task: Task,
    originals: Any,
    arguments: Arguments,
    *,
    special: Sequence[int],
    seed: int,
    batch_size: int,
    device: torch.device,
) -> DistillationSet:
    """Asks the dense model. The label of a copy is its answer: missing words may change what is true.
    (TinyBERT, Jiao et al., 2020, learns from altered sentences in the same way.)

    Args:
        arguments: how many copies there are, and what they lack.
        special: ids of special tokens, which no copy lacks.
    """

    def answers(examples: Examples) -> Tensor:
        return training.predict(dense, TrainingSet(examples), batch_size=batch_size, device=device).logits

    parts, logits, all_kept = [originals], [answers(originals)], []
    for number in range(1, 1 + arguments.augmented_copies):
        copy, kept = batches.drop_words(originals, arguments.word_dropout, special, 1_000 * seed + number)
        logits.append(answers(copy))
        labels = torch.tensor(metrics.predictions_of(task, logits[-1]), dtype=torch.float32)
        parts.append(replace(copy, labels=labels))
        all_kept.append(kept)
    examples = batches.joined(parts) if all_kept else originals
    return DistillationSet(examples, torch.cat(logits), all_kept)


def score_examples(
    dense: Any,
    examples: Examples,
    wanted: dict[Place, str],
    teachers: dict[str, Callable[..., Scores]],
    *,
    batch_size: int,
    device: torch.device,
    quiet: bool = False,
) -> dict[Place, Ragged]:
    """The scores of every token by the teacher `wanted` at each place, fp32, in the order of the examples."""

    def score(batch: Batch) -> dict[Place, Tensor]:
        return teacher_scores(dense, batch, wanted, teachers)

    return score_batches(examples, score, batch_size=batch_size, device=device, quiet=quiet)


def score_batches(
    examples: Examples,
    score: Callable[[Batch], dict[Any, Tensor]],
    *,
    batch_size: int,
    device: torch.device,
    quiet: bool = False,
) -> dict[Any, Ragged]:
    """What `score` says of every batch (place → (B, T)), as place → one row for each example."""
    rows_of: dict[Any, list[Tensor]] = {}
    order = []
    for rows in tqdm(batches.sorted_batches(examples.lengths, batch_size), desc="teacher", disable=quiet):
        batch = batches.to_device(examples.batch(rows), device)
        order.append(rows)
        for place, scores in score(batch).items():
            lengths = sequences_of(examples, place).lengths[rows]
            parts = [row[:length] for row, length in zip(scores.cpu(), lengths, strict=True)]
            rows_of.setdefault(place, []).extend(parts)
    back = torch.cat(order).argsort()
    return {
        place: Ragged.of(
            torch.cat([parts[i] for i in back]), sequences_of(examples, place).lengths, torch.float32
        )
        for place, parts in rows_of.items()
    }


def sequences_of(examples: Examples, place: Place) -> Ragged:
    """The sequences that scores used at `place` belong to."""
    return examples.sentences()[1 if place == "second" else 0]
