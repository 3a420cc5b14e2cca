"""What is special to BERT in the grid: how it starts, what is built, which teachers it has."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from ModifiedModelingBert import PrunedBertConfig, PrunedBertForSequenceClassification
from pruning import bert_folder, caches, methods, schedules, selection, wordpieces
from pruning.batches import Examples, Ragged
from pruning.caches import TaskData
from pruning.devices import say
from pruning.errors import UserError
from pruning.records import DENSE, OURS
from pruning.settings import BertSettings
from pruning.tasks import Rows, Task
from pruning.teachers import BERT_TEACHERS, Place

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

State = Mapping[str, Tensor]
ROOT = Path(__file__).resolve().parent.parent
CODE = (  # what a saved model runs elsewhere: these import each other and installed packages
    ROOT / "ModifiedModelingBert.py",
    *(ROOT / "pruning" / f"{module}.py" for module in ("selection", "losses", "teachers")),
    *(ROOT / "pruning" / f"{module}.py" for module in ("pruners", "student")),
    *(ROOT / "pruning" / f"{module}.py" for module in ("methods", "layers", "plan", "tokens")),
)
OF_PRUNING = {"model_type", *PrunedBertConfig.__annotations__}  # what a stock configuration has not


@dataclass
class Pretrained:
    """The BERT in bert/."""

    config: dict[str, Any]  # the fields of a dense BertConfig
    weights: dict[str, Tensor]  # of its encoder, and of its pooler where it has one; fp32
    weights_file: Path
    key_fields: dict[str, str]  # SHA-256 of both files

    @classmethod
    def read(cls) -> "Pretrained":
        """Raises UserError if there is no BERT in bert/, or its files do not fit together."""
        config_file, weights_file = bert_folder.config_path(), bert_folder.weights_path()
        check_source(weights_file)
        config = bert_folder.read_config(config_file)
        weights = bert_folder.read_weights(weights_file)
        weights, lines = bert_folder.fit(weights, config, weights_file, config_file)
        for line in lines:
            say(line)
        files = {"weights": weights_file, "config": config_file}
        key_fields = {name: caches.fingerprint(file) for name, file in files.items()}
        return cls(config, weights, weights_file, key_fields)

    @property
    def layers(self) -> int:
        return self.config["num_hidden_layers"]

    def __str__(self) -> str:
        return f"BERT: {self.layers} layers of {self.config['hidden_size']}, weights from {self.weights_file}"


def check_source(weights_file: Path) -> None:
    """Raises UserError for weights that were converted from another checkpoint than lies in bert/ now."""
    source, indices = bert_folder.source_path(weights_file), [*bert_folder.BERT.glob("*.ckpt.index")]
    known = source.is_file() and bool(indices)
    if known and source.read_text(encoding="utf-8") not in map(caches.fingerprint, indices):
        what = f"{weights_file} was converted from another checkpoint than {indices[0]}"
        raise UserError(f"{what}. Run ConvertBert4Torch.py again, or remove the one that you don't want")


def sentences(
    vocabulary: Sequence[str], examples: Examples, row: int, kept: list[Ragged] | None
) -> list[dict[str, list]]:
    """One example as people read it: its words, and the layer before which each was dropped (None: never).
    kept: as `training.Predictions`."""
    words = [vocabulary[i] for i in examples.ids.row(row)]
    dropped: list[str | None] = [None] * len(words)
    for layer, positions in reversed([*enumerate(kept or ())]):
        alive = set(positions.row(row).tolist())
        dropped = [before if i in alive else f"layer {layer}" for i, before in enumerate(dropped)]
    return [{"words": words, "dropped": dropped}]


class BertBuilder:
    """The BERTs of one task, dense and pruned by a `schedule` of one rate for each layer. `key_fields` decide
    the outcome of every run, and `pruning_fields` too that of pruned ones."""

    name = "BERT"
    teachers = BERT_TEACHERS
    special_tokens = ("[CLS]", "[SEP]")
    sentences = staticmethod(sentences)

    def __init__(self, pretrained: Pretrained, data: TaskData, settings: BertSettings, script: str):
        """Raises UserError, which names `script`, for a schedule or a list of methods that does not fit."""
        self.pretrained, self.data, self.dense_layers = pretrained, data, pretrained.layers
        self.schedule = checked_schedule(settings, self.dense_layers, data.task.kind, script)
        self.layers = len(self.schedule)
        self.most_tokens = pretrained.config["max_position_embeddings"]
        self.key_fields = pretrained.key_fields
        of_pruning = {"removed_tokens": settings.removed_tokens, "layers": self.layers}
        self.pruning_fields: dict[str, Any] = {"pruning": self.schedule, **of_pruning}
        self.pruned = [layer for layer, rate in enumerate(self.schedule) if rate > 0]
        self.pruned_layers = [f"layer {layer}" for layer in self.pruned]

    def __str__(self) -> str:
        kept = schedules.token_layers(self.schedule) * self.layers / self.dense_layers
        rounded = ", more of short texts" if self.pruned else ""
        return f"{self.schedule}, which keeps {kept:.0%} of the token-layers{rounded}"

    def build(
        self, method: str | list[str] | None, seed: int, state: State | None = None
    ) -> PrunedBertForSequenceClassification:
        """A model for the task: dense for no method; from the weights in bert/, or from a `state`."""
        config: Any = PrunedBertConfig(**self.pretrained.config)
        config.num_labels = self.data.task.outputs
        if method is not None:
            config.num_hidden_layers = self.layers
            config.pruning_schedule = self.schedule
            config.pruning_methods = method
            config.pruning_seed = seed
            config.removed_tokens = self.pruning_fields["removed_tokens"]
        model = PrunedBertForSequenceClassification.from_pretrained(
            None, config=config, state_dict=own_copy(state or self.pretrained.weights)
        )
        methods.set_frequencies(model, self.data.counts)
        return model

    def methods_used(self, method: str | list[str]) -> dict[Place, str]:
        """Layer → its method, of those that prune."""
        return {layer: method if isinstance(method, str) else method[layer] for layer in self.pruned}

    def dense_variants(self, dense: nn.Module) -> dict[str, nn.Module]:
        """What a pruned model is timed beside: variant → model."""
        stock = stock_copy(dense)
        return {"dense, padded to 128": stock, "dense, stock": stock, OURS: dense}

    def weight_bytes(self, method: str | list[str]) -> int:
        """What the weights of a model take."""
        gone = range(self.dense_layers if method == DENSE else self.layers, self.dense_layers)
        cut = tuple(f"encoder.layer.{layer}." for layer in gone)
        weights = self.pretrained.weights.items()
        return sum(tensor.nbytes for name, tensor in weights if not any(part in name for part in cut))

    def save(self, model: Any, folder: Path) -> None:
        """Writes what transformers needs to load the model: a dense one is stock BERT, a pruned one has its
        code beside it."""
        task = self.data.task
        if model.config.pruning_schedule is None:
            model = stock_copy(model)
        else:
            name = CODE[0].stem
            classes = {"AutoConfig": "PrunedBertConfig"}
            classes["AutoModelForSequenceClassification"] = "PrunedBertForSequenceClassification"
            model.config.auto_map = {auto: f"{name}.{own}" for auto, own in classes.items()}
            for path in CODE:
                text = path.read_text(encoding="utf-8")
                beside = re.sub(r"^from pruning\.(\w+) import", r"from .\1 import", text, flags=re.MULTILINE)
                (folder / path.name).write_text(beside, encoding="utf-8")
        model.config.update(task.config_fields)
        model.save_pretrained(folder)
        wordpieces.build_tokenizer(self.data.vocabulary, self.data.settings).save_pretrained(folder)


def load(folder: Path, _config: Any) -> tuple[nn.Module, list[str], Callable[[Rows], Examples]]:
    """What `BertBuilder.save` wrote: the model, its vocabulary, and what turns rows into its input."""
    if not (folder / "tokenizer.json").is_file():  # transformers would make up a vocabulary
        raise OSError("there is no tokenizer.json")
    model = PrunedBertForSequenceClassification.from_pretrained(folder, local_files_only=True)
    tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer.get_vocab()
    return model, sorted(ids, key=ids.__getitem__), lambda rows: wordpieces.encode(rows, tokenizer, None)


def stock_copy(dense: Any) -> BertForSequenceClassification:
    """The same weights in transformers' own model."""
    fields = {name: value for name, value in dense.config.to_dict().items() if name not in OF_PRUNING}
    state = own_copy(dense.state_dict())
    return BertForSequenceClassification.from_pretrained(None, config=BertConfig(**fields), state_dict=state)


def own_copy(state: State) -> dict[str, Tensor]:
    """A copy for `from_pretrained`, which takes the tensors that it is given as parameters, without copying
    them: to train the new model would change the old one too."""
    return {name: tensor.clone() for name, tensor in state.items()}


def checked_schedule(settings: BertSettings, dense_layers: int, kind: str, script: str) -> list[float]:
    """The schedule of the settings, for a BERT of `dense_layers` layers. Raises UserError if it, or a list of
    methods, does not fit the layers of a pruned model."""
    given, layers = settings.pruning_schedule, settings.layers or dense_layers
    if layers > dense_layers:
        raise UserError(f"layers in {script} is {layers}, and the BERT in bert/ has {dense_layers}")
    schedule = schedules.resolve(given, dense_layers, kind)
    if isinstance(given, str):  # a name chooses the number of layers too
        if settings.layers not in (None, len(schedule)):
            has = f"pruning_schedule {given!r} is for {len(schedule)} layers of this BERT, layers is {layers}"
            raise UserError(f"{has}: set layers = None at the top of {script}")
        layers = len(schedule)
    advice = f"it needs one rate for each layer, such as {[0, 0.5, *[0] * (layers - 2)][:layers]}"
    if settings.layers and 0 < len(schedule) <= dense_layers:
        advice += f", or layers = {None if len(schedule) == dense_layers else len(schedule)}"
    try:
        selection.check_schedule(schedule, layers)
    except ValueError as error:
        raise UserError(f"{error}: {advice}. Edit pruning_schedule at the top of {script}") from None
    try:
        for method in settings.pruning_methods:
            methods.methods_by_layer(method, layers)
    except ValueError as error:
        raise UserError(f"pruning_methods in {script}: {error}") from None
    return [int(rate) if rate in (0, 1) else float(rate) for rate in schedule]  # 0 and 0.0 have one key


def open_tasks(pretrained: Pretrained, tasks: Sequence[Task]) -> list[TaskData]:
    """Every one of these tasks that is prepared, checked against the BERT.

    Raises UserError if none is prepared, or one was made for another vocabulary or with other settings.
    """
    config, opened = pretrained.config, []
    for data in caches.open_tasks("bert", tasks):
        name, length = data.task.name, data.settings["max_length"]
        script = caches.script_of("bert", data.task)
        again = f"Run: python {script}"
        if any(data.settings[k] != v for k, v in bert_folder.tokenizer_settings().items()):
            raise UserError(f"the cache of {name} was made for another casing than bert/'s. {again}")
        if length > config["max_position_embeddings"]:
            raise UserError(
                f"the cache of {name} has sequences of up to {length} tokens, the BERT in bert/ reads "
                f"{config['max_position_embeddings']}. Edit max_length in {script} and run it again"
            )
        if data.task.kind == "pair" and config["type_vocab_size"] < 2:
            raise UserError(f"{name} has pairs of sentences, and the BERT in bert/ reads single ones only")
        if len(data.vocabulary) > config["vocab_size"]:
            raise UserError(
                f"bert/vocab.txt has {len(data.vocabulary)} words in the cache of {name}, the BERT in bert/ "
                f"{config['vocab_size']}: they do not belong together. Put its own vocab.txt there. {again}"
            )
        opened.append(data)
    return opened
