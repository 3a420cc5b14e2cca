"""What lies in bert/: vocabulary, casing, configuration, weights. Any BERT will do.

Whatever is wrong with a file is a UserError of one line with the file's name.
"""

import json
import re
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from pruning.errors import UserError

BERT = Path("bert")
HOW_TO_GET_BERT = (
    "Run: python -m pruning.download bert (or: make bert). By hand: bert/README.md says how; "
    "a TensorFlow one is converted by ConvertBert4Torch.py"
)
WEIGHTS = (
    BERT / "pytorch_model.bin",
    BERT / "model.safetensors",
    Path("cache/pytorch_model.bin"),  # where the manual's example writes it
)
CONFIGS = (BERT / "config.json", BERT / "bert_config.json")  # Hugging Face's name, Google's name
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SPECIAL_TOKEN = r"\[.+\]|<.+>"  # [CLS], [unused1], and <S> and <T> of Google's Chinese BERT
POOLER = "bert.pooler."
NO_WEIGHTS = ("position_ids", "token_type_ids")  # older versions of transformers saved them
SHOWN_NAMES = 6

Weights = dict[str, Tensor]


def vocabulary_path() -> Path:
    """bert/vocab.txt. Raises UserError if it is not there."""
    path = BERT / "vocab.txt"
    return _first_of([path], f"no vocabulary file {path.absolute()}")


def _first_of(paths: Iterable[Path], lacking: str) -> Path:
    """The first of these files that is there. `lacking`: what to say if none is."""
    for path in paths:
        if path.is_file():
            return path
    raise UserError(f"{lacking}. {HOW_TO_GET_BERT}")


def read_vocabulary() -> list[str]:
    """The words of bert/vocab.txt; the line number (from 0) is the id.

    Raises UserError if it cannot be read, is empty, has a word twice, or lacks a special token of BERT.
    """
    path = vocabulary_path()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: {error}") from None
    words = text.removesuffix("\n").split("\n")
    if words == [""]:
        raise UserError(f"{path} is empty. {HOW_TO_GET_BERT}")
    lines: dict[str, int] = {}
    for line, word in enumerate(words, start=1):
        if lines.setdefault(word, line) != line:
            raise UserError(f"{path} has the word {word!r} twice, in lines {lines[word]} and {line}")
    for special in ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"):
        if special not in lines:
            raise UserError(f"{path} is no BERT vocabulary: no {special}")
    return words


# Tokenizers that cut as BERT's own does; the last two may
OfWordPieces = Literal[
    "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "DistilBertTokenizerFast",
    "ElectraTokenizer", "ElectraTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend",
]  # fmt: skip


class TokenizerFields(BaseModel):
    """What tokenizer_config.json may say about the text."""

    model_config = ConfigDict(strict=True)

    do_lower_case: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    tokenizer_class: Annotated[OfWordPieces, Field(exclude=True)] = "BertTokenizer"


def tokenizer_settings() -> dict[str, Any]:
    """How this BERT wants its text: the fields of TokenizerFields; strip_accents None: as do_lower_case.

    From bert/tokenizer_config.json if it says so; else a vocabulary with upper-case words is cased, special
    tokens aside. Raises UserError if that file is there and cannot be read, or says something else.
    """
    path = BERT / "tokenizer_config.json"
    settings = _read_fields(path, TokenizerFields) if path.exists() else TokenizerFields().model_dump()
    if settings["do_lower_case"] is None:
        words = (word for word in read_vocabulary() if not re.fullmatch(SPECIAL_TOKEN, word))
        settings["do_lower_case"] = all(word == word.lower() for word in words)
    return settings


Size = Annotated[int, Field(ge=1, le=10_000_000)]
Share = Annotated[float, Field(ge=0, lt=1)]
Activation = Literal[
    "gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "quick_gelu",
    "relu", "silu", "swish", "mish", "tanh", "linear",
]  # fmt: skip


class BertFields(BaseModel):
    """What a configuration has to say, and what it may, with the values of Google's BERT; the fields that
    are left out of the result tell a BERT encoder from other models."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model_type: Literal["bert"] = Field("bert", exclude=True)
    is_decoder: Literal[False] = Field(False, exclude=True)
    add_cross_attention: Literal[False] = Field(False, exclude=True)
    position_embedding_type: Literal["absolute"] = Field("absolute", exclude=True)
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=256)]
    num_attention_heads: Size
    intermediate_size: Size
    max_position_embeddings: Size
    type_vocab_size: Size = 2
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Share = 0.1
    attention_probs_dropout_prob: Share = 0.1
    classifier_dropout: Share | None = None
    initializer_range: Share = 0.02
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-12
    pad_token_id: Annotated[int, Field(ge=0)] | None = 0


def config_path() -> Path:
    """The configuration of the BERT. Raises UserError if there is none."""
    return _first_of(CONFIGS, f"no configuration file {CONFIGS[0].absolute()}")


def read_config(path: Path) -> dict[str, Any]:
    """The checked fields of a BERT's configuration, to make a BertConfig of.

    They describe a dense BERT with no task: labels, number formats and what a pruned model of this project
    says about pruning are left out. Raises UserError if the file cannot be read or describes no such BERT.
    """
    config = _read_fields(path, BertFields)
    size, heads = config["hidden_size"], config["num_attention_heads"]
    if size % heads:
        raise UserError(f"{path}: hidden_size {size} cannot be divided among num_attention_heads {heads}")
    if (config["pad_token_id"] or 0) >= config["vocab_size"]:
        raise UserError(f"{path}: pad_token_id {config['pad_token_id']} is no id of the vocabulary")
    return config


def _read_fields(path: Path, kind: type[BaseModel]) -> dict[str, Any]:
    """The fields that `kind` knows of a JSON file, checked."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path} holds no JSON object, with fields in braces")
    try:
        return kind.model_validate(fields).model_dump()
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
    name = wrong["loc"][0]
    if wrong["type"] == "missing":
        raise UserError(f"{path} has no {name}")
    value, message = reprlib.repr(fields[name]), wrong["msg"].removeprefix("Input ")
    raise UserError(f"{path}: {name} is {value}; it {message}")


def weights_path() -> Path:
    """The PyTorch weights; those in bert/ win. Raises UserError if there are none."""
    return _first_of(WEIGHTS, f"no PyTorch weights; looked for {', '.join(map(str, WEIGHTS))}")


def source_path(weights_file: Path) -> Path:
    """Where the converter keeps the SHA-256 of the checkpoint's index, which has a sum of each weight."""
    return weights_file.with_name(weights_file.name + ".source")


def read_weights(path: Path) -> Weights:
    """The tensors of a PyTorch or safetensors file, floats as fp32. Code in a file is never run.

    Raises UserError if the file cannot be read, holds something else, or has NaN or infinity in a tensor.
    """
    content = _load(path)
    for key in ("state_dict", "model"):  # as training scripts nest it, beside an optimizer's state
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state_dict (tensors by name) but a {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds more than weights: {name!r} is a {type(value).__name__}")
    return as_fp32(content, path)


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):
            safe = path.suffix == ".safetensors"
            return load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the libraries raise whatever they stumble over, in several lines
        closed = isinstance(error, OSError) and error.filename and error.strerror
        why = closed or "it is damaged, or holds other objects than tensors"
        raise UserError(f"{path} cannot be read as a file of weights: {why}") from None


def as_fp32(weights: Mapping[str, Tensor], path: Path | str) -> Weights:
    """The weights with floats of any length as fp32, other numbers as they are. Raises UserError for NaN
    or infinity in a tensor."""
    result = {}
    for name, tensor in weights.items():
        if _holds_floats(tensor):
            tensor = tensor.detach().float()
            if not tensor.isfinite().all():
                raise UserError(f"{path} has NaN or infinity in {name!r}")
        result[name] = tensor
    return result


def _holds_floats(tensor: Tensor) -> bool:
    return tensor.dtype in FLOATS and tensor.layout is torch.strided and not tensor.is_meta


def fit(
    weights: Weights, config: Mapping[str, Any], weights_file: Path | str, config_file: Path | str
) -> tuple[Weights, list[str]]:
    """What training starts from: the weights of the encoder, checked against the configuration.

    Names may be as from_pretrained takes them: with `bert.` before them or not, LayerNorm's gamma and beta.

    Returns the weights of BertModel with `bert.` before their names, without a pooler where there is none;
    and lines to print: what was left out, and that the pooler is missing. Raises UserError if a weight of
    the encoder, or of a pooler that is there, is missing or of another shape, or the layers have more than
    the configuration says.
    """
    expected = {name: shape for name, shape in expected_shapes(config).items() if name.startswith("bert.")}
    named = {_name_of_today(name, expected): tensor for name, tensor in weights.items()}
    lines = []
    if not any(name.startswith(POOLER) for name in named):
        expected = {name: shape for name, shape in expected.items() if not name.startswith(POOLER)}
        lines.append(f"{weights_file} has no pooler: fine-tuning starts with a fresh one")
    foreign = [name for name in named if name not in expected and not name.endswith(NO_WEIGHTS)]
    wrong = [why for name, shape in expected.items() if (why := _misfit(named.get(name), name, shape))]
    surplus = [name for name in foreign if name.removeprefix("bert.").startswith("encoder.layer.")]
    wrong += [f"it has an unexpected {name!r}" for name in surplus]
    if wrong:
        raise UserError(f"{weights_file} is no BERT as {config_file} describes it: {wrong[0]}")
    if foreign:
        heads = short_list(re.sub(r"^((bert\.)?(encoder\.)?[^.]+).*", r"\1.*", name) for name in foreign)
        lines.append(f"Left out of {weights_file}, no part of BERT's encoder: {heads}")
    return {name: named[name] for name in expected}, lines


def expected_shapes(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Name → shape of every weight of a BERT as it was pre-trained: `bert.` or `cls.` is before the names."""
    from transformers import BertConfig, BertForPreTraining  # takes seconds: preparing need not wait for it

    with torch.device("meta"):
        model = BertForPreTraining(BertConfig(**config))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _name_of_today(name: str, expected: Mapping[str, torch.Size]) -> str:
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{name}" if f"bert.{name}" in expected else name


def _misfit(tensor: Tensor | None, name: str, shape: torch.Size) -> str | None:
    if tensor is None:
        return f"it has no {name} of shape {list(shape)}"
    if tensor.shape != shape:
        return f"{name} has shape {list(tensor.shape)}, by the configuration it would be {list(shape)}"
    if not _holds_floats(tensor):
        return f"{name} holds no plain floats but {tensor.dtype}, as if quantized"
    return None


def short_list(names: Iterable[str]) -> str:
    """Names for a line: each once, and no more than fit there."""
    once = list(dict.fromkeys(names))
    shown = ", ".join(once[:SHOWN_NAMES])
    return shown if len(once) <= SHOWN_NAMES else f"{shown} and {len(once) - SHOWN_NAMES} more"
