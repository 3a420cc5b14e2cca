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
from pruning import tensorflow_names
from pruning.bert import Pretrained
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


def converted(*arguments) -> dict:
    """What main wrote."""
    ConvertBert4Torch.main(list(arguments))
    return torch.load("cache/pytorch_model.bin", weights_only=True)


def the_same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def without_slots(variables: dict) -> dict:
    return {name: values for name, values in variables.items() if "adam_" not in name}


def test_google_s_names_work_too(checkpoint, world, capsys):
    for path in list((world / "bert").iterdir()):
        path.rename(path.with_name("bert_" + path.name))
    ConvertBert4Torch.main([])
    assert "taking bert/bert_model.ckpt" in capsys.readouterr().out
    assert (world / "cache/pytorch_model.bin").is_file()


@pytest.mark.parametrize("ending", ["index", "meta", "data-00000-of-00001"])
def test_a_file_of_the_checkpoint_means_the_checkpoint(checkpoint, ending):
    expected = converted()
    assert the_same(converted("--tf_checkpoint_path", f"bert/model.ckpt.{ending}"), expected)


@pytest.mark.parametrize(
    "slot",
    [
        *("Momentum", "Adam_1", "AdamWeightDecayOptimizer", "ExponentialMovingAverage", "LAMB", "lamb_v"),
        *("vr", "vc", "adafactor_v"),
    ],
)
def test_what_an_optimizer_keeps_is_left_out_with_a_line(checkpoint, capsys, slot):
    expected = converted()
    bert = without_slots(checkpoint)
    write(bert | {f"{name}/{slot}": values * 2 for name, values in bert.items() if "/" in name})
    capsys.readouterr()
    assert the_same(converted(), expected)
    line = f"Left out of bert/model.ckpt, no weights of BERT: */{slot}, global_step\n"
    assert capsys.readouterr().out.startswith(line)


def test_heads_of_other_tasks_are_left_out_with_a_line(checkpoint, capsys):
    expected = converted()
    heads = {"cls/squad/output_weights": (2, 32), "cls/squad/output_bias": (2,), "output_weights": (3, 32)}
    dense = {"cls/ranking/dense/kernel": (32, 1), "bert/adapter/dense/bias": (7,)}
    made = {name: np.ones(shape, np.float32) for name, shape in (heads | dense).items()}
    write(without_slots(checkpoint) | made)
    capsys.readouterr()
    assert the_same(converted(), expected)
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == (
        "Left out of bert/model.ckpt, no weights of BERT: "
        "cls/squad/output_bias, cls/squad/output_weights, global_step, output_weights"
    )
    assert second == "Left out of bert/model.ckpt, no part of BERT's encoder: bert.adapter.*, cls.*"


def test_a_pretraining_head_of_another_shape_is_left_out_too(checkpoint, capsys):
    expected = converted()
    write(checkpoint | {"cls/seq_relationship/output_bias": np.ones(3, np.float32)})
    del expected["cls.seq_relationship.bias"]
    assert the_same(converted(), expected)
    assert "no part of BERT's encoder: cls.*" in capsys.readouterr().out


def test_a_checkpoint_without_pooler_and_heads_converts(checkpoint, capsys):
    everything = converted()
    write({name: v for name, v in checkpoint.items() if "pooler" not in name and "cls/" not in name})
    encoder = {name: t for name, t in everything.items() if "pooler" not in name and "cls." not in name}
    capsys.readouterr()
    assert the_same(converted(), encoder) and len(encoder) == 5 + 2 * 16
    assert "bert/model.ckpt has no pooler: fine-tuning starts with a fresh one\n" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [np.float16, tf.bfloat16.as_numpy_dtype, np.float64])
def test_floats_of_any_length_are_written_as_fp32(checkpoint, dtype):
    write({name: np.asarray(values).astype(dtype) for name, values in checkpoint.items()})
    weights = converted()
    values = checkpoint["bert/embeddings/word_embeddings"].astype(dtype).astype(np.float32)
    assert torch.equal(weights["bert.embeddings.word_embeddings.weight"], torch.from_numpy(values))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert len(weights) == 5 + 2 * 16 + 2 + 7


def test_names_and_layouts_are_the_same_there_and_back(checkpoint):
    variables = {n: torch.from_numpy(v) for n, v in without_slots(checkpoint).items() if n != "global_step"}
    names = {tensorflow_names.torch_name(variable): variable for variable in variables}
    assert set(names) == {name for name, _ in BertForPreTraining(BertConfig(**CONFIG)).named_parameters()}
    for name, variable in names.items():
        tensor = tensorflow_names.other_layout(variable, variables[variable])
        there, back = tensorflow_names.tf_variable(name, tensor)
        assert there == variable and torch.equal(back, variables[variable])


def test_tensorflow_s_name_and_layout_of_a_weight_of_bertmodel():
    tensor = torch.arange(6).view(2, 3)
    name, values = tensorflow_names.tf_variable("encoder.layer.11.output.dense.weight", tensor)
    assert name == "bert/encoder/layer_11/output/dense/kernel" and torch.equal(values, tensor.T)
    name, values = tensorflow_names.tf_variable("embeddings.word_embeddings.weight", tensor)
    assert name == "bert/embeddings/word_embeddings" and torch.equal(values, tensor)
    assert tensorflow_names.tf_variable("pooler.dense.bias", tensor[0])[0] == "bert/pooler/dense/bias"
    with pytest.raises(ValueError, match=r"TensorFlow's BERT has no bert\.embeddings\.position_ids"):
        tensorflow_names.tf_variable("embeddings.position_ids", tensor)


def fails(world, *parts, arguments=()):
    """Ends in one line with these parts, and leaves what was there before."""
    (world / "cache/pytorch_model.bin").write_text("what was there before")
    with pytest.raises(UserError) as error:
        ConvertBert4Torch.main(list(arguments))
    message = str(error.value)
    assert message.isprintable()
    assert all(part in message for part in parts), message
    assert (world / "cache/pytorch_model.bin").read_text() == "what was there before"
    assert [p.name for p in (world / "cache").iterdir()] == ["pytorch_model.bin"]


UNREADABLE = "bert/model.ckpt cannot be read as a TensorFlow checkpoint: "


@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_a_truncated_checkpoint(checkpoint, world, part):
    path = world / f"bert/model.ckpt.{part}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 10])
    there = "model.ckpt.data-00000-of-00001, model.ckpt.index"
    fails(world, f"{UNREADABLE}its files are damaged; in bert there is: {there}")


def test_a_missing_part(checkpoint, world):
    path = world / "bert/model.ckpt.data-00000-of-00001"
    missing = f"{UNREADABLE}a part, model.ckpt.data-…, is missing; in bert there is: "
    path.rename(path.with_name("model.ckpt.data-00000-of-00002"))
    fails(world, f"{missing}model.ckpt.data-00000-of-00002, model.ckpt.index")
    path.with_name("model.ckpt.data-00000-of-00002").unlink()
    fails(world, f"{missing}model.ckpt.index")


def test_a_missing_index(checkpoint, world):
    (world / "bert/model.ckpt.index").unlink()
    there = "in bert there is: model.ckpt.data-00000-of-00001"
    fails(world, f"{UNREADABLE}there is no model.ckpt.index; {there}")


def test_no_checkpoint_at_all(checkpoint, world):
    arguments = ["--tf_checkpoint_path", "bert/bert.ckpt"]
    there = "config.json, model.ckpt.data-00000-of-00001, model.ckpt.index"
    fails(world, f"there is no bert.ckpt.index; in bert there is: {there}", arguments=arguments)
    arguments = ["--tf_checkpoint_path", "nowhere/bert.ckpt"]
    fails(world, "there is no bert.ckpt.index; in nowhere there is: nothing", arguments=arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(checkpoint, world, value):
    checkpoint["bert/encoder/layer_1/output/dense/kernel"][3, 2] = value
    write(checkpoint)
    fails(world, "bert/model.ckpt has NaN or infinity in 'bert.encoder.layer.1.output.dense.weight'")


def test_a_double_beyond_fp32_is_infinity(checkpoint, world, recwarn):
    write(checkpoint | {"bert/pooler/dense/bias": np.full(32, 1e300)})
    fails(world, "bert/model.ckpt has NaN or infinity in 'bert.pooler.dense.bias'")
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


MISFIT = "bert/model.ckpt is no BERT as bert/config.json describes it: "
SURPLUS = "bert.encoder.layer.1.attention.output.LayerNorm.bias"
SHAPE = "bert.embeddings.word_embeddings.weight has shape [37, 32], by the configuration it would be "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_hidden_layers": 3},
            "it has no bert.encoder.layer.2.attention.self.query.weight of shape [32, 32]",
        ),
        ({"num_hidden_layers": 1}, f"it has an unexpected '{SURPLUS}'"),
        ({"hidden_size": 64}, f"{SHAPE}[37, 64]"),
        ({"vocab_size": 38}, f"{SHAPE}[38, 32]"),
    ],
)
def test_a_config_that_does_not_fit(checkpoint, world, change, message):
    (world / "bert/config.json").write_text(json.dumps(CONFIG | change))
    fails(world, f"{MISFIT}{message}")


def test_half_a_pooler_and_a_checkpoint_of_something_else(checkpoint, world):
    write({name: values for name, values in checkpoint.items() if "pooler/dense/bias" not in name})
    fails(world, f"{MISFIT}it has no bert.pooler.dense.bias of shape [32]")
    write({"model/dense/kernel": np.ones((3, 3), np.float32)})
    fails(world, f"{MISFIT}it has no bert.embeddings.word_embeddings.weight of shape [37, 32]")


def test_a_kernel_of_another_rank_or_kind(checkpoint, world):
    kernel = "bert/encoder/layer_0/attention/self/query/kernel"
    query = "bert.encoder.layer.0.attention.self.query.weight"
    write(checkpoint | {kernel: np.ones((32, 2, 16), np.float32)})
    shapes = "has shape [16, 2, 32], by the configuration it would be [32, 32]"
    fails(world, f"{MISFIT}{query} {shapes}")
    write(checkpoint | {kernel: np.ones((32, 32), np.int8)})
    fails(world, f"{MISFIT}it has no {query} of shape [32, 32]")


def test_a_config_that_is_none(checkpoint, world):
    (world / "bert/config.json").write_text("{")
    fails(world, "bert/config.json cannot be read as JSON: ")
    (world / "bert/config.json").unlink()
    fails(world, "no configuration file bert/config.json. Run: python -m pruning.download bert")


def test_other_weights_that_would_be_read_instead(checkpoint, world):
    (world / "bert/model.safetensors").write_bytes(b"of another BERT")
    with pytest.raises(UserError, match=r"runners read bert/model\.safetensors and not cache/"):
        ConvertBert4Torch.main([])
    assert (world / "cache/pytorch_model.bin").is_file()
    ConvertBert4Torch.main(["--pytorch_dump_path", "elsewhere.bin"])
    ConvertBert4Torch.main(["--pytorch_dump_path", "bert/pytorch_model.bin"])


def test_weights_of_another_checkpoint_are_noticed(checkpoint, world):
    ConvertBert4Torch.main([])
    assert Pretrained.read().layers == 2
    write({name: values + (values.dtype == np.float32) for name, values in checkpoint.items()})
    changed = (
        r"^cache/pytorch_model\.bin was converted from another checkpoint than bert/model\.ckpt\.index\. Run"
    )
    with pytest.raises(UserError, match=changed):
        Pretrained.read()
    ConvertBert4Torch.main([])
    assert Pretrained.read().layers == 2
    write(checkpoint, "bert/older.ckpt")  # beside it
    assert Pretrained.read().layers == 2
    (world / "cache/pytorch_model.bin.source").unlink()  # weights from elsewhere
    write(checkpoint)
    assert Pretrained.read().layers == 2


def test_a_place_where_nothing_can_be_written(checkpoint, world):
    fails(world, "bert cannot be written: Is a directory", arguments=["--pytorch_dump_path", "bert"])
    fails(world, "config.json/x cannot be written: ", arguments=["--pytorch_dump_path", "bert/config.json/x"])
    assert sorted(p.name for p in world.iterdir()) == ["bert", "cache", "data", "records"]


def test_the_command_line_ends_with_a_sentence_and_status_1(world):
    done = subprocess.run(
        [sys.executable, str(ROOT / "ConvertBert4Torch.py"), "-tf_checkpoint_path", "bert/none.ckpt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("bert/none.ckpt cannot be read as a TensorFlow checkpoint: ")
    assert done.stderr.count("\n") == 1
