"""Converts a TensorFlow BERT checkpoint, as Google published them, to PyTorch weights.

    python ConvertBert4Torch.py
        --tf_checkpoint_path bert/model.ckpt
        --bert_config_file bert/config.json
        --pytorch_dump_path cache/pytorch_model.bin

(One dash works too.) Any size, cased or not, any language; the pooler and the pre-training heads come along
where the checkpoint has them, an optimizer's variables and other heads are left behind. Needs TensorFlow,
whose checkpoint reader reads the file; the weights are named and laid out as transformers'
BertForPreTraining has them, in fp32.
"""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's greetings are not for our user
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
import tensorflow as tf
import torch

from pruning import bert_folder, caches, tensorflow_names
from pruning.bert_folder import Weights
from pruning.errors import UserError, run_script


def read_checkpoint(path: str) -> Weights:
    """Every weight of BERT in a checkpoint, as fp32 under its PyTorch name. Says what else was in it.

    Raises UserError for a checkpoint that is missing, damaged or lacks a part, or has NaN or infinity.
    """
    weights, others = {}, []
    try:
        reader = tf.train.load_checkpoint(path)
        for variable, dtype in sorted(reader.get_variable_to_dtype_map().items()):
            name = tensorflow_names.torch_name(variable)
            if name is None or not dtype.is_floating:
                others.append(variable)
                continue
            with np.errstate(all="ignore"):  # what is too great for fp32 is refused below
                values = np.asarray(reader.get_tensor(variable), dtype=np.float32)
            weights[name] = tensorflow_names.other_layout(variable, torch.from_numpy(values))
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError):
        raise UserError(f"{path} cannot be read as a TensorFlow checkpoint: {why_unreadable(path)}") from None
    if others:
        short = bert_folder.short_list(without_weight(variable) for variable in others)
        print(f"Left out of {path}, no weights of BERT: {short}")
    return bert_folder.as_fp32(weights, path)


def without_weight(variable: str) -> str:
    """What an optimizer keeps for every weight, without the weight's name: */adam_m."""
    weight, _, last = variable.rpartition("/")
    return variable if tensorflow_names.torch_name(weight) is None else f"*/{last}"


def why_unreadable(checkpoint: str) -> str:
    """Why a checkpoint cannot be read, by the names of the files in its folder."""
    path = Path(checkpoint)
    names = sorted(file.name for file in path.parent.glob("*"))
    own = [name for name in names if name.startswith(f"{path.name}.")]
    parts = [part for name in own if (part := re.search(r"\.data-\d+-of-(\d+)$", name))]
    if f"{path.name}.index" not in own:
        why = f"there is no {path.name}.index"
    elif not parts or len(parts) < int(parts[0][1]):
        why = f"a part, {path.name}.data-…, is missing"
    else:
        why = "its files are damaged"
    return f"{why}; in {path.parent} there is: {bert_folder.short_list(own or names) or 'nothing'}"


def take_heads(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """Takes the heads of pre-training, where they have the shapes of this configuration, out of `weights`."""
    shapes = bert_folder.expected_shapes(config)
    fitting = [n for n, tensor in weights.items() if n.startswith("cls.") and shapes.get(n) == tensor.shape]
    return {name: weights.pop(name) for name in fitting}


def find(path: str, other: str, ending: str) -> str:
    """`path`, or the same place under Google's or the manual's name if only that is there."""
    beside = Path(path).with_name(other)
    if not Path(path + ending).exists() and Path(f"{beside}{ending}").exists():
        print(f"No {path}, taking {beside}")
        return str(beside)
    return path


def convert(tf_checkpoint_path: str, bert_config_file: str, pytorch_dump_path: str) -> None:
    """Reads a checkpoint and writes PyTorch weights, whole or not at all.

    Raises UserError if the checkpoint or the configuration cannot be read, they do not fit, the weights
    cannot be written, or other weights hide them.
    """
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", tf_checkpoint_path)
    checkpoint = find(prefix, "bert_model.ckpt", ".index")
    config_file = find(bert_config_file, "bert_config.json", "")
    if not Path(config_file).exists():
        raise UserError(f"no configuration file {config_file}. {bert_folder.HOW_TO_GET_BERT}")
    config = bert_folder.read_config(Path(config_file))
    weights = read_checkpoint(checkpoint)
    heads = take_heads(weights, config)
    encoder, lines = bert_folder.fit(weights, config, checkpoint, config_file)
    converted = encoder | heads
    with caches.whole_file(Path(pytorch_dump_path)) as file:
        file.write(caches.as_bytes(converted))
    with caches.whole_file(bert_folder.source_path(Path(pytorch_dump_path))) as file:
        file.write(caches.fingerprint(Path(f"{checkpoint}.index")).encode())
    count = sum(tensor.numel() for tensor in converted.values())
    print(
        *lines,
        f"{checkpoint}: {config['num_hidden_layers']} layers of {config['hidden_size']}, {count:,} weights "
        f"in {len(converted)} tensors, written to {pytorch_dump_path}",
        sep="\n",
    )
    written = Path(pytorch_dump_path).resolve()
    if any(path.resolve() == written for path in bert_folder.WEIGHTS):
        read = bert_folder.weights_path()
        if read.resolve() != written:
            raise UserError(f"the runners read {read} and not {pytorch_dump_path}: remove {read}")


def main(arguments: list[str] | None = None) -> None:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    description = "Converts a TensorFlow BERT checkpoint to PyTorch weights."
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    for name, default, what in (
        ("tf_checkpoint_path", "bert/model.ckpt", "the checkpoint, without .index or .data-…"),
        ("bert_config_file", "bert/config.json", "the BERT's configuration"),
        ("pytorch_dump_path", "cache/pytorch_model.bin", "where the PyTorch weights go"),
    ):
        parser.add_argument(f"--{name}", f"-{name}", default=default, help=what)
    given = parser.parse_args(arguments)
    convert(given.tf_checkpoint_path, given.bert_config_file, given.pytorch_dump_path)


if __name__ == "__main__":
    run_script(main)
