"""Which tokens may go? The rules of the field on one frozen dense model: nothing is trained but students.

    cache/bert/<task>.pt, bert/  →  records/rules/

An oracle prunes by what a teacher sees in the whole sentence, in a full pass of the dense model. Its student
sees one state at a time, and learned the rule from some training sentences.

Run it without parameters, after PrepareGlue4Bert.py: `python -m studies.rules`. The tasks, seeds and dense
models are those of comparison.py. Each takes 2 to 6 minutes on a core; finished ones are skipped. Change what
is between the two rulers below.
"""

import time
from typing import Annotated, Any, Literal

import torch
from accelerate.utils import set_seed
from pydantic import Field
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from pruning import batches, bert, distillation, records, results, schedules, settings
from pruning.batches import Ragged
from pruning.errors import run_script
from pruning.grid import Experiment
from pruning.losses import ranking_loss
from pruning.pruners import PrunerConfig
from pruning.selection import Tokens
from pruning.student import StudentPruner
from pruning.teachers import BERT_TEACHERS, Place, scores_of
from pruning.training import Inputs
from studies import comparison
from studies.comparison_tables import Record, metric_of
from studies.tables import RECIPE, rules_table

# ----------------------------------------------------------------------------------------------
# Settings
frozen_schedules = {
    "46%": [0, 0.5, 0, 0.5, 0, 0],
    "34%": [0, 0.7, 0, 0.5, 0, 0],
}  # stretched for other depths
removed_tokens = "gone"
student_rows = 2_000
student_epochs = 5
# ----------------------------------------------------------------------------------------------

STUDY = "rules"
FREE = ("random", "head", "tail", "frequency")  # rules that need no model
ORACLE = "ideal gradients"  # any teacher: its pruner takes what scores it is given


class Settings(settings.Strict):
    """The block."""

    frozen_schedules: dict[str, list[Annotated[float, Field(ge=0, lt=1)]]]
    removed_tokens: Literal["fused", "gone"]
    student_rows: settings.Count
    student_epochs: settings.Count


def frozen(experiment: Experiment, chosen: Settings) -> Record:
    """Every rule, as an oracle and as a student.

    Returns:
        oracles, students: schedule → rule → metric on the dev set; token_layers_kept: schedule → share;
        dense: the dense model's metric.
    """
    depth, dense, dev = experiment.builder.dense_layers, experiment.dense(), experiment.data.splits["dev"]
    rates = {name: schedules.stretched(each, depth) for name, each in chosen.frozen_schedules.items()}
    layers = [layer for layer in range(depth) if any(schedule[layer] for schedule in rates.values())]
    own = {"pruning_schedule": [0.5 * (layer in layers) for layer in range(depth)]}
    values: Any = experiment.settings.model_copy(update=own | {"removed_tokens": chosen.removed_tokens})
    builder, state = experiment.builder, dense.state_dict()
    assert isinstance(builder, bert.BertBuilder)
    pruned = bert.BertBuilder(builder.pretrained, experiment.data, values, "rules.py")
    scores, students = oracle_scores(experiment, layers), train_students(experiment, layers, chosen)
    models: Any = {rule: pruned.build(rule, experiment.seed, state) for rule in (*FREE, ORACLE, RECIPE)}

    def evaluate(method: str, schedule: list[float], seen: dict[Place, Ragged] | None = None) -> Record:
        models[method].set_schedule(schedule)
        return results.evaluate_examples(experiment, models[method], Inputs(dev, seen)).figures

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
    return content | {"dense": metric_of(results.evaluate_examples(experiment, dense, Inputs(dev)).figures)}


def oracle_scores(experiment: Experiment, layers: list[int]) -> dict[str, dict[Place, Ragged]]:
    """Rule → layer → scores of the dev set's tokens."""
    dense, examples = experiment.dense(), experiment.data.splits["dev"]

    def score(batch: dict[str, Any]) -> dict[Any, Any]:
        by_rule = scores_of(dense, batch, BERT_TEACHERS, layers, BERT_TEACHERS)
        return {(rule, layer): part for rule, parts in by_rule.items() for layer, part in parts.items()}

    seen = distillation.score_examples(examples, score, **experiment.in_batches)
    return {rule: {layer: seen[rule, layer] for layer in layers} for rule in BERT_TEACHERS}


def train_students(
    experiment: Experiment, layers: list[int], chosen: Settings
) -> dict[str, dict[int, StudentPruner]]:
    """Rule → layer → student. They learn side by side, from one pass of the dense model."""
    dense, device, size = experiment.dense(), experiment.accelerator.device, experiment.settings.batch_size
    examples = batches.subset(experiment.train_examples, chosen.student_rows)
    passed = []
    for rows in tqdm(batches.shuffled_batches(examples.lengths, size, experiment.seed)):
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
    optimizer = torch.optim.AdamW(parameters, lr=experiment.settings.student_learning_rate)
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


def main() -> None:
    block = settings.Block.read(globals(), Settings)
    chosen = block.for_task(settings.OTHER)
    found = []
    for piece in comparison.all_pieces():
        if not piece.is_dense:
            continue
        learning_rate = piece.experiment.settings.student_learning_rate
        fields = piece.fields | {"method": STUDY, "student_learning_rate": learning_rate} | block.values
        folder, started = records.folder_of(STUDY, fields), time.time()
        record = records.read(folder)
        if record is None:
            content = frozen(piece.experiment, chosen)
            record = comparison.write(STUDY, piece.experiment, fields, started, content)
            piece.experiment.forget()
        found.append(record)
    parts = {name: rules_table(found, name) for name in chosen.frozen_schedules}
    comparison.publish(STUDY, parts, records=found)


if __name__ == "__main__":
    run_script(main)
