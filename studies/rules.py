"""The rules of the field on a frozen dense model: nothing is trained but students. A part of the comparison.

An oracle prunes by what a teacher sees in the whole sentence, in a full pass of the dense model. Its student
sees one state at a time, and learned the rule from some training sentences.
"""

import copy
from typing import Any

import torch
from accelerate.utils import set_seed
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from pruning import batches, distillation, results, schedules
from pruning.batches import Ragged
from pruning.bert import Bert
from pruning.grid import Experiment
from pruning.losses import ranking_loss
from pruning.pruners import PrunerConfig, StudentPruner
from pruning.selection import Tokens
from pruning.teachers import BERT_TEACHERS, Place, scores_of
from pruning.training import TrainingSet
from studies.tables import RECIPE, Record, metric_of

FREE = ("random", "head", "tail", "frequency")  # rules that need no model
ORACLE = "ideal gradients"  # any teacher: its pruner takes what scores it is given


def with_settings(experiment: Experiment, **changed: Any) -> Experiment:
    """An experiment on the same dense model, whose pruned BERTs have other settings."""
    builder: Any = experiment.builder
    values: Any = experiment.settings.model_copy(update=changed)
    other = copy.copy(experiment)
    other.builder = Bert(builder.pretrained, experiment.data, values, "comparison.py")
    return other


def frozen(experiment: Experiment) -> Record:
    """Every rule, as an oracle and as a student.

    Returns:
        oracles, students: schedule → rule → metric on the dev set; token_layers_kept: schedule → share;
        dense: the dense model's metric.
    """
    depth, dense, dev = experiment.builder.layers, experiment.dense(), experiment.data.splits["dev"]
    rates = {n: schedules.stretched(each, depth) for n, each in experiment.settings.frozen_schedules.items()}
    layers = [layer for layer in range(depth) if any(schedule[layer] for schedule in rates.values())]
    pruned = with_settings(experiment, pruning_schedule=[0.5 * (layer in layers) for layer in range(depth)])
    scores, students = oracle_scores(experiment, layers), train_students(experiment, layers)
    state, seed = dense.state_dict(), experiment.seed
    models: Any = {method: pruned.builder.build(method, seed, state) for method in (*FREE, ORACLE, RECIPE)}

    def evaluate(method: str, schedule: list[float], seen: dict[Place, Ragged] | None = None) -> Record:
        models[method].set_schedule(schedule)
        return results.evaluate_examples(experiment, models[method], TrainingSet(dev, seen))

    def evaluate_student(rule: str, schedule: list[float]) -> Record:
        models[RECIPE].bert.encoder.pruners.update({str(layer): s for layer, s in students[rule].items()})
        return evaluate(RECIPE, schedule)

    content: Record = {"oracles": {}, "students": {}, "token_layers_kept": {}}
    for name, schedule in rates.items():
        oracles = {rule: evaluate(rule, schedule) for rule in FREE}
        oracles |= {rule: evaluate(ORACLE, schedule, scores[rule]) for rule in scores}
        learned = {rule: evaluate_student(rule, schedule) for rule in students}
        for kind, found in (("oracles", oracles), ("students", learned)):
            content[kind][name] = {rule: metric_of(answers) or 0.0 for rule, answers in found.items()}
        content["token_layers_kept"][name] = oracles["head"]["token_layers_kept"]
    return content | {"dense": metric_of(results.evaluate_examples(experiment, dense, TrainingSet(dev)))}


def oracle_scores(experiment: Experiment, layers: list[int]) -> dict[str, dict[Place, Ragged]]:
    """Rule → layer → scores of the dev set's tokens."""
    dense, examples = experiment.dense(), experiment.data.splits["dev"]

    def score(batch: dict[str, Any]) -> dict[Any, Any]:
        by_rule = scores_of(dense, batch, BERT_TEACHERS, layers, BERT_TEACHERS)
        return {(rule, layer): part for rule, parts in by_rule.items() for layer, part in parts.items()}

    size, device = experiment.settings.evaluation_batch_size, experiment.accelerator.device
    seen = distillation.score_examples(examples, score, batch_size=size, device=device)
    return {rule: {layer: seen[rule, layer] for layer in layers} for rule in BERT_TEACHERS}


def train_students(experiment: Experiment, layers: list[int]) -> dict[str, dict[int, StudentPruner]]:
    """Rule → layer → student. They learn side by side, from one pass of the dense model."""
    dense, device, chosen = experiment.dense(), experiment.accelerator.device, experiment.settings
    examples = batches.subset(experiment.train_examples, chosen.student_rows)
    passed = []
    for rows in tqdm(batches.shuffled_batches(examples.lengths, chosen.batch_size, experiment.seed)):
        batch = batches.to_device(examples.batch(rows), device)
        with torch.no_grad():
            states = dense(**batch, output_hidden_states=True).hidden_states
        tokens = {
            layer: Tokens.start(states[layer], batch["attention_mask"].bool(), None) for layer in layers
        }
        passed.append((tokens, scores_of(dense, batch, BERT_TEACHERS, layers, BERT_TEACHERS)))
    set_seed(experiment.seed)
    sizes = {"hidden_size": dense.config.hidden_size, "vocab_size": dense.config.vocab_size}
    configs = {layer: PrunerConfig(layer, **sizes) for layer in layers}
    students = {rule: {i: StudentPruner(c).to(device) for i, c in configs.items()} for rule in BERT_TEACHERS}
    parameters = [p for by_layer in students.values() for s in by_layer.values() for p in s.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=chosen.student_learning_rate)
    steps = chosen.student_epochs * len(passed)
    falling = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for step in tqdm(range(steps), desc="students"):
        tokens, scores = passed[step % len(passed)]
        losses = []
        for layer, at in tokens.items():
            ranked = at.mask & (at.positions > 0)  # [CLS] stays in any case
            losses += [
                ranking_loss(students[rule][layer].score(at), scores[rule][layer], ranked)
                for rule in students
            ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        falling.step()
    return students
