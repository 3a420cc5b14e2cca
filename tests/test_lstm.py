"""The LSTM classifier, its teachers, and the bag of words beside it."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_model
from sklearn.linear_model import LogisticRegression
from torch.utils._python_dispatch import TorchDispatchMode

from pruning import lstm, lstm_fast, methods, recurrence, student, teachers, timing
from pruning.batches import LstmExamples, Ragged
from pruning.caches import TaskData
from pruning.losses import answer_margin
from pruning.lstm_model import HIDDEN, PrunedLstmClassifier
from pruning.recurrence import Recurrence
from pruning.selection import Tokens
from pruning.student import StudentPruner
from pruning.tasks import GLUE, Rows
from pruning.teachers import LSTM_TEACHERS
from studies import workloads

DEPLOYABLE = [m for m in methods.LSTM_METHODS if not methods.is_teacher(m)]


def build(method=None, rate=0.0, pair=False, outputs=4, removed_tokens="fused"):
    torch.manual_seed(0)
    pruning = {"method": method, "rate": rate, "removed_tokens": removed_tokens}
    model = PrunedLstmClassifier(50, outputs, pair=pair, **pruning).eval()
    if model.fusion is not None:  # a fresh one leaves nothing behind
        torch.nn.init.normal_(model.fusion.weight, std=0.1)
    methods.set_frequencies(model, torch.rand(50) * 100)
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
    padded = model(**batch)
    model.packed = True
    packed = model(**batch)
    torch.testing.assert_close(packed.logits, padded.logits, atol=1e-5, rtol=0)
    for ours, theirs in zip(packed.kept or (), padded.kept or (), strict=True):
        assert torch.equal(ours, theirs)


EMPTY = {"one row": [5, 0, 3], "all rows": [0, 0, 0], "the longest of few": [1, 0, 0]}


@torch.no_grad()
@pytest.mark.parametrize("method", [None, *DEPLOYABLE])
@pytest.mark.parametrize("lengths", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("width", [0, 5, 9])
@pytest.mark.parametrize("pair", [False, True])
def test_a_sentence_without_a_word_is_zero_whatever_the_path(method, lengths, width, pair):
    model = build(method, 0.5, pair)
    width = max(width, *lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    given = {"ids": torch.randint(1, 50, (3, width)) * mask, "mask": mask}
    if pair:
        given |= {"second_ids": given["ids"].flip(0), "second_mask": mask.flip(0)}
    nothing = torch.zeros(3, HIDDEN)
    wanted = model.classify([nothing, nothing] if pair else [nothing])
    empty = [not (lengths[row] or (pair and lengths[-1 - row])) for row in range(3)]
    outputs = []
    for model.packed in (False, True):
        for model.fast in (False, True):
            output = model(**given)
            outputs.append(output.logits)
            assert torch.isfinite(output.logits).all()
            torch.testing.assert_close(output.logits[empty], wanted[empty], atol=1e-5, rtol=0)
            torch.testing.assert_close(output.logits, outputs[0], atol=1e-5, rtol=0)
            for row in range(3 if output.kept else 0):
                assert (output.kept[0][row] >= 0).sum() == (lengths[row] + 1) // 2


@pytest.mark.parametrize("lengths", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("method", [None, "lstm student"])
def test_a_sentence_without_a_word_can_be_trained_on(method, lengths):
    model = build(method, 0.5).train()
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    scores = {"first": torch.rand(3, 5) * mask}
    ids = torch.randint(1, 50, (3, 5)) * mask
    output = model(ids, mask, labels=torch.tensor([0, 1, 2]), teacher_scores=scores)
    loss = output.loss + (0 if output.pruning_loss is None else output.pruning_loss)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


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
    model = build("frequency", 0.6, removed_tokens="gone")
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
@pytest.mark.parametrize("fast", [True, False])
def test_fused_words_join_the_sentence_as_their_mean_through_a_matrix(batch, fast):
    model, gone = (build("tail", 0.6, removed_tokens=kind) for kind in ("fused", "gone"))
    gone.load_state_dict(model.state_dict(), strict=False)
    assert {*model.state_dict()} - {*gone.state_dict()} == {"fusion.weight"}
    vectors = []
    for each in (model, gone):
        each.fast, each.classify = fast, lambda vectors: vectors[0]
        vectors.append(each(**batch).logits)
    for row, length in enumerate((20, 11, 3, 1)):
        removed = model.embedding(batch["ids"][row, length - int(length * 0.6) : length])
        left = model.fusion.weight @ removed.mean(dim=0) if len(removed) else torch.zeros(HIDDEN)
        torch.testing.assert_close(vectors[0][row] - vectors[1][row], left, atol=1e-5, rtol=0)
    fresh = PrunedLstmClassifier(50, 4, pair=False, method="tail", rate=0.6, removed_tokens="fused")
    assert not fresh.fusion.weight.any()


@torch.no_grad()
def test_each_sentence_of_a_pair_is_pruned_by_itself(batch):
    output = build("tail", 0.5, pair=True)(**pairs(batch))
    assert [(k >= 0).sum(1).tolist() for k in output.kept] == [[10, 6, 2, 1], [1, 2, 6, 10]]


@torch.no_grad()
def test_the_teacher_is_the_mean_input_gate(batch):
    model = build()
    gates = teachers.score(model, batch, {"first": "lstm"}, LSTM_TEACHERS)["first"]
    lstm, states = model.lstm, model.embedding(batch["ids"])
    hidden = cell = torch.zeros(4, HIDDEN)
    for t in range(20):
        gate = states[:, t] @ lstm.weight_ih_l0.T + lstm.bias_ih_l0
        gate = gate + hidden @ lstm.weight_hh_l0.T + lstm.bias_hh_l0
        i, f, g, o = gate.chunk(4, dim=1)
        torch.testing.assert_close(gates[:, t], i.sigmoid().mean(1) * batch["mask"][:, t])
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()


@pytest.mark.parametrize("method", methods.LSTM_METHODS)
def test_every_method_trains(batch, method):
    model = build(method, 0.5).train()
    scores = {"first": torch.rand(4, 20)} if methods.teacher_of(method) else None
    output = model(**batch, labels=torch.tensor([0, 1, 2, 3]), teacher_scores=scores)
    assert (output.pruning_loss is not None) == method.endswith(" student")
    loss = output.loss + (0 if output.pruning_loss is None else output.pruning_loss)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_bag_of_words_counts_and_leaves_the_examples_alone(monkeypatch):
    seen = []

    class Seeing(LogisticRegression):
        def fit(self, features, labels):
            seen.append(features.toarray())
            return super().fit(features, labels)

    monkeypatch.setattr(lstm, "LogisticRegression", Seeing)
    ids = Ragged.of([7, 3, 7, 2, 3, 1], [4, 2])
    train = LstmExamples(ids, torch.tensor([0.0, 1.0]), second_ids=Ragged.of([5, 4], [1, 1]))
    splits = {"train": train, "dev": train.take(torch.tensor([1, 0]))}
    data = TaskData(GLUE["mrpc"], splits, ["w"] * 10, torch.ones(10), {}, False, "")
    assert lstm.bag_of_words(data, train) == {"dev": [1, 0]}
    assert ids.flat.tolist() == [7, 3, 7, 2, 3, 1] and ids.offsets.tolist() == [0, 4, 6]
    [bag] = seen
    assert bag.shape == (2, 6)  # the words 1, 2, 3, 7 and, of the second sentence, 4 and 5
    assert bag == pytest.approx(np.log1p([[0, 1, 1, 2, 0, 1], [1, 0, 1, 0, 1, 0]]))


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        build("head", 1.5)
    with pytest.raises(ValueError, match="unknown pruning method"):
        build("first", 0.5)
    with pytest.raises(ValueError, match="'fused' or 'gone', not 'readable'"):
        build("head", 0.5, removed_tokens="readable")


@pytest.fixture
def words():
    """Five sentences of 11, 5, 3, 1 and 1 words."""
    mask = torch.arange(11) < torch.tensor([11, 5, 3, 1, 1])[:, None]
    return torch.randint(1, 50, (5, 11), generator=torch.Generator().manual_seed(3)) * mask, mask


@torch.no_grad()
@pytest.mark.parametrize("steps", [0, 1_000])  # up to how many they are single
@pytest.mark.parametrize("tables", ["read", "not worth it", "too large"])
@pytest.mark.parametrize("rate", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("method", [None, *DEPLOYABLE])
def test_the_fast_evaluation_is_the_plain_one(words, method, rate, tables, steps, monkeypatch):
    monkeypatch.setattr(lstm_fast, "FEW_STEPS", steps)
    model, (ids, mask) = build(method, rate, pair=True), words
    model.tabled = tables != "not worth it"
    if tables == "too large":
        monkeypatch.setattr(recurrence, "MOST_TABLE_BYTES", 50 * 6 * HIDDEN * 4 - 1)
    assert model.reads_tables == (tables == "read")
    given = pairs({"ids": ids, "mask": mask})
    fast = model(**given)
    padded = model(**{name: torch.nn.functional.pad(tensor, (0, 9)) for name, tensor in given.items()})
    alone = [model(**{name: tensor[row : row + 1] for name, tensor in given.items()}) for row in range(5)]
    model.fast = False
    plain = model(**given)
    for output in (fast, padded):
        torch.testing.assert_close(output.logits, plain.logits, atol=1e-5, rtol=0)
        assert all(map(torch.equal, output.kept or (), plain.kept or ()))
    for row, one in enumerate(alone):
        torch.testing.assert_close(one.logits[0], plain.logits[row], atol=1e-5, rtol=0)
        for own, places in zip(one.kept or (), plain.kept or (), strict=True):
            assert own[0].tolist() == [place for place in places[row].tolist() if place >= 0]


@torch.no_grad()
@pytest.mark.parametrize("method", ["lstm student", "frequency"])
def test_of_words_with_equal_scores_the_earlier_stay(words, method):
    model, (ids, mask) = build(method, 0.6), words
    methods.set_frequencies(model, torch.ones(50).index_fill(0, torch.tensor([0]), 0))  # padding is rare
    if method == "lstm student":
        model.pruner.outer.weight.zero_()
    for model.fast in (True, False):
        [together] = model(ids, mask).kept
        assert together.tolist() == [[0, 1, 2, 3, 4], [0, 1, -1, -1, -1], [0, 1, -1, -1, -1]] + 2 * [
            [0] + 4 * [-1]
        ]
        [alike] = model(ids[1:3, :5], mask[1:3, :5]).kept  # of 5 and of 3 words
        assert alike.tolist() == [[0, 1], [0, 1]]
        [alone] = model(ids[:1], mask[:1]).kept
        assert alone.tolist() == [[0, 1, 2, 3, 4]]


def test_tables_are_made_once_and_before_the_clock_starts(monkeypatch):
    made, seconds = [], iter(range(1_000))
    monkeypatch.setattr(workloads, "LSTM_WORDS", 1_100)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.append("clock") or next(seconds))
    make = Recurrence._make_tables
    monkeypatch.setattr(Recurrence, "_make_tables", lambda *given: made.append("tables") or make(*given))
    variants = workloads.lstms([0.6, 0.9], 4, 40, torch.device("cpu"), torch.float32)
    fair, dense = ["dense, padded"], "dense, word table"
    timing.measure(variants, fair=fair, dense=dense, device=torch.device("cpu"), passes=2)
    assert made[0] == "tables" and made.count("tables") == 1 and "clock" in made


@pytest.mark.parametrize("method", [None, "lstm student"])
def test_of_weights_made_in_inference_mode_no_table_is_made(words, method, monkeypatch):
    """Nothing tells when these change: a table would be made again for every batch."""
    with torch.inference_mode():
        model = build(method, 0.6)
        model.fast = False
        plain = model(*words).logits
        model.fast = True
        monkeypatch.setattr(Recurrence, "_make_tables", None)
        monkeypatch.setattr(StudentPruner, "fold", None)
        torch.testing.assert_close(model(*words).logits, plain, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_one_sentence_takes_no_more_operations_than_these():
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **kwargs or {})

    ids = torch.randint(1, 50, (1, 37))
    for removed_tokens, most in {"gone": 72, "fused": 90}.items():
        model = build("lstm student", 0.9, removed_tokens=removed_tokens)
        model(ids, ids > 0)
        with Count() as count:
            assert model(ids, ids > 0).kept[0].shape == (1, 4)
        assert count.calls <= most


def test_a_kept_model_makes_tables_for_as_many_words_as_they_have(tmp_path):
    model = build("lstm student", 0.5)
    save_model(model, tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(f"w{i}" for i in range(49)) + "\n[UNK]")
    loaded, _, encode = lstm.load(tmp_path, {"lstm": model.config})
    for words, is_worth_it in {49: False, 50: True, 1: False}.items():
        encode(Rows(["w7 " * words], None, [0.0], []))
        assert loaded.tabled == is_worth_it


@pytest.mark.parametrize("method", ["lstm student", "frequency"])
def test_pruners_keep_their_weights_to_the_bit_where_a_model_is_timed_in_bf16(words, method):
    model = build(method, 0.6)
    timed = timing.with_weights(model, torch.device("cpu"), torch.bfloat16)
    assert timed.lstm.weight_hh_l0.dtype == torch.bfloat16 and model.lstm.weight_hh_l0.dtype == torch.float32
    own = model.pruner.state_dict()
    assert own and all(torch.equal(tensor, own[name]) for name, tensor in timed.pruner.state_dict().items())


@pytest.mark.parametrize("method", [None, "lstm student"])
def test_the_fast_evaluation_with_weights_of_bf16(words, method):
    model = timing.with_weights(build(method, 0.6), torch.device("cpu"), torch.bfloat16)
    with torch.no_grad():
        fast = model(*words)
        model.fast = False
        plain = model(*words)
    assert fast.logits.dtype == torch.bfloat16
    torch.testing.assert_close(fast.logits, plain.logits, atol=2e-2, rtol=0)
    assert all(map(torch.equal, fast.kept or (), plain.kept or ()))


HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    "rate", [pytest.param(0.3, marks=pytest.mark.skipif(not HAS_BF16, reason="no bf16 LSTM here")), 0.9]
)
def test_the_fast_evaluation_under_autocast(words, rate):
    model = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=rate).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = model(*words)
    with torch.no_grad():
        exact = model(*words)
    assert torch.equal(fast.kept[0], exact.kept[0])
    torch.testing.assert_close(fast.logits.float(), exact.logits, atol=2e-2, rtol=0)


@pytest.mark.parametrize("few", [0, 1_000])
def test_the_table_gives_the_students_scores(words, few, monkeypatch):
    monkeypatch.setattr(student, "FEW_WORDS", few)
    model = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=0.5).eval()
    ids, mask = words
    with torch.no_grad():
        states = model.embedding(ids)
        plain = model.pruner.score(Tokens.start(states, mask, ids))
        from_table = model.pruner.score_words(ids, model.pruner.fold(model.embedding.weight))
    torch.testing.assert_close(from_table[mask], plain[mask], atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_int8_weights_of_pytorch(words):
    model = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=0.5).eval()
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear})
    with torch.no_grad():
        assert 0 < (quantized(*words).logits - model(*words).logits).abs().max() < 0.1


def test_another_thread_may_clear_what_is_derived_from_weights():
    class Cleared(dict):  # between a question and the next
        def __contains__(self, name):
            found = super().__contains__(name)
            self.clear()
            return found

    derived, weight = recurrence.DerivedTensors(), torch.ones(2)
    derived._kept = Cleared()
    assert [derived.get("a", lambda: 5, weight) for _ in range(2)] == [5, 5]


@pytest.mark.parametrize("lengths", [[6, 4, 4, 1], [2, 6, 1, 3], [3], [0, 2, 0]])
def test_a_few_steps_are_those_of_the_fused_lstm(lengths):
    model = PrunedLstmClassifier(50, 2, pair=False).eval()
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids, words = torch.randint(1, 50, mask.shape), model.embedding.weight  # padding is not read
    with torch.no_grad():
        for tables in (None, model.lstm.tables(words)):
            few = model.lstm.maximum(words, tables, ids, lengths)
            torch.testing.assert_close(few, model.encode(model.embedding(ids), mask), atol=1e-6, rtol=0)


def step(model, words):
    """One step of training, in evaluation mode: a change of mode would tell of it."""
    model(*words, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
    weights = [p for p in model.parameters() if p.grad is not None]
    torch.optim.AdamW(weights, lr=0.1, fused=True).step()
    return model


def tabled_weights(model):
    of_student = [] if model.pruner is None else [model.pruner.inner.weight, model.fusion.weight]
    return [model.embedding.weight, model.lstm.weight_hh_l0, model.lstm.bias_ih_l0, *of_student]


def train_a_step(model, words):
    return step(model.train(), words).eval()


def negate(model, words):
    with torch.no_grad():
        for weight in tabled_weights(model):
            weight.neg_()
    return model


def negate_data(model, words):
    for weight in tabled_weights(model):
        weight.data.neg_()
    return model.eval()


def load(model, words):
    model.load_state_dict({key: -tensor for key, tensor in model.state_dict().items()})
    return model


def load_again_and_again(model, words):
    """The memory of weights that went is soon that of other weights."""
    for _ in range(10):
        state = {key: tensor * 1.1 for key, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    return model


@pytest.mark.parametrize(
    "change",
    [
        step,
        train_a_step,
        negate,
        negate_data,
        load,
        load_again_and_again,
        lambda model, words: load(copy.deepcopy(model), words),
        lambda model, words: model.bfloat16().float(),
    ],
)
@pytest.mark.parametrize("method", [None, "lstm student"])
def test_what_evaluation_derives_from_weights_is_never_stale(words, change, method):
    model = build(method, 0.6, outputs=2)
    with torch.inference_mode():
        before = model(*words).logits
    model = change(model, words)
    with torch.inference_mode():
        fast = model(*words)
        model.fast = False
        plain = model(*words)
    assert not torch.equal(fast.logits, before)
    assert all(map(torch.equal, fast.kept or (), plain.kept or ()))
    torch.testing.assert_close(fast.logits, plain.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_new_weights_at_the_address_of_old_ones_are_new(mode):
    """In inference mode, besides, nothing counts the changes of weights made in it."""
    model = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=0.9).eval()
    words = torch.ones(2, 11).long(), torch.ones(2, 11).bool()
    with mode():
        for _ in range(30):
            model.fast = True
            model(*words)
            for factor in (1, 1.1):
                state = {key: tensor * factor for key, tensor in model.state_dict().items()}
                model.load_state_dict(state, assign=True)
            fast = model(*words).logits
            model.fast = False
            torch.testing.assert_close(fast, model(*words).logits, atol=1e-5, rtol=1e-4)


def test_every_saver_keeps_every_weight_and_nothing_else(words, tmp_path):
    model = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=0.9).eval()
    with torch.inference_mode():
        logits = model(*words).logits
    names = {name for name, _ in model.named_parameters()}
    Accelerator().save_model(model, tmp_path)
    save_model(model, tmp_path / "one.safetensors")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.save(model, tmp_path / "model.pt")
    saved = [load_file(tmp_path / file) for file in ("model.safetensors", "one.safetensors")]
    saved.append(torch.load(tmp_path / "state.pt", weights_only=True))
    saved.append(torch.load(tmp_path / "model.pt", weights_only=False).state_dict())
    for state in saved:
        assert set(state) == names
        fresh = PrunedLstmClassifier(50, 2, pair=False, method="lstm student", rate=0.9).eval()
        fresh.load_state_dict(state)
        with torch.inference_mode():
            assert torch.equal(fresh(*words).logits, logits)


def test_contributions_add_up_to_the_change_of_the_answer():
    """Completeness: with enough steps, they sum to the margin less the margin of no words at all."""
    torch.manual_seed(0)
    model = PrunedLstmClassifier(50, 3, pair=True).eval()
    mask = torch.arange(6) < torch.tensor([6, 3])[:, None]
    ids = torch.randint(2, 50, (2, 6)) * mask
    batch = {"ids": ids, "mask": mask, "second_ids": ids.flip(0), "second_mask": mask.flip(0)}
    first, second = teachers.lstm_contributions(model, batch, ("first", "second"), steps=100).values()
    wanted = dict.fromkeys(("first", "second"), "integrated gradients")
    one = teachers.lstm_contributions(model, batch, ("first", "second"), teachers.LSTM_STEPS)
    for place, scores in teachers.score(model, batch, wanted, LSTM_TEACHERS).items():
        assert torch.equal(scores, one[place].abs()) and (scores >= 0).all()
    assert (first[~mask] == 0).all() and (second[~mask.flip(0)] == 0).all()
    with torch.no_grad():
        logits = model(**batch).logits
        answers = logits.argmax(dim=1)
        there = answer_margin(logits, answers)
        model.embedding.weight.zero_()
        nothing = answer_margin(model(**batch).logits, answers)
    torch.testing.assert_close(first.sum(1) + second.sum(1), there - nothing, atol=1e-3, rtol=1e-2)
