"""From a run's configuration to megatron-core's ``TransformerConfig``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

from loopmoe_train.config.schema import ModelConfig, RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.device.fixes import apply_config_rules
from loopmoe_train.spec.placement import placement_of
from loopmoe_train.spec.visits import visits

# The others are ours (moe/balance.py). Core's global_aux_loss is a running mean that depends on
# the layout and on recomputation.
_AUX_LOSS = {"micro_batch": "aux_loss", "sequence": "seq_aux_loss"}


@dataclass
class CoreConfig(TransformerConfig):
    """Core's configuration, and our model's for what core has no setting for."""

    loopmoe: ModelConfig = field(default_factory=ModelConfig)
    context_kind: str = "gather"  # gather | ulysses; model/attention.py


@dataclass
class CoreMLAConfig(MLATransformerConfig):
    """As :class:`CoreConfig`, with multi-head latent attention."""

    loopmoe: ModelConfig = field(default_factory=ModelConfig)
    context_kind: str = "gather"


def transformer_config(run: RunConfig) -> TransformerConfig:
    """Core's configuration of this run's model and layout.

    ``num_layers`` counts visits: core uses it for the size of its auxiliary-loss tracker
    and for placing layers on stages.
    """
    model = run.model
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[run.precision]
    settings: Dict[str, Any] = dict(
        loopmoe=model,
        num_layers=len(visits(model)),
        mtp_num_layers=model.mtp_layers or None,
        mtp_loss_scaling_factor=model.mtp_loss_coeff,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.dense_ffn_hidden_size,
        num_attention_heads=model.attention.num_heads,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        layernorm_epsilon=model.norm_epsilon,
        normalization="RMSNorm",
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=F.silu,
        init_method_std=model.init_std,
        # Every parameter is drawn by model/init.py, so that all layouts start alike.
        perform_initialization=False,
        bf16=run.precision == "bf16",
        params_dtype=dtype,
        pipeline_dtype=dtype,
        autocast_dtype=dtype,
        deterministic_mode=run.cluster.deterministic,
        # A loss per token is what makes layouts agree.
        calculate_per_token_loss=True,
        # Kernels of TransformerEngine or Apex, or torch.compile at import: never needed here.
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
    settings |= _parallel(run) | _moe(model) | _recompute(run)
    if model.attention.kind == "mla":
        config: TransformerConfig = CoreMLAConfig(**settings, **_mla(model))
    else:
        config = CoreConfig(
            **settings,
            num_query_groups=model.attention.num_query_groups,
            kv_channels=model.attention.head_dim,
            qk_layernorm=model.attention.qk_norm,
        )
    apply_config_rules(config, accel.device_type)
    return config


def _parallel(run: RunConfig) -> Dict[str, Any]:
    parallel = run.parallel
    settings: Dict[str, Any] = dict(
        tensor_model_parallel_size=parallel.tensor_parallel_size,
        # With experts core needs it, and what lies between the matrices is not computed twice.
        sequence_parallel=parallel.tensor_parallel_size > 1,
        context_parallel_size=parallel.context_parallel_size,
        context_kind=parallel.context_parallel,
        pipeline_model_parallel_size=parallel.pipeline_parallel_size,
        expert_model_parallel_size=parallel.expert_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
    )
    if parallel.pipeline_parallel_size > 1:
        placement = placement_of(run)
        settings |= dict(
            pipeline_model_parallel_layout=_layout(placement.layout(), run.model.mtp_layers),
            virtual_pipeline_model_parallel_size=(
                placement.chunks if placement.chunks > 1 else None
            ),
            overlap_p2p_comm=placement.chunks > 1 and parallel.overlap_p2p_comm,
            batch_p2p_comm=not (placement.chunks > 1 and parallel.overlap_p2p_comm),
            # A stage keeps what its layers need for backward, not what it has sent on.
            deallocate_pipeline_outputs=True,
        )
    return settings


def _layout(visits_of_slot: List[int], mtp_layers: int) -> List[List[str]]:
    """Core's words for a placement; from it core knows the number of every layer."""
    slots = [["decoder"] * count for count in visits_of_slot]
    slots[0].insert(0, "embedding")
    slots[-1] += ["mtp"] * mtp_layers + ["loss"]
    return slots


def _moe(model: ModelConfig) -> Dict[str, Any]:
    moe = model.moe
    shared = moe.num_shared_experts * moe.expert_hidden_size
    return dict(
        num_moe_experts=moe.num_experts,
        moe_layer_freq=[0 if visit.dense else 1 for visit in visits(model)],
        moe_ffn_hidden_size=moe.expert_hidden_size,
        moe_router_topk=moe.top_k,
        moe_router_score_function=moe.score_function,
        # Softmax over the chosen logits alone equals softmax over all, renormalised. With one
        # choice that is a constant 1 without a gradient, so core takes the other order there.
        moe_router_pre_softmax=moe.score_function == "softmax"
        and not (moe.norm_topk_prob and moe.top_k > 1),
        moe_router_topk_scaling_factor=moe.topk_scaling_factor,
        moe_router_num_groups=moe.num_groups if moe.group_routing == "limited" else None,
        moe_router_group_topk=moe.topk_groups if moe.group_routing == "limited" else None,
        moe_expert_capacity_factor=moe.capacity_factor,
        moe_token_drop_policy=moe.drop_policy,
        moe_pad_expert_input_to_capacity=moe.pad_to_capacity,
        moe_router_dtype="fp32",
        moe_router_enable_expert_bias=moe.expert_bias_update_rate > 0,
        moe_router_bias_update_rate=moe.expert_bias_update_rate,
        moe_router_load_balancing_type=_AUX_LOSS.get(moe.aux_loss, "none"),
        moe_aux_loss_coeff=moe.aux_loss_coeff if moe.aux_loss in _AUX_LOSS else 0.0,
        moe_z_loss_coeff=moe.z_loss_coeff or None,
        moe_shared_expert_intermediate_size=shared or None,
        # Core makes one of its own, which moe/layer.py replaces.
        moe_token_dispatcher_type="allgather" if moe.dispatcher == "allgather" else "alltoall",
        moe_shared_expert_overlap=moe.overlap_shared_experts,
    )


def _mla(model: ModelConfig) -> Dict[str, Any]:
    a = model.attention
    return dict(
        multi_latent_attention=True,
        q_lora_rank=a.q_lora_rank,
        kv_lora_rank=a.kv_lora_rank,
        qk_head_dim=a.qk_head_dim,
        qk_pos_emb_head_dim=a.qk_rope_head_dim,
        v_head_dim=a.v_head_dim,
        rope_type="rope",
        rotary_base=a.rotary_base,
    )


def _recompute(run: RunConfig) -> Dict[str, Any]:
    memory = run.memory
    if memory.recompute == "full":
        return dict(
            recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1
        )
    if memory.recompute == "selective":
        return dict(
            recompute_granularity="selective", recompute_modules=list(memory.recompute_modules)
        )
    return {}
