"""ConvertBert4Torch.py on checkpoints that TensorFlow wrote under Google's variable names."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import torch
from conftest import ROOT, tiny_config
from transformers import BertConfig, BertForPreTraining, BertModel

import ConvertBert4Torch
from pruning.errors import UserError

CONFIG = tiny_config(vocab_size=37, num_hidden_layers=2, intermediate_size=80)
SIZES = {"H": 32, "I": 80, "V": 37}


def google_variables() -> dict[str, np.ndarray]:
    """A small BERT in Google's literal names and shapes ([in, out] kernels)."""
    shapes = {
        "bert/embeddings/word_embeddings": "VH",
        "bert/embeddings/LayerNorm/gamma": "H",
        "bert/embeddings/LayerNorm/beta": "H",
        "bert/pooler/dense/kernel": "HH",
        "bert/pooler/dense/bias": "H",
        "cls/predictions/output_bias": "V",
        "cls/predictions/transform/dense/kernel": "HH",
        "cls/predictions/transform/dense/bias": "H",
        "cls/predictions/transform/LayerNorm/gamma": "H",
        "cls/predictions/transform/LayerNorm/beta": "H",
    }
    for i in range(2):
        layer = f"bert/encoder/layer_{i}"
        for name in ("query", "key", "value"):
            shapes[f"{layer}/attention/self/{name}/kernel"] = "HH"
            shapes[f"{layer}/attention/self/{name}/bias"] = "H"
        for name, shape in (("attention/output", "HH"), ("intermediate", "HI"), ("output", "IH")):
            shapes[f"{layer}/{name}/dense/kernel"] = shape
            shapes[f"{layer}/{name}/dense/bias"] = shape[-1]
        for name in ("attention/output", "output"):
            shapes[f"{layer}/{name}/LayerNorm/gamma"] = "H"
            shapes[f"{layer}/{name}/LayerNorm/beta"] = "H"
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=[SIZES[s] for s in shape]) * 0.1 for name, shape in shapes.items()}
    made["bert/embeddings/position_embeddings"] = rng.normal(size=(160, 32))
    made["bert/embeddings/token_type_embeddings"] = rng.normal(size=(2, 32))
    made["cls/seq_relationship/output_weights"] = rng.normal(size=(2, 32))
    made["cls/seq_relationship/output_bias"] = rng.normal(size=2)
    variables = {name: values.astype(np.float32) for name, values in made.items()}
    slots = {f"{name}/adam_{s}": values for name, values in variables.items() for s in "mv"}
    return {**variables, **slots, "global_step": np.int64(7)}


def write(variables, prefix="bert/model.ckpt") -> None:
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=list(variables.values()),
    )


@pytest.fixture
def checkpoint(world):
    for file in (world / "bert").iterdir():
        file.unlink()
    (world / "bert/config.json").write_text(json.dumps(CONFIG))
    variables = google_variables()
    write(variables)
    return variables


def by_hand(variables, ids: np.ndarray) -> np.ndarray:
    """Google's BERT in NumPy, from its variables: the pooled output of one sequence (T,)."""

    def dense(x, name):
        return x @ variables[f"{name}/kernel"] + variables[f"{name}/bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * variables[f"{name}/LayerNorm/gamma"] + variables[f"{name}/LayerNorm/beta"]

    def heads(x):
        return x.reshape(len(ids), 2, 16).transpose(1, 0, 2)

    erf = np.vectorize(__import__("math").erf)
    x = variables["bert/embeddings/word_embeddings"][ids]
    x = x + variables["bert/embeddings/position_embeddings"][: len(ids)]
    x = norm(x + variables["bert/embeddings/token_type_embeddings"][0], "bert/embeddings")
    for i in range(2):
        layer = f"bert/encoder/layer_{i}"
        q, k, v = (heads(dense(x, f"{layer}/attention/self/{n}")) for n in ("query", "key", "value"))
        weights = np.exp(q @ k.transpose(0, 2, 1) / 4)
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), 32)
        x = norm(x + dense(mixed, f"{layer}/attention/output/dense"), f"{layer}/attention/output")
        inner = dense(x, f"{layer}/intermediate/dense")
        inner = inner * 0.5 * (1 + erf(inner / 2**0.5))
        x = norm(x + dense(inner, f"{layer}/output/dense"), f"{layer}/output")
    return np.tanh(dense(x[0], "bert/pooler/dense"))


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_tensors_and_outputs_are_the_expected_ones(checkpoint, dashes):
    ConvertBert4Torch.main(
        [f"{dashes}tf_checkpoint_path", "bert/model.ckpt", f"{dashes}bert_config_file", "bert/config.json",
         f"{dashes}pytorch_dump_path", "cache/pytorch_model.bin"]
    )  # fmt: skip
    state = torch.load("cache/pytorch_model.bin", weights_only=True)
    kernel = torch.from_numpy(checkpoint["bert/encoder/layer_1/intermediate/dense/kernel"])
    assert torch.equal(state["bert.encoder.layer.1.intermediate.dense.weight"], kernel.T)
    config = BertConfig(**CONFIG)
    model, info = BertModel.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    assert not info["missing_keys"]
    assert all(name.startswith("cls.") for name in info["unexpected_keys"])
    ids = np.array([2, 9, 30, 11, 3])
    with torch.no_grad():
        pooled = model.eval()(torch.from_numpy(ids)[None]).pooler_output[0]
    np.testing.assert_allclose(pooled.numpy(), by_hand(checkpoint, ids), atol=1e-5)


def test_pretraining_heads_come_along(checkpoint):
    ConvertBert4Torch.main([])
    state = torch.load("cache/pytorch_model.bin", weights_only=True)
    _, info = BertForPreTraining.from_pretrained(
        None, config=BertConfig(**CONFIG), state_dict=state, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_google_s_names_work_too(checkpoint, world, capsys):
    for path in list((world / "bert").iterdir()):
        path.rename(path.with_name("bert_" + path.name))
    ConvertBert4Torch.main([])
    assert "taking bert/bert_model.ckpt" in capsys.readouterr().out
    assert (world / "cache/pytorch_model.bin").is_file()


def test_a_checkpoint_without_pooler_and_heads_converts(checkpoint, world, capsys):
    write({name: v for name, v in checkpoint.items() if "pooler" not in name and "cls/" not in name})
    ConvertBert4Torch.main([])
    assert "no pooler" in capsys.readouterr().out


def fails(world, message):
    (world / "cache/pytorch_model.bin").write_text("what was there before")
    with pytest.raises(UserError, match=message):
        ConvertBert4Torch.main([])
    assert (world / "cache/pytorch_model.bin").read_text() == "what was there before"
    assert [p.name for p in (world / "cache").iterdir()] == ["pytorch_model.bin"]


def test_a_truncated_checkpoint(checkpoint, world):
    data = next((world / "bert").glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:5_000])
    fails(world, "cannot be read as a TensorFlow checkpoint")


def test_a_missing_shard(checkpoint, world):
    next((world / "bert").glob("*.data-*")).unlink()
    fails(world, r"there is: model\.ckpt\.index")


def test_no_checkpoint_at_all(world):
    fails(world, "there is: nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 3}, "has no bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "has bert.encoder.layer.1"),
        ({"hidden_size": 64}, "by the configuration it would be"),
        ({"vocab_size": 38}, "by the configuration it would be"),
    ],
)
def test_a_config_that_does_not_fit(checkpoint, world, change, message):
    (world / "bert/config.json").write_text(json.dumps(CONFIG | change))
    fails(world, message)


def test_a_config_that_is_none(checkpoint, world):
    (world / "bert/config.json").write_text("{")
    fails(world, "cannot be read as a BERT configuration")


def test_the_command_line_ends_with_a_sentence_and_status_1(world):
    done = subprocess.run(
        [sys.executable, str(ROOT / "ConvertBert4Torch.py"), "-tf_checkpoint_path", "bert/none.ckpt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "cannot be read as a TensorFlow checkpoint" in done.stderr and "Traceback" not in done.stderr
