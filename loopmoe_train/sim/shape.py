"""The sizes of a transformer, as far as time and memory depend on them.

Wider than :class:`~loopmoe_train.config.schema.ModelConfig`, because the simulator is measured
on published runs: FFNs without a gate, attention with stored scores, a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.spec.visits import conditioned, visits


@dataclass(frozen=True)
class Attention:
    """Self-attention.

    Attributes:
        heads: query heads.
        groups: key/value heads (= heads for MLA).
        qk_dim: width of a query or key head, its rotary part included.
        v_dim: width of a value head.
        rope_dim: rotary part of a head.
        q_rank: MLA's query rank; None: queries are projected directly.
        kv_rank: MLA's key/value rank; None: no MLA.
        fused: scores are never stored (flash attention).
        window: keys that a query sees at most; None: all before it.
    """

    heads: int
    groups: int
    qk_dim: int
    v_dim: int
    rope_dim: int = 0
    q_rank: Optional[int] = None
    kv_rank: Optional[int] = None
    fused: bool = True
    window: Optional[int] = None

    @property
    def queries(self) -> int:
        """Width of all query heads."""
        return self.heads * self.qk_dim

    @property
    def values(self) -> int:
        """Width of the output of all heads."""
        return self.heads * self.v_dim

    def keys_seen(self, sequence: int) -> float:
        """Keys that a query sees on average."""
        if self.window is None or self.window >= sequence:
            return (sequence + 1) / 2
        return self.window - self.window * (self.window - 1) / (2 * sequence)

    def parameters(self, hidden: int) -> int:
        """Projection matrices."""
        if self.kv_rank is None:
            keys = self.groups * (self.qk_dim + self.v_dim)
            return hidden * (self.queries + keys) + self.values * hidden
        nope = self.qk_dim - self.rope_dim
        queries = (
            hidden * self.queries if self.q_rank is None else self.q_rank * (hidden + self.queries)
        )
        down = hidden * (self.kv_rank + self.rope_dim)
        up = self.kv_rank * self.heads * (nope + self.v_dim)
        return queries + down + up + self.values * hidden


@dataclass(frozen=True)
class Ffn:
    """A dense FFN (``experts`` = 0), or experts.

    Attributes:
        width: of the dense FFN or of one expert.
        gated: SwiGLU-like: two matrices in, one out.
        experts: routed experts.
        top_k: experts of a token.
        shared: width of the shared expert; 0: none.
        passes: over its inner values that the activation takes; 1: one fused kernel.
    """

    width: int
    gated: bool = True
    experts: int = 0
    top_k: int = 0
    shared: int = 0
    passes: float = 1.0

    @property
    def inner(self) -> int:
        """Width of the first product: gate and value."""
        return self.width * (2 if self.gated else 1)

    def matrix(self, hidden: int) -> int:
        """Parameters of one FFN or expert."""
        return hidden * (self.inner + self.width)


@dataclass(frozen=True)
class Conditioning:
    """IterAdaLN (arXiv 2606.04438): widths of its token-wise matrices."""

    bottleneck: int
    outputs: int  # of both sublayers: scale, shift, gate of each

    def parameters(self, hidden: int) -> int:
        return 2 * hidden * self.bottleneck + self.bottleneck * self.outputs


@dataclass(frozen=True)
class Layer:
    """One layer that owns weights.

    Attributes:
        norms: RMSNorms over the hidden state.
    """

    attention: Attention
    ffn: Ffn
    norms: int = 2
    conditioning: Optional[Conditioning] = None

    def dense_parameters(self, hidden: int) -> int:
        """All but the routed experts, which other ranks share."""
        own = self.attention.parameters(hidden) + self.norms * hidden
        if self.conditioning is not None:
            own += self.conditioning.parameters(hidden)
        if not self.ffn.experts:
            return own + self.ffn.matrix(hidden)
        shared = hidden * self.ffn.shared * (3 if self.ffn.gated else 2)
        return own + shared + hidden * self.ffn.experts

    def expert_parameters(self, hidden: int) -> int:
        """Of all routed experts."""
        return self.ffn.experts * self.ffn.matrix(hidden)


@dataclass(frozen=True)
class Shape:
    """A transformer.

    Attributes:
        layers: that own weights.
        order: of every visit, in execution order, its layer: with a loop some layers come again.
        mtp: multi-token-prediction depths behind the last visit, each with a layer like ``layers``'
            last.
        tied: the head uses the input embedding.
    """

    name: str
    hidden: int
    vocab: int
    layers: Tuple[Layer, ...]
    order: Tuple[int, ...]
    mtp: int = 0
    tied: bool = False

    def parameters(self) -> int:
        """All of them, without multi-token prediction."""
        own = sum(
            layer.dense_parameters(self.hidden) + layer.expert_parameters(self.hidden)
            for layer in self.layers
        )
        return own + self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden

    def train_flops(self, sequence: int) -> float:
        """Matrix FLOPs of forward and backward of one token; attention causal, MTP counted."""
        d, total = self.hidden, 0.0
        visits = [self.layers[index] for index in self.order] + [self.layers[-1]] * self.mtp
        for layer in visits:
            attention, ffn = layer.attention, layer.ffn
            total += 2 * attention.parameters(d)
            seen = attention.keys_seen(sequence)
            total += 2 * seen * attention.heads * (attention.qk_dim + attention.v_dim)
            if ffn.experts:
                total += 2 * (ffn.top_k * ffn.matrix(d) + d * ffn.experts)
                total += 2 * d * ffn.shared * (3 if ffn.gated else 2)
            else:
                total += 2 * ffn.matrix(d)
            if layer.conditioning is not None:
                total += 2 * layer.conditioning.parameters(d)
        total += self.mtp * 4 * d * d
        total += 2 * d * self.vocab * (1 + self.mtp)
        return 3 * total


def shape_of(model: ModelConfig, vocab: int) -> Shape:
    """The sizes of a configured model."""
    a, moe = model.attention, model.moe
    if a.kind == "mla":
        attention = Attention(
            heads=a.num_heads, groups=a.num_heads, qk_dim=a.qk_head_dim + a.qk_rope_head_dim,
            v_dim=a.v_head_dim, rope_dim=a.qk_rope_head_dim, q_rank=a.q_lora_rank,
            kv_rank=a.kv_lora_rank,
        )  # fmt: skip
    else:
        attention = Attention(
            heads=a.num_heads, groups=a.num_query_groups, qk_dim=a.head_dim, v_dim=a.head_dim,
            rope_dim=a.head_dim,
        )  # fmt: skip
    dense = Ffn(model.dense_ffn_hidden_size)
    experts = Ffn(
        moe.expert_hidden_size, experts=moe.num_experts, top_k=moe.top_k,
        shared=moe.num_shared_experts * moe.expert_hidden_size,
    )  # fmt: skip
    order = visits(model)
    adaptive = None
    if conditioned(model):
        gate = model.hidden_size if model.loop.gate == "vector" else 1
        width = model.loop.bottleneck or model.hidden_size
        adaptive = Conditioning(width, 4 * model.hidden_size + gate)
    sandwich = 2 if model.sandwich_norm else 0
    layers = {}
    for visit in order:
        own = adaptive if visit.looped else None
        layers[visit.layer] = Layer(
            attention, dense if visit.dense else experts, (0 if own else 2) + sandwich, own
        )
    return Shape(
        name=model.name, hidden=model.hidden_size, vocab=vocab,
        layers=tuple(layers[index] for index in sorted(layers)),
        order=tuple(visit.layer for visit in order), mtp=model.mtp_layers,
        tied=model.tie_embeddings,
    )  # fmt: skip
