"""What teachers of BERT look at: attention and gradients. (Those of the LSTM: test_lstm.)"""

import pytest
import torch
from conftest import build, tiny_config

from ModifiedModelingBert import PrunedBertConfig, PrunedBertForSequenceClassification
from pruning import teachers
from pruning.losses import answer_margin
from pruning.teachers import BERT_TEACHERS


@pytest.fixture
def scored(batch):
    """Every teacher's scores, and the model and batch they are of."""
    model = build()
    return teachers.scores_of(model, batch, BERT_TEACHERS, range(3), BERT_TEACHERS), model, batch


def test_every_teacher_scores_every_token_and_no_padding(scored):
    scores, _, batch = scored
    assert set(scores) == set(BERT_TEACHERS)
    padding = batch["attention_mask"] == 0
    for teacher, by_layer in scores.items():
        assert sorted(by_layer) == [0, 1, 2]
        for layer, part in by_layer.items():
            assert part.shape == (4, 17) and torch.isfinite(part).all(), (teacher, layer)
            assert (part[padding] == 0).all() and (part[~padding] > 0).all(), (teacher, layer)


def test_each_place_has_the_scores_of_the_teacher_wanted_there(scored):
    scores, model, batch = scored
    wanted = {1: "[CLS] row", 2: "gradient x input"}
    found = teachers.score(model, batch, wanted, BERT_TEACHERS)
    assert list(found) == [1, 2]
    for layer, teacher in wanted.items():
        assert torch.equal(found[layer], scores[teacher][layer])


def test_attention_teachers_are_what_they_say(scored):
    scores, model, batch = scored
    row = {name: tensor[1:2, :9] for name, tensor in batch.items()}  # 9 real tokens, alone
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**row, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    a = [attention[0].mean(0) for attention in output.attentions]
    half = [(m + torch.eye(9)) / 2 for m in a]
    expected = {
        "column mean": a[1].mean(0),
        "[CLS] row": a[1][0],
        "ideal emission rate": (a[2] @ a[1])[0],
        "attention rollout": (half[2] @ half[1])[0],
    }
    attention = model.bert.encoder.layer[1].attention
    values = attention.self.value(output.hidden_states[1][0]).view(9, 2, 16)
    parts = attention.output.dense.weight.view(32, 2, 16)
    sizes = torch.stack([(values[:, h] @ parts[:, h].T).norm(dim=1) for h in range(2)])
    expected["attention x values"] = (output.attentions[1][0].mean(1) * sizes).mean(0)
    for teacher, wanted in expected.items():
        torch.testing.assert_close(scores[teacher][1][1, :9], wanted, atol=1e-5, rtol=1e-4)


@pytest.fixture
def sharp():
    """A BERT of three classes whose attention is far from uniform."""
    torch.manual_seed(0)
    config = PrunedBertConfig(**tiny_config(initializer_range=0.3), num_labels=3)
    return PrunedBertForSequenceClassification(config).eval()


@pytest.fixture
def two():
    """Two examples of 12 and 7 tokens."""
    mask = (torch.arange(12) < torch.tensor([12, 7])[:, None]).long()
    return {"input_ids": torch.randint(5, 64, (2, 12)) * mask, "attention_mask": mask}


def test_emission_rate_is_the_row_of_cls_in_the_product(sharp, two):
    sharp.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = sharp(**two, output_attentions=True).attentions
    sharp.set_attn_implementation("sdpa")
    wanted = {0: "ideal emission rate", 2: "ideal emission rate"}
    scores = teachers.score(sharp, two, wanted, BERT_TEACHERS)
    a0, a1, a2 = (a.mean(1) for a in attentions)
    torch.testing.assert_close(scores[0], (a2 @ a1 @ a0)[:, 0])
    torch.testing.assert_close(scores[2], a2[:, 0])
    assert sharp.config._attn_implementation == "sdpa"
    assert (scores[0][1, 7:] == 0).all()


def test_gradients_are_those_of_the_loss_for_the_models_own_answer(sharp, two):
    sizes = teachers.score(sharp, two, {1: "ideal gradients"}, BERT_TEACHERS)[1]
    output = sharp(**two, output_hidden_states=True)
    answer = output.logits.argmax(1)
    loss = torch.nn.functional.cross_entropy(output.logits, answer, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, output.hidden_states[1])
    wanted = gradient.norm(dim=2)
    for row in range(2):  # the same up to a factor of the example
        real = two["attention_mask"][row].bool()
        ratio = sizes[row][real] / wanted[row][real]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


def test_the_gradient_does_not_vanish_where_the_model_is_sure():
    logits = torch.tensor([[80.0, -80.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(answer_margin(logits).sum(), logits)
    assert gradient.abs().min() == 1
    score = torch.tensor([[2.5]])
    assert answer_margin(score) == 2.5  # a regression asks for the score itself


def test_gradient_teachers_follow_finite_differences(scored):
    scores, model, batch = scored
    row = {name: tensor[1:2, :9] for name, tensor in batch.items()}
    model = model.double()
    with torch.no_grad():
        states = model(**row, output_hidden_states=True).hidden_states[1]
        mask = torch.ones(1, 9, dtype=torch.bool)
        answer = teachers.logits_from(model, 1, states, mask).argmax(dim=1)

        def margin(moved):
            return answer_margin(teachers.logits_from(model, 1, moved, mask), answer)

        change = []
        for token in range(9):
            moved = states.clone()
            moved[0, token] *= 1 + 1e-5
            change.append(((margin(moved) - margin(states)) / 1e-5).abs().item())
    torch.testing.assert_close(
        scores["gradient x input"][1][1, :9].double(), torch.tensor(change).double(), atol=1e-4, rtol=1e-2
    )


def test_integrated_gradients_add_up_to_the_change_of_the_answer(batch, monkeypatch):
    """Completeness: with enough steps, contributions sum to the margin less the margin at 0."""
    model = build()
    with torch.no_grad():  # without biases, a norm jumps at 0
        for name, parameter in model.named_parameters():
            if name.endswith("dense.bias"):
                parameter.normal_()
    row = {name: tensor[1:2, :9] for name, tensor in batch.items()}
    mask = torch.ones(1, 9, dtype=torch.bool)
    with torch.no_grad():
        states = model(**row, output_hidden_states=True).hidden_states[2]
        answer = model(**row).logits.argmax(dim=1)

    def logits_of(points):
        return teachers.logits_from(model, 2, points[0], mask)

    [signed] = teachers.integrated_gradients([states], logits_of, answer, steps=200)
    with torch.no_grad():
        ends = [answer_margin(logits_of([state]), answer) for state in (states, 0 * states)]
    assert signed.sum().item() == pytest.approx((ends[0] - ends[1]).item(), rel=0.02, abs=0.02)
    monkeypatch.setattr(teachers, "BERT_STEPS", 200)
    found = teachers.score(model, row, {2: "integrated gradients"}, BERT_TEACHERS)[2]
    torch.testing.assert_close(found, signed.abs(), atol=1e-5, rtol=1e-4)
