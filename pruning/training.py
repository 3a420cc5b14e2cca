"""Training and prediction. Knows nothing of the models.

A model is called with a batch's tensors, `labels` and `teacher_scores`, and returns an object with `loss`,
`logits`, `kept` and `pruning_loss`; it prunes by its `schedule`, in training by the rates that
`set_training_rates` sets.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from pruning import batches, schedules
from pruning.batches import Examples, Ragged
from pruning.devices import Memory, halving
from pruning.errors import UserError
from pruning.losses import distillation_loss
from pruning.plan import move
from pruning.teachers import Place

RatesAt = Callable[[float], Sequence[float]]  # share of the training that is over → one rate for each layer
Curve = list[tuple[int, float]]  # step, mean loss since the point before
BAR_AFTER = 5  # seconds of predictions, in a terminal
CHECKED_EVERY = 50  # steps, at most, until a loss that is NaN or infinite stops the training


@dataclass
class Arguments:
    """How to train. Pruners and BERT's token fusions start fresh, with learning rates of their own."""

    epochs: float  # half an epoch is 0.5
    batch_size: int
    learning_rate: float
    student_learning_rate: float = 1e-3
    fusion_learning_rate: float = 1e-3
    warmup_share: float = 0.1  # of all steps, in which the learning rate rises from 0; then it falls to 0
    weight_decay: float = 0.01  # of matrices; biases and norms have none
    ramp_share: float = 0.0  # of all steps, in which pruning rates rise from 0 to the schedule's
    distillation_share: float = 0.0  # of the loss: the dense model's logits instead of the labels
    dropout: float | None = None  # of the whole model; None: as its configuration says
    augmented_copies: int = 0  # of every example, in its training set; an epoch is as many steps as without
    word_dropout: float = 0.15  # share of the words that a copy lacks

    @classmethod
    def of_pruned(cls, settings: Any) -> "Arguments":
        """How a pruned model is trained, by those of these names that a script has."""
        names = [field.name for field in fields(cls) if hasattr(settings, field.name)]
        return cls(epochs=settings.pruned_epochs, **{name: getattr(settings, name) for name in names})


@dataclass
class Inputs:
    """What a model reads, in training and after.

    Attributes:
        teacher_scores: place → a row for each example: what students learn from, and teachers prune by.
        dense_logits: (N, C) the dense model's answers, to learn from.
    """

    examples: Examples
    teacher_scores: dict[Place, Ragged] | None = None
    dense_logits: Tensor | None = None

    def batch(self, rows: Tensor, device: torch.device) -> dict[str, Any]:
        """A model's arguments for these rows, without labels."""
        batch = batches.to_device(self.examples.batch(rows), device)
        if self.teacher_scores is not None:
            padded: Any = {place: scores.pad(rows)[0] for place, scores in self.teacher_scores.items()}
            batch["teacher_scores"] = batches.to_device(padded, device)
        return batch


class Predictions(NamedTuple):
    """A model's answers to all examples, on the CPU.

    logits: (N, C) fp32. kept: for each layer (for the LSTM: each sentence) the positions of the tokens that
    it processed, a row for each example; None where nothing is pruned.
    """

    logits: Tensor
    kept: list[Ragged] | None


# --- Training --------------------------------------------------------------------------------


def train(
    model: Any,
    data: Inputs,
    arguments: Arguments,
    title: str,
    accelerator: Accelerator,
    seed: int,
    rates_at: RatesAt | None = None,
) -> Curve:
    """Trains `model` in place on all examples, to the last epoch: nothing is chosen by a dev set.

    Args:
        title: of the bar, and of what is said.
        rates_at: the share of the training that is over, in (0, 1], to one rate for each layer; None: the
            model's schedule, which the rates rise to as `Arguments.ramp_share` says.

    Returns the curve of the loss. Raises UserError if the loss is NaN or infinite.
    """
    steps = rows_by_step(data.examples.lengths, arguments, seed)
    if arguments.dropout is not None:
        set_dropout(model, arguments.dropout)
    optimizer = build_optimizer(model, arguments)
    warmup = int(arguments.warmup_share * len(steps))
    scheduler = get_linear_schedule_with_warmup(optimizer, warmup, len(steps))
    if accelerator.scaler is not None:  # a used one keeps the scale of earlier trainings
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    wrapped.train()
    rates_at = rates_at or schedules.rising(model.schedule, arguments.ramp_share)
    memory = Memory(may_cut=accelerator.num_processes == 1)  # others would wait for this process for ever
    pending: list[Tensor] = []  # losses that nobody has read yet
    losses: list[float] = []
    bar = tqdm(steps, desc=title, leave=None, disable=not accelerator.is_main_process)
    for step, rows in enumerate(bar, start=1):
        model.set_training_rates(rates_at(step / len(steps)))
        pending.append(training_step(wrapped, optimizer, data, rows, arguments, accelerator, memory))
        scheduler.step()
        if step % CHECKED_EVERY == 0 or step == len(steps):  # nothing else waits for a GPU
            latest, pending = torch.stack(pending).tolist(), []
            losses += latest
            bar.set_postfix(loss=f"{fmean(latest):.3f}")
            if not all(map(math.isfinite, latest)):
                what = f"{title}: the loss is NaN or infinite at step {step}"
                raise UserError(f"{what}; a lower learning rate may help")
    model.set_training_rates(None)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    model.__dict__.pop("forward", None)  # in half precision unwrapping leaves it without its decorators
    accelerator.free_memory()
    return curve_of(losses)


def rows_by_step(lengths: Tensor, arguments: Arguments, seed: int) -> list[Tensor]:
    """The rows of every step. All processes together take them."""
    epochs = arguments.epochs / (1 + arguments.augmented_copies)
    steps: list[Tensor] = []
    for epoch in range(math.ceil(epochs)):
        steps += batches.shuffled_batches(lengths, arguments.batch_size, 1_000 * seed + epoch)
    return steps[: max(1, round(len(steps) * epochs / math.ceil(epochs)))]


def set_dropout(model: nn.Module, probability: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability


def build_optimizer(model: nn.Module, arguments: Arguments) -> torch.optim.Optimizer:
    """AdamW; only matrices decay. Pruners and BERT's `fusions` have learning rates of their own; the LSTM's
    `fusion` learns as the model does."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rates = {"pruner": arguments.student_learning_rate, "fusions.": arguments.fusion_learning_rate}
        rate = next((rates[part] for part in rates if part in name), arguments.learning_rate)
        decay = arguments.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    chosen = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    return torch.optim.AdamW(chosen, fused=True)


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Inputs,
    rows: Tensor,
    arguments: Arguments,
    accelerator: Accelerator,
    memory: Memory,
) -> Tensor:
    """One step on the batch `rows`, of which each process takes its share. Returns the mean loss of this
    process's rows, detached."""
    own = rows[accelerator.process_index :: accelerator.num_processes]
    weight = accelerator.num_processes / len(rows)  # the processes' gradients are averaged, not added
    if len(own) == 0:  # fewer rows than processes: this one takes part in the step and adds nothing
        own, weight = rows[:1], 0.0
    while True:
        optimizer.zero_grad(set_to_none=True)
        parts = [part for part in own.tensor_split(memory.parts) if len(part)]
        try:
            losses = [add_gradients(model, data, part, arguments, accelerator, weight) for part in parts]
            break
        except RuntimeError as error:
            memory.cut(error, len(own))  # raises it if it is another one, or nothing is left to cut
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return torch.stack(losses).sum() / len(own)


def add_gradients(
    model: nn.Module,
    data: Inputs,
    rows: Tensor,
    arguments: Arguments,
    accelerator: Accelerator,
    weight: float,
) -> Tensor:
    """Adds the gradients of these rows' losses, times `weight`. Returns the sum of the losses, detached."""
    batch = data.batch(rows, accelerator.device)
    batch["labels"] = move(data.examples.labels[rows], accelerator.device)
    with accelerator.autocast():
        output = model(**batch)
        loss = output.loss
        if data.dense_logits is not None:
            answers = move(data.dense_logits[rows], accelerator.device)
            distance = distillation_loss(output.logits, answers)
            loss = torch.lerp(loss, distance, arguments.distillation_share)
        if output.pruning_loss is not None:
            loss = loss + output.pruning_loss
    accelerator.backward(loss * (len(rows) * weight))
    return loss.detach() * len(rows)


def curve_of(losses: list[float]) -> Curve:
    """About 50 points: each the last step of a part of the training, and the mean loss of that part."""
    every = max(1, min(CHECKED_EVERY, len(losses) // 50))
    starts = range(0, len(losses), every)
    return [(min(start + every, len(losses)), fmean(losses[start : start + every])) for start in starts]


def state_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


# --- Prediction ------------------------------------------------------------------------------


@halving
@torch.no_grad()
def predict(
    model: nn.Module, data: Inputs, *, batch_size: int, device: torch.device, with_kept: bool = True
) -> Predictions:
    """The model's answers to all examples, in fp32: in evaluation mode, in length-sorted batches (smaller
    where memory runs out), without a look at labels. with_kept: whether to look up which tokens were kept."""
    model.to(device).eval()
    by_length = batches.sorted_batches(data.examples.lengths, batch_size)
    logits: list[Tensor] = []
    kept: list[list[Ragged]] = []
    hidden = None if PartialState().is_main_process else True  # None: shown in a terminal
    for rows in tqdm(by_length, desc="answers", leave=False, delay=BAR_AFTER, disable=hidden):
        output = model(**data.batch(rows, device))
        logits.append(output.logits.float().cpu())
        if with_kept and output.kept is not None:
            positions = [layer.cpu() for layer in output.kept]
            kept.append([Ragged.of_padded(layer, layer >= 0) for layer in positions])
    back = torch.cat(by_length).argsort()
    by_layer = [Ragged.joined(layer)[back] for layer in zip(*kept, strict=True)]
    return Predictions(torch.cat(logits)[back], by_layer or None)
