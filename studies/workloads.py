"""What the benchmark times: models with random weights, on random tokens in sequences of real lengths.

The variants of one cell have the same weights and, where nothing else is said, read the same batches.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ModifiedModelingBert import PrunedBertConfig, PrunedBertForSequenceClassification
from pruning import batches, bert, flops, methods, selection, teachers, timing, training
from pruning.batches import BertExamples, Examples, LstmExamples, Ragged
from pruning.layers import FastPaths
from pruning.lstm_model import PrunedLstmClassifier
from pruning.timing import Variant
from studies.tables import OURS, PADDED, RECIPE, STOCK

SHAPES: dict[str, dict[str, Any]] = {
    "BERT-Base": {},
    "6 layers": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},  # all-MiniLM-L6-v2
}
# Every twentieth quantile of the token counts on the official dev (AG News: test) sets, [CLS] and [SEP]
# included; AG News in words.
LENGTHS = {
    "cola": [5, 6, 7, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 12, 13, 14, 15, 16, 18, 21, 35],
    "sst-2": [4, 10, 12, 14, 16, 17, 19, 20, 21, 23, 24, 26, 27, 29, 30, 32, 34, 37, 40, 44, 55],
    "sts-b": [11, 16, 17, 18, 19, 20, 21, 22, 23, 25, 28, 30, 33, 35, 38, 41, 43, 46, 51, 60, 87],
    "mrpc": [26, 32, 37, 40, 42, 44, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63, 64, 67, 70, 74, 86],
    "agnews": [13, 23, 27, 29, 31, 32, 33, 34, 35, 36, 37, 39, 40, 41, 42, 43, 45, 47, 49, 55, 138],
}
BERT_WORDS, LSTM_WORDS = 30_522, 30_000  # sizes of the vocabularies
FIRST_WORD = 1_000  # ids below it are no words of BERT's vocabulary
EXAMPLES = 1_024  # of which a few batches at even distances are timed
MOST_BATCHES = 8
PADDED_ROWS = 8  # rows timed of a batch at 128 tokens on a CPU: in a larger one each row takes as long

Batch = dict[str, Tensor]
Steps = Sequence[tuple[float, float]]  # where, as a share of the layers, and the rate before that layer
Schedules = Mapping[str, Steps]


def draw_lengths(name: str) -> Tensor:
    """(EXAMPLES,) lengths spread evenly over a distribution, shuffled; or all of the one that `name` says."""
    if name.isdigit():
        return torch.full((EXAMPLES,), int(name))
    table = LENGTHS[name]
    lengths = np.interp(np.linspace(0, len(table) - 1, EXAMPLES), range(len(table)), table).round()
    return torch.from_numpy(lengths).long()[torch.randperm(EXAMPLES)]


def draw_words(name: str, vocabulary_size: int) -> Ragged:
    """Sentences of the lengths called `name`."""
    lengths = draw_lengths(name)
    return Ragged.of(torch.randint(FIRST_WORD, vocabulary_size, (int(lengths.sum()),)), lengths)


def bert_examples(name: str) -> BertExamples:
    words = draw_words(name, BERT_WORDS)
    return BertExamples(words, torch.zeros(EXAMPLES), second_starts=words.lengths.int())


def pick_batches(examples: Examples, size: int, tokens: int) -> list[Tensor]:
    """The rows of length-sorted batches at even distances, with about `tokens` tokens together."""
    every = batches.sorted_batches(examples.lengths, size)
    count = round(tokens / (size * float(examples.lengths.double().mean())))
    count = min(max(1, count), MOST_BATCHES)
    middles = (torch.arange(count) + 0.5) / count
    return [every[int(middle * len(every))] for middle in middles]


def schedule_of(steps: Steps, layers: int) -> list[float]:
    """A schedule of the settings for `layers` layers."""
    rates = [0.0] * layers
    for where, rate in steps:
        rates[min(round(where * layers), layers - 1)] = rate
    return rates


class Berts:
    """BERTs of one shape with the same random weights, on the device in one precision.

    Attributes:
        weights: fp32, on the CPU.
        stock, dense: transformers' model and ours, without pruning.
    """

    def __init__(self, shape: str, device: torch.device, dtype: torch.dtype):
        dense: Any = PrunedBertForSequenceClassification(PrunedBertConfig(**SHAPES[shape]))
        self.config, self.weights = dense.config, bert.own_copy(dense.state_dict())
        self.device, self.dtype = device, dtype
        self.stock: Any = timing.with_weights(bert.stock_copy(dense), device, dtype)
        self.dense: Any = timing.with_weights(dense, device, dtype)

    def pruned(
        self, steps: Steps, method: str, removed_tokens: str = "fused", layers: int | None = None
    ) -> Any:
        """The same weights with pruners, of the first `layers` (None: all)."""
        config: Any = copy.deepcopy(self.config)
        config.num_hidden_layers = layers or config.num_hidden_layers
        config.pruning_schedule = schedule_of(steps, config.num_hidden_layers)
        config.pruning_methods, config.removed_tokens = method, removed_tokens
        model = PrunedBertForSequenceClassification.from_pretrained(
            None, config=config, state_dict=bert.own_copy(self.weights)
        )
        methods.set_frequencies(model, torch.rand(config.vocab_size))
        return timing.with_weights(model, self.device, self.dtype)


def with_gains(model: Any, paths: FastPaths | None) -> Any:
    """The same BERT with other gains; it shares the parameters."""
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    twin.bert.encoder.fast_paths = paths
    return twin


def variant_of(model: Any, inputs: Sequence[Batch]) -> Variant:
    """A model over batches."""
    masks = [batch["mask"] if "mask" in batch else batch["attention_mask"] for batch in inputs]
    lengths = [n for mask in masks for n in mask.sum(dim=1).tolist()]
    alive, token_layers = lengths, 0
    for rate in getattr(model, "schedule", None) or [0.0] * model.config.num_hidden_layers:
        alive = [selection.count_kept(n, rate) for n in alive]
        token_layers += sum(alive)
    run = partial(timing.pass_over, model, inputs)
    return Variant(run, len(lengths), flops.of(model, inputs), token_layers)


# --- Variants ----------------------------------------------------------------------------------


def pruners(
    berts: Berts, schedules: Schedules, by_method: Sequence[str], lengths_of: str, size: int, tokens: int
) -> dict[str, Variant]:
    """Stock and ours, dense and pruned by the student; the schedule "half" by every method."""
    examples = bert_examples(lengths_of)
    groups = pick_batches(examples, size, tokens)
    inputs = batches.on_device(examples, groups, berts.device)
    variants = {}
    if int(examples.lengths.max()) < timing.PADDED:
        some = groups
        if berts.device.type == "cpu" and size > 1:
            some = [groups[len(groups) // 2][:PADDED_ROWS]]
        padded = variant_of(berts.stock, batches.on_device(examples, some, berts.device, timing.PADDED))
        variants[PADDED] = replace(padded, token_layers=None)  # of other examples
    variants |= {STOCK: variant_of(berts.stock, inputs), OURS: variant_of(berts.dense, inputs)}
    for schedule, steps in schedules.items():
        for method in by_method if schedule == "half" else [RECIPE]:
            variants[f"{schedule}, {method}"] = variant_of(berts.pruned(steps, method), inputs)
    return variants


def gains(berts: Berts, size: int, tokens: int) -> dict[str, dict[str, Variant]]:
    """Every gain alone, all but each, and all, without pruning: order of the examples → variants."""
    examples = bert_examples("sst-2")
    names, every = [gain.name for gain in fields(FastPaths)], FastPaths()
    none = replace(every, **dict.fromkeys(names, False))
    models = {"stock": berts.stock, "stock layers": with_gains(berts.dense, None)}
    models |= {f"only {name}": with_gains(berts.dense, replace(none, **{name: True})) for name in names}
    models |= {f"all but {name}": with_gains(berts.dense, replace(every, **{name: False})) for name in names}
    models["all"] = berts.dense
    orders = {"sorted": (pick_batches(examples, size, tokens), list(models))}
    if size > 1:  # lengths are drawn in random order
        orders["as they come"] = ([torch.arange(size)], ["stock", "only unpadding", "all"])
    return {
        order: {
            name: variant_of(models[name], batches.on_device(examples, groups, berts.device))
            for name in timed
        }
        for order, (groups, timed) in orders.items()
    }


def first_code(berts: Berts, steps: Steps, size: int, tokens: int) -> dict[str, Variant]:
    """From the first code's way of working to ours, one change after the other.

    It padded every input to 128, asked the teacher (ideal emission rate) with a full pass, and pruned by it.
    """
    examples = bert_examples("sst-2")
    groups = pick_batches(examples, size, tokens)
    inputs = batches.on_device(examples, groups, berts.device)
    padded = batches.on_device(examples, groups, berts.device, timing.PADDED)
    for batch in padded:  # the first code counted padding as tokens
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        batch["lengths"] = [timing.PADDED] * len(batch["attention_mask"])
    teacher = with_gains(berts.dense, None)
    teacher.set_attn_implementation("eager")
    by_teacher = with_gains(berts.pruned(steps, "ideal emission rate", removed_tokens="gone"), None)

    def teach(todo: list[Batch]) -> None:
        for batch in todo:
            by_teacher(**batch, teacher_scores=emission_rates(teacher, batch))

    count, student = sum(map(len, groups)), berts.pruned(steps, RECIPE)
    return {
        "the first code's way": Variant(partial(teach, padded), count),
        "no padding": Variant(partial(teach, inputs), count),
        "student, no teacher": variant_of(with_gains(student, None), inputs),
        "free gains": variant_of(student, inputs),
        "without pruning": variant_of(berts.dense, inputs),
    }


def emission_rates(model: Any, batch: Batch) -> dict[int, Tensor]:
    """The ideal emission rate at every layer, (B, T), without the other teachers that
    `teachers.attention_teachers` forms in the same pass. `model`: a dense one with eager attention."""
    attentions = model(**batch, output_attentions=True).attentions
    return dict(enumerate(teachers.reach([attention.mean(dim=1) for attention in attentions])))


def training_steps(
    berts: Berts, schedules: Schedules, size: int, accelerator: Accelerator
) -> dict[str, Variant]:
    """A step of fine-tuning. The teacher's scores are there: the runners compute them once for a task."""
    examples = bert_examples("sst-2")
    [batch] = batches.on_device(examples, pick_batches(examples, size, tokens=1), berts.device)
    batch["labels"] = torch.zeros(size, dtype=torch.long, device=berts.device)
    models = {"stock": copy.deepcopy(berts.stock), OURS: copy.deepcopy(berts.dense)}
    models |= {f"{name}, {RECIPE}": berts.pruned(schedules[name], RECIPE) for name in ("half", "heavy")}
    variants = {}
    for name, model in models.items():
        pruned = [layer for layer, rate in enumerate(getattr(model, "schedule", [])) if rate]
        scores = {layer: torch.rand(batch["input_ids"].shape, device=berts.device) for layer in pruned}
        given: dict[str, Any] = batch | ({"teacher_scores": scores} if scores else {})
        optimizer = training.build_optimizer(model.train(), training.Arguments(1, size, 5e-5))
        variants[name] = Variant(partial(train_step, model, optimizer, given, accelerator), size)
    return variants


@torch.inference_mode(False)  # `timing.measure` times everything in inference mode
def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Any], accelerator: Accelerator
) -> None:
    """What `training.training_step` does, for transformers' own model too. Gradients are dropped at the end,
    so that memory that is measured before a step has none of them."""
    with accelerator.autocast():
        output = model(**batch)
        pruning_loss = getattr(output, "pruning_loss", None)
        loss = output.loss if pruning_loss is None else output.loss + pruning_loss
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def lstms(
    rates: Sequence[float], size: int, tokens: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Variant]:
    """Dense, with the packed and the padded nn.LSTM and from the table of words, and pruned at every rate, AG
    News lengths; what goes is fused. All share one table."""
    examples = LstmExamples(draw_words("agnews", LSTM_WORDS), torch.zeros(EXAMPLES))
    inputs = batches.on_device(examples, pick_batches(examples, size, tokens), device)
    build = partial(PrunedLstmClassifier, LSTM_WORDS, 4, pair=False, removed_tokens="fused")
    dense = timing.with_weights(build(), device, dtype)

    def variant(method: str | None, rate: float = 0.0, packed: bool = False, fast: bool = True) -> Variant:
        model: Any = timing.with_weights(build(method=method, rate=rate), device, dtype)
        methods.set_frequencies(model, torch.rand(LSTM_WORDS))
        for name in ("embedding", "lstm", "inner", "classifier"):
            setattr(model, name, getattr(dense, name))
        model.packed, model.fast = packed, fast
        return variant_of(model, inputs)

    variants = {
        "dense, packed": variant(None, packed=True),
        "dense, padded": variant(None, fast=False),
        "dense, word table": variant(None),
    }
    for rate in rates:
        variants[f"{rate:g} removed, student"] = variant("lstm student", rate)
        variants[f"{rate:g} removed, frequency"] = variant("frequency", rate)
    name = f"{max(rates):g} removed, student, no fast paths"
    return variants | {name: variant("lstm student", max(rates), fast=False)}
