"""Transformers' BERT with pruners between its layers: the patched modeling_bert that the scripts share. It is
imported from here; no file of the installed library is overwritten.

    model = PrunedBertForSequenceClassification.from_pretrained(
        "bert", removed_tokens="readable", pruning_schedule=[0, 0, 0.5, 0, 0.5, 0], pruning_methods="head")

Modifications of transformers 5.23, class by class (a pass goes from the last one up):

    PrunedBertConfig                     a model_type and four fields more, saved in config.json
    PrunedBertEncoder.forward            the loop over the layers, on flat tokens (`pruning.tokens`): before
                                         a layer with a pruner, tokens are scored, chosen, gathered; layers
                                         between two pruners run on the fast paths of `pruning.layers`
    PrunedBertModel.forward              hands the encoder the token ids and the 2-D mask
    PrunedBertModel.set_input_embeddings also tells the pruners how many words there are
    PrunedBertForSequenceClassification  takes teacher_scores; asks for [CLS] alone, so that the last layer
                                         may save its work on all other tokens; also returns what was kept,
                                         and the students' loss for the training loop to add

Parameter names are the stock ones; beside them are `bert.encoder.pruners.<layer>.*` and
`bert.encoder.fusions.<layer>.weight`. The stock layers run, unchanged, where only they give what was asked
for (see `layers.needs_stock_layers`), and everywhere, hooks of layers included, once
`model.bert.encoder.fast_paths` is None. Behind padding on the left they take the first column for [CLS].

Shapes: B examples, T positions, H units, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.models.bert.modeling_bert import BertEncoder
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from pruning.layers import FastPaths, layout_options, needs_stock_layers, run_layers, run_stock_layers
from pruning.losses import task_loss
from pruning.methods import BERT_METHODS, methods_by_layer, prune
from pruning.pruners import PrunerConfig
from pruning.selection import TokenFusion, check_schedule
from pruning.tokens import FlatTokens, Kept, Trail, mask_on_host


@strict
class PrunedBertConfig(BertConfig):
    """A BertConfig that also says what is removed where.

    Attributes:
        pruning_schedule: one rate in [0, 1] for each layer; None prunes nothing.
        pruning_methods: the pruner of every layer, or a list with one for each.
        pruning_seed: seeds the `random` pruner.
        removed_tokens: "fused": their mean, through a matrix, joins [CLS]; "readable": they are no longer
            updated, but every later layer reads their last states; "gone": nothing sees them again.
    """

    pruning_schedule: list[float | int] | None = None
    pruning_methods: str | list[str] = "head"
    pruning_seed: int = 0
    removed_tokens: Literal["fused", "readable", "gone"] = "fused"

    model_type = "pruned_bert"
    keys_to_ignore_at_inference: ClassVar = ["pruning_loss"]  # Trainer collects everything else

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        fields, unused = super().get_config_dict(*args, **kwargs)
        if fields.get("model_type") == "bert":  # a stock BERT is as welcome as a pruned one
            fields["model_type"] = cls.model_type
        return fields, unused


@dataclass
class PrunedBertOutput(BaseModelOutputWithPooling):
    """What PrunedBertModel returns; last_hidden_state (B, T', H) is of the tokens that the last layer saw.
    hidden_states, if asked for, are what each layer gives, before removed tokens that are read are put back.

    Attributes:
        kept: for each of the L layers (B, Tₗ) int64, the positions in the sentence (padding not counted)
            of the tokens that it processed; -1 where an example has fewer. None without a pruner. It has no
            annotation, so that it is no field: pipelines cut every field into examples.
        pruning_loss: scalar, the mean ranking loss of the students; None unless they are training.
    """

    kept = None  # type: Sequence[Tensor] | None
    pruning_loss: Tensor | None = None


@dataclass
class PrunedSequenceClassifierOutput(SequenceClassifierOutput):
    """The stock output, and `kept` and `pruning_loss` of PrunedBertOutput."""

    kept = None  # type: Sequence[Tensor] | None
    pruning_loss: Tensor | None = None


class PrunedBertEncoder(BertEncoder):
    """BertEncoder with pruners.

    Attributes:
        schedule: one rate for each layer, as the model is evaluated; fewer leave the last layers out.
        training_rates: the same for the next training step, where it differs.
        fast_paths: see `layers`; None runs the stock layers.
    """

    def __init__(self, config: PrunedBertConfig):
        super().__init__(config)
        layers = config.num_hidden_layers
        schedule = config.pruning_schedule or [0] * layers
        check_schedule(schedule, layers)
        self.schedule = [float(rate) for rate in schedule]
        self.pruners = nn.ModuleDict()
        for layer, method in enumerate(methods_by_layer(config.pruning_methods, layers)):
            if schedule[layer] > 0:
                known = PrunerConfig(layer, config.hidden_size, config.vocab_size, config.pruning_seed)
                self.pruners[str(layer)] = BERT_METHODS[method](known)
        fused = self.pruners if config.removed_tokens == "fused" else ()
        self.fusions = nn.ModuleDict({layer: TokenFusion(config.hidden_size) for layer in fused})
        self.training_rates: list[float] | None = None
        self.fast_paths: FastPaths | None = FastPaths()

    def rates(self) -> list[float]:
        """One rate for each layer that runs, as the next pass will prune."""
        return self.training_rates if self.training and self.training_rates else self.schedule

    def segments(self) -> list[tuple[int, int]]:
        """Layers with no pruning between them, from and up to."""
        starts = {0, *(layer for layer, rate in enumerate(self.rates()) if rate > 0)}
        return list(pairwise([*sorted(starts), len(self.rates())]))

    @torch.compiler.disable  # lengths that the host knows decide what is computed
    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        teacher_scores: dict[int, Tensor] | None = None,
        only_first: bool = False,
        lengths: Sequence[int] | None = None,
        **kwargs,
    ) -> PrunedBertOutput:
        """
        Args:
            hidden_states: (B, T, H) embeddings.
            attention_mask: (B, T), 1 at real tokens (ValueError for another shape); None: all are real.
            input_ids: (B, T), for the pruners that look at them.
            teacher_scores: layer → (B, T) of the whole sentences; see `teachers.score`.
            only_first: the output at [CLS] is enough: last_hidden_state may be (B, 1, H).
            lengths: the mask's sums (`batches.to_device`) for padding on the right; else the device is asked.
        """
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("a pruned BERT needs an attention mask of shape (batch, positions)")
        paths = None if needs_stock_layers(self, kwargs) else self.fast_paths
        options = layout_options(self, hidden_states, paths)
        real = mask_on_host(hidden_states, attention_mask, lengths)
        tokens = FlatTokens.start(hidden_states, real, input_ids, self.rates(), options)
        trails, losses = list[Trail](), list[Tensor]()
        for start, end in self.segments():
            if (rate := self.rates()[start]) > 0:
                pruner: Any = self.pruners[str(start)]
                fusion: Any = self.fusions[str(start)] if self.fusions else None
                teacher = (teacher_scores or {}).get(start)
                asked = {"layer": self.layer[start], "teacher_scores": teacher, "fusion": fusion}
                tokens, loss = prune(pruner, tokens, rate, **asked)
                if loss is not None:
                    losses.append(loss)
            trails += [tokens.trail] * (end - start)
            segment, alone = self.layer[start:end], only_first and end == len(self.rates())
            if paths is None:
                tokens = run_stock_layers(segment, tokens, self.config, **kwargs)
            else:
                tokens = run_layers(segment, tokens, paths, alone)
        firsts = only_first and paths is not None and paths.cls_only  # states of first tokens, (R, H)
        output = PrunedBertOutput(
            last_hidden_state=tokens.firsts_in_batch() if firsts else tokens.in_batch(),
            pruning_loss=torch.stack(losses).mean() if losses else None,
        )
        output.kept = Kept(trails) if self.pruners else None
        return output


class _PrunedBert:
    """What the two model classes change about loading: configuration and fresh pruners."""

    config: PrunedBertConfig
    config_class = PrunedBertConfig
    _keys_to_ignore_on_load_unexpected = (r"position_ids",)  # checkpoints of transformers before 4.31
    _keep_in_fp32_modules_strict: ClassVar = ["pruners"]
    _keep_in_fp32_modules: ClassVar = ["bert.encoder.pruners", "encoder.pruners"]  # quantizers spare these
    _no_split_modules: ClassVar = ["PrunedBertModel"]  # it lies on one device

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]
        for name in getattr(module, "zero_at_start", ()):
            init.zeros_(getattr(module, name))


class PrunedBertModel(_PrunedBert, BertModel):  # type: ignore[misc]
    """BertModel whose encoder removes tokens on the way. Raises ValueError for a decoder."""

    encoder: PrunedBertEncoder

    def __init__(self, config: PrunedBertConfig, add_pooling_layer: bool = True):
        if config.is_decoder or config.add_cross_attention:
            raise ValueError("tokens are pruned in encoders only, and this BERT is a decoder")
        super().__init__(config, add_pooling_layer)
        self.encoder = PrunedBertEncoder(config)
        self.post_init()

    def set_input_embeddings(self, value: nn.Module) -> None:
        super().set_input_embeddings(value)
        for pruner in self.encoder.pruners.children():
            pruner.resize(value.num_embeddings)  # type: ignore[operator]

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs,
    ) -> PrunedBertOutput:
        """As BertModel.forward; `teacher_scores`, `only_first`, `lengths`: see PrunedBertEncoder.forward."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        embedded = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        output = self.encoder(embedded, attention_mask, input_ids, **kwargs)
        if self.pooler is not None:
            output["pooler_output"] = self.pooler(output.last_hidden_state)
        return output


class PrunedBertForSequenceClassification(_PrunedBert, BertForSequenceClassification):  # type: ignore[misc]
    """BertForSequenceClassification on a PrunedBertModel.

    `from_pretrained` takes any BERT folder of Hugging Face's form; `save_pretrained` keeps schedule,
    methods, trained pruners and token fusions.
    """

    bert: PrunedBertModel

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
        **kwargs,
    ) -> PrunedSequenceClassifierOutput:
        """As its parent's; `teacher_scores` and `lengths` as in PrunedBertEncoder.forward."""
        inputs = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        output = self.bert(*inputs, only_first=True, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(output.pooler_output))
        answers = PrunedSequenceClassifierOutput(
            loss=None if labels is None else task_loss(logits, labels, self.config.problem_type),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            pruning_loss=output.pruning_loss,
        )
        answers.kept = output.kept
        return answers

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
