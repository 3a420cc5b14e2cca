"""The LSTM classifier and its teacher."""

import numpy as np
import pytest
import torch

from pruning import lstm_runs, metrics, pruners
from pruning.batches import Examples, Ragged
from pruning.lstm import HIDDEN, PrunedLstmClassifier, pick_packing
from pruning.lstm_runs import bag_of_words
from pruning.pruners import Tokens

DEPLOYABLE = [m for m in pruners.LSTM_METHODS if not pruners.is_teacher(m)]


def build(method=None, rate=0.0, pair=False, outputs=4):
    torch.manual_seed(0)
    model = PrunedLstmClassifier(50, outputs, pair=pair, method=method, rate=rate).eval()
    model.set_frequencies(torch.rand(50) * 100)
    return model


@pytest.fixture
def batch():
    lengths = torch.tensor([20, 11, 3, 1])
    mask = torch.arange(20) < lengths[:, None]
    return {"ids": torch.randint(1, 50, (4, 20)) * mask, "mask": mask}


def pairs(batch):
    return {**batch, "second_ids": batch["ids"].flip(0), "second_mask": batch["mask"].flip(0)}


@torch.no_grad()
@pytest.mark.parametrize("method", [None, *DEPLOYABLE])
def test_packed_and_padded_agree(batch, method):
    model = build(method, 0.5)
    padded = model(**batch).logits
    model.packed = True
    torch.testing.assert_close(model(**batch).logits, padded, atol=1e-5, rtol=0)
    assert pick_packing(model, batch["ids"], batch["mask"]) in (True, False)


@torch.no_grad()
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("method", [None, *DEPLOYABLE])
def test_alone_in_any_batch_and_with_any_padding_the_same(batch, method, pair):
    model = build(method, 0.4, pair)
    given = pairs(batch) if pair else batch
    together = model(**given)
    for row in range(4):
        for extra in (0, 15):
            alone = {}
            for name, tensor in given.items():
                mask = given["second_mask" if "second" in name else "mask"]
                cut = tensor[row : row + 1, : int(mask[row].sum())]
                alone[name] = torch.nn.functional.pad(cut, (0, extra))
            output = model(**alone)
            torch.testing.assert_close(output.logits[0], together.logits[row], atol=1e-5, rtol=0)
            for ours, theirs in zip(output.kept or (), together.kept or (), strict=True):
                assert set(ours[0].tolist()) - {-1} == set(theirs[row].tolist()) - {-1}


@torch.no_grad()
def test_pruned_output_is_that_of_the_kept_words(batch):
    model = build("frequency", 0.6)
    output = model(**batch)
    dense = build()
    dense.load_state_dict(model.state_dict(), strict=False)
    for row, length in enumerate((20, 11, 3, 1)):
        places = output.kept[0][row]
        places = places[places >= 0]
        assert len(places) == length - int(length * 0.6)
        ids = batch["ids"][row : row + 1, places]
        alone = dense(ids, torch.ones_like(ids).bool())
        torch.testing.assert_close(alone.logits[0], output.logits[row], atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_sentence_of_a_pair_is_pruned_by_itself(batch):
    output = build("tail", 0.5, pair=True)(**pairs(batch))
    assert [(k >= 0).sum(1).tolist() for k in output.kept] == [[10, 6, 2, 1], [1, 2, 6, 10]]


@torch.no_grad()
def test_the_teacher_is_the_mean_input_gate(batch):
    model = build()
    gates = model.input_gates(batch["ids"], batch["mask"])
    lstm, states = model.lstm, model.embedding(batch["ids"])
    hidden = cell = torch.zeros(4, HIDDEN)
    for t in range(20):
        gate = states[:, t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0
        gate = gate + hidden @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = gate.chunk(4, dim=1)
        torch.testing.assert_close(gates[:, t], i.sigmoid().mean(1) * batch["mask"][:, t])
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()


@pytest.mark.parametrize("method", pruners.LSTM_METHODS)
def test_every_method_trains(batch, method):
    model = build(method, 0.5).train()
    scores = {"first": torch.rand(4, 20)} if pruners.teacher_of(method) else None
    output = model(**batch, labels=torch.tensor([0, 1, 2, 3]), teacher_scores=scores)
    assert (output.pruning_loss is not None) == method.endswith(" student")
    loss = output.loss + (0 if output.pruning_loss is None else output.pruning_loss)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_bag_of_words_counts_and_leaves_the_examples_alone():
    ids = Ragged.of([7, 3, 7, 2, 3, 1], [4, 2])
    examples = Examples(ids, torch.zeros(2), second_ids=Ragged.of([5, 4], [1, 1]))
    bag = bag_of_words(examples, 10).toarray()
    assert ids.flat.tolist() == [7, 3, 7, 2, 3, 1] and ids.offsets.tolist() == [0, 4, 6]
    assert bag.shape == (2, 20)
    assert bag[0, 7] == pytest.approx(np.log(3)) and bag[0, 2] == pytest.approx(np.log(2))
    assert (bag > 0).sum() == 7 and bag[1, 14] > 0


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        build("head", 1.5)
    with pytest.raises(ValueError, match="unknown pruning method"):
        build("first", 0.5)


@pytest.fixture
def words():
    """Five sentences of 11, 5, 3, 1 and 1 words."""
    mask = torch.arange(11) < torch.tensor([11, 5, 3, 1, 1])[:, None]
    return torch.randint(1, 50, (5, 11), generator=torch.Generator().manual_seed(3)) * mask, mask


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("method", ["lstm student", "head"])
def test_the_fast_evaluation_is_the_plain_one(words, method, rate):
    model = PrunedLstmClassifier(50, 2, pair=False, method=method, rate=rate).eval()
    with torch.no_grad():
        model.fast = False
        plain = model(*words)
        model.fast = True
        fast = model(*words)
        padded = model(*(torch.nn.functional.pad(t, (0, 9)) for t in words))
        alone = [model(words[0][i : i + 1, :n], words[1][i : i + 1, :n]) for i, n in enumerate((11, 5, 3))]
    assert torch.equal(fast.kept[0], plain.kept[0]) and torch.equal(padded.kept[0], plain.kept[0])
    torch.testing.assert_close(fast.logits, plain.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.logits, plain.logits, atol=1e-5, rtol=0)
    for i, one in enumerate(alone):
        assert one.kept[0][0].tolist() == [place for place in plain.kept[0][i].tolist() if place >= 0]
        torch.testing.assert_close(one.logits[0], plain.logits[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_the_fast_evaluation_under_autocast(words, rate):
    model = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=rate).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = model(*words)
    with torch.no_grad():
        exact = model(*words)
    assert torch.equal(fast.kept[0], exact.kept[0])
    torch.testing.assert_close(fast.logits.float(), exact.logits, atol=2e-2, rtol=0)


def test_the_table_gives_the_students_scores(words):
    student = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=0.5).eval()
    ids, mask = words
    with torch.no_grad():
        states = student.embedding(ids)
        plain = student.pruner(Tokens.start(states, mask, ids))
        from_table = student.pruner.score_words(ids, student.pruner.fold(student.embedding.weight))
    torch.testing.assert_close(from_table[mask], plain[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [2, 6, 1, 3], [3]])
def test_a_few_steps_are_those_of_the_fused_lstm(lengths):
    model = PrunedLstmClassifier(50, 2, pair=False).eval()
    states = torch.randn(len(lengths), max(lengths), 300)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        few = model._encode_step_by_step(states, lengths)
        torch.testing.assert_close(few, model.encode(states, mask), atol=1e-6, rtol=0)


@pytest.mark.parametrize("change", ["step", "in place", "data, then eval", "loaded"])
def test_what_evaluation_derives_from_weights_is_never_stale(words, change):
    model = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=0.9).eval()
    with torch.inference_mode():
        before = model(*words).logits
    if change == "step":
        model.train()
        model(*words, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
        torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()
        model.eval()
    for weight in (model.pruner.inner.weight, model.lstm.weight_hh_l0):
        if change == "in place":
            with torch.no_grad():
                weight.neg_()
        elif change == "data, then eval":
            weight.data.neg_()
            model.eval()
    if change == "loaded":
        model.load_state_dict({key: -tensor for key, tensor in model.state_dict().items()})
    with torch.inference_mode():
        fast = model(*words)
        model.fast = False
        plain = model(*words)
    assert not torch.allclose(fast.logits, before)
    assert torch.equal(fast.kept[0], plain.kept[0])
    torch.testing.assert_close(fast.logits, plain.logits, atol=1e-5, rtol=0)


def test_contributions_add_up_to_the_change_of_the_answer(monkeypatch):
    """Completeness: with enough steps, they sum to the margin less the margin of no words at all."""
    monkeypatch.setattr(lstm_runs, "IG_STEPS", 100)
    torch.manual_seed(0)
    model = PrunedLstmClassifier(50, 3, pair=True).eval()
    mask = torch.arange(6) < torch.tensor([6, 3])[:, None]
    ids = torch.randint(2, 50, (2, 6)) * mask
    batch = {"ids": ids, "mask": mask, "second_ids": ids.flip(0), "second_mask": mask.flip(0)}
    first, second = lstm_runs.contributions(model, batch)
    assert (first[~mask] == 0).all() and (second[~mask.flip(0)] == 0).all()
    with torch.no_grad():
        logits = model(**batch).logits
        answers = logits.argmax(dim=1)
        there = metrics.answer_margin(logits, answers)
        model.embedding.weight.zero_()
        nothing = metrics.answer_margin(model(**batch).logits, answers)
    torch.testing.assert_close(first.sum(1) + second.sum(1), there - nothing, atol=1e-3, rtol=1e-2)
