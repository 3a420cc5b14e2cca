"""Transformers' BERT with pruners between its layers: the patched modeling_bert that the scripts share.

It is imported from here; no file of the installed library is overwritten.

    model = PrunedBertForSequenceClassification.from_pretrained(
        "bert", num_labels=2, pruning_schedule=[0, 0, 0.5, 0, 0.5, 0], pruning_methods="head")

Modifications of transformers 5.23, class by class:

    PrunedBertConfig                     four more fields, saved in config.json
    PrunedBertEncoder.forward            the loop over the layers: before a layer with a pruner, tokens are
                                         scored, chosen and gathered, and [CLS] is handed what the
                                         others leave; the layers between two pruners run
                                         on the fast paths of `pruning.layers`, which replace the forward
                                         of BertLayer and all that is in it
    PrunedBertModel.forward              hands the encoder the token ids and the 2-D mask, which the stock
                                         model keeps from it
    PrunedBertForSequenceClassification  takes teacher_scores; asks for [CLS] alone, so that the last layer
                                         may save its work on all other tokens; also returns what was kept,
                                         and the students' loss for the training loop to add

Parameter names are the stock ones; beside them are `bert.encoder.pruners.<layer>.*` and
`bert.encoder.residues.<layer>.weight`.
The stock layers run, unchanged, where hidden states, attention weights, another attention than SDPA or
gradient checkpoints are asked for, and everywhere once `model.bert.encoder.fast_paths` is None.

Shapes: B examples, T positions, H units, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput
from transformers.models.bert.modeling_bert import BertEncoder
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from pruning import pruners, selection, timing
from pruning.layers import FastPaths, Layout, run_layers
from pruning.metrics import task_loss
from pruning.pruners import (
    ColumnMeanPruner,
    FrequencyPruner,
    Residue,
    StudentPruner,
    ThresholdPruner,
    Tokens,
)


@strict
class PrunedBertConfig(BertConfig):
    """A BertConfig that also says what is removed where.

    Attributes:
        pruning_schedule: one rate in [0, 1] for each layer; None prunes nothing.
        pruning_methods: the pruner of every layer, or a list with one for each.
        pruning_seed: seeds the `random` pruner.
        pruning_residue: whether what is removed leaves its mean, through a matrix, with [CLS].
    """

    pruning_schedule: list[float | int] | None = None
    pruning_methods: str | list[str] = "head"
    pruning_seed: int = 0
    pruning_residue: bool = True


def check_schedule(schedule: Sequence[float], layers: int) -> None:
    """Raises ValueError unless `schedule` holds one rate in [0, 1] for each of `layers` layers."""
    if len(schedule) != layers:
        raise ValueError(
            f"pruning_schedule has {len(schedule)} rates, but this BERT has {layers} layers: "
            "it needs one rate for each layer (0: no pruner there)"
        )
    for layer, rate in enumerate(schedule):
        try:
            selection.check_rate(rate)
        except ValueError as error:
            raise ValueError(f"pruning_schedule, layer {layer}: {error}") from None


def methods_by_layer(methods: str | Sequence[str], layers: int) -> list[str]:
    """One method for each layer. Raises ValueError for a wrong length or an unknown name."""
    by_layer = [methods] * layers if isinstance(methods, str) else list(methods)
    if len(by_layer) != layers:
        raise ValueError(
            f"a list of pruning methods needs one for each of the {layers} layers, not {len(by_layer)}"
        )
    known = pruners.BERT_METHODS
    for method in by_layer:
        if method not in known:
            raise ValueError(f"unknown pruning method {method!r}; BERT knows: {', '.join(known)}")
    return by_layer


@dataclass
class PrunedBertOutput(ModelOutput):
    """What PrunedBertModel returns.

    Attributes:
        last_hidden_state: (B, T', H) of the tokens that the last layer saw.
        pooler_output: (B, H), or None without a pooling layer.
        kept: for each of the L layers (B, Tₗ) int64, the places in the sentence (padding not counted)
            of the tokens that it processed; -1 where an example has fewer.
        pruning_loss: scalar, the mean ranking loss of the students; None unless they are training.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    kept: tuple[Tensor, ...] | None = None
    pruning_loss: Tensor | None = None


@dataclass
class PrunedSequenceClassifierOutput(ModelOutput):
    """The stock SequenceClassifierOutput, and `kept` and `pruning_loss` of PrunedBertOutput."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    kept: tuple[Tensor, ...] | None = None
    pruning_loss: Tensor | None = None


class PrunedBertEncoder(BertEncoder):
    """BertEncoder with pruners.

    Attributes:
        schedule: one rate for each layer, as the model is evaluated.
        training_rates: the rates of the next training step, where they differ from the schedule.
        fast_paths: see `layers`; None runs the stock layers.
    """

    def __init__(self, config: PrunedBertConfig):
        super().__init__(config)
        layers = config.num_hidden_layers
        schedule = config.pruning_schedule or [0] * layers
        check_schedule(schedule, layers)
        methods = methods_by_layer(config.pruning_methods, layers)
        self.schedule = [float(rate) for rate in schedule]
        self.pruners = nn.ModuleDict(
            {
                str(layer): pruners.build_pruner(
                    methods[layer],
                    layer=layer,
                    hidden_size=config.hidden_size,
                    vocab_size=config.vocab_size,
                    seed=config.pruning_seed,
                )
                for layer in range(layers)
                if schedule[layer] > 0
            }
        )
        places = list(self.pruners) if config.pruning_residue else []
        self.residues = nn.ModuleDict({place: Residue(config.hidden_size) for place in places})
        self.training_rates: list[float] | None = None
        self.fast_paths: FastPaths | None = FastPaths()

    def rates(self) -> list[float]:
        """One rate for each layer, as the next pass will prune."""
        return self.training_rates if self.training and self.training_rates else self.schedule

    def stretches(self) -> list[tuple[int, int]]:
        """Layers with no pruning between them, from and up to."""
        starts = {0, *(layer for layer, rate in enumerate(self.rates()) if rate > 0)}
        return list(pairwise([*sorted(starts), len(self.layer)]))

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        teacher_scores: dict[int, Tensor] | None = None,
        only_first: bool = False,
        **kwargs,
    ) -> PrunedBertOutput:
        """
        Args:
            hidden_states: (B, T, H) embeddings.
            attention_mask: (B, T), 1 at real tokens, or None where all are real.
            input_ids: (B, T), for the pruners that look at them.
            teacher_scores: layer → (B, T), the scores of that layer's teacher over the whole
                sentences; see `teachers.bert_scores`.
            only_first: the output at the first real token ([CLS]) is enough: last_hidden_state may be
                (B, 1, H).

        Raises:
            ValueError: with pruners, for an attention mask that is not 2-D.
        """
        if attention_mask is None:
            attention_mask = torch.ones(hidden_states.shape[:2], device=hidden_states.device)
        if attention_mask.dim() != 2:
            if self.pruners:
                raise ValueError("a pruned BERT needs an attention mask of shape (batch, positions)")
            layer_mask = self._mask_for_attention(hidden_states, attention_mask)
            return PrunedBertOutput(super().forward(hidden_states, layer_mask, **kwargs).last_hidden_state)
        tokens = Tokens.start(hidden_states, attention_mask.bool(), input_ids)
        paths = None if self._needs_stock_layers(kwargs) else self.fast_paths
        kept: list[Tensor] = []
        losses: list[Tensor] = []
        rates = self.rates()
        for start, end in self.stretches():
            if rates[start] > 0:
                tokens, loss = self._prune(start, rates[start], tokens, teacher_scores or {})
                losses += [] if loss is None else [loss]
            if self.pruners:
                kept += [tokens.places.masked_fill(~tokens.mask, -1)] * (end - start)
            stretch = self.layer[start:end]
            if paths is None:
                layer_mask = self._mask_for_attention(tokens.states, tokens.mask)
                for layer in stretch:
                    tokens.states = layer(tokens.states, layer_mask, **kwargs)
            else:
                last = only_first and end == len(self.layer)
                tokens.states = run_layers(stretch, tokens.states, tokens.mask, tokens.lengths, paths, last)
        return PrunedBertOutput(
            last_hidden_state=tokens.states,
            kept=tuple(kept) or None,
            pruning_loss=torch.stack(losses).mean() if losses else None,
        )

    def _needs_stock_layers(self, kwargs: dict[str, Any]) -> bool:
        """Whether something was asked for that only the stock layers give: states or attention weights of
        every layer, another attention than SDPA, memory saved by checkpoints or chunks."""
        recorded = (
            kwargs.get(name, getattr(self.config, name, False))
            for name in ("output_hidden_states", "output_attentions")
        )
        return (
            any(recorded)
            or self.config._attn_implementation != "sdpa"
            or self.config.chunk_size_feed_forward > 0
            or (self.training and any(layer.gradient_checkpointing for layer in self.layer))
        )

    def _prune(
        self, layer: int, rate: float, tokens: Tokens, teacher_scores: dict[int, Tensor]
    ) -> tuple[Tokens, Tensor | None]:
        """Scores, chooses, gathers. Returns what is left and the student's loss, if one is training."""
        pruner = self.pruners[str(layer)]
        if isinstance(pruner, ColumnMeanPruner):
            scores, loss = pruner(tokens, self.layer[layer].attention.self), None
        else:
            scores, loss = pruners.score_tokens(pruner, tokens, teacher_scores.get(layer), keep_first=True)
        residue = self.residues[str(layer)] if self.residues else None
        if isinstance(pruner, ThresholdPruner):
            counts = pruner.counts(scores, tokens, rate)
            return tokens.keep_counts(scores, counts, keep_first=True, residue=residue), loss
        return tokens.keep(scores, rate, keep_first=True, residue=residue), loss

    def _mask_for_attention(self, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask in the form that the attention implementation wants: None, boolean or float."""
        return create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=mask)


class _PrunedBert:
    """What the two model classes change about loading: configuration and fresh pruners."""

    config: PrunedBertConfig
    config_class = PrunedBertConfig
    _keys_to_ignore_on_load_unexpected = (r"position_ids",)  # checkpoints of transformers before 4.31

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        if isinstance(module, FrequencyPruner):
            init.zeros_(module.counts)
        if isinstance(module, Residue):
            init.zeros_(module.weight)


class PrunedBertModel(_PrunedBert, BertModel):
    """BertModel whose encoder removes tokens on the way. Raises ValueError for a decoder."""

    def __init__(self, config: PrunedBertConfig, add_pooling_layer: bool = True):
        if config.is_decoder or config.add_cross_attention:
            raise ValueError("tokens are pruned in encoders only, and this BERT is a decoder")
        super().__init__(config, add_pooling_layer)
        self.encoder = PrunedBertEncoder(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        teacher_scores: dict[int, Tensor] | None = None,
        **kwargs,
    ) -> PrunedBertOutput:
        """As BertModel.forward; `teacher_scores` as in PrunedBertEncoder.forward."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embedded = self.embeddings(
            input_ids=input_ids,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
        )
        output = self.encoder(
            embedded,
            attention_mask=attention_mask,
            input_ids=input_ids,
            teacher_scores=teacher_scores,
            **kwargs,
        )
        if self.pooler is not None:
            output["pooler_output"] = self.pooler(output.last_hidden_state)
        return output


class PrunedBertForSequenceClassification(_PrunedBert, BertForSequenceClassification):
    """BertForSequenceClassification on a PrunedBertModel.

    `from_pretrained` takes any BERT folder of Hugging Face's form; `save_pretrained` keeps schedule,
    methods, trained pruners and residues.
    """

    def __init__(self, config: PrunedBertConfig):
        super().__init__(config)
        self.bert = PrunedBertModel(config)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        teacher_scores: dict[int, Tensor] | None = None,
        **kwargs,
    ) -> PrunedSequenceClassifierOutput:
        """As BertForSequenceClassification.forward; `teacher_scores` as in PrunedBertEncoder.forward.

        One label is a regression (mean squared error), more are classes (cross-entropy).
        """
        output = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            teacher_scores=teacher_scores,
            only_first=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(output.pooler_output))
        return PrunedSequenceClassifierOutput(
            loss=None if labels is None else task_loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            kept=output.kept,
            pruning_loss=output.pruning_loss,
        )

    @property
    def schedule(self) -> list[float]:
        """One rate for each layer, as the model is evaluated."""
        return self.bert.encoder.schedule

    def set_schedule(self, schedule: Sequence[float]) -> None:
        """Prunes by another schedule from here on, also once saved and loaded again.

        Raises ValueError for one that does not fit, or that prunes before a layer that has no pruner.
        """
        encoder = self.bert.encoder
        check_schedule(schedule, len(encoder.layer))
        for layer, rate in enumerate(schedule):
            if rate > 0 and str(layer) not in encoder.pruners:
                raise ValueError(f"this model has no pruner before layer {layer}, so its rate must be 0")
        encoder.schedule = [float(rate) for rate in schedule]
        self.config.pruning_schedule = list(schedule)

    def set_training_rates(self, rates: Sequence[float] | None) -> None:
        """The rates of training steps from here on; None: the schedule's, as always at evaluation."""
        self.bert.encoder.training_rates = None if rates is None else list(rates)

    @torch.no_grad()
    def calibrate(self, batch: dict[str, Tensor]) -> None:
        """Sets the thresholds of `column mean threshold` pruners to what removes as many tokens of this
        batch, of many examples drawn at random, as the schedule would.

        Leaves the model in evaluation mode."""
        self.eval()
        thresholds = [m for m in self.modules() if isinstance(m, ThresholdPruner)]
        for pruner in thresholds:
            pruner.train()
        if thresholds:
            self(**batch)
        self.eval()

    def flops(self, attention_mask: Tensor) -> int:
        """FLOPs of one batch as it is executed at evaluation, by the formulas of `timing`; padding
        counts where it is computed with. attention_mask: (B, T)."""
        encoder, config = self.bert.encoder, self.config
        paths = encoder.fast_paths or FastPaths(no_padding=False, cls_only=False)
        mask = attention_mask.bool()
        lengths = mask.sum(dim=1).tolist()
        total = len(lengths) * timing.bert_head_flops(config)
        for start, end in encoder.stretches():
            if encoder.schedule[start] > 0:
                pruner = encoder.pruners[str(start)]
                if isinstance(pruner, StudentPruner):
                    total += mask.numel() * pruner.flops()
                elif isinstance(pruner, ColumnMeanPruner):
                    total += sum(timing.attention_weights_flops(config, n) for n in lengths)
                if encoder.residues:
                    residue = encoder.residues[str(start)]
                    total += len(lengths) * residue.flops(mask.shape[1])
                lengths = [selection.count_kept(n, encoder.schedule[start]) for n in lengths]
                kept = torch.tensor(lengths, device=mask.device)[:, None]
                mask = torch.arange(max(lengths), device=mask.device) < kept
            runs = Layout.of(mask, lengths, paths.no_padding).runs
            for layer in range(start, end):
                asking = 1 if paths.cls_only and layer == config.num_hidden_layers - 1 else None
                total += sum(rows * timing.bert_layer_flops(config, n, asking) for rows, n in runs)
        return total

    def set_frequencies(self, counts: Tensor) -> None:
        """Tells the `frequency` pruners how often each word (V,) stands in the training text.

        A vocabulary may be shorter than the embedding, which some BERTs round up.
        """
        for pruner in self.bert.encoder.pruners.values():
            if isinstance(pruner, FrequencyPruner):
                pruner.counts[: len(counts)] = counts
