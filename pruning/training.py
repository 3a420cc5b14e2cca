"""What the runners' loops share: device, training, prediction. Knows nothing of the models.

A model is called with a batch's tensors, `labels` and `teacher_scores`, and returns an object with
`loss`, `logits`, `kept` and `pruning_loss`; it prunes by its `schedule`, in training by what
`set_training_rates` says.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from pruning import batches, schedules
from pruning.batches import Examples, Ragged
from pruning.errors import UserError
from pruning.metrics import distillation_loss
from pruning.teachers import Place

MakeBatch = Callable[[Examples, Tensor], dict[str, Tensor]]


@dataclass
class Schedule:
    """How to train.

    Attributes:
        epochs, batch_size, learning_rate: the usual ones; half an epoch is 0.5.
        student_learning_rate, residue_learning_rate: of what starts from nothing.
        warmup_share: of all steps, in which the learning rate rises from 0; then it falls to 0.
        ramp_share: of all steps, in which pruning rates rise from 0 to the schedule; after that, and
            so at the end, the model sees what inference does.
        weight_decay: of matrices; biases and norms have none.
        distillation_share: of the loss, that asks for a teacher's logits instead of the labels.
        dropout: of the whole model; None: as its configuration says.
        copies: how many copies of every example are learned from, besides itself, each with other words
            left out; see `runs.TaskRun.lessons`. An epoch is as many steps as there would be without.
        words_left_out: share of the words that a copy lacks.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    student_learning_rate: float = 1e-3
    residue_learning_rate: float = 1e-3
    warmup_share: float = 0.1
    ramp_share: float = 0.0
    weight_decay: float = 0.01
    distillation_share: float = 0.0
    dropout: float | None = None
    copies: int = 0
    words_left_out: float = 0.15


@dataclass
class Predictions:
    """What a model said of all examples.

    Attributes:
        logits: (N, C) fp32, on the CPU.
        kept: (N, L) int64, the tokens that each layer (for the LSTM: each sentence) processed; None
            where nothing is pruned.
    """

    logits: Tensor
    kept: Tensor | None


@dataclass
class Memory:
    """How many parts a batch is cut into, because it did not fit whole."""

    parts: int = 1

    def halve(self, error: Exception, rows: int) -> None:
        """Cuts batches in half from here on. Re-raises `error` if it is not about memory, or if a
        batch of `rows` cannot be cut any further."""
        if not should_reduce_batch_size(error) or self.parts >= rows:
            raise error
        self.parts *= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        message = f"out of memory: batches go in {self.parts} parts from here on, results unchanged"
        tqdm.write(message)


def pick_device(in_several_processes: bool = True) -> Accelerator:
    """GPU if there, else Apple's, else the CPU; bf16 where the device computes in it. Says why.

    Raises UserError if it runs in several processes and may not.
    """
    precision, why = best_precision()
    accelerator = Accelerator(mixed_precision=precision)
    if accelerator.num_processes > 1 and not in_several_processes:
        raise UserError("this script runs in one process: start it with python, not with accelerate launch")
    if accelerator.is_main_process:
        name = device_name(accelerator.device)
        processes = accelerator.num_processes
        several = f", {processes} processes" if processes > 1 else ""
        print(f"Device: {name}{several}. Precision: {precision_name(accelerator)}, {why}.")
    return accelerator


def best_precision() -> tuple[str, str]:
    """accelerate's name of a precision, and the reason for it."""
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in it"
        return "no", "this GPU does not compute in bf16"
    if torch.backends.mps.is_available():
        return "no", "the precision best supported on Apple's GPUs"
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "this processor has AMX units for it"
    return "no", "this processor has no AMX units for bf16"


def precision_name(accelerator: Accelerator) -> str:
    """bf16 or fp32, for people."""
    return "bf16" if accelerator.mixed_precision == "bf16" else "fp32"


def device_name(device: torch.device) -> str:
    """What a reader of a record wants to know of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (MPS)"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def train(
    model: Any,
    examples: Examples,
    make_batch: MakeBatch,
    schedule: Schedule,
    *,
    seed: int,
    accelerator: Accelerator,
    teacher_scores: dict[Place, Ragged] | None = None,
    teacher_logits: Tensor | None = None,
    rates_at: Callable[[float], Sequence[float]] | None = None,
    name: str = "",
) -> list[tuple[int, float]]:
    """Trains `model` in place on all `examples`, to the last epoch: nothing is chosen by a dev set.

    Args:
        examples: with all their copies, where `schedule` has any.
        teacher_scores: place → scores of the examples, for students to learn from and teachers to
            prune by.
        teacher_logits: (N, C) what the model is to answer; see `Schedule.distillation_share`.
        rates_at: the share of the training that is over, in (0, 1], to one rate for each layer;
            None: the model's schedule, which the rates rise to as `Schedule.ramp_share` says.

    Returns:
        The curve of the loss: (step, mean loss since the point before), about 50 points.
    """
    lengths = examples.lengths
    epochs = schedule.epochs / (1 + schedule.copies)
    plan = [
        _share_of(accelerator, batches.shuffled_batches(lengths, schedule.batch_size, 1_000 * seed + e))
        for e in range(math.ceil(epochs))
    ]
    todo = [rows for epoch in plan for rows in epoch]
    steps = max(1, round(len(todo) * epochs / len(plan)))
    for module in model.modules():
        if isinstance(module, nn.Dropout) and schedule.dropout is not None:
            module.p = schedule.dropout
    optimizer = build_optimizer(model, schedule)
    scheduler = get_linear_schedule_with_warmup(optimizer, int(schedule.warmup_share * steps), steps)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    rates_at = rates_at or schedules.rising(model.schedule, schedule.ramp_share)
    curve: list[tuple[int, float]] = []
    since: list[Tensor] = []
    memory = Memory()

    def backward(rows: Tensor, parts: int) -> Tensor:
        """Gradients of one batch, in `parts` pieces. Returns the batch's mean loss, detached."""
        total = torch.zeros((), device=accelerator.device)
        for piece in batches.halves(rows, parts):
            batch = full_batch(examples, piece, make_batch, teacher_scores, accelerator.device)
            batch["labels"] = examples.labels[piece].to(accelerator.device)
            with accelerator.autocast():
                output = wrapped(**batch)
                loss = output.loss
                if teacher_logits is not None:
                    taught = distillation_loss(output.logits, teacher_logits[piece].to(accelerator.device))
                    loss = torch.lerp(loss, taught, schedule.distillation_share)
                if output.pruning_loss is not None:
                    loss = loss + output.pruning_loss
            share = len(piece) / len(rows)
            accelerator.backward(loss * share)
            total += loss.detach() * share
        return total

    wrapped.train()
    bar = tqdm(total=steps, desc=name, disable=not accelerator.is_main_process)
    for step, rows in enumerate(todo[:steps], start=1):
        model.set_training_rates(rates_at(step / steps))
        while True:
            optimizer.zero_grad(set_to_none=True)
            try:
                loss = backward(rows, memory.parts)
                break
            except RuntimeError as error:
                if accelerator.num_processes > 1:
                    raise  # the other processes would wait for this one for ever
                memory.halve(error, len(rows))
        accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        since.append(loss)
        bar.update()
        if len(since) >= max(1, steps // 50) or step == steps:
            curve.append((step, torch.stack(since).mean().item()))
            bar.set_postfix(loss=f"{curve[-1][1]:.3f}")
            since = []
    bar.close()
    model.set_training_rates(None)
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    accelerator.free_memory()
    return curve


def _share_of(accelerator: Accelerator, epoch: list[Tensor]) -> list[Tensor]:
    """This process's batches of an epoch: every process gets equally many."""
    processes = accelerator.num_processes
    even = len(epoch) - len(epoch) % processes
    return epoch[accelerator.process_index : even : processes]


def build_optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW; only matrices decay, and students and residues have learning rates of their own."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        rate = schedule.learning_rate
        if "pruner" in name:
            rate = schedule.student_learning_rate
        elif "residue" in name:
            rate = schedule.residue_learning_rate
        decay = schedule.weight_decay if parameter.dim() > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
        fused=True,
    )


def full_batch(
    examples: Examples,
    rows: Tensor,
    make_batch: MakeBatch,
    teacher_scores: dict[Place, Ragged] | None,
    device: torch.device,
) -> dict[str, Any]:
    """A batch on the device, with its rows of the teacher's scores."""
    batch: dict[str, Any] = batches.to_device(make_batch(examples, rows), device)
    if teacher_scores is not None:
        padded = {place: scores.pad(rows)[0] for place, scores in teacher_scores.items()}
        batch["teacher_scores"] = {place: scores.to(device) for place, scores in padded.items()}
    return batch


@torch.no_grad()
def predict(
    model: nn.Module,
    examples: Examples,
    make_batch: MakeBatch,
    *,
    batch_size: int,
    accelerator: Accelerator,
    teacher_scores: dict[Place, Ragged] | None = None,
) -> Predictions:
    """The model's answers, in evaluation mode, in length-sorted batches. Labels are not handed over."""
    model.to(accelerator.device).eval()
    order, logits, kept = [], [], []
    memory = Memory()
    with accelerator.autocast():  # around all batches: each weight is cast once
        for rows in batches.sorted_batches(examples.lengths, batch_size):
            done: list[Any] = []
            while not done:
                try:
                    for piece in batches.halves(rows, memory.parts):
                        batch = full_batch(examples, piece, make_batch, teacher_scores, accelerator.device)
                        done.append(model(**batch))
                except RuntimeError as error:
                    done = []
                    memory.halve(error, len(rows))
            order.append(rows)
            logits += [output.logits.float().cpu() for output in done]
            if done[0].kept is not None:
                kept += [count_places(output.kept).cpu() for output in done]
    back = torch.cat(order).argsort()
    return Predictions(torch.cat(logits)[back], torch.cat(kept)[back] if kept else None)


def count_places(kept: tuple[Tensor, ...]) -> Tensor:
    """(B, L) how many tokens each layer processed, from the places (B, Tₗ) that it did, -1 = none."""
    return torch.stack([(places >= 0).sum(dim=1) for places in kept], dim=1)
