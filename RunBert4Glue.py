"""Fine-tunes BERT on GLUE with sequence pruning, evaluates it, and writes records/BERT/.

    cache/bert/<task>.pt, bert/  →  records/BERT/

Run it without parameters, after PrepareGlue4Bert.py and, for a TensorFlow BERT, ConvertBert4Torch.py.
Change what is between the two rulers below, and run it again: finished runs are skipped, what a setting
changes is run anew, older records stay. With several GPUs: accelerate launch RunBert4Glue.py
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from ModifiedModelingBert import (
    PrunedBertConfig,
    PrunedBertForSequenceClassification,
    check_schedule,
    methods_by_layer,
)
from pruning import (
    batches,
    bert_folder,
    caches,
    pruners,
    records,
    runs,
    schedules,
    tasks,
    teachers,
    timing,
    training,
)
from pruning.batches import Examples, bert_batch, to_device
from pruning.errors import UserError
from pruning.runs import Method, Plan, State, TaskData
from pruning.teachers import Batch, Place

# ----------------------------------------------------------------------------------------------
# Settings

# One pruning rate for each layer of the BERT in bert/, in [0, 1]: the share of the tokens still alive
# that is thrown away before that layer. 0 builds no pruner there. Or "half", "third", "fifth": the list
# that keeps so much of the work, for any number of layers. May differ by task: {"cola": "half", …}.
pruning_schedule = "half"
# pruning_schedule = [0, 0, 0, 0.5, 0, 0, 0, 0.5, 0, 0, 0, 0]  # the 2020 manual's, for 12 layers

# What to compare; the first is the recipe of this repository. Also: "head", "tail", "frequency",
# "gradient x input student", "attention rollout student", "ideal emission rate student", "column mean",
# "column mean threshold", and the teachers, which are upper bounds: "ideal gradients", "gradient x input",
# "attention rollout", "ideal emission rate". An entry may also be a list with one for each layer.
pruning_methods = ["ideal gradients student", "random"]
residue = True  # what goes leaves its mean, through a trained matrix, with [CLS]; False: nothing, as in 2020
task_names = ["cola", "sst-2", "mrpc", "sts-b", "qqp", "mnli", "qnli", "rte", "wnli"]
seeds = [0]  # everything is run once for each
training_rows = None  # rows drawn from the training set; None: all of them
dense_epochs = 3
pruned_epochs = 4  # of every pruned model, which starts as the dense one
batch_size = 32
learning_rate = 5e-5
student_learning_rate = 1e-3  # of the students, which start from nothing
residue_learning_rate = 1e-3  # of the residues, which start from 0; try less for fewer than 100 steps
distillation_share = 0.5  # of a pruned model's loss: the dense model's answers instead of the labels
ramp_share = 0.3  # of a pruned model's training, in which its rates rise from 0 to the schedule
dropout = 0.0  # of pruned models; None: as the BERT's configuration says, and as the dense model is trained
copies = 3  # of each sentence, with words left out, for pruned models; an epoch has as many steps as without
evaluation_batch_size = 64
timing_examples = 128  # of the dev set, at even distances
timing_passes = 3
shown_examples = 20  # sentences on the page beside each record
# ----------------------------------------------------------------------------------------------

PREPARED_BY = "PrepareGlue4Bert.py"
EDIT = "Edit the settings at the top of RunBert4Glue.py"
CALIBRATED_ON = 512  # training sentences, for pruners with a threshold


class BertFamily(runs.Family):
    """BERT on GLUE."""

    name = "BERT"
    cache_folder = "bert"
    make_batch = staticmethod(bert_batch)
    marks = ("[CLS]", "[SEP]")

    def __init__(self, residue: bool = True) -> None:
        """With a pruner before every layer; see `runs.TaskRun.any_schedule`. Raises UserError if there is no
        BERT in bert/."""
        self.residue = residue
        self.config_file = bert_folder.config_path()
        weights = bert_folder.weights_path()
        self.config = PrunedBertConfig.from_json_file(self.config_file)
        self.layers = self.config.num_hidden_layers
        self.schedule = [0.5] * self.layers
        self.weights = read_weights(weights)
        self.weights_from = str(weights)
        self.affects = {
            "weights": caches.fingerprint(weights),
            "config": caches.fingerprint(self.config_file),
        }

    def pruned_by(self, schedule: str | Sequence[float], task: tasks.Task) -> "BertFamily":
        """The same BERT with a schedule. Raises UserError if it does not fit."""
        family = copy.copy(self)
        try:
            family.schedule = schedules.resolve(schedule, self.layers, task.kind)
            check_schedule(family.schedule, self.layers)
        except ValueError as error:
            raise UserError(f"{error}. {EDIT}") from None
        return family

    def build(self, data: TaskData, method: Method | None, seed: int, start: State | None) -> nn.Module:
        config = PrunedBertConfig.from_json_file(self.config_file)
        config.num_labels = data.task.outputs
        if method is not None:
            config.pruning_schedule = self.schedule
            config.pruning_methods = method
            config.pruning_seed = seed
            config.pruning_residue = self.residue
        state = own_copy(start or self.weights)
        model, info = PrunedBertForSequenceClassification.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True
        )
        missing = [
            name
            for name in info["missing_keys"]
            if not any(fresh in name for fresh in ("classifier", "pruners", "residues"))
        ]
        if missing:
            raise UserError(f"{self.weights_from} does not fit {self.config_file}: no {missing[0]}")
        model.set_frequencies(data.counts)
        return model

    def teachers_of(self, method: Method, data: TaskData) -> dict[Place, str]:
        by_layer = methods_by_layer(method, self.layers)
        named = {
            layer: pruners.teacher_of(by_layer[layer]) for layer, rate in enumerate(self.schedule) if rate > 0
        }
        return {layer: teacher for layer, teacher in named.items() if teacher}

    def score(self, dense: nn.Module, batch: Batch, wanted: dict[Place, str]) -> dict[Place, Tensor]:
        return teachers.bert_scores(dense, batch, wanted)  # type: ignore[arg-type]

    def pruning(self) -> list[float]:
        return self.schedule

    def affects_pruned(self) -> dict[str, Any]:
        return {"residue": self.residue}

    def method_name(self, method: Method) -> str:
        if isinstance(method, str):
            return method
        return " + ".join(m for m, rate in zip(method, self.schedule, strict=True) if rate > 0)

    def stages(self, data: TaskData) -> list[str]:
        return [f"layer {layer}" for layer, rate in enumerate(self.schedule) if rate > 0]

    def sentences(
        self, data: TaskData, examples: Examples, row: int, kept: tuple[Tensor, ...] | None
    ) -> list[dict[str, list]]:
        words = [data.vocabulary[i] for i in examples.ids.row(row)]
        dropped: list[str | None] = [None] * len(words)
        for layer in reversed(range(self.layers if kept else 0)):
            alive = set(kept[layer][row].tolist())  # type: ignore[index]
            dropped = [gone if i in alive else f"layer {layer}" for i, gone in enumerate(dropped)]
        return [{"words": words, "dropped": dropped}]

    def after_training(self, model: Any, examples: Examples) -> None:
        rows = torch.arange(min(CALIBRATED_ON, len(examples)))
        model.calibrate(to_device(bert_batch(batches.subset(examples, len(rows)), rows), model.device))

    def time(
        self, data: TaskData, dense: nn.Module, pruned: nn.Module | None, plan: Plan, accelerator: Accelerator
    ) -> dict[str, Any]:
        stock = stock_copy(dense)
        models = {
            "dense, padded to 128": stock,
            "dense, stock": stock,
            "dense, ours": dense,
        }
        if pruned is not None:
            models["pruned"] = pruned
        examples = runs.timing_subset(data.splits["dev"], plan)
        return runs.time_variants(models, examples, bert_batch, flops_of, plan, accelerator)


def stock_copy(dense: Any) -> BertForSequenceClassification:
    """The same weights in transformers' own model, which speed-ups are against."""
    state = own_copy(dense.state_dict())
    return BertForSequenceClassification.from_pretrained(None, config=dense.config, state_dict=state)


def own_copy(state: State) -> State:
    """`from_pretrained` makes the tensors it is handed the model's parameters, without copying them: a model
    trained from another's would train that one too."""
    return {name: tensor.clone() for name, tensor in state.items()}


def read_weights(path) -> State:
    """The tensors of a PyTorch or safetensors file. Raises UserError if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise UserError(f"{path} cannot be read as PyTorch weights: {error}") from error


def flops_of(model: Any, batch: Batch) -> int:
    """FLOPs of one batch through stock BERT or ours."""
    mask = batch["attention_mask"]
    if isinstance(model, PrunedBertForSequenceClassification):
        return model.flops(mask)
    return timing.stock_bert_flops(model.config, *mask.shape)


def check_settings(layers: int) -> None:
    """Raises UserError, before anything is trained, for a setting that cannot work."""
    try:
        for method in pruning_methods:
            methods_by_layer(method, layers)
    except ValueError as error:
        raise UserError(f"{error}. {EDIT}") from None
    unknown = [name for name in task_names if name not in tasks.GLUE]
    if unknown or not task_names:
        raise UserError(
            f"task_names in RunBert4Glue.py: {unknown or 'empty'}; known are: {', '.join(tasks.GLUE)}"
        )


def open_caches(config: PrunedBertConfig, task_names: Sequence[str]) -> list[TaskData]:
    """The cache of every task, checked against bert/.

    Raises UserError if one is missing, or was made from another vocabulary or with other settings.
    """
    opened = []
    for name in task_names:
        hint = f"{PREPARED_BY} (or take {name!r} out of task_names)"
        data = runs.open_cache("bert", tasks.GLUE[name], hint)
        made_with = data.settings
        if any(made_with[k] != v for k, v in bert_folder.tokenizer_settings().items()):
            raise UserError(
                f"the cache of {name} was made for another casing than bert/'s. Run: python {hint}"
            )
        if made_with["max_length"] > config.max_position_embeddings:
            raise UserError(
                f"the cache of {name} has sequences of up to {made_with['max_length']} tokens, the BERT in "
                f"bert/ reads {config.max_position_embeddings}. Edit max_length and run: python {hint}"
            )
        if len(data.vocabulary) > config.vocab_size:
            raise UserError(
                f"the vocabulary of {name}'s cache has {len(data.vocabulary)} words, the BERT in bert/ "
                f"{config.vocab_size}: they do not belong together. Run: python {hint}"
            )
        opened.append(data)
    return opened


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    settings = records.settings_block(globals())
    bert = BertFamily(residue)
    check_settings(bert.layers)
    families = [
        bert.pruned_by(runs.of_task(settings, "pruning_schedule", name), tasks.GLUE[name])
        for name in task_names
    ]
    prepared = list(zip(families, open_caches(bert.config, task_names), strict=True))
    accelerator = training.pick_device()
    if accelerator.is_main_process:
        print(f"BERT: {bert.layers} layers of {bert.config.hidden_size}, weights from {bert.weights_from}")
        for family, data in prepared:
            kept = f"{schedules.token_layers(family.schedule):.0%} of the token-layers"
            print(f"Schedule of {data.task.name}: {family.schedule}, which keeps {kept}")
    runs.run(settings, prepared, accelerator)


if __name__ == "__main__":
    main()
