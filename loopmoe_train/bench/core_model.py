"""The peer: megatron-core's own GPTModel with its local specs, on the same device port."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, List, Tuple

import torch
import torch.nn.functional as F
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.utils import get_model_config
from torch import Tensor, nn

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.moe.experts import GroupedExperts


def build_core(
    run: RunConfig, vocab_size: int, ours: nn.Module, given: bool
) -> Tuple[List[Any], Any]:
    """Core's model and optimizer for a vanilla MoE run with multi-head attention.

    Args:
        ours: our bare model, whose weights it gets: the same routing, so that the ranks wait
            for one another alike.
        given: core too gets fused attention and a grouped matrix product (torch's), in place of
            DotProductAttention and SequentialMLP.
    """
    config = replace(transformer_config(run), perform_initialization=True, moe_layer_freq=1)
    spec = get_gpt_layer_local_spec(
        num_experts=run.model.moe.num_experts, moe_grouped_gemm=False, normalization="RMSNorm"
    )
    if given:
        spec.submodules.self_attention.submodules.core_attention = TorchAttention
        spec.submodules.mlp.submodules.experts = ModuleSpec(module=PlainGroupedExperts)
    model: nn.Module = GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=vocab_size,
        max_sequence_length=run.sequence_length,
        position_embedding_type="rope",
    )
    _copy_weights(ours, model)
    if config.bf16:
        model = Float16Module(config, model)
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=run.parallel.distributed_optimizer
    )
    chunks = [DistributedDataParallel(config, ddp, model)]
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=run.optim.lr,
            weight_decay=run.optim.weight_decay,
            adam_beta1=run.optim.beta1,
            adam_beta2=run.optim.beta2,
            clip_grad=run.optim.clip_grad,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=run.parallel.distributed_optimizer,
        ),
        chunks,
    )
    get_model_config(chunks[0]).finalize_model_grads_func = finalize_model_grads
    return chunks, optimizer


def _copy_weights(ours: nn.Module, core: nn.Module) -> None:
    """Give core's model our weights, by name (KeyError where there is no counterpart)."""
    mine = dict(ours.named_parameters())
    with torch.no_grad():
        for name, weight in core.named_parameters():
            layer, expert, of_expert = name.partition(".local_experts.")
            if not expert:
                weight.copy_(mine[name])
            elif ".linear_fc1." in of_expert:
                # [d, 2, f] -> [2f, d], gate then up.
                index = int(of_expert.partition(".")[0])
                weight.copy_(mine[f"{layer}.w1_EDGF"][index].flatten(1).T)
            else:
                index = int(of_expert.partition(".")[0])
                weight.copy_(mine[f"{layer}.w2_EFD"][index].T)


class TorchAttention(DotProductAttention):
    """torch's fused attention in the slot of core's."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """[s, b, heads, d] each, causal -> [s, b, heads * d]."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        return (
            F.scaled_dot_product_attention(q, k, v, is_causal=True).permute(2, 0, 1, 3).flatten(2)
        )


class PlainGroupedExperts(GroupedExperts):
    """Grouped matrix products with the activation in plain operations."""

    def forward(
        self, hidden_TD: Tensor, tokens_per_expert: Tensor, probs_T: Tensor
    ) -> Tuple[Tensor, None]:
        """As :meth:`GroupedExperts.forward`."""
        ends_E = tokens_per_expert.cumsum(0).to(torch.int32)
        gate, up = F.grouped_mm(hidden_TD, self.w1_EDGF.flatten(2), offs=ends_E).chunk(2, -1)
        # The router's weights are fp32, also in bf16.
        hidden = (F.silu(gate) * up * probs_T.unsqueeze(-1)).to(hidden_TD.dtype)
        return F.grouped_mm(hidden, self.w2_EFD, offs=ends_E), None
