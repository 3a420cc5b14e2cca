"""What a pruned model learns from the dense one: its answers, and a teacher's scores of every token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pruning import batches, metrics
from pruning.batches import Examples, Ragged
from pruning.devices import Memory
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


def distillation_set(
    task: Task,
    originals: Any,
    arguments: Arguments,
    answer: Callable[[Examples], Tensor],
    *,
    special: Sequence[int],
    seed: int,
) -> DistillationSet:
    """Asks the dense model. The label of a copy is its answer: missing words may change what is true.
    (TinyBERT, Jiao et al., 2020, learns from altered sentences in the same way.)

    Args:
        arguments: how many copies there are, and what they lack.
        answer: the dense model's answers (N, C) to examples.
        special: ids of special tokens, which no copy lacks.
    """
    parts, all_kept = [originals], []
    for number in range(1, 1 + arguments.augmented_copies):
        copy, kept = batches.drop_words(originals, arguments.word_dropout, special, 1_000 * seed + number)
        parts.append(copy)
        all_kept.append(kept)
    examples = batches.joined(parts) if all_kept else originals
    logits = answer(examples)
    said = torch.tensor(metrics.predictions_of(task, logits[len(originals) :]))
    labels = torch.cat([originals.labels, said.to(originals.labels.dtype)])
    return DistillationSet(replace(examples, labels=labels), logits, all_kept)


def score_examples(
    examples: Examples,
    score: Callable[[Batch], dict[Any, Tensor]],
    *,
    batch_size: int,
    device: torch.device,
    quiet: bool = False,
) -> dict[Any, Ragged]:
    """What `score` says of every batch (place → (B, T)), as place → one row of fp32 for each example."""
    groups = batches.sorted_batches(examples.lengths, batch_size)
    found: dict[Any, Tensor] = {}

    def add(rows: Tensor) -> None:
        for place, scores in score(batches.to_device(examples.batch(rows), device)).items():
            sequences = sequences_of(examples, place)
            flat = found.setdefault(place, torch.empty(len(sequences.flat)))
            columns = torch.arange(scores.shape[1])
            real = columns < sequences.lengths[rows][:, None]
            flat[(sequences.offsets[rows][:, None] + columns)[real]] = scores.float().cpu()[real]

    memory = Memory()
    for rows in tqdm(groups, desc="teacher", leave=None, disable=quiet):
        memory.run(rows, add)
    return {place: Ragged(flat, sequences_of(examples, place).offsets) for place, flat in found.items()}


def sequences_of(examples: Examples, place: Place) -> Ragged:
    """The sequences that scores used at `place` belong to."""
    return examples.sentences()[1 if place == "second" else 0]
