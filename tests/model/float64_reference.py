"""LoopMoE in plain float64 operations, straight from the formulas (facts: arXiv 2606.04438,
section 2, and DeepSeek-V3 for attention and router). No megatron-core, no shared code.

Weights come as a dict by unique layer name. x: [s, b, d].
"""

from __future__ import annotations

import math
from typing import Dict, Optional

import torch
from torch import Tensor

from loopmoe_train.config.schema import ModelConfig

Weights = Dict[str, Tensor]


def rms(x: Tensor, weight: Optional[Tensor], eps: float) -> Tensor:
    y = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)
    return y if weight is None else y * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def swiglu(x: Tensor, fc1: Tensor, fc2: Tensor) -> Tensor:
    gate, up = (x @ fc1.T).chunk(2, -1)
    return (silu(gate) * up) @ fc2.T


def rotate(x: Tensor, base: float) -> Tensor:
    """Rotary position embedding of [s, b, h, r]; core's MLA stores pairs interleaved and rotates
    halves after de-interleaving them."""
    s, r = x.shape[0], x.shape[-1]
    x = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
    frequencies = base ** (-torch.arange(0, r, 2, dtype=torch.float64) / r)
    angles = torch.arange(s, dtype=torch.float64)[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)[:, None, None, :]
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def mla(x: Tensor, w: Weights, p: str, m: ModelConfig) -> Tensor:
    a, (s, b, _) = m.attention, x.shape
    q = rms(x @ w[p + "linear_q_down_proj.weight"].T, w[p + "q_layernorm.weight"], m.norm_epsilon)
    q = (q @ w[p + "linear_q_up_proj.weight"].T).view(s, b, a.num_heads, -1)
    q_nope, q_rope = q.split([a.qk_head_dim, a.qk_rope_head_dim], -1)
    latent = x @ w[p + "linear_kv_down_proj.weight"].T
    latent, k_rope = latent.split([a.kv_lora_rank, a.qk_rope_head_dim], -1)
    latent = rms(latent, w[p + "kv_layernorm.weight"], m.norm_epsilon)
    kv = (latent @ w[p + "linear_kv_up_proj.weight"].T).view(s, b, a.num_heads, -1)
    k_nope, v = kv.split([a.qk_head_dim, a.v_head_dim], -1)
    k_rope = rotate(k_rope.unsqueeze(2), a.rotary_base).expand(-1, -1, a.num_heads, -1)
    q = torch.cat([q_nope, rotate(q_rope, a.rotary_base)], -1)
    k = torch.cat([k_nope, k_rope], -1)
    scores = torch.einsum("sbhd,tbhd->bhst", q, k) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), -math.inf)
    out = torch.einsum("bhst,tbhd->sbhd", scores.softmax(-1), v).reshape(s, b, -1)
    return out @ w[p + "linear_proj.weight"].T


def rotate_halves(x: Tensor, base: float) -> Tensor:
    """Rotary position embedding of [s, b, h, r] as core's GQA stores it: halves, not pairs."""
    pairs = torch.stack(x.chunk(2, -1), -1).flatten(-2)
    return rotate(pairs, base)


def gqa(x: Tensor, w: Weights, p: str, m: ModelConfig) -> Tensor:
    """Grouped queries; per group linear_qkv holds its queries, then one key, then one value."""
    a, (s, b, _) = m.attention, x.shape
    groups, each = a.num_query_groups, a.num_heads // a.num_query_groups
    qkv = (x @ w[p + "linear_qkv.weight"].T).view(s, b, groups, each + 2, a.head_dim)
    q, k, v = qkv[..., :each, :].flatten(2, 3), qkv[..., each, :], qkv[..., each + 1, :]
    if a.qk_norm:
        q = rms(q, w[p + "q_layernorm.weight"], m.norm_epsilon)
        k = rms(k, w[p + "k_layernorm.weight"], m.norm_epsilon)
    q, k = rotate_halves(q, a.rotary_base), rotate_halves(k, a.rotary_base)
    k, v = (t.repeat_interleave(each, 2) for t in (k, v))
    scores = torch.einsum("sbhd,tbhd->bhst", q, k) / math.sqrt(a.head_dim)
    scores = scores.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), -math.inf)
    out = torch.einsum("bhst,tbhd->sbhd", scores.softmax(-1), v).reshape(s, b, -1)
    return out @ w[p + "linear_proj.weight"].T


def choose(score: Tensor, m: ModelConfig) -> Tensor:
    """Indices of the chosen experts for selection scores [E]; DeepSeek-V3's and Pangu Pro's."""
    moe = m.moe
    if moe.group_routing == "none":
        return score.topk(moe.top_k).indices
    groups = score.view(moe.num_groups, -1)
    size = groups.shape[1]
    if moe.group_routing == "balanced":
        each = moe.top_k // moe.num_groups
        return torch.cat([g.topk(each).indices + i * size for i, g in enumerate(groups)])
    merit = torch.stack([g.topk(moe.top_k // moe.topk_groups).values.sum() for g in groups])
    kept = torch.full_like(groups, -math.inf)
    for group in merit.topk(moe.topk_groups).indices.tolist():
        kept[group] = groups[group]
    return kept.flatten().topk(moe.top_k).indices


def selection_bias(w: Weights, p: str, k: int, m: ModelConfig) -> Tensor:
    """That of the layer, or of its visit in iteration ``k``; 0 without one."""
    if m.moe.balance_over == "visit" and k > 1:
        return w[f"{p}router.later_visits.{k - 2}.expert_bias"]
    return w.get(p + "router.expert_bias", torch.zeros(m.moe.num_experts, dtype=torch.float64))


def weights_of(score: Tensor, bias: Tensor, m: ModelConfig) -> Tensor:
    """Weights [E] of one token's experts, 0 for those not chosen."""
    chosen = choose(score.detach() + bias, m)
    weight = score[chosen] * (m.moe.topk_scaling_factor or 1)
    if m.moe.norm_topk_prob:
        weight = weight / (score[chosen].sum() + 1e-20)
    return torch.zeros_like(score).index_put((chosen,), weight)


def moe(x: Tensor, w: Weights, p: str, k: int, m: ModelConfig) -> Tensor:
    """Selection with bias, weights renormalised over the chosen or not, by token."""
    flat = x.reshape(-1, x.shape[-1])
    logits = flat @ w[p + "router.weight"].T
    scores = torch.sigmoid(logits) if m.moe.score_function == "sigmoid" else logits.softmax(-1)
    bias = selection_bias(w, p, k, m)
    weights = within_capacity(torch.stack([weights_of(s, bias, m) for s in scores]), m)
    rows = []
    for token, weight in zip(flat, weights):
        row = torch.zeros_like(token)
        for e in weight.nonzero().flatten().tolist():
            w1 = w[p + "experts.w1_EDGF"][e]  # [d, 2, f]
            row = row + weight[e] * (silu(token @ w1[:, 0]) * (token @ w1[:, 1])) @ w[
                p + "experts.w2_EFD"][e]  # fmt: skip
        rows.append(row)
    if not m.moe.num_shared_experts:
        return torch.stack(rows).view_as(x)
    shared = swiglu(
        flat, w[p + "shared_experts.linear_fc1.weight"], w[p + "shared_experts.linear_fc2.weight"]
    )
    return (torch.stack(rows) + shared).view_as(x)


def within_capacity(weights: Tensor, m: ModelConfig) -> Tensor:
    """Weights [T, E] of which an expert keeps the ceil(factor T k / E) largest."""
    if m.moe.capacity_factor is None:
        return weights
    tokens, experts = weights.shape
    most = min(tokens, math.ceil(m.moe.capacity_factor * tokens * m.moe.top_k / experts))
    kept = torch.zeros_like(weights).scatter(0, weights.detach().topk(most, 0).indices, 1.0)
    return weights * kept


def code(k: int, size: int) -> Tensor:
    half = size // 2
    f = torch.tensor([10000.0 ** (-i / half) for i in range(half)], dtype=torch.float64)
    return torch.cat([torch.cos(k * f), torch.sin(k * f)])


def linear(x: Tensor, w: Weights, p: str) -> Tensor:
    return x @ w[p + "weight"].T + w[p + "bias"]


def layer(x: Tensor, w: Weights, index: int, k: Optional[int], m: ModelConfig) -> Tensor:
    """One visit; ``k``: iteration of a conditioned body layer, None elsewhere."""
    return block(x, w, f"decoder.layers.{index}.", k, index < m.dense_layers, m)


def block(x: Tensor, w: Weights, p: str, k: Optional[int], dense: bool, m: ModelConfig) -> Tensor:
    """The layer whose weights' names begin with ``p``."""
    eps, d = m.norm_epsilon, m.hidden_size
    alpha = 1.0
    v = None
    if k is None:
        h = rms(x, w[p + "input_layernorm.weight"], eps)
    else:
        n = p + "input_layernorm."
        v = linear(code(k, m.loop.iteration_code_size), w, n + "iteration_mlp.0.")
        v = linear(silu(v), w, n + "iteration_mlp.2.")
        mod = linear(silu(linear(x, w, n + "condition.") + v), w, n + "modulation.")
        h = (1 + mod[..., :d]) * rms(x, None, eps) + mod[..., d : 2 * d]
        alpha = mod[..., 2 * d :]
    out = {"mla": mla, "gqa": gqa}[m.attention.kind](h, w, p + "self_attention.", m)
    if m.sandwich_norm:
        out = rms(out, w[p + "self_attn_bda.output_norm.weight"], eps)
    x = x + alpha * out
    if k is None:
        h = rms(x, w[p + "pre_mlp_layernorm.weight"], eps)
    else:
        n = p + "pre_mlp_layernorm."
        mod = linear(silu(linear(x, w, n + "condition.") + v), w, n + "modulation.")
        h = (1 + mod[..., :d]) * rms(x, None, eps) + mod[..., d:]
    if dense:
        out = swiglu(h, w[p + "mlp.linear_fc1.weight"], w[p + "mlp.linear_fc2.weight"])
    else:
        out = moe(h, w, p + "mlp.", k or 1, m)
    if m.sandwich_norm:
        out = rms(out, w[p + "mlp_bda.output_norm.weight"], eps)
    return x + out


def final_states(
    tokens: Tensor,
    w: Weights,
    m: ModelConfig,
    iterations: Optional[int] = None,
    backprop: Optional[int] = None,
) -> Tensor:
    """States after the final norm [s, b, d], the loop run ``iterations`` times, the last
    ``backprop`` of them with gradients."""
    iterations = iterations or m.loop.iterations
    x = w["embedding.word_embeddings.weight"][tokens].transpose(0, 1)
    conditioned = m.loop.iterations > 1 and m.loop.conditioning == "iter_adaln"
    for index in range(m.prefix_layers):
        x = layer(x, w, index, None, m)
    entered = x
    for k in range(1, iterations + 1):
        if backprop is not None and k == iterations - backprop + 1:
            x = x.detach()
        if m.loop.state_injection and k > 1:
            x = x + entered @ w[f"decoder.layers.{m.prefix_layers}.injection.weight"].T
        for index in range(m.prefix_layers, m.prefix_layers + m.body_layers):
            x = layer(x, w, index, k if conditioned else None, m)
    first = m.prefix_layers + m.body_layers
    for index in range(first, first + m.suffix_layers):
        x = layer(x, w, index, None, m)
    x = rms(x, w["decoder.final_layernorm.weight"], m.norm_epsilon)
    return x


def cross_entropy(x: Tensor, labels: Tensor, w: Weights) -> Tensor:
    """[s, b, d] and labels [b, s] -> [b, s]."""
    logp = (x @ w["output_layer.weight"].T).log_softmax(-1).transpose(0, 1)
    return -logp.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def losses(
    tokens: Tensor,
    labels: Tensor,
    w: Weights,
    m: ModelConfig,
    iterations: Optional[int] = None,
    backprop: Optional[int] = None,
) -> Tensor:
    """Cross entropy per token [b, s] in nats."""
    return cross_entropy(final_states(tokens, w, m, iterations, backprop), labels, w)


def mtp_loss(tokens: Tensor, labels: Tensor, mask: Tensor, w: Weights, m: ModelConfig) -> Tensor:
    """What multi-token prediction adds to the sum of the losses [] (DeepSeek-V3, section 2.2)."""
    x, total = final_states(tokens, w, m), torch.zeros((), dtype=torch.float64)
    for head in range(m.mtp_layers):
        p = f"mtp.layers.{head}."
        # One token further ahead; nothing is known behind the end.
        tokens, labels, mask = (
            torch.cat([t[:, 1:], torch.zeros_like(t[:, :1])], 1) for t in (tokens, labels, mask)
        )
        ahead = w["embedding.word_embeddings.weight"][tokens].transpose(0, 1)
        both = torch.cat([rms(ahead, w[p + "enorm.weight"], m.norm_epsilon),
                          rms(x, w[p + "hnorm.weight"], m.norm_epsilon)], -1)  # fmt: skip
        x = block(both @ w[p + "eh_proj.weight"].T, w, p + "transformer_layer.", None, False, m)
        x = rms(x, w[p + "final_layernorm.weight"], m.norm_epsilon)
        total = total + (mask * cross_entropy(x, labels, w)).sum()
    return m.mtp_loss_coeff / m.mtp_layers * total
