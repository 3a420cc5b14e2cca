"""Converts a TensorFlow BERT checkpoint, as Google published them, to PyTorch weights.

    python ConvertBert4Torch.py
        --tf_checkpoint_path bert/model.ckpt
        --bert_config_file bert/config.json
        --pytorch_dump_path cache/pytorch_model.bin

(One dash works too.) Any size, cased or not, any language; the pooler and the pre-training heads come along
where the checkpoint has them, an optimizer's variables are left behind. Needs TensorFlow, whose checkpoint
reader reads the file; the weights are named and laid out as transformers' BertForPreTraining has them.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings are not for our user
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf
import torch
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from pruning import caches
from pruning.errors import UserError

OPTIMIZER = re.compile(r"(adam_[mv]|Adam|AdamWeightDecayOptimizer|LAMB|lamb_[mv])(_\d+)?$|^global_step$")
WHOLE_NAMES = {
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
}
LAST_PARTS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}


def torch_name(variable: str) -> str | None:
    """The name of a TensorFlow variable in BertForPreTraining, None for one that is no part of it."""
    if OPTIMIZER.search(variable):
        return None
    if variable in WHOLE_NAMES:
        return WHOLE_NAMES[variable]
    if not variable.startswith(("bert/", "cls/")):
        return None
    *parts, last = variable.split("/")
    parts = [re.sub(r"^layer_(\d+)$", r"layer.\1", part) for part in parts]
    if last.endswith("_embeddings"):
        return ".".join([*parts, last, "weight"])
    return ".".join([*parts, LAST_PARTS.get(last, last)])


def to_torch(variable: str, values: Any) -> Tensor:
    """The tensor of a variable. TensorFlow's dense kernels are [in, out], PyTorch's [out, in]."""
    tensor = torch.from_numpy(values)
    return tensor.t().contiguous() if variable.endswith("/kernel") else tensor


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """Every variable of BERT in a checkpoint, under its PyTorch name.

    Raises UserError for a checkpoint that is missing, truncated or lacks a shard.
    """
    tensors, others = {}, []
    try:
        reader = tf.train.load_checkpoint(path)
        for variable in sorted(reader.get_variable_to_shape_map()):
            name = torch_name(variable)
            if name is not None:
                tensors[name] = to_torch(variable, reader.get_tensor(variable))
            elif not OPTIMIZER.search(variable):
                others.append(variable)
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:
        there = ", ".join(p.name for p in sorted(Path(path).parent.glob(f"{Path(path).name}*"))) or "nothing"
        raise UserError(
            f"{path} cannot be read as a TensorFlow checkpoint: {error}\n"
            f"It needs {Path(path).name}.index and every {Path(path).name}.data-…; there is: {there}"
        ) from None
    if others:
        print(f"Left out, no part of BERT: {', '.join(others)}")
    return tensors


def expected_shapes(config: BertConfig) -> dict[str, torch.Size]:
    """Name → shape of every weight of a BertForPreTraining with this configuration."""
    with torch.device("meta"):
        model = BertForPreTraining(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def check_fit(tensors: dict[str, Tensor], config: BertConfig, config_file: str) -> None:
    """Raises UserError unless the checkpoint holds the encoder that the configuration describes."""
    expected = expected_shapes(config)
    for name, tensor in tensors.items():
        if name not in expected:
            raise UserError(f"the checkpoint does not fit {config_file}: it has {name}, which that has not")
        if tensor.shape != expected[name]:
            raise UserError(
                f"the checkpoint does not fit {config_file}: {name} is {list(tensor.shape)}, "
                f"by the configuration it would be {list(expected[name])}"
            )
    missing = [name for name in expected if name not in tensors]
    encoder = [name for name in missing if name.startswith("bert.") and "pooler" not in name]
    if encoder:
        raise UserError(f"the checkpoint does not fit {config_file}: it has no {encoder[0]}")
    if any("pooler" in name for name in missing):
        print("The checkpoint has no pooler: fine-tuning starts with a fresh one")


def find(path: str, other: str, ending: str) -> str:
    """`path`, or the same place under Google's or the manual's name if only that is there."""
    beside = Path(path).with_name(other)
    if not Path(path + ending).exists() and Path(f"{beside}{ending}").exists():
        print(f"No {path}, taking {beside}")
        return str(beside)
    return path


def convert(tf_checkpoint_path: str, bert_config_file: str, pytorch_dump_path: str) -> None:
    """Reads a checkpoint and writes PyTorch weights, whole or not at all.

    Raises UserError if the checkpoint or the configuration cannot be read, or they do not fit.
    """
    checkpoint = find(tf_checkpoint_path.removesuffix(".index"), "bert_model.ckpt", ".index")
    config_file = find(bert_config_file, "bert_config.json", "")
    try:
        config = BertConfig.from_json_file(config_file)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{config_file} cannot be read as a BERT configuration: {error}") from None
    tensors = read_checkpoint(checkpoint)
    check_fit(tensors, config, config_file)
    with caches.whole_file(Path(pytorch_dump_path)) as file:
        torch.save(tensors, file)
    count = sum(tensor.numel() for tensor in tensors.values())
    print(
        f"{checkpoint}: {config.num_hidden_layers} layers of {config.hidden_size}, {count:,} weights "
        f"in {len(tensors)} tensors, written to {pytorch_dump_path}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Converts a TensorFlow BERT checkpoint to PyTorch weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, default, what in (
        ("tf_checkpoint_path", "bert/model.ckpt", "the checkpoint, without .index or .data-…"),
        ("bert_config_file", "bert/config.json", "the BERT's configuration"),
        ("pytorch_dump_path", "cache/pytorch_model.bin", "where the PyTorch weights go"),
    ):
        parser.add_argument(f"--{name}", f"-{name}", default=default, help=what)
    given = parser.parse_args(arguments)
    convert(given.tf_checkpoint_path, given.bert_config_file, given.pytorch_dump_path)


if __name__ == "__main__":
    main()
