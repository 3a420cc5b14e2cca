"""How the LSTM classifier evaluates: without any work for padding, or for words that go.

It reads tables of words: what each adds to the LSTM's gates (`recurrence`), to the student's inner layer
(`StudentPruner.fold`) and to what is left behind, so no embedding is multiplied. The words that stay take
one of three ways, whichever is fastest (`takes_steps`):

    steps, tables       on a CPU, many sentences or few words: a step is one product (`Recurrence.maximum`)
    steps, embeddings   few words, where tables would be too large, or do not pay
    PyTorch's LSTM      all else, a GPU too; packed or padded (`PrunedLstmClassifier.encode`)

Shapes: B examples, T words of the longest, T' words that stay, H units of the LSTM.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

from pruning import selection
from pruning.recurrence import DerivedTensors
from pruning.selection import Tokens
from pruning.student import StudentPruner

# On a CPU PyTorch's fused LSTM is slower up to so many words, or from so many sentences for each word on (AMD
# EPYC, two threads, fused ÷ steps: 1 sentence of 4, 6, 10 words 1.1, 1.0, 0.7; 16 of 10 words 1.0; 32 of
# 10, 20 and 37 words 1.2, 1.05 and 0.9; 64 of 37 words 1.0. One thread: 1 sentence of 10 words 1.2).
FEW_STEPS, ROWS_A_WORD = 6, 1.5


def read_fast(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A sentence as (B, H) and the positions (B, T') of words that stay, with no work that the
    words that go, or padding, would need."""
    if torch.is_autocast_enabled(ids.device.type):  # to switch it off takes as long as ten operations
        with torch.autocast(ids.device.type, enabled=False):
            return read_fast(model, ids, mask)
    lengths = mask.sum(dim=1).tolist()
    longest = max(lengths, default=0)
    if longest == 0:
        return model.embedding.weight.new_zeros(len(ids), model.lstm.hidden_size), mask.long() - 1
    if longest < mask.shape[1]:
        ids, mask = ids[:, :longest], mask[:, :longest]
    kept, left = mask, None  # positions of a pruned model; of a dense one nobody asks for them
    if model.pruner is not None:
        whole = ids
        ids, kept, lengths = choose_words(model, ids, mask, lengths)
        left = None if model.fusion is None else left_behind(model, whole, mask, kept)
    if takes_steps(model, *ids.shape):
        embeddings = model.embedding.weight
        tables = model.lstm.tables(embeddings) if model.reads_tables else None
        vector = model.lstm.maximum(embeddings, tables, ids, lengths)
    else:
        is_full = min(lengths) == ids.shape[1]
        real = kept if model.pruner is None else kept >= 0
        vector = model.encode(model.embedding(ids), None if is_full else real)
    return vector if left is None else vector + left, kept


def left_behind(model: Any, ids: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
    """What the words that go leave behind, (B, H). kept: (B, T') positions, -1: fewer."""
    table, fusion = model.embedding.weight, model.fusion.weight
    by_table = model.tabled and DerivedTensors.may_hold(table, fusion)
    if by_table:
        weights = table, fusion
        table = model._derived.get("left", lambda: linear(*weights), *weights)
    if len(ids) == 1 and kept.shape[1] < ids.shape[1]:  # lists are made sooner than short masks
        stay = {*kept[0].tolist()}
        gone = torch.tensor([place for place in range(ids.shape[1]) if place not in stay], device=ids.device)
        mean = table.index_select(0, ids[0].index_select(0, gone)).mean(dim=0, keepdim=True)
    else:
        gone = selection.removed(mask, kept, kept >= 0)
        counts = gone.sum(dim=1)
        mean = embedding_bag(ids[gone], table, counts.cumsum(0) - counts, mode="mean")  # 0 where none go
    return mean if by_table else linear(mean, fusion)


def takes_steps(model: Any, rows: int, words: int) -> bool:
    """Whether evaluation takes single steps, for `rows` sentences of up to `words` words."""
    pays = words <= FEW_STEPS or (rows >= ROWS_A_WORD * words and model.reads_tables)
    return pays and model.fast and not model.packed and model.embedding.weight.device.type == "cpu"


def choose_words(
    model: Any, ids: Tensor, mask: Tensor, lengths: list[int]
) -> tuple[Tensor, Tensor, list[int]]:
    """The words that stay (B, T'), their positions (B, T'), -1: fewer, and how many are left of
    each sentence."""
    stay = [selection.count_kept(length, model.rate) for length in lengths]
    is_full = min(lengths) == mask.shape[1]
    scores = score_words(model, ids if is_full else ids.masked_fill(~mask, 0), mask)
    if len(lengths) == 1:  # a list is sorted sooner than a short tensor; of equals the earlier stays too
        ranked = sorted(range(lengths[0]), key=scores[0].tolist().__getitem__, reverse=True)
        places = torch.tensor([sorted(ranked[: stay[0]])]).to(ids.device)
        return ids.gather(1, places), places, stay
    alike = len(set(stay)) == 1  # as it is with most batches of similar lengths: then nothing fills up
    if alike and not is_full:
        scores = scores.masked_fill(~mask, -torch.inf)
    kept = None if alike else torch.tensor(stay, device=ids.device)
    places, chosen = selection.choose(scores, mask, kept, max(stay), keep_first=False)
    return ids.gather(1, places), places if alike else places.masked_fill(~chosen, -1), stay


def score_words(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) the pruner's scores. ids: 0 at padding."""
    embeddings, states = model.embedding.weight, None
    pruner: Any = model.pruner
    if isinstance(pruner, StudentPruner):
        weights = embeddings, pruner.inner.weight, pruner.inner.bias
        if model.tabled and pruner.may_fold and DerivedTensors.may_hold(*weights):
            table = model._derived.get("student", lambda: pruner.fold(embeddings), *weights)
            return pruner.score_words(ids, table)
        states = model.embedding(ids)
    return pruner.score(Tokens.start(states, mask, ids))
