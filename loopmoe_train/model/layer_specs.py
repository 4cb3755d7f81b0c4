"""Which module sits in which slot: core's layer specs for every visit."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from loopmoe_train.config.schema import AttentionConfig, ModelConfig
from loopmoe_train.model.attention import ScaledDotProductAttention
from loopmoe_train.model.context_attention import ContextMLASelfAttention
from loopmoe_train.model.iter_adaln import IterAdaLN, IterationMLP
from loopmoe_train.model.norm import RMSNorm
from loopmoe_train.model.visit_layer import LaterVisit, VisitLayer
from loopmoe_train.moe.layer import LoopMoELayer
from loopmoe_train.spec.visits import Visit, conditioned

# Unique layer -> its first visit, for the later ones; of all chunks of a stage.
Owners = Dict[int, List[VisitLayer]]


def block_spec(
    model: ModelConfig, chunk: Sequence[Visit], owners: Owners
) -> TransformerBlockSubmodules:
    """Specs of a chunk's visits in execution order, and the final norm (core takes it on the
    last chunk).

    Args:
        owners: filled and read here: the first visits of the layers of this stage.
    """
    shared_mlp: List[IterationMLP] = []
    specs = [
        visit_spec(model, visit, owners.setdefault(visit.layer, []), shared_mlp) for visit in chunk
    ]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=RMSNorm)


def visit_spec(
    model: ModelConfig, visit: Visit, owners: List[VisitLayer], shared_mlp: List[IterationMLP]
) -> ModuleSpec:
    """Spec of one visit.

    Args:
        owners: of the visits of this layer; the first enters itself.
        shared_mlp: of the looped layers, where they share one MLP_iter.
    """
    if not visit.owns_weights:
        return ModuleSpec(module=LaterVisit, params=dict(visit=visit, owners=owners))
    attention_norm: object = RMSNorm
    ffn_norm: object = RMSNorm
    if visit.looped and conditioned(model):
        # Both branches of a layer use one MLP_iter; the attention branch owns it.
        mine = shared_mlp if model.loop.share_iteration_mlp else []
        attention_norm = _adaptive(model, visit, mine, gated=True)
        ffn_norm = _adaptive(model, visit, mine, gated=False)
    return ModuleSpec(
        module=VisitLayer,
        params=dict(visit=visit, owners=owners, sandwich=model.sandwich_norm),
        submodules=TransformerLayerSubmodules(
            input_layernorm=attention_norm,
            self_attention=_attention(model.attention),
            pre_mlp_layernorm=ffn_norm,
            mlp=_dense_ffn() if visit.dense else LoopMoELayer,
        ),
    )


def _adaptive(
    model: ModelConfig, visit: Visit, iteration_mlp: List[IterationMLP], gated: bool
) -> ModuleSpec:
    return ModuleSpec(
        module=_SharingIterAdaLN,
        params=dict(
            loop=model.loop, iteration=visit.iteration, gated=gated, mlp_holder=iteration_mlp
        ),
    )


class _SharingIterAdaLN(IterAdaLN):
    """Takes MLP_iter from ``mlp_holder`` if an earlier norm left one there, else leaves its own."""

    def __init__(self, *args: object, mlp_holder: List[IterationMLP], **kwargs: object) -> None:
        owner: Optional[IterationMLP] = mlp_holder[0] if mlp_holder else None
        super().__init__(*args, iteration_mlp=owner, **kwargs)  # type: ignore[arg-type]
        if owner is None:
            mlp_holder.append(self.iteration_mlp)


def _attention(attention: AttentionConfig) -> ModuleSpec:
    params = {"attn_mask_type": AttnMaskType.causal}
    if attention.kind == "gqa":
        head_norm = RMSNorm if attention.qk_norm else None
        return ModuleSpec(
            module=SelfAttention,
            params=params,
            submodules=SelfAttentionSubmodules(
                linear_qkv=ColumnParallelLinear,
                core_attention=ScaledDotProductAttention,
                linear_proj=RowParallelLinear,
                q_layernorm=head_norm,
                k_layernorm=head_norm,
            ),
        )
    return ModuleSpec(
        module=ContextMLASelfAttention,
        params=params,
        submodules=MLASelfAttentionSubmodules(
            linear_q_proj=ColumnParallelLinear,
            linear_q_down_proj=ColumnParallelLinear,
            linear_q_up_proj=ColumnParallelLinear,
            linear_kv_down_proj=ColumnParallelLinear,
            linear_kv_up_proj=ColumnParallelLinear,
            core_attention=ScaledDotProductAttention,
            linear_proj=RowParallelLinear,
            q_layernorm=RMSNorm,
            kv_layernorm=RMSNorm,
        ),
    )


def _dense_ffn() -> ModuleSpec:
    return ModuleSpec(
        module=MLP,
        submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear),
    )
