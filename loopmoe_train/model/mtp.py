"""Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2), with core's module.

Head i joins the state of the head before (of the last layer, after its final norm, for the first)
with the embedding i tokens ahead, runs one more layer, and predicts the token after that with the
model's own embedding and output matrix. Its loss, ``mtp_loss_coeff / mtp_layers`` times the sum
over the tokens that have one so far ahead, divided by the tokens of the main loss, is added in
training only.
"""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.model.layer_specs import visit_spec
from loopmoe_train.model.norm import RMSNorm
from loopmoe_train.spec.visits import Visit, visits


class MTPModel(GPTModel):
    """Core's model with heads that rest outside training: they would only cost there, and core's
    cannot do without labels."""

    def _postprocess(self, hidden_states: Tensor, labels: Any, **more: Any) -> Tensor:
        if self.training or not self.post_process:
            loss: Tensor = super()._postprocess(hidden_states, labels=labels, **more)
            return loss
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else None
        gather = more.get("runtime_gather_output")
        logits, _ = self.output_layer(hidden_states, weight=weight, runtime_gather_output=gather)
        if labels is None:
            return logits.transpose(0, 1).contiguous()
        return self.compute_language_model_loss(labels, logits)


def mtp_spec(model: ModelConfig) -> ModuleSpec:
    """Core's block of ``mtp_layers`` heads over layers like the last ones, with experts."""
    last = visits(model)[-1]
    layers = [
        Visit(last.index + 1 + head, last.layer + 1 + head, iteration=1, looped=False, dense=False)
        for head in range(model.mtp_layers)
    ]
    heads = [
        ModuleSpec(
            module=MultiTokenPredictionLayer,
            submodules=MultiTokenPredictionLayerSubmodules(
                enorm=RMSNorm,
                hnorm=RMSNorm,
                eh_proj=ColumnParallelLinear,
                transformer_layer=visit_spec(model, layer, [], []),
                layer_norm=RMSNorm,
            ),
        )
        for layer in layers
    ]
    return ModuleSpec(
        module=MultiTokenPredictionBlock,
        submodules=MultiTokenPredictionBlockSubmodules(layer_specs=heads),
    )
