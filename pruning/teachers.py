"""Teachers: scores of tokens from what deployment has not, a full pass or a gradient.

A teacher looks at a dense, fine-tuned model and at no label: the gradient teacher asks for the model's
own answer. Its scores, one for each token of the whole sentence, train students; used for pruning
directly they are an upper bound.

Shapes: B examples, T positions, H units, L layers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers.masking_utils import create_bidirectional_mask

from pruning import batches
from pruning.batches import Examples, Ragged
from pruning.metrics import answer_margin

Batch = dict[str, Tensor]
ATTENTION_RULES = (
    "column mean",
    "[CLS] row",
    "attention x values",
    "ideal emission rate",
    "attention rollout",
)
GRADIENT_RULES = ("ideal gradients", "gradient x input")
RULES = (*ATTENTION_RULES, *GRADIENT_RULES, "integrated gradients")
IG_STEPS = 2  # one is nearly enough (AD-TP, NeurIPS 2025)

Place = int | str  # where scores are used: a BERT's layer, an LSTM's "first" or "second" sentence


def attention_rules(
    attentions: Sequence[Tensor], value_sizes: Sequence[Tensor], mask: Tensor
) -> dict[str, list[Tensor]]:
    """Rules that look at what attends to what. A_l is the attention of layer l averaged over its heads.

    column mean          how much attention a token receives: the mean over the rows of A_l (PoWER-BERT
                         takes the sum, LTP the mean)
    [CLS] row            how much of it comes from [CLS]
    attention x values   as column mean, each head's weight times the length of what it adds at that token
                         (Kobayashi et al., EMNLP 2020)
    ideal emission rate  how much of a token reaches [CLS] at the end: the row of [CLS] in the product
                         A_{L-1} … A_{l+1} A_l ("Sequence Pruning", 2020)
    attention rollout    the same of (A + I) / 2, for what passes by the attention (Abnar & Zuidema, ACL 2020)

    Args:
        attentions: for each layer (B, heads, T, T), rows summing to 1.
        value_sizes: for each layer (B, heads, T), see `value_sizes`.
        mask: (B, T) bool, True at real tokens.

    Returns:
        rule → for each layer (B, T).
    """
    rules: dict[str, list[Tensor]] = {name: [] for name in ATTENTION_RULES}
    asking = mask[:, None, :, None] / mask.sum(dim=1)[:, None, None, None]
    emitted = rolled = None  # (B, 1, T)
    for attention, sizes in zip(reversed(attentions), reversed(value_sizes), strict=True):
        mean = attention.mean(dim=1)  # (B, T, T)
        with_itself = (mean + torch.eye(mean.shape[1], device=mean.device)) / 2
        emitted = mean[:, :1] if emitted is None else emitted @ mean
        rolled = with_itself[:, :1] if rolled is None else rolled @ with_itself
        received = (attention * asking).sum(dim=2)  # (B, heads, T)
        found = (received.mean(1), mean[:, 0], (received * sizes).mean(1), emitted[:, 0], rolled[:, 0])
        for name, scores in zip(ATTENTION_RULES, found, strict=True):
            rules[name].insert(0, scores)
    return rules


def value_sizes(attention: Any, states: Tensor) -> Tensor:
    """(B, heads, T) the length of what each head would add to the sum at a token that it attends to alone:
    its value through its part of the output projection.

    Args:
        attention: a BertAttention.
        states: (B, T, H) its input.
    """
    heads, size = attention.self.num_attention_heads, attention.self.attention_head_size
    values = attention.self.value(states).unflatten(2, (heads, size))  # (B, T, heads, size)
    output = attention.output.dense.weight.unflatten(1, (heads, size))  # (H, heads, size)
    squares = torch.einsum("hns,hnt->nst", output, output)
    return torch.einsum("btns,nsu,btnu->bnt", values, squares, values).clamp(min=0).sqrt()


def gradient_rules(model: Any, batch: Batch) -> dict[str, list[Tensor]]:
    """Rules that look at the gradient g of the model's own answer (`metrics.answer_margin`) at the state x
    of a token at a layer's input.

    ideal gradients   ‖g‖
    gradient x input  |g · x|

    Returns:
        rule → for each layer (B, T).
    """
    with torch.enable_grad():
        output = model(**batch, output_hidden_states=True)
        inputs = output.hidden_states[:-1]
        gradients = torch.autograd.grad(answer_margin(output.logits.float()).sum(), inputs)
    pairs = [(g.float(), x.detach().float()) for g, x in zip(gradients, inputs, strict=True)]
    return {
        "ideal gradients": [g.norm(dim=2) for g, _ in pairs],
        "gradient x input": [(g * x).sum(dim=2).abs() for g, x in pairs],
    }


def integrated_gradients(
    model: Any, batch: Batch, layers: Iterable[int], signed: bool = False
) -> dict[int, Tensor]:
    """|x · mean of the gradient on the way from 0 to x|, x the state of a token at a layer's input
    (Sundararajan et al., ICML 2017), in IG_STEPS steps by the midpoint rule; of the answer that the model
    gives in the end.

    Args:
        signed: leave the sign, so that scores add up to the change of the margin.

    Returns:
        layer → (B, T).
    """
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    answers = output.logits.argmax(dim=1)
    scores = {}
    for layer in layers:
        states = output.hidden_states[layer]
        total = torch.zeros_like(states)
        for step in range(IG_STEPS):
            point = ((step + 0.5) / IG_STEPS * states).requires_grad_()
            with torch.enable_grad():
                margin = answer_margin(_logits_from(model, layer, point, mask).float(), answers)
                total += torch.autograd.grad(margin.sum(), point)[0]
        attributed = (total / IG_STEPS * states).sum(dim=2).float()
        scores[layer] = attributed if signed else attributed.abs()
    return scores


def _logits_from(model: Any, layer: int, states: Tensor, mask: Tensor) -> Tensor:
    """What the dense model answers if the states (B, T, H) at the input of `layer` are these."""
    attention_mask = create_bidirectional_mask(config=model.config, inputs_embeds=states, attention_mask=mask)
    for module in model.bert.encoder.layer[layer:]:
        states = module(states, attention_mask)
    return model.classifier(model.bert.pooler(states))


def bert_rules(
    model: Any, batch: Batch, rules: Iterable[str], layers: Sequence[int]
) -> dict[str, dict[int, Tensor]]:
    """The scores of several rules.

    Args:
        model: a dense BERT for sequence classification, in evaluation mode.
        rules: of RULES.
        layers: where scores are wanted.

    Returns:
        rule → layer → (B, T), 0 at padding.
    """
    wanted, found = set(rules), {}
    if wanted & set(ATTENTION_RULES):
        fast = model.config._attn_implementation
        model.set_attn_implementation("eager")  # fused attention never forms the weights
        try:
            with torch.no_grad():
                output = model(**batch, output_attentions=True, output_hidden_states=True)
                inputs = zip(model.bert.encoder.layer, output.hidden_states, strict=False)
                sizes = [value_sizes(layer.attention, states) for layer, states in inputs]
        finally:
            model.set_attn_implementation(fast)
        found.update(attention_rules(output.attentions, sizes, batch["attention_mask"].bool()))
    if wanted & set(GRADIENT_RULES):
        found.update(gradient_rules(model, batch))
    mask = batch["attention_mask"]
    scores = {
        rule: {layer: by_layer[layer] * mask for layer in layers}
        for rule, by_layer in found.items()
        if rule in wanted
    }
    if "integrated gradients" in wanted:
        integrated = integrated_gradients(model, batch, layers)
        scores["integrated gradients"] = {layer: part * mask for layer, part in integrated.items()}
    return scores


def bert_scores(model: Any, batch: Batch, teachers: dict[int, str]) -> dict[Place, Tensor]:
    """The scores of the teacher of each pruned layer: layer → (B, T), 0 at padding.

    Args:
        model: as in `bert_rules`.
        teachers: layer → a rule.
    """
    found = bert_rules(model, batch, teachers.values(), list(teachers))
    return {layer: found[rule][layer] for layer, rule in teachers.items()}


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
