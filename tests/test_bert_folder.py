"""What lies in bert/, read right or refused in one line."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import GOOD, SHARED, SPECIAL, tiny_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from pruning import bert_folder
from pruning.errors import UserError

BIN, SAFE = Path("bert/pytorch_model.bin"), Path("bert/model.safetensors")
CONFIG, TOKENIZER = Path("bert/config.json"), Path("bert/tokenizer_config.json")
VOCABULARY = Path("bert/vocab.txt")
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def sentence(call, *arguments) -> str:
    """The one line that the call ends with."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    message = str(error.value)
    assert message.isprintable(), message
    return message


def a_bert(**changes) -> dict:
    """Weights as BertForSequenceClassification has them, without its classifier."""
    torch.manual_seed(0)
    state = BertModel(BertConfig(**tiny_config(**changes))).state_dict()
    return {f"bert.{name}": tensor for name, tensor in state.items()}


def fitted(weights: dict, **changes) -> tuple[dict, list[str]]:
    return bert_folder.fit(weights, tiny_config(**changes), BIN, CONFIG)


def the_same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- Vocabulary and casing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "lower"),
    [
        (["<S>", "<T>"], True),
        (["[MY MARK]", "[unused1]", "<", "##ing", "élan", "2²"], True),
        (["Paris"], False),
        (["##Ing"], False),
        (["<Paris", "[Paris"], False),
        (["Élan"], False),
    ],
)
def test_a_vocabulary_with_upper_case_words_is_cased_whatever_its_special_tokens(world, words, lower):
    VOCABULARY.write_text("\n".join(SPECIAL + words), encoding="utf-8")
    assert bert_folder.tokenizer_settings()["do_lower_case"] is lower


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("word", ["paris", "Paris"])
def test_the_folder_s_own_setting_comes_before_its_vocabulary(world, lower, word):
    VOCABULARY.write_text("\n".join([*SPECIAL, word]))
    asked = {"do_lower_case": lower, "strip_accents": False, "tokenize_chinese_chars": False}
    TOKENIZER.write_text(json.dumps({**asked, "model_max_length": 512}))
    assert bert_folder.tokenizer_settings() == asked


def test_a_setting_of_null_is_none(world):
    TOKENIZER.write_text('{"do_lower_case": null, "strip_accents": null}')
    settings_ = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
    assert bert_folder.tokenizer_settings() == settings_


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"do_lower_case": "false"}', ": do_lower_case is 'false'; it should be a valid boolean"),
        (b'{"do_lower_case": 0}', ": do_lower_case is 0; it should be a valid boolean"),
        (b'{"strip_accents": []}', ": strip_accents is []; it should be a valid boolean"),
        (b'{"tokenizer_class": "BertJapaneseTokenizer"}', ": tokenizer_class is 'BertJapaneseT"),
        (b'{"do_lower_case"', " cannot be read as JSON: Expecting ':' delimiter"),
        (b"\xff\xfe", " cannot be read as JSON: 'utf-8' codec can't decode"),
        (b"[1]", " holds no JSON object"),
        (b"[" * 100_000, " cannot be read as JSON: "),
    ],
)
def test_a_tokenizer_config_that_cannot_be(world, content, message):
    TOKENIZER.write_bytes(content)
    assert sentence(bert_folder.tokenizer_settings).startswith(f"bert/tokenizer_config.json{message}")


def test_the_vocabulary_s_line_is_the_word_s_id(world):
    words = ["[PAD]", "élan", "a\u2028b", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    VOCABULARY.write_bytes(("\ufeff" + "\r\n".join(words) + "\r\n").encode())
    assert bert_folder.read_vocabulary() == words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bert/vocab.txt is empty. Run: python -m pruning.download bert"),
        (b"[PAD]\n\xff\n", "bert/vocab.txt cannot be read as text in UTF-8: 'utf-8' codec can't decode"),
        (b"[PAD]\nthe\na\nthe\n", "bert/vocab.txt has the word 'the' twice, in lines 2 and 4"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n", "bert/vocab.txt is no BERT vocabulary: no [MASK]"),
    ],
)
def test_a_vocabulary_that_cannot_be(world, content, message):
    VOCABULARY.write_bytes(content)
    assert sentence(bert_folder.read_vocabulary).startswith(message)


def test_a_folder_is_no_file(world):
    for path in (VOCABULARY, CONFIG):
        path.unlink()
        path.mkdir()
    TOKENIZER.mkdir()
    assert sentence(bert_folder.read_vocabulary).startswith(f"no vocabulary file {world / VOCABULARY}")
    assert sentence(bert_folder.config_path).startswith(f"no configuration file {world / CONFIG}")
    assert "Is a directory" in sentence(bert_folder.tokenizer_settings)


# --- Configuration -------------------------------------------------------------------------------


def read(content) -> dict:
    CONFIG.write_text(json.dumps(content))
    return bert_folder.read_config(bert_folder.config_path())


def test_a_config_is_read_as_it_stands_and_completed_as_google_s(world):
    assert read(tiny_config()) == tiny_config() | {
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": None,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    others = {"hidden_act": "relu", "type_vocab_size": 3, "hidden_dropout_prob": 0, "layer_norm_eps": 1e-5}
    config = read(tiny_config(**others, model_type="bert", is_decoder=False))
    assert {name: config[name] for name in others} == others
    assert BertConfig(**config).hidden_act == "relu"


def test_google_s_name_is_found_too(world):
    CONFIG.rename(CONFIG.with_name("bert_config.json"))
    assert bert_folder.read_config(bert_folder.config_path())["hidden_size"] == 32


def test_a_saved_model_s_task_and_pruning_are_left_out(world):
    saved = {
        "architectures": ["PrunedBertForSequenceClassification"],
        "dtype": "float16",
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "pruning_schedule": [0, 0.5, 0.5],
        "pruning_methods": "random",
        "pruning_seed": 3,
    }
    assert read(tiny_config(**saved)) == read(tiny_config())


@pytest.mark.parametrize("name", tiny_config())
def test_a_config_without_a_size(world, name):
    config = tiny_config()
    del config[name]
    assert sentence(read, config) == f"bert/config.json has no {name}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size is '32'; it should be a valid integer"),
        ({"hidden_size": True}, "hidden_size is True; it should be a valid integer"),
        ({"hidden_size": None}, "hidden_size is None; it should be a valid integer"),
        ({"hidden_size": float("nan")}, "hidden_size is nan; it should be a valid integer"),
        ({"hidden_size": 33}, "hidden_size 33 cannot be divided among num_attention_heads 2"),
        ({"num_attention_heads": 64}, "hidden_size 32 cannot be divided among num_attention_heads 64"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it should be greater than or equal to 1"),
        ({"num_hidden_layers": 10**5}, "num_hidden_layers is 100000; it should be less than or equal to 256"),
        ({"vocab_size": -1}, "vocab_size is -1; it should be greater than or equal to 1"),
        ({"vocab_size": 10**30}, f"vocab_size is {10**30}; it should be less than or equal to 10000000"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan; it should be a finite number"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; it should be greater than 0"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5; it should be less than 1"),
        (
            {"classifier_dropout": "x" * 999},
            "classifier_dropout is 'xxxxxxxxxxxx...xxxxxxxxxxxxx'; it",
        ),
        ({"hidden_act": "gleu"}, "hidden_act is 'gleu'; it should be 'gelu', 'gelu_new', "),
        ({"hidden_act": "a\nb"}, r"hidden_act is 'a\nb'; it should be 'gelu', 'gelu_new', "),
        ({"pad_token_id": 64}, "pad_token_id 64 is no id of the vocabulary"),
        ({"model_type": "roberta"}, "model_type is 'roberta'; it should be 'bert'"),
        ({"is_decoder": True}, "is_decoder is True; it should be False"),
        ({"add_cross_attention": True}, "add_cross_attention is True; it should be False"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; it should"),
    ],
)
def test_a_config_of_no_bert(world, change, message):
    assert sentence(read, tiny_config(**change)).startswith(f"bert/config.json: {message}")


def test_a_distilbert_is_told_by_its_kind_not_by_a_field_it_lacks(world):
    distilbert = {"model_type": "distilbert", "dim": 768, "n_layers": 6, "n_heads": 12}
    assert sentence(read, distilbert) == "bert/config.json: model_type is 'distilbert'; it should be 'bert'"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bert/config.json cannot be read as JSON: Expecting value: line 1 column 1"),
        (b"\xff", "bert/config.json cannot be read as JSON: 'utf-8' codec can't decode"),
        (b"[]", "bert/config.json holds no JSON object"),
        (b'"bert"', "bert/config.json holds no JSON object"),
    ],
)
def test_a_config_that_is_no_object(world, content, message):
    CONFIG.write_bytes(content)
    assert sentence(bert_folder.read_config, CONFIG).startswith(message)


# --- Weights in a file ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", [BIN, SAFE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_read_as_fp32(world, path, dtype):
    values = torch.tensor([[1 / 3, -2.5], [0, 1000]]).to(dtype)
    ids = torch.arange(4)[None]
    (torch.save if path is BIN else save_file)({"a": values, "position_ids": ids}, path)
    weights = bert_folder.read_weights(path)
    assert the_same(weights, {"a": values.to(torch.float32), "position_ids": ids})
    assert weights["a"].dtype == torch.float32


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_nested_state_dict_is_unwrapped(world, key):
    torch.save({"epoch": 3, key: {"a": torch.ones(2)}, "optimizer": {"state": {}}}, BIN)
    assert the_same(bert_folder.read_weights(BIN), {"a": torch.ones(2)})


def test_parameters_are_read_as_plain_tensors(world):
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, BIN)
    tensor = bert_folder.read_weights(BIN)["a"]
    assert type(tensor) is torch.Tensor and not tensor.requires_grad


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], " holds no state_dict (tensors by name) but a list"),
        (torch.ones(2), " holds no state_dict (tensors by name) but a Tensor"),
        ({"a": torch.ones(2), "b\n": 1}, r" holds more than weights: 'b\n' is a int"),
        ({1: torch.ones(2)}, " holds more than weights: 1 is a Tensor"),
        ({"model": [torch.ones(2)]}, " holds more than weights: 'model' is a list"),
    ],
)
def test_a_file_of_something_else(world, content, message):
    torch.save(content, BIN)
    assert sentence(bert_folder.read_weights, BIN) == f"{BIN}{message}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_no_numbers(world, value, dtype):
    save_file({"a": torch.ones(2, dtype=dtype), "b": torch.tensor([1, value], dtype=dtype)}, SAFE)
    assert sentence(bert_folder.read_weights, SAFE) == f"{SAFE} has NaN or infinity in 'b'"


def test_a_double_beyond_fp32_is_infinity(world):
    torch.save({"a": torch.tensor([1e300], dtype=torch.float64)}, BIN)
    assert sentence(bert_folder.read_weights, BIN) == f"{BIN} has NaN or infinity in 'a'"


class Mischief:
    def __reduce__(self):
        return Path.touch, (Path("mischief"),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_file_is_not_run_and_nobody_is_told_how_to(world, recwarn, save):
    save({"a": torch.ones(2), "b": Mischief()}, BIN)
    message = f"{BIN} cannot be read as a file of weights: it is damaged, or holds other objects than tensors"
    assert sentence(bert_folder.read_weights, BIN) == message
    assert not Path("mischief").exists() and not recwarn.list
    torch.load(BIN, weights_only=False) if save is torch.save else pickle.loads(BIN.read_bytes())
    assert Path("mischief").exists()  # the file would have


@pytest.mark.parametrize("path", [BIN, SAFE])
@pytest.mark.parametrize("size", [0, 30, 300, 10_000, -1000, -1])
def test_a_file_that_was_cut_short(world, path, size):
    (torch.save if path is BIN else save_file)(a_bert(), path)
    path.write_bytes(path.read_bytes()[:size])
    message = "cannot be read as a file of weights: it is damaged"
    assert sentence(bert_folder.read_weights, path).startswith(f"{path} {message}")


@pytest.mark.parametrize("path", [BIN, SAFE])
def test_a_pointer_to_a_file_and_a_folder(world, path):
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "it is damaged, or holds other objects" in sentence(bert_folder.read_weights, path)
    path.unlink()
    path.mkdir()
    assert sentence(bert_folder.read_weights, path).startswith(f"{path} cannot be read as a file of weights")


# --- Weights and configuration -------------------------------------------------------------------


def without_prefix(weights):
    return {name.removeprefix("bert."): tensor for name, tensor in weights.items()}


def with_old_names(weights):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    return {old(name): tensor for name, tensor in weights.items()}


def with_both(weights):
    return without_prefix(with_old_names(weights))


@pytest.mark.parametrize("change", [dict, without_prefix, with_old_names, with_both])
def test_every_spelling_that_from_pretrained_takes(change):
    weights = a_bert()
    changed = change(weights)
    assert the_same(fitted(changed)[0], weights) and fitted(changed)[1] == []
    config = BertConfig(**tiny_config())
    ours, theirs = (
        BertForSequenceClassification.from_pretrained(None, config=config, state_dict=dict(state)).bert
        for state in (fitted(changed)[0], changed)
    )
    assert the_same(ours.state_dict(), theirs.state_dict())


def test_what_is_no_part_of_the_encoder_is_left_out_with_a_line():
    weights = a_bert()
    foreign = [
        *("bert.encoder.pruners.1.inner.weight", "bert.encoder.pruners.2.inner.weight"),
        *("bert.encoder.residues.1.weight", "bert.encoder.fusions.1.weight"),
        *("classifier.weight", "classifier.bias", "cls.predictions.bias", "qa_outputs.weight"),
    ]
    ids = {"bert.embeddings.position_ids": torch.arange(160)[None]}  # nothing worth a line
    kept, lines = fitted(weights | ids | {name: torch.ones(7) for name in foreign})
    assert the_same(kept, weights)
    assert lines == [
        "Left out of bert/pytorch_model.bin, no part of BERT's encoder: bert.encoder.pruners.*, "
        "bert.encoder.residues.*, bert.encoder.fusions.*, classifier.*, cls.*, qa_outputs.*"
    ]


def test_a_long_list_is_cut():
    assert bert_folder.short_list("abcabcdef") == "a, b, c, d, e, f"
    assert bert_folder.short_list("abcdefgh") == "a, b, c, d, e, f and 2 more"


def test_a_missing_pooler_starts_fresh():
    weights = {name: tensor for name, tensor in a_bert().items() if "pooler" not in name}
    kept, lines = fitted(weights)
    assert the_same(kept, weights)
    assert lines == ["bert/pytorch_model.bin has no pooler: fine-tuning starts with a fresh one"]


def misfit(weights, **changes) -> str:
    message = sentence(lambda: fitted(weights, **changes))
    start = "bert/pytorch_model.bin is no BERT as bert/config.json describes it: "
    assert message.startswith(start)
    return message.removeprefix(start)


def test_a_weight_that_is_missing():
    weights = a_bert()
    del weights[QUERY]
    assert misfit(weights) == f"it has no {QUERY} of shape [32, 32]"


def test_half_a_pooler():
    weights = a_bert()
    del weights["bert.pooler.dense.bias"]
    assert misfit(weights) == "it has no bert.pooler.dense.bias of shape [32]"


def test_a_weight_of_another_shape():
    weights = a_bert() | {QUERY: torch.ones(32, 31)}
    assert misfit(weights) == f"{QUERY} has shape [32, 31], by the configuration it would be [32, 32]"


def test_a_quantized_weight():
    weights = a_bert() | {QUERY: torch.ones(32, 32, dtype=torch.int8)}
    assert misfit(weights) == f"{QUERY} holds no plain floats but torch.int8, as if quantized"


@pytest.mark.parametrize("change", [dict, without_prefix])
def test_more_layers_than_the_configuration_has(change):
    weights = change(a_bert())
    surplus = next(name for name in weights if "layer.2." in name)
    assert misfit(weights, num_hidden_layers=2) == f"it has an unexpected {surplus!r}"


def test_fewer_layers_than_the_configuration_has():
    surplus = "bert.encoder.layer.3.attention.self.query.weight"
    assert misfit(a_bert(), num_hidden_layers=4) == f"it has no {surplus} of shape [32, 32]"


def test_the_weights_of_a_distilbert():
    names = ("distilbert.embeddings.word_embeddings.weight", "distilbert.transformer.layer.0.ffn.lin1.weight")
    assert misfit({name: torch.ones(64, 32) for name in names}) == (
        "it has no bert.embeddings.word_embeddings.weight of shape [64, 32]"
    )


REAL = SHARED / "models/minilm-l12-384"


@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/models/minilm-l12-384 beside the checkout")
def test_a_real_folder(world, monkeypatch):
    monkeypatch.setattr(bert_folder, "BERT", REAL)
    assert bert_folder.tokenizer_settings()["do_lower_case"] is True
    assert len(bert_folder.read_vocabulary()) == 30_522
    config = bert_folder.read_config(REAL / "config.json")
    assert (config["num_hidden_layers"], config["hidden_size"]) == (12, 384)
    path = REAL / "model.safetensors"
    weights, lines = bert_folder.fit(bert_folder.read_weights(path), config, path, REAL / "config.json")
    assert lines == [f"{path} has no pooler: fine-tuning starts with a fresh one"]
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert sum("layer.11." in name for name in weights) == 16 and len(weights) == 5 + 12 * 16
    assert weights["bert.embeddings.word_embeddings.weight"].std() == pytest.approx(0.06, abs=0.05)


# --- Any damage ----------------------------------------------------------------------------------

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=3), LEAVES, max_size=2)
FIELDS = [*bert_folder.BertFields.model_fields, *bert_folder.TokenizerFields.model_fields, "pruning_schedule"]


@st.composite
def damages(draw):
    """A file of bert/, and a function from its bytes to damaged ones."""
    path = draw(st.sampled_from([CONFIG, TOKENIZER, VOCABULARY, BIN, SAFE]))
    if path.suffix == ".json" and draw(st.booleans()):
        name, value = draw(st.sampled_from(FIELDS)), draw(VALUES)
        return path, lambda content: json.dumps(json.loads(content) | {name: value}).encode()
    at, where = draw(st.floats(0, 1, exclude_max=True)), draw(st.sampled_from(["anywhere", "header"]))
    new = draw(st.binary(max_size=4))
    cut = draw(st.booleans())

    def change(content: bytes) -> bytes:
        place = int(at * (len(content) if where == "anywhere" else min(len(content), 600)))
        return content[:place] + new + (b"" if cut else content[place + len(new) :])

    return path, change


def read_everything() -> tuple:
    weights_path = bert_folder.weights_path()
    config_path = bert_folder.config_path()
    config = bert_folder.read_config(config_path)
    weights, lines = zip(
        *(bert_folder.fit(bert_folder.read_weights(p), config, p, config_path) for p in (weights_path, SAFE)),
        strict=True,
    )
    return bert_folder.tokenizer_settings(), bert_folder.read_vocabulary(), config, weights, lines


@settings(
    derandomize=True,
    database=None,
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(damages())
def test_whatever_is_damaged_is_read_or_refused_in_one_line(world, damage):
    small = {"vocab_size": 30, "hidden_size": 4, "num_hidden_layers": 1, "intermediate_size": 4}
    config = tiny_config(**small, max_position_embeddings=8)
    weights = a_bert(**config)
    torch.save(weights, BIN)
    save_file(weights, SAFE)
    CONFIG.write_text(json.dumps(config))
    TOKENIZER.write_text(json.dumps({"do_lower_case": True}))
    VOCABULARY.write_text("\n".join(SPECIAL + GOOD) + "\n")
    path, change = damage
    path.write_bytes(change(path.read_bytes()))
    try:
        tokenizer, words, config, both, lines = read_everything()
    except UserError as error:
        assert str(error).isprintable() and str(error)
        return
    assert set(tokenizer) == {"do_lower_case", "strip_accents", "tokenize_chinese_chars"}
    assert isinstance(tokenizer["do_lower_case"], bool) and isinstance(config["hidden_size"], int)
    assert len(set(words)) == len(words) > 0
    assert lines == ([], [])
    for read_ in both:
        assert {n: t.shape for n, t in read_.items()} == {n: t.shape for n, t in weights.items()}
        assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in read_.values())
