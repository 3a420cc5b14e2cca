"""What lies in bert/: vocabulary, casing, configuration, weights. Any BERT will do."""

import json
from pathlib import Path
from typing import Any

from pruning.errors import UserError

BERT = Path("bert")
HOW_TO_GET_BERT = (
    'Download a BERT as README says ("The manual, step by step"), unzip it to bert/ and, if it is '
    "a TensorFlow one, run ConvertBert4Torch.py"
)
WEIGHTS = (
    BERT / "pytorch_model.bin",
    BERT / "model.safetensors",
    Path("cache/pytorch_model.bin"),  # where the manual's example writes it
)
CONFIGS = (BERT / "config.json", BERT / "bert_config.json")  # Hugging Face's name, Google's name


def vocabulary_path() -> Path:
    """bert/vocab.txt. Raises UserError if it is not there."""
    path = BERT / "vocab.txt"
    if not path.is_file():
        raise UserError(f"no vocabulary {path.absolute()}. {HOW_TO_GET_BERT}")
    return path


def read_vocabulary() -> list[str]:
    """The words of bert/vocab.txt; the line number (from 0) is the id."""
    words = vocabulary_path().read_text(encoding="utf-8").split("\n")
    return words[:-1] if words[-1] == "" else words


def tokenizer_settings() -> dict[str, Any]:
    """How this BERT wants its text.

    From bert/tokenizer_config.json if it says so; else a vocabulary with upper-case words is cased.

    Returns:
        do_lower_case, strip_accents (None: as do_lower_case), tokenize_chinese_chars.
    """
    config: dict[str, Any] = {}
    path = BERT / "tokenizer_config.json"
    if path.is_file():
        config = json.loads(path.read_text(encoding="utf-8"))
    lower_case = config.get("do_lower_case")
    if lower_case is None:
        lower_case = not any(_has_upper_case(word) for word in read_vocabulary())
    return {
        "do_lower_case": bool(lower_case),
        "strip_accents": config.get("strip_accents"),
        "tokenize_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
    }


def _has_upper_case(word: str) -> bool:
    return word != word.lower() and not word.startswith("[")


def config_path() -> Path:
    """The configuration of the BERT. Raises UserError if there is none."""
    for path in CONFIGS:
        if path.is_file():
            return path
    raise UserError(f"no configuration {CONFIGS[0].absolute()}. {HOW_TO_GET_BERT}")


def weights_path() -> Path:
    """The PyTorch weights; those in bert/ win. Raises UserError if there are none."""
    for path in WEIGHTS:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in WEIGHTS)
    raise UserError(f"no PyTorch weights; looked for {looked}. {HOW_TO_GET_BERT}")
