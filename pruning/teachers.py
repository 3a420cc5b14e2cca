"""Teachers: scores of tokens from what deployment does not have, a full pass or a gradient.

A teacher looks at a dense, fine-tuned model and at no label: a gradient is that of the model's own answer.
Its scores, one for each token of the whole sentence, train students. A teacher that prunes by itself is an
upper bound.

A new teacher is one function and one line in `BERT_TEACHERS` or `LSTM_TEACHERS`. The function takes a dense
model in evaluation mode, a batch and the places where scores are wanted; it returns teacher → place → (B, T),
0 at padding, of every teacher that the same pass serves.

Shapes: B examples, T positions, H units, L layers.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers.masking_utils import create_bidirectional_mask

from pruning.losses import answer_margin

Batch = dict[str, Tensor]
Place = int | str  # where scores are used: a layer of a BERT, the "first" or "second" sentence of an LSTM
Scores = dict[str, dict[Place, Tensor]]  # teacher → place → (B, T)
Teachers = dict[str, Callable[..., Scores]]  # one of the two tables below

BERT_STEPS = 2  # of integrated gradients; one is nearly enough (AD-TP, NeurIPS 2025)
LSTM_STEPS = 1  # as good as four (studies/LOG.md)
LSTM_INPUTS = {"first": ("ids", "mask"), "second": ("second_ids", "second_mask")}  # place → names in a batch


def score(model: Any, batch: Batch, wanted: dict[Place, str], teachers: Teachers) -> dict[Place, Tensor]:
    """The scores of one teacher for each place: place → (B, T)."""
    scores = scores_of(model, batch, wanted.values(), list(wanted), teachers)
    return {place: scores[name][place] for place, name in wanted.items()}


def scores_of(
    model: Any, batch: Batch, names: Iterable[str], places: Sequence[Place], teachers: Teachers
) -> Scores:
    """The scores of several teachers, with one pass for all that share a function."""
    names = list(dict.fromkeys(names))
    scores: Scores = {}
    for function in dict.fromkeys(teachers[name] for name in names):
        scores.update(function(model, batch, places))
    return {name: scores[name] for name in names}


# --- Attention -------------------------------------------------------------------------------


def attention_teachers(model: Any, batch: Batch, layers: Sequence[int]) -> Scores:
    """Teachers that look at the attention. A_l is the attention of layer l, the mean over its heads.

    column mean          the attention that a token receives: the mean over the rows of A_l (PoWER-BERT
                         takes the sum, LTP the mean)
    [CLS] row            the attention that it receives from [CLS]
    attention x values   as column mean, each head's weight times the length of what it adds at that token
                         (Kobayashi et al., EMNLP 2020)
    ideal emission rate  how much of a token reaches [CLS] at the end: the row of [CLS] in the product
                         A_{L-1} … A_{l+1} A_l ("Sequence Pruning", 2020)
    attention rollout    the same of (A + I) / 2, for what passes by the attention (Abnar & Zuidema, ACL 2020)
    """
    fast = model.config._attn_implementation
    model.set_attn_implementation("eager")  # fused attention never forms the weights
    try:
        with torch.no_grad():
            output = model(**batch, output_attentions=True, output_hidden_states=True)
            inputs = zip(model.bert.encoder.layer, output.hidden_states, strict=False)
            sizes = [value_sizes(layer.attention, states) for layer, states in inputs]
    finally:
        model.set_attn_implementation(fast)
    mask = batch["attention_mask"].bool()
    queries = mask[:, None, :, None] / mask.sum(dim=1)[:, None, None, None]
    means = [attention.mean(dim=1) for attention in output.attentions]  # (B, T, T)
    itself = torch.eye(mask.shape[1], device=mask.device)
    emitted, rolled = reach(means), reach([(mean + itself) / 2 for mean in means])
    scores: Scores = {name: {} for name, function in BERT_TEACHERS.items() if function is attention_teachers}
    for layer in layers:
        attention = output.attentions[layer]  # (B, heads, T, T), rows that sum to 1
        received = (attention * queries).sum(dim=2)  # (B, heads, T)
        scores["column mean"][layer] = received.mean(dim=1) * mask
        scores["[CLS] row"][layer] = means[layer][:, 0] * mask
        scores["attention x values"][layer] = (received * sizes[layer]).mean(dim=1) * mask
        scores["ideal emission rate"][layer] = emitted[layer] * mask
        scores["attention rollout"][layer] = rolled[layer] * mask
    return scores


def reach(means: Sequence[Tensor]) -> list[Tensor]:
    """How much of each token reaches [CLS] at the end, by layer: (B, T), the row of [CLS] in the product
    A_{L-1} … A_{l+1} A_l. means: A of each layer, (B, T, T)."""
    rows = accumulate(reversed(means[:-1]), torch.matmul, initial=means[-1][:, :1])  # (B, 1, T)
    return [row[:, 0] for row in rows][::-1]


def value_sizes(attention: Any, states: Tensor) -> Tensor:
    """(B, heads, T) the length of what each head of a BertAttention would add to the sum at a token that it
    attends to alone: its value through its part of the output projection. states: (B, T, H) its input."""
    heads, size = attention.self.num_attention_heads, attention.self.attention_head_size
    values = attention.self.value(states).unflatten(2, (heads, size))  # (B, T, heads, size)
    output = attention.output.dense.weight.unflatten(1, (heads, size))  # (H, heads, size)
    squares = torch.einsum("hns,hnt->nst", output, output)
    return torch.einsum("btns,nsu,btnu->bnt", values, squares, values).clamp(min=0).sqrt()


# --- Gradients -------------------------------------------------------------------------------


def gradient_teachers(model: Any, batch: Batch, layers: Sequence[int]) -> Scores:
    """Teachers that look at the gradient g of the model's own answer (`losses.answer_margin`) at the state x
    of a token at a layer's input.

    ideal gradients   ‖g‖
    gradient x input  |g · x|
    """
    with torch.enable_grad():
        output = model(**batch, output_hidden_states=True)
        inputs = output.hidden_states[:-1]
        gradients = torch.autograd.grad(answer_margin(output.logits.float()).sum(), inputs)
    mask = batch["attention_mask"]
    scores: Scores = {"ideal gradients": {}, "gradient x input": {}}
    for layer in layers:
        gradient, state = gradients[layer].float(), inputs[layer].detach().float()
        scores["ideal gradients"][layer] = gradient.norm(dim=2) * mask
        scores["gradient x input"][layer] = (gradient * state).sum(dim=2).abs() * mask
    return scores


def integrated_gradients(
    states: Sequence[Tensor], logits_of: Callable[[list[Tensor]], Tensor], answers: Tensor, steps: int
) -> list[Tensor]:
    """Integrated gradients (Sundararajan et al., ICML 2017): what each token contributes to an answer, x ·
    the mean gradient of its margin on the way from 0 to the token's state x, by the midpoint rule.

    The sign stays: contributions, for each input (B, T), add up to the change of the margin.

    Args:
        states: inputs (B, T, H) of the part of the model that `logits_of` runs.
        answers: (B,) the classes whose margin it is.
    """
    totals = [torch.zeros(state.shape[:2], device=state.device) for state in states]
    for step in range(steps):
        share = (step + 0.5) / steps
        points = [(share * state).requires_grad_() for state in states]
        with torch.enable_grad():
            margin = answer_margin(logits_of(points).float(), answers)
            gradients = torch.autograd.grad(margin.sum(), points)
        for total, gradient, point in zip(totals, gradients, points, strict=True):
            total += (gradient * point.detach()).sum(dim=2).float() / (share * steps)
    return totals


def integrated_bert(model: Any, batch: Batch, layers: Sequence[int]) -> Scores:
    """|integrated gradients| of the state of a token at a layer's input."""
    mask = batch["attention_mask"]
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    answers = output.logits.argmax(dim=1)
    scores: dict[Place, Tensor] = {}
    for layer in layers:
        states = output.hidden_states[layer]

        def logits_of(points: list[Tensor], layer: int = layer) -> Tensor:
            return logits_from(model, layer, points[0], mask.bool())

        [contribution] = integrated_gradients([states], logits_of, answers, BERT_STEPS)
        scores[layer] = contribution.abs() * mask
    return {"integrated gradients": scores}


def logits_from(model: Any, layer: int, states: Tensor, mask: Tensor) -> Tensor:
    """The answer (B, C) of the dense model if the states (B, T, H) at the input of `layer` are these."""
    attention_mask = create_bidirectional_mask(config=model.config, inputs_embeds=states, attention_mask=mask)
    for module in model.bert.encoder.layer[layer:]:
        states = module(states, attention_mask)
    return model.classifier(model.bert.pooler(states))


# --- The LSTM --------------------------------------------------------------------------------


def integrated_lstm(model: Any, batch: Batch, places: Sequence[str]) -> Scores:
    """|integrated gradients| of the words' embeddings: a word that speaks against the answer counts as much.

    (The plain gradient at a word says little where the model is sure of its answer: pruning by its norm
    loses 20 points on AG News, where pruning by this teacher loses none.)
    """
    found = lstm_contributions(model, batch, places, LSTM_STEPS)
    return {"integrated gradients": {place: each.abs() for place, each in found.items()}}


def lstm_contributions(model: Any, batch: Batch, places: Sequence[str], steps: int) -> dict[Place, Tensor]:
    """Integrated gradients of the words' embeddings, from no word at all: place → (B, T), 0 at padding."""
    names = [LSTM_INPUTS[place] for place in places]
    masks = [batch[mask] for _, mask in names]
    with torch.no_grad():
        states = [model.embedding(batch[ids]) for ids, _ in names]
        answers = model(**batch).logits.argmax(dim=1)

    def logits_of(points: list[Tensor]) -> Tensor:
        return model.classify([model.encode(point, mask) for point, mask in zip(points, masks, strict=True)])

    with torch.backends.cudnn.flags(enabled=False):  # for a gradient cuDNN wants training mode
        contributions = integrated_gradients(states, logits_of, answers, steps)
    return {place: total * mask for place, total, mask in zip(places, contributions, masks, strict=True)}


def input_gates(model: Any, batch: Batch, places: Sequence[str]) -> Scores:
    """The mean activation of the LSTM's input gate at each word.

    i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi), the mean over the H units ("Sequence Pruning",
    2020). The states come from the fused LSTM, the gates of all words from one product.
    """
    scores: dict[Place, Tensor] = {}
    hidden = model.lstm.hidden_size
    with torch.no_grad():
        for place in places:
            ids, mask = (batch[name] for name in LSTM_INPUTS[place])
            states = model.embedding(ids)
            outputs, _ = model.lstm(states)
            before = pad(outputs, (0, 0, 1, 0))[:, :-1]  # (B, T, H), h_{t-1}
            # the rows of each weight belong to the gates in order: input, forget, cell, output
            from_word, from_state, word_bias, state_bias = (w[:hidden] for w in model.lstm.all_weights[0])
            gates = linear(states, from_word, word_bias) + linear(before, from_state, state_bias)
            scores[place] = torch.sigmoid(gates).mean(dim=2) * mask
    return {"lstm": scores}


BERT_TEACHERS: Teachers = {
    "ideal emission rate": attention_teachers,
    "attention rollout": attention_teachers,
    "ideal gradients": gradient_teachers,
    "gradient x input": gradient_teachers,
    "integrated gradients": integrated_bert,
    "column mean": attention_teachers,
    "[CLS] row": attention_teachers,
    "attention x values": attention_teachers,
}
LSTM_TEACHERS: Teachers = {"lstm": input_gates, "integrated gradients": integrated_lstm}
