"""A model's figures in one dictionary: what `loopmoe plan --model-only` shows and writes."""

from __future__ import annotations

from typing import Any, Dict

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.spec.arithmetic import forward_flops_per_token, parameters
from loopmoe_train.spec.capacity import UniqueExperts, attention_ffn_ratio, unique_experts
from loopmoe_train.spec.visits import visits


def summarize(
    model: ModelConfig, vocab_size: int, sequence_length: int, unique: UniqueExperts
) -> Dict[str, Any]:
    """Sizes, parameters, FLOPs per token by part (forward and backward), rho, distinct experts.

    Args:
        unique: how many distinct experts the iterations of a layer reach.
    """
    forward = forward_flops_per_token(model, vocab_size, sequence_length)
    backward = {part: 2 * flops for part, flops in forward.items()}
    order = visits(model)
    return {
        "name": model.name,
        "vocab_size": vocab_size,
        "unique_layers": sum(visit.owns_weights for visit in order),
        "depth": len(order),
        "num_experts": model.moe.num_experts,
        "parameters": parameters(model, vocab_size),
        "flops_per_token": {
            "forward": {"total": sum(forward.values()), **forward},
            "backward": {"total": sum(backward.values()), **backward},
        },
        "attention_ffn_ratio": attention_ffn_ratio(model, unique),
        "unique_experts": unique_experts(model, unique),
    }
