"""The settings block of a runner: a name or a value that cannot work stops it at once, with a sentence."""

import math

import pytest
from running import BERT, LSTM, experiment, runner

import PrepareGlue4Bert
import RunBert4Glue
import RunLstm4Agnews
import RunLstm4Glue
from pruning import methods, schedules, training
from pruning.errors import UserError
from pruning.settings import BertSettings, Block, LstmGlueSettings, LstmSettings
from pruning.tasks import GLUE

KINDS = {
    RunBert4Glue: (BertSettings, "sst-2"),
    RunLstm4Glue: (LstmGlueSettings, "sst-2"),
    RunLstm4Agnews: (LstmSettings, "agnews"),
}
NAN, INFINITY = math.nan, math.inf
NO_NUMBER = [NAN, INFINITY, -INFINITY, "1", None, True, [1], 1j]
NO_COUNT = [0, -1, 0.5, 8.0, "8", None, True, [8], NAN]
NO_SHARE = [-0.1, 1.5, *NO_NUMBER]
NO_RATE = [0, -1e-5, 1.1, 1e10, "1e-5", *NO_NUMBER[:-3], True, [1e-5]]
NO_EPOCHS = [0, -1, 1e300, *NO_NUMBER]
NO_LIST = [None, 0, 0.5, True, (0,), {0}, range(1)]
WRONG = {  # setting → values that cannot work
    "seeds": [*NO_LIST, [], [0, 0], "0", ["0"], [-1], [0.0], [None], [True], [2**32], [[0]]],
    "training_rows": [value for value in NO_COUNT if value is not None],
    "dense_epochs": NO_EPOCHS,
    "pruned_epochs": NO_EPOCHS,
    "batch_size": NO_COUNT,
    "learning_rate": NO_RATE,
    "student_learning_rate": NO_RATE,
    "fusion_learning_rate": NO_RATE,
    "distillation_share": NO_SHARE,
    "ramp_share": NO_SHARE,
    "evaluation_batch_size": NO_COUNT,
    "timing_examples": NO_COUNT,
    "timing_passes": NO_COUNT,
    "shown_examples": [value for value in NO_COUNT if value != 0],
    "save_models": ["yes", 1, 0, None, [True]],
    "layers": [value for value in NO_COUNT if value is not None],
    "removed_tokens": ["residue", "Fused", "", True, False, None, 0, ["gone"]],
    "dropout": [1, 1.0, *(value for value in NO_SHARE if value is not None)],
    "augmented_copies": [value for value in NO_COUNT if value != 0],
    "word_dropout": [1, 1.0, *NO_SHARE],
    "target_prune_rate": [*NO_SHARE, "0.5"],
    "pruning_methods": [
        *NO_LIST, "random", ["nose"], ["Random"], ["random", "random"], [None], [0], [""],
        ["head", ["head", "nose", "tail"]], ["head", ["head", 3, "tail"]], [[]], [["head"], ["head"]],
        [[["head"]]],
    ],
    "pruning_schedule": [
        *NO_LIST, "harf", "", "[0, 0.5]", [0, 0, 1.1], [0, -0.1, 0], [0, NAN, 0], ["0", 0, 0], [None, 0, 0],
        [0, 0, True], [0, [0.5], 0],
    ],
}  # fmt: skip
CASES = [
    (module, name, value)
    for module, (kind, _) in KINDS.items()
    for name in kind.model_fields
    for value in WRONG.get(name, [])
]


def read(module, **changes):
    """A runner's settings for its task, some of them changed."""
    kind, task = KINDS[module]
    return Block.read(vars(module) | changes, kind).for_task(task)


def script_of(module):
    return f"{module.__name__}.py"


def check_sentence(error, *words):
    """One line of a length that one reads, with these words."""
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 600
    assert all(word in sentence for word in words), sentence


@pytest.fixture(params=KINDS, ids=script_of)
def module(request):
    return request.param


# --- Names -----------------------------------------------------------------------------------


def test_the_shipped_blocks_can_be_read(module):
    kind, _ = KINDS[module]
    values = read(module).model_dump()
    shipped = {name: getattr(module, name) for name in kind.model_fields}
    assert values == {n: v.get("sst-2", v["other"]) if isinstance(v, dict) else v for n, v in shipped.items()}
    assert values["learning_rate"] == (5e-5 if module is RunBert4Glue else 2e-3)


def test_a_missing_setting_is_named(module):
    kind, _ = KINDS[module]
    for name in kind.model_fields:
        rest = {key: value for key, value in vars(module).items() if key != name}
        with pytest.raises(UserError) as error:
            Block.read(rest, kind)
        check_sentence(error, f"{script_of(module)} has no setting {name}")


@pytest.mark.parametrize("name", ["words_left_out", "residue", "learning_rates", "Dropout", "affects"])
def test_an_unknown_setting_is_named(module, name):
    with pytest.raises(UserError) as error:
        read(module, **{name: 0.4})
    check_sentence(
        error, f"{name} in {script_of(module)} is not a setting", "settings are: ", "learning_rate"
    )


def test_a_misspelt_setting_is_named(module):
    names = dict(vars(module))
    names["bach_size"] = names.pop("batch_size")
    with pytest.raises(UserError) as error:
        Block.read(names, KINDS[module][0])
    check_sentence(error, f"bach_size in {script_of(module)} is not a setting", "batch_size")


def test_the_runner_of_one_task_knows_no_task_names():
    with pytest.raises(UserError, match=r"task_names in RunLstm4Agnews\.py is not a setting"):
        read(RunLstm4Agnews, task_names=["agnews"])


# --- By task ---------------------------------------------------------------------------------


def test_any_setting_may_differ_by_task(module):
    kind, task = KINDS[module]
    plain = read(module).model_dump()
    for name in kind.model_fields.keys() - {"task_names"}:
        by_task = {task: plain[name], "mrpc": "another task's value is not looked at"}
        assert read(module, **{name: by_task}).model_dump() == plain
        assert read(module, **{name: {"other": plain[name]}}).model_dump() == plain


def test_the_task_goes_before_other():
    by_task = {"sst-2": 1e-5, "other": 1e-3}
    assert read(RunBert4Glue, learning_rate=by_task).learning_rate == 1e-5
    block = Block.read(vars(RunBert4Glue) | {"learning_rate": by_task}, BertSettings)
    assert block.for_task("cola").learning_rate == 1e-3


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"sst2": 1, "other": 2}, ": there is no task 'sst2'"),
        ({0: 1, "other": 2}, ": there is no task 0"),
        ({"cola": 1}, " has no value for {task}: add it, or 'other'"),
        ({}, " has no value for {task}: add it, or 'other'"),
    ],
)
def test_a_wrong_task_is_named(module, value, words):
    kind, task = KINDS[module]
    for name in kind.model_fields.keys() - {"task_names"}:
        with pytest.raises(UserError) as error:
            read(module, **{name: value})
        check_sentence(error, f"{name} in {script_of(module)}{words.format(task=task)}")


def test_a_wrong_value_of_one_task_is_named(module):
    with pytest.raises(UserError) as error:
        read(module, batch_size={KINDS[module][1]: 0, "other": 8})
    check_sentence(error, f"batch_size in {script_of(module)}: it should be greater than 0; it is 0")


# --- Values ----------------------------------------------------------------------------------


def test_the_table_has_wrong_values_of_every_setting(module):
    assert KINDS[module][0].model_fields.keys() <= {*WRONG, "task_names"}


@pytest.mark.parametrize(
    ("module", "name", "value"), CASES, ids=[f"{m.__name__}-{n}-{v!r}"[:60] for m, n, v in CASES]
)
def test_a_wrong_value_is_one_sentence(module, name, value):
    with pytest.raises(UserError) as error:
        read(module, **{name: value})
    check_sentence(error, f"{name} in {script_of(module)}", "Edit it at the top of the script")


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "seeds": [[0], [3, 1, 2], [2**32 - 1]],
        "training_rows": [None, 1, 10**9],
        "pruned_epochs": [0.1, 1, 100],
        "learning_rate": [1, 1e-9],
        "distillation_share": [0, 1],
        "ramp_share": [0, 1.0],
        "shown_examples": [0],
        "removed_tokens": ["fused", "readable", "gone"],
        "layers": [None, 1, 12],
        "dropout": [None, 0, 0.5],
        "augmented_copies": [0, 9],
        "word_dropout": [0],
        "pruning_methods": [[], list(methods.BERT_METHODS), [["head"] * 12], ["head", ["head", "tail"]]],
        "pruning_schedule": [*schedules.FOR_SIX_LAYERS, [0] * 12, [1, 1.0], [0.5]],
    }.items(),
)
def test_values_at_the_edge_are_taken_as_they_are(name, values):
    for value in values:
        assert getattr(read(RunBert4Glue, **{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("batch_size", 0, "it should be greater than 0; it is 0"),
        ("word_dropout", 1.5, "it should be less than 1; it is 1.5"),
        ("removed_tokens", "residue", "it should be 'fused', 'readable' or 'gone'; it is 'residue'"),
        ("seeds", [1, 1], "it should name nothing twice; it is [1, 1]"),
        ("pruning_methods", "random", "it should be a valid list; it is 'random'"),
        (
            "pruning_schedule",
            [0, 1.1],
            "layer 1: a pruning rate must be a number between 0 and 1, not 1.1; it is [0, 1.1]",
        ),
    ],
)
def test_the_sentence_reads(name, value, sentence):
    with pytest.raises(UserError) as error:
        read(RunBert4Glue, **{name: value})
    assert str(error.value) == f"{name} in RunBert4Glue.py: {sentence}. Edit it at the top of the script"


def test_no_lstm_reads_removed_words():
    with pytest.raises(UserError, match="it should be 'fused' or 'gone'; it is 'readable'"):
        read(RunLstm4Glue, removed_tokens="readable")


def test_an_entry_of_a_list_is_counted():
    with pytest.raises(UserError, match=r"pruning_methods in RunLstm4Glue\.py, entry 1: unknown .* 'nose'"):
        read(RunLstm4Glue, pruning_methods=["head", "nose"])


def test_a_long_value_is_shortened():
    with pytest.raises(UserError) as error:
        read(RunLstm4Glue, seeds=list(range(1000)) * 2)
    check_sentence(
        error, "seeds in RunLstm4Glue.py: it should name nothing twice; it is [0, 1, 2,", " …. Edit"
    )


# --- Tasks -----------------------------------------------------------------------------------


def task_names_of(value):
    return Block.read(vars(RunBert4Glue) | {"task_names": value}, BertSettings).task_names()


def test_task_names():
    assert task_names_of(None) == list(GLUE)
    assert task_names_of(["sst-2", "cola"]) == ["sst-2", "cola"]


@pytest.mark.parametrize("value", ["sst-2", [], (), ("sst-2",), {"sst-2"}, {"sst-2": 1}, 0, True])
def test_task_names_are_a_list(value):
    with pytest.raises(UserError) as error:
        task_names_of(value)
    check_sentence(
        error, "task_names in RunBert4Glue.py: it should be a list of tasks, or None for all; it is "
    )


@pytest.mark.parametrize("value", [["sst2"], ["sst-2", "agnews"], [0], [None], [["sst-2"]], [{}]])
def test_an_unknown_task_is_named(value):
    with pytest.raises(UserError) as error:
        task_names_of(value)
    check_sentence(
        error, f"task_names in RunBert4Glue.py: there is no task {value[-1]!r}; known are: cola, sst-2"
    )


def test_a_task_is_named_once():
    with pytest.raises(UserError, match=r"task_names in RunBert4Glue\.py names cola twice"):
        task_names_of(["cola", "sst-2", "cola"])


# --- In main() -------------------------------------------------------------------------------


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(training, "train", lambda *a, **k: pytest.fail("trained"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pruning_schedule": [0, 0.5]},
            r"pruning_schedule has 2 rates, but the model has 3 layers: it needs one rate for each layer, "
            r"such as \[0, 0.5, 0\]. Edit pruning_schedule at the top of RunBert4Glue\.py$",
        ),
        ({"pruning_schedule": []}, r"pruning_schedule has 0 rates, but the model has 3 layers"),
        ({"pruning_schedule": "harf"}, r"no schedule is called 'harf'.*half.*it is 'harf'"),
        (
            {"pruning_schedule": {"mrpc": "half"}},
            r"pruning_schedule in .* has no value for sst-2",
        ),
        (
            {"pruning_schedule": [0, 0, 1.1]},
            r"RunBert4Glue\.py: layer 2: .*between 0 and 1, not 1\.1",
        ),
        (
            {"pruning_methods": ["nose"]},
            r"RunBert4Glue\.py, entry 0: unknown pruning method 'nose'",
        ),
        (
            {"pruning_methods": [["head"]]},
            r"RunBert4Glue\.py: .* one for each of the 3 layers, not 1",
        ),
        ({"pruning_methods": ["head", ["head"] * 4]}, "one for each of the 3 layers, not 4"),
        ({"task_names": ["sst2"]}, r"no task 'sst2'; known are: cola"),
        ({"evaluation_batch_size": 0}, "it should be greater than 0; it is 0"),
        ({"seeds": range(3)}, r"seeds in RunBert4Glue\.py: it should be a valid list; it is range\(0, 3\)"),
    ],
)
def test_wrong_bert_settings_stop_before_any_training(full_world, monkeypatch, no_training, changes, message):
    PrepareGlue4Bert.main()
    with pytest.raises(UserError, match=message) as error:
        runner(RunBert4Glue, BERT, monkeypatch)(**changes)
    check_sentence(error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_prune_rate": 1.5}, r"target_prune_rate in SCRIPT: it should be less than or equal to 1"),
        ({"pruning_methods": ["column mean"]}, r"pruning_methods in SCRIPT.*unknown .* 'column mean'"),
        (
            {"pruning_methods": [["head"]]},
            r"pruning_methods in SCRIPT, entry 0: it should be a valid string",
        ),
        ({"seeds": []}, r"seeds in SCRIPT: it should have at least 1 item"),
    ],
)
@pytest.mark.parametrize("script", [RunLstm4Glue, RunLstm4Agnews], ids=script_of)
def test_wrong_lstm_settings_stop_before_anything_is_read(
    tmp_path, monkeypatch, no_training, script, changes, message
):
    monkeypatch.chdir(tmp_path)  # there is no cache
    with pytest.raises(UserError, match=message.replace("SCRIPT", script_of(script))) as error:
        runner(script, LSTM, monkeypatch)(**changes)
    check_sentence(error)


def test_the_schedule_in_the_message_can_be_pasted(full_world, monkeypatch):
    PrepareGlue4Bert.main()
    with pytest.raises(UserError) as error:
        experiment(pruning_schedule=[0.5])
    pasted = str(error.value).split("such as ")[1].split(". Edit")[0]
    assert experiment(pruning_schedule=eval(pasted)).builder.schedule == [0, 0.5, 0]


def test_a_runner_without_one_of_its_settings_stops(full_world, monkeypatch, no_training, module):
    for name in KINDS[module][0].model_fields:
        with monkeypatch.context() as patch:
            patch.delattr(module, name)
            with pytest.raises(UserError, match=rf"{module.__name__}\.py has no setting {name}: add it"):
                module.main()
