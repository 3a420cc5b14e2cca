"""Teachers: scores of tokens from what deployment has not, a full pass or a gradient.

A teacher looks at a dense, fine-tuned model and at no label: the gradient teacher asks for the model's
own answer. Its scores, one for each token of the whole sentence, train students; used for pruning
directly they are an upper bound.

Shapes: B examples, T positions, H units, L layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pruning import batches
from pruning.batches import Examples, Ragged
from pruning.metrics import answer_margin

Batch = dict[str, Tensor]
Place = int | str  # where scores are used: a BERT's layer, an LSTM's "first" or "second" sentence


def emission_rates(attentions: tuple[Tensor, ...]) -> list[Tensor]:
    """Ideal emission rate: how much of each token at a layer's input reaches [CLS] at the end.

    With A_l the attention of layer l averaged over its heads, the row of [CLS] in the product
    A_{L-1} … A_{l+1} A_l. ("Sequence Pruning", 2020; the product is that of attention rollout, Abnar &
    Zuidema, ACL 2020, without the residual.)

    Args:
        attentions: for each layer (B, heads, T, T), rows summing to 1.

    Returns:
        For each layer (B, T).
    """
    rates: list[Tensor] = []
    row: Tensor | None = None  # (B, 1, T)
    for attention in reversed(attentions):
        mean = attention.mean(dim=1)  # (B, T, T)
        row = mean[:, :1] if row is None else row @ mean
        rates.insert(0, row.squeeze(1))
    return rates


def gradient_sizes(model: Any, batch: Batch) -> list[Tensor]:
    """Ideal gradients: the Euclidean length of the gradient at each token of each layer's input.

    The gradient is that of the model's own answer (`metrics.answer_margin`).

    Returns:
        For each layer (B, T).
    """
    with torch.enable_grad():
        output = model(**batch, output_hidden_states=True)
        inputs = output.hidden_states[:-1]
        gradients = torch.autograd.grad(answer_margin(output.logits.float()).sum(), inputs)
    return [gradient.float().norm(dim=2) for gradient in gradients]


def bert_scores(model: Any, batch: Batch, teachers: dict[int, str]) -> dict[Place, Tensor]:
    """The scores of the teacher of each pruned layer.

    Args:
        model: a dense BERT for sequence classification, in evaluation mode.
        teachers: layer → "ideal emission rate" or "ideal gradients".

    Returns:
        layer → (B, T), 0 at padding.
    """
    wanted = set(teachers.values())
    by_teacher: dict[str, list[Tensor]] = {}
    if "ideal gradients" in wanted:
        by_teacher["ideal gradients"] = gradient_sizes(model, batch)
    if "ideal emission rate" in wanted:
        fast = model.config._attn_implementation
        model.set_attn_implementation("eager")  # fused attention never forms the weights
        try:
            with torch.no_grad():
                attentions = model(**batch, output_attentions=True).attentions
        finally:
            model.set_attn_implementation(fast)
        by_teacher["ideal emission rate"] = emission_rates(attentions)
    mask = batch["attention_mask"]
    return {layer: by_teacher[name][layer] * mask for layer, name in teachers.items()}


def score_examples(
    examples: Examples,
    make_batch: Callable[[Examples, Tensor], Batch],
    score: Callable[[Batch], dict[Place, Tensor]],
    *,
    batch_size: int,
    device: torch.device,
    quiet: bool = False,
) -> dict[Place, Ragged]:
    """A teacher's scores of all examples, in the order of the examples.

    Args:
        score: a batch to place → (B, T).

    Returns:
        place → one row of fp32 scores for each example, as long as its sequence.
    """
    rows_of: dict[Place, list[Tensor]] = {}
    order = []
    for rows in tqdm(batches.sorted_batches(examples.lengths, batch_size), desc="teacher", disable=quiet):
        batch = batches.to_device(make_batch(examples, rows), device)
        order.append(rows)
        for place, scores in score(batch).items():
            ragged = sequences_of(examples, place)
            lengths = ragged.lengths[rows]
            parts = [row[:length] for row, length in zip(scores.cpu(), lengths, strict=True)]
            rows_of.setdefault(place, []).extend(parts)
    back = torch.cat(order).argsort()
    return {
        place: Ragged.of(
            torch.cat([parts[i] for i in back]),
            sequences_of(examples, place).lengths,
            torch.float32,
        )
        for place, parts in rows_of.items()
    }


def sequences_of(examples: Examples, place: Place) -> Ragged:
    """The sequences that scores used at `place` belong to."""
    if place == "second":
        assert examples.second_ids is not None
        return examples.second_ids
    return examples.ids
