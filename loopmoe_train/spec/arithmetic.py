"""Parameters and FLOPs of a model from its configuration.

Conventions: a matrix of n parameters costs 2n FLOPs per token forward; backward costs
twice the forward; causal attention counts only the pairs that are not masked. Norms,
activations and the router's top-k are left out (below 1 %).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.spec.visits import Visit, conditioned, visits


@dataclass(frozen=True)
class LayerParameters:
    """Parameters of one layer by part; ``matrix`` parts take part in matrix products."""

    attention: int
    norms: int
    ffn: int  # dense FFN, or all routed experts
    ffn_active: int  # of which one token uses
    shared_experts: int
    router: int
    conditioning: int  # IterAdaLN's token-wise matrices (with biases)
    iteration_mlp: int  # MLP_iter: once per visit, not per token

    @property
    def total(self) -> int:
        return (
            self.attention + self.norms + self.ffn + self.shared_experts + self.router
            + self.conditioning + self.iteration_mlp
        )  # fmt: skip

    @property
    def active(self) -> int:
        """Parameters that one token uses in one visit."""
        return self.total - self.ffn + self.ffn_active


def attention_parameters(model: ModelConfig) -> int:
    """Projection matrices of one attention sublayer."""
    a, d = model.attention, model.hidden_size
    if a.kind == "gqa":
        q = a.num_heads * a.head_dim
        return d * (q + 2 * a.num_query_groups * a.head_dim) + q * d
    q_out = a.num_heads * (a.qk_head_dim + a.qk_rope_head_dim)
    queries = d * q_out if a.q_lora_rank is None else a.q_lora_rank * (d + q_out)
    kv_down = d * (a.kv_lora_rank + a.qk_rope_head_dim)
    kv_up = a.kv_lora_rank * a.num_heads * (a.qk_head_dim + a.v_head_dim)
    return queries + kv_down + kv_up + a.num_heads * a.v_head_dim * d


def layer_parameters(model: ModelConfig, dense: bool, body: bool) -> LayerParameters:
    """Parameters of one layer; ``body``: it carries IterAdaLN."""
    d, moe, a = model.hidden_size, model.moe, model.attention
    adaptive = body and conditioned(model)
    norms = 0 if adaptive else 2 * d
    norms += 2 * d if model.sandwich_norm else 0
    if a.kind == "mla":
        norms += a.kv_lora_rank + (a.q_lora_rank or 0)
    elif a.qk_norm:
        norms += 2 * a.head_dim
    conditioning = iteration_mlp = 0
    if adaptive:
        c = model.loop.bottleneck or d
        gate = d if model.loop.gate == "vector" else 1
        conditioning = 2 * (d * c + c) + (c + 1) * (2 * d + gate) + (c + 1) * 2 * d
        iteration_mlp = (model.loop.iteration_code_size + 1) * c + (c + 1) * c
    expert = 3 * d * moe.expert_hidden_size
    ffn = 3 * d * model.dense_ffn_hidden_size if dense else moe.num_experts * expert
    return LayerParameters(
        attention=attention_parameters(model),
        norms=norms,
        ffn=ffn,
        ffn_active=ffn if dense else moe.top_k * expert,
        shared_experts=0 if dense else moe.num_shared_experts * expert,
        router=0 if dense else d * moe.num_experts,
        conditioning=conditioning,
        iteration_mlp=iteration_mlp,
    )


def injection_parameters(model: ModelConfig, visit: Visit) -> int:
    """Those of the loop's state injection that are used before this visit."""
    again = visit.looped and visit.iteration > 1 and visit.layer == model.prefix_layers
    return model.hidden_size**2 if model.loop.state_injection and again else 0


def parameters(model: ModelConfig, vocab_size: int) -> Dict[str, int]:
    """Counts of parameters.

    ``total``, ``active`` (every use counted) and ``physical_active`` (weights counted once)
    hold both embeddings and leave out multi-token prediction, whose own weights are ``mtp``,
    of which a token uses ``mtp_active``. ``lookup`` is the input embedding as far as it is no
    matrix of the head: a token reads one row of it, so some publications leave it out of
    their active count.
    """
    embedding = vocab_size * model.hidden_size
    outside = embedding * (1 if model.tie_embeddings else 2) + model.hidden_size
    total = active = physical = outside
    for visit in visits(model):
        layer = layer_parameters(model, visit.dense, visit.looped)
        active += layer.active + injection_parameters(model, visit)
        if visit.owns_weights:
            total += layer.total
            physical += layer.active
    if conditioned(model) and model.loop.share_iteration_mlp:
        one = layer_parameters(model, False, True).iteration_mlp
        total -= (model.body_layers - 1) * one
        physical -= (model.body_layers - 1) * one
    d, extra = model.hidden_size, layer_parameters(model, False, False)
    if model.loop.state_injection and model.loop.iterations > 1:
        total += d * d
        physical += d * d
    # One more MoE layer, eh_proj [2d -> d], norms of both its inputs and of the output
    # (DeepSeek-V3, arXiv 2412.19437, section 2.2).
    around = 2 * d * d + 3 * d
    return {
        "total": total,
        "active": active,
        "physical_active": physical,
        "lookup": 0 if model.tie_embeddings else embedding,
        "mtp": model.mtp_layers * (extra.total + around),
        "mtp_active": model.mtp_layers * (extra.active + around),
    }


def _score_flops(model: ModelConfig, sequence_length: int) -> float:
    """Of one token's attention scores and their use; a query sees (s + 1) / 2 keys on average."""
    a = model.attention
    width = a.qk_head_dim + a.qk_rope_head_dim + a.v_head_dim if a.kind == "mla" else 2 * a.head_dim
    return a.num_heads * width * (sequence_length + 1)


def _visit_parts(model: ModelConfig, visit: Visit, sequence_length: int) -> Dict[str, float]:
    layer = layer_parameters(model, visit.dense, visit.looped)
    ffn = "shared_and_dense" if visit.dense else "experts"
    parts: Dict[str, float] = {
        "attention_projections": 2 * layer.attention,
        "attention_scores": _score_flops(model, sequence_length),
        "shared_and_dense": 2 * layer.shared_experts,
        "experts": 0,
        "router": 2 * layer.router,
        "iter_adaln": 2 * (layer.conditioning + injection_parameters(model, visit)),
    }
    parts[ffn] += 2 * layer.ffn_active
    return parts


def visit_flops(model: ModelConfig, visit: Visit, sequence_length: int) -> float:
    """Forward FLOPs of one token in one visit."""
    return sum(_visit_parts(model, visit, sequence_length).values())


def forward_flops_per_token(
    model: ModelConfig, vocab_size: int, sequence_length: int, iterations: Optional[int] = None
) -> Dict[str, float]:
    """FLOPs of one token's forward pass by part; the sum of the values is the whole.

    ``mtp`` is all of multi-token prediction, its use of the shared head included;
    ``iter_adaln`` holds the loop's state injection too.

    Args:
        iterations: the loop runs so often only; None: as often as the model has it.
    """
    d = model.hidden_size
    scores = _score_flops(model, sequence_length)
    parts = dict.fromkeys(
        ("attention_projections", "attention_scores", "experts", "shared_and_dense", "router",
         "iter_adaln", "head", "mtp"), 0.0
    )  # fmt: skip
    for visit in visits(model):
        if iterations is not None and visit.iteration > iterations:
            continue
        for part, flops in _visit_parts(model, visit, sequence_length).items():
            parts[part] += flops
    parts["head"] = 2.0 * vocab_size * d
    extra = layer_parameters(model, False, False)
    matrices = extra.attention + extra.ffn_active + extra.shared_experts + extra.router + 2 * d * d
    parts["mtp"] = model.mtp_layers * (2.0 * matrices + scores + parts["head"])
    return parts


def train_flops_per_token(
    model: ModelConfig, vocab_size: int, sequence_length: int, iterations: Optional[int] = None
) -> float:
    """FLOPs of forward and backward of one token (backward = 2 x forward)."""
    parts = forward_flops_per_token(model, vocab_size, sequence_length, iterations)
    return 3.0 * sum(parts.values())
