"""The patched BERT: parity with the stock one, real removal, the same in any batch, saved and loaded."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator, infer_auto_device_map
from conftest import LAYERS, build, tiny_config
from safetensors.torch import load_file, save_model
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from transformers import BertForSequenceClassification, Trainer, TrainingArguments
from transformers.quantizers.quantizers_utils import should_convert_module

from ModifiedModelingBert import PrunedBertConfig, PrunedBertForSequenceClassification, PrunedBertModel
from pruning import flops, methods
from pruning.methods import set_frequencies
from pruning.pruners import ColumnMeanPruner
from pruning.selection import count_kept

DEPLOYABLE = [m for m in methods.BERT_METHODS if not methods.is_teacher(m)]
# A file may hold weights where a batched product adds in another order than where they were.
ROUNDING = {"atol": 1e-6, "rtol": 0}


def kept_sets(output, row):
    return [set(layer[row].tolist()) - {-1} for layer in output.kept]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("schedule", [None, [0, 0, 0]])
def test_a_schedule_of_zeros_is_stock_bert(batch, attention, schedule):
    ours = build(schedule)
    stock = BertForSequenceClassification(ours.config).eval()
    stock.load_state_dict(ours.state_dict())
    for model in (ours, stock):
        model.set_attn_implementation(attention)
    ours.bert.encoder.fast_paths = None  # they agree to rounding, see test_layers
    with torch.no_grad():
        assert torch.equal(ours(**batch).logits, stock(**batch).logits)
        assert torch.equal(
            ours(input_ids=batch["input_ids"]).logits, stock(input_ids=batch["input_ids"]).logits
        )


def test_pruned_output_is_that_of_the_kept_tokens_in_shorter_layers(batch):
    model = build([0, 0.5, 0.4], ["head", "tail", "frequency"])
    row = {name: tensor[:1] for name, tensor in batch.items()}
    with torch.no_grad():
        output = model(**row)
        states = model.bert.embeddings(row["input_ids"], row["token_type_ids"])
        alive = torch.arange(17)
        for number, (layer, kept) in enumerate(zip(model.bert.encoder.layer, output.kept, strict=True)):
            stay = torch.tensor([list(alive).index(place) for place in kept[0]])
            if number > 0:
                gone = [i for i in range(len(alive)) if i not in stay]
                weight = model.bert.encoder.fusions[str(number)].weight
                states[:, 0] += states[:, gone].mean(dim=1) @ weight.T
            states, alive = states[:, stay], alive[stay]
            states = layer(states, None)
        logits = model.classifier(model.bert.pooler(states))
    assert [k.shape[1] for k in output.kept] == [17, 9, 6]
    assert states.shape[1] == 6
    torch.testing.assert_close(output.logits, logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("removed_tokens", ["gone", "fused", "readable"])
@pytest.mark.parametrize("rates", [[0.3, 0.5], [0.3], [0, 0]])
def test_fewer_rates_than_layers_are_those_of_a_bert_cut_to_so_many(batch, rates, removed_tokens):
    whole = build([0.5, 0.5, 0.5], "frequency", removed_tokens=removed_tokens)
    cut = build(rates, "frequency", removed_tokens=removed_tokens, num_hidden_layers=len(rates))
    state = whole.state_dict()
    cut.load_state_dict({name: state[name] for name in cut.state_dict()})
    whole.bert.encoder.schedule = rates
    with torch.no_grad():
        ours, theirs = whole(**batch), cut(**batch)
        torch.testing.assert_close(ours.logits, theirs.logits, **ROUNDING)
        assert len(ours.kept) == len(rates)
        assert flops.pruned_bert(whole, batch) == flops.pruned_bert(cut, batch)
        whole.set_training_rates(rates)
        whole.bert.encoder.schedule = [0, 0, 0]
        for model in (whole, cut):
            model.train()
            model.bert.encoder.fast_paths = None
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        torch.testing.assert_close(whole(**batch).logits, cut(**batch).logits, **ROUNDING)


@pytest.mark.parametrize("method", DEPLOYABLE)
def test_alone_in_any_batch_and_with_any_padding_the_same(batch, method):
    model = build([0.3, 0, 0.5], method)
    with torch.no_grad():
        together = model(**batch)
        for row, length in enumerate((17, 9, 4, 1)):
            alone = model(**{name: tensor[row : row + 1, :length] for name, tensor in batch.items()})
            wide = {
                name: torch.nn.functional.pad(tensor[[row, 0]], (0, 40)) for name, tensor in batch.items()
            }
            padded = model(**wide)
            for other, index in ((alone, 0), (padded, 0)):
                assert kept_sets(other, index) == kept_sets(together, row)
                torch.testing.assert_close(other.logits[index], together.logits[row], atol=1e-5, rtol=0)


def test_bf16_agrees_for_equal_kept_sets(batch):
    model = build([0.3, 0, 0.5], "tail")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        together = model(**batch)
        alone = model(**{name: tensor[1:2, :9] for name, tensor in batch.items()})
    assert kept_sets(alone, 0) == kept_sets(together, 1)
    torch.testing.assert_close(alone.logits[0], together.logits[1], atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", [m for m in DEPLOYABLE if m != "column mean threshold"])
def test_counts_cls_and_order(batch, method):
    model = build([0.5, 0.5, 0.5], method)
    with torch.no_grad():
        output = model(**batch)
    for row, counts in enumerate(([9, 5, 3], [5, 3, 2], [2, 1, 1], [1, 1, 1])):
        sets = kept_sets(output, row)
        assert [len(s) for s in sets] == counts
        assert all(0 in s for s in sets)
        assert sets[2] <= sets[1] <= sets[0]
    for layer in output.kept:
        places = layer[0][layer[0] >= 0]
        assert (places[1:] > places[:-1]).all()


def test_head_and_tail_drop_from_their_ends(batch):
    with torch.no_grad():
        head = build([0.5, 0, 0], "head")(**batch)
        tail = build([0.5, 0, 0], "tail")(**batch)
    assert head.kept[0][0].tolist() == [0, *range(9, 17)]
    assert tail.kept[0][0].tolist() == list(range(9))
    assert head.kept[2].shape[1] == 9


def test_left_padding_keeps_the_same_tokens(batch):
    model = build([0.5, 0.5, 0], "ideal gradients student")
    left = {  # the real tokens in their order, behind the padding
        name: torch.stack([t.roll(17 - n) for t, n in zip(tensor, (17, 9, 4, 1), strict=True)])
        for name, tensor in batch.items()
    }
    positions = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        right, moved = model(**batch), model(**left, position_ids=positions)
    for row in range(4):
        assert kept_sets(moved, row) == kept_sets(right, row)
    torch.testing.assert_close(moved.logits, right.logits, atol=1e-5, rtol=0)


def test_evaluation_draws_nothing_at_random_and_seeds_differ(batch):
    model = build([0.5, 0, 0], "random")
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = model(**batch), model(**batch)
        after = torch.get_rng_state()
        other = build([0.5, 0, 0], "random")
        other.bert.encoder.pruners["0"].salt += 1_009  # the next seed
        third = other(**batch)
    assert torch.equal(first.kept[0], second.kept[0])
    assert not torch.equal(first.kept[0], third.kept[0])
    assert torch.equal(state, after)


def test_a_rate_of_one_leaves_cls(batch):
    with torch.no_grad():
        output = build([0, 1, 0], "tail")(**batch)
    assert output.kept[1].tolist() == [[0]] * 4


@pytest.mark.parametrize("method", methods.BERT_METHODS)
def test_every_method_trains_and_forward_steps_nothing(batch, method):
    model = build([0, 0.5, 0.5], method).train()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    scores = {layer: torch.rand(4, 17) for layer in (1, 2)} if methods.teacher_of(method) else None
    output = model(**batch, labels=torch.tensor([0, 1, 0, 1]), teacher_scores=scores)
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name]), name
    assert (output.pruning_loss is not None) == method.endswith(" student")
    loss = output.loss + (0 if output.pruning_loss is None else output.pruning_loss)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_a_fresh_fusion_leaves_nothing_and_a_trained_one_reaches_cls_alone(batch):
    model = build([0, 0.5, 0], "head")
    without = build([0, 0.5, 0], "head", removed_tokens="gone")
    without.load_state_dict(model.state_dict(), strict=False)
    states = []
    model.bert.encoder.layer[1].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    model.bert.encoder.fast_paths = None
    with torch.no_grad():
        trained = model(**batch).logits
        model.bert.encoder.fusions["1"].weight.zero_()
        fresh = model(**batch).logits
        torch.testing.assert_close(fresh, without(**batch).logits, atol=1e-5, rtol=0)
    assert not torch.allclose(fresh[:3], trained[:3], atol=1e-2)
    assert torch.equal(states[0][:, 1:], states[1][:, 1:])
    assert torch.equal(fresh[3], trained[3])  # one token: nothing goes
    assert not any("fusion" in name for name in without.state_dict())
    assert flops.pruned_bert(without, batch) < flops.pruned_bert(model, batch)


def test_the_student_learns_without_moving_the_model(batch):
    model = build([0, 0.5, 0], "ideal gradients student").train()
    output = model(**batch, teacher_scores={1: torch.rand(4, 17)})
    output.pruning_loss.backward()
    with_gradient = {n for n, p in model.named_parameters() if p.grad is not None}
    assert with_gradient and all("pruners" in name for name in with_gradient)


def test_the_student_needs_no_teacher_at_evaluation(batch):
    model = build([0, 0.5, 0], "ideal gradients student")
    with torch.no_grad():
        alone = model(**batch)
        helped = model(**batch, teacher_scores={1: torch.rand(4, 17)})
    assert torch.equal(alone.kept[1], helped.kept[1])
    assert alone.pruning_loss is None and helped.pruning_loss is None


def test_a_teacher_prunes_by_its_scores_also_after_another_layer_pruned(batch):
    model = build([0.5, 0.5, 0], ["tail", "ideal gradients", "head"])
    scores = torch.zeros(4, 17)
    scores[:, 6:] = torch.arange(11.0) + 1  # of the tokens that `tail` leaves, 8 and 7 are best
    with torch.no_grad():
        output = model(**batch, teacher_scores={1: scores})
        assert output.kept[1][0].tolist() == [0, 1, 6, 7, 8]
        with pytest.raises(ValueError, match="teacher"):
            model(**batch)


def test_rates_may_rise_in_training_but_not_at_evaluation(batch):
    model = build([0.8, 0, 0], "tail")
    model.set_training_rates([0.4, 0, 0])
    assert model.train()(**batch).kept[0].shape[1] == 11  # 17 - floor(17 · 0.4)
    assert model.eval()(**batch).kept[0].shape[1] == 4  # 17 - floor(17 · 0.8)
    model.set_training_rates(None)
    assert model.train()(**batch).kept[0].shape[1] == 4


def test_column_mean_is_the_attention_that_a_token_receives(batch):
    model = build([0, 0.5, 0], "column mean")
    with torch.no_grad():
        kept = model(**batch).kept
    dense = build()
    dense.set_attn_implementation("eager")
    with torch.no_grad():
        attention = dense(**batch, output_attentions=True).attentions[1]
    for row, length in enumerate((17, 9, 4, 1)):
        received = attention[row, :, :length, :length].mean(dim=(0, 1))
        received[0] = torch.inf
        best = received.topk(length - length // 2).indices.sort().values
        assert kept[1][row][kept[1][row] >= 0].tolist() == best.tolist()


def test_a_threshold_is_calibrated_to_the_schedule_and_counts_depend_on_the_example():
    model = build([0, 0.5, 0.3], "column mean threshold")
    lengths = torch.randint(4, 20, (64,), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(20) < lengths[:, None]).long()
    many = {"input_ids": torch.randint(5, 64, (64, 20)) * mask, "attention_mask": mask}
    methods.calibrate(model, many)
    with torch.no_grad():
        kept = model(**many).kept
    counts = torch.stack([(places >= 0).sum(dim=1) for places in kept])
    for before, after, rate in ((0, 1, 0.5), (1, 2, 0.3)):  # in all as many as by rates
        assert counts[after].sum() == sum(count_kept(n, rate) for n in counts[before].tolist())
    assert len({round(float(s), 2) for s in counts[1] / lengths}) > 10
    assert all(0 in places for places in kept[2].tolist())


def test_where_cls_alone_stays_nothing_is_scored_but_by_a_threshold(batch, monkeypatch):
    asked = []
    monkeypatch.setattr(ColumnMeanPruner, "score", lambda *_: asked.append(1) or torch.ones(4, 17))
    with torch.no_grad():
        assert build([0, 1, 0], "column mean")(**batch).kept[1].tolist() == [[0]] * 4
        assert not asked
        build([0, 1, 0], "column mean threshold")(**batch)
        assert asked


@pytest.mark.parametrize("removed_tokens", ["fused", "readable", "gone"])
@pytest.mark.parametrize(("method", "stay"), [("tail", [2, 1]), ("column mean threshold", [4, 1])])
def test_an_empty_row_counts_as_one_token(method, stay, removed_tokens):
    ids = torch.randint(5, 64, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0] * 6])
    model = build([0, 0.5, 0], method, removed_tokens=removed_tokens)
    with torch.no_grad():
        output, alone = model(ids, mask), model(ids[:1], mask[:1])
        empty = torch.zeros_like(mask, dtype=torch.bool)
        assert model(ids, empty).logits.isfinite().all() and not empty.any()
    assert (output.kept[1] >= 0).sum(dim=1).tolist() == stay
    assert output.logits.isfinite().all()
    torch.testing.assert_close(output.logits[:1], alone.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("removed_tokens", ["readable", "gone"])
def test_a_compiled_model_answers_as_it_does_itself(batch, removed_tokens):
    model = build([0, 0.5, 0], "ideal gradients student", removed_tokens=removed_tokens)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        output, wanted = compiled(**batch), model(**batch)
    torch.testing.assert_close(output.logits, wanted.logits, atol=1e-5, rtol=0)
    assert kept_sets(output, 0) == kept_sets(wanted, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_int8_weights_of_pytorch(batch):
    model = build([0, 0.5, 0], "ideal gradients student", removed_tokens="readable")
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})
    with torch.no_grad():
        difference = (quantized(**batch).logits - model(**batch).logits).abs().max()
    assert 0 < difference < 0.1


def test_quantizers_leave_the_students_alone():
    model = build([0, 0.5, 0], "ideal gradients student")
    for whole, start in ((model, "bert."), (model.bert, "")):
        for name in ("encoder.pruners.1.inner", "encoder.layer.1.output.dense"):
            is_converted = should_convert_module(start + name, [*whole._keep_in_fp32_modules])
            assert is_converted == ("pruners" not in name)


def test_a_device_map_leaves_the_bert_on_one_device():
    model = build([0, 0.5, 0], "tail")
    size = sum(weight.nbytes for weight in model.bert.parameters())
    room = {0: int(0.6 * size), 1: 3 * size, "cpu": 3 * size}
    places = infer_auto_device_map(model, room, no_split_module_classes=model._no_split_modules)
    assert {*places.values()} == {1}


def test_a_tuple_where_it_is_asked_for(batch):
    model = build([0, 0.5, 0], "tail")
    with torch.no_grad():
        assert torch.equal(model(**batch, return_dict=False)[0], model(**batch).logits)
        model.config.return_dict = False
        assert torch.equal(model(**batch)[0], model(**batch, return_dict=True).logits)


@pytest.mark.parametrize(
    ("problem_type", "loss"),
    [
        ("multi_label_classification", binary_cross_entropy_with_logits),
        (None, binary_cross_entropy_with_logits),
        ("regression", mse_loss),
    ],
)
def test_the_loss_that_a_configuration_names(batch, problem_type, loss):
    model = build([0, 0.5, 0])
    model.config.problem_type, labels = problem_type, torch.rand(4, 2)
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


def test_pruners_stay_in_fp32_where_a_model_is_loaded_in_fp16(batch, tmp_path):
    model = build([0, 0.5, 0], "frequency")
    set_frequencies(model, torch.arange(64.0) + 70_000)  # infinite in fp16
    model.save_pretrained(tmp_path)
    loaded = PrunedBertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float16)
    assert loaded.classifier.weight.dtype == torch.float16
    assert loaded.bert.encoder.pruners["1"].state_dict().keys()
    for name, tensor in loaded.bert.encoder.pruners.state_dict().items():
        assert torch.equal(tensor, model.bert.encoder.pruners.state_dict()[name])


def test_another_schedule_of_the_same_model(batch, tmp_path):
    model = build([0.3, 0.3, 0.3], "ideal gradients student")
    fresh = build([0, 0.5, 0], "ideal gradients student")
    fresh.load_state_dict(model.state_dict(), strict=False)
    model.set_schedule([0, 0.5, 0])
    with torch.no_grad():
        output = model(**batch)
        assert torch.equal(output.logits, fresh(**batch).logits)
    assert [k.shape[1] for k in output.kept] == [17, 9, 9]
    assert flops.pruned_bert(model, batch) == flops.pruned_bert(fresh, batch)
    model.save_pretrained(tmp_path)
    loaded = PrunedBertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, output.logits, **ROUNDING)
    with pytest.raises(ValueError, match="no pruner before layer 0"):
        fresh.set_schedule([0.5, 0, 0])


def test_saved_and_loaded_with_schedule_methods_and_pruners(batch, tmp_path):
    by_layer = ["ideal emission rate student", "frequency", "random"]
    model = build([0.3, 0.3, 0.3], by_layer)
    model.save_pretrained(tmp_path)
    loaded, info = PrunedBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.pruning_schedule == [0.3, 0.3, 0.3]
    assert loaded.config.pruning_methods == by_layer
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, model(**batch).logits, **ROUNDING)


def test_any_hugging_face_folder_loads_and_stock_names_stay(tmp_path):
    ours = build()
    stock = BertForSequenceClassification(ours.config)
    assert set(stock.state_dict()) == set(ours.state_dict())
    stock.bert.save_pretrained(tmp_path)
    pruned = PrunedBertForSequenceClassification.from_pretrained(
        tmp_path, num_labels=3, pruning_schedule=[0, 0.5, 0], pruning_methods="frequency"
    )
    assert torch.equal(pruned.bert.pooler.dense.weight, stock.bert.pooler.dense.weight)
    assert torch.equal(pruned.bert.encoder.pruners["1"].counts, torch.zeros(64))
    assert torch.equal(pruned.bert.encoder.fusions["1"].weight, torch.zeros(32, 32))
    extra = set(pruned.state_dict()) - set(stock.state_dict())
    assert extra == {"bert.encoder.pruners.1.counts", "bert.encoder.fusions.1.weight"}


@pytest.mark.parametrize(
    ("schedule", "names", "message"),
    [
        ([0.5], "head", f"1 rates, but the model has {LAYERS} layers"),
        ([0, 1.5, 0], "head", "layer 1: .*between 0 and 1"),
        ([0, 0.5, 0], "heads", "unknown pruning method 'heads'"),
        ([0, 0.5, 0], ["head"], "one for each of the 3 layers"),
        ([0, 0.5, 0], "lstm", "unknown pruning method 'lstm'"),
    ],
)
def test_wrong_settings_are_refused(schedule, names, message):
    with pytest.raises(ValueError, match=message):
        build(schedule, names)


def test_what_cannot_be_pruned_is_refused(batch):
    with pytest.raises(ValueError, match="decoder"):
        PrunedBertModel(PrunedBertConfig(**tiny_config(), is_decoder=True))
    model = build([0, 0.5, 0], "frequency")
    embedded = model.bert.embeddings.word_embeddings(batch["input_ids"])
    with pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=embedded)
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids=batch["input_ids"], inputs_embeds=embedded)
    with pytest.raises(ValueError, match="shape"):
        model(batch["input_ids"], attention_mask=torch.ones(4, 17, 17))


def test_hidden_states_and_attentions_come_as_usual(batch):
    model = build([0, 0.5, 0], "head")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [h.shape[1] for h in output.hidden_states] == [17, 17, 9, 9]
    assert [a.shape[-1] for a in output.attentions] == [17, 9, 9]


@pytest.mark.parametrize("outputs", [1, 2])
def test_labels_in_a_column_have_the_loss_of_labels_in_a_row(batch, outputs):
    torch.manual_seed(0)
    model = PrunedBertForSequenceClassification(PrunedBertConfig(**tiny_config(), num_labels=outputs)).eval()
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0])
    with torch.no_grad():
        output = model(**batch, labels=labels)
        column = model(**batch, labels=labels[:, None])
    if outputs == 1:
        wanted = (output.logits[:, 0] - labels).square().mean()
    else:
        wanted = -output.logits.log_softmax(dim=1)[range(4), labels.long()].mean()
    torch.testing.assert_close(output.loss, wanted)
    assert torch.equal(column.loss, output.loss)


def test_a_removed_tokens_setting_is_saved_and_others_are_refused(tmp_path):
    build([0, 0.5, 0], removed_tokens="gone").save_pretrained(tmp_path)
    loaded = PrunedBertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.removed_tokens == "gone" and not loaded.bert.encoder.fusions
    with pytest.raises(Exception, match="removed_tokens"):
        PrunedBertConfig(removed_tokens="lost")


@pytest.mark.parametrize("size", [80, 50])
def test_another_number_of_words(batch, tmp_path, size):
    """New words do not stand in the training text: they are the rarest."""
    model = build([0, 0.5, 0], "frequency")
    counts = model.bert.encoder.pruners["1"].counts.clone()
    model.resize_token_embeddings(size)
    ids = batch["input_ids"].clamp(max=size - 1)
    ids[0, 3:12] = size - 1
    with torch.no_grad():
        output = model(**batch | {"input_ids": ids})
    resized = model.bert.encoder.pruners["1"].counts
    assert len(resized) == size and torch.equal(resized[:64], counts[:size])
    if size > 64:
        assert (resized[64:] == 0).all()
        assert set(output.kept[1][0].tolist()) >= {
            0,
            *range(3, 11),
        }  # 9 stay: [CLS] and new words, early first
    model.save_pretrained(tmp_path)
    loaded = PrunedBertForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch | {"input_ids": ids}).logits, output.logits, **ROUNDING)


def test_every_saver_keeps_every_weight(batch, tmp_path):
    """Also after a pass without gradients, in which the fast paths may look at weights as they like."""
    model = build([0.3, 0.5, 0.3], ["ideal gradients student", "frequency", "column mean threshold"])
    with torch.inference_mode():
        logits = model(**batch).logits
    names = set(model.state_dict())
    Accelerator().save_model(model, tmp_path / "accelerate")
    model.save_pretrained(tmp_path / "transformers")
    save_model(model, tmp_path / "one.safetensors")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    saved = [load_file(tmp_path / folder / "model.safetensors") for folder in ("accelerate", "transformers")]
    saved += [load_file(tmp_path / "one.safetensors"), torch.load(tmp_path / "state.pt", weights_only=True)]
    for state in saved:
        assert set(state) == names
        fresh = copy.deepcopy(model)
        fresh.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in state.items()})
        fresh.load_state_dict(state)
        with torch.inference_mode():
            assert torch.equal(fresh(**batch).logits, logits)


def test_trainer_evaluates_a_pruned_model_like_a_stock_one(tmp_path):
    model = build([0, 0.5, 0], "ideal gradients student")
    stock = BertForSequenceClassification(model.config)
    lengths = [5, 9, 17, 3, 8, 12]
    data = [{"input_ids": torch.arange(5, 5 + n), "labels": n % 2} for n in lengths]
    with torch.no_grad():
        logits = torch.cat([model(row["input_ids"][None]).logits for row in data])
    answers = logits.argmax(dim=1)
    labels = torch.tensor([row["labels"] for row in data])

    def compute_metrics(prediction):
        classes = np.argmax(prediction.predictions, axis=-1)
        return {"accuracy": (classes == prediction.label_ids).mean()}

    def collate(rows):
        ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True)
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    arguments = TrainingArguments(tmp_path, per_device_eval_batch_size=4, report_to=[], use_cpu=True)
    common = {"args": arguments, "data_collator": collate, "compute_metrics": compute_metrics}
    pruned, plain = (Trainer(each, eval_dataset=data, **common) for each in (model, stock))
    predicted = pruned.predict(data)
    assert predicted.predictions.shape == plain.predict(data).predictions.shape == (6, 2)
    assert predicted.predictions == pytest.approx(logits.numpy(), abs=1e-5)
    measured = pruned.evaluate()
    assert measured["eval_accuracy"] == pytest.approx((answers == labels).float().mean().item())
    wanted = torch.nn.functional.cross_entropy(logits, labels).item()
    assert measured["eval_loss"] == pytest.approx(wanted, abs=1e-5)
    assert {*measured} == {*plain.evaluate()}
