"""The operators of one visit on one rank: how long they run and what they keep for backward.

With T tokens of a micro-batch on a rank of context parallelism, tensor parallelism leaves T rows
to the products and T / tp to what lies between them (sequence parallelism). Backward of a product
is two products of the same size, for the input (``dgrad``) and for the weights (``wgrad``).
Formulas of kept tensors: arXiv 2205.05198, section 4; MLA: arXiv 2405.04434, section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, List, Tuple

from loopmoe_train.sim import efficiency
from loopmoe_train.sim.coverage import Timed, measured
from loopmoe_train.sim.machine import BYTES, Machine
from loopmoe_train.sim.shape import Layer
from loopmoe_train.sim.workload import Workload


@dataclass(frozen=True)
class Operator:
    """One operator of one rank and micro-batch; seconds and bytes.

    Attributes:
        part: names of :class:`workload.Memory`.``modules`` that it belongs to, with "/" between;
            "" for what is never recomputed alone.
        weights: parameters of its matrices.
        kernels: launches forward; backward takes twice as many.
        flops: of its matrix products, forward.
        measured: of the three times together, what was measured at this size, and near it.
    """

    name: str
    part: str
    forward: float
    dgrad: float
    wgrad: float
    keeps: float
    kernels: int = 1
    weights: float = 0.0
    flops: float = 0.0
    measured: Tuple[float, float] = (0.0, 0.0)

    def recomputed(self, modules: FrozenSet[str]) -> bool:
        """Whether recomputing these modules runs it again."""
        return any(part in modules for part in self.part.split("/"))


class Rank:
    """Sizes of a workload on one rank, and the operators they make."""

    def __init__(self, workload: Workload, machine: Machine) -> None:
        self.workload, self.machine = workload, machine
        grid = workload.grid
        self.tp, self.etp = grid.tensor, grid.expert_tensor
        self.rows = workload.micro_batch * workload.sequence / grid.context
        self.between = self.rows / grid.tensor if workload.sequence_parallel else self.rows
        self.element = BYTES[workload.precision]
        self.hidden = workload.shape.hidden
        # alone, a rank has all experts and all rows of its own tokens
        self.imbalance = workload.imbalance if grid.expert > 1 else 1.0

    # -- pieces ----------------------------------------------------------------------------
    def product(
        self, name: str, part: str, rows: float, inner: float, columns: float,
        keeps: float = 0.0, groups: int = 1, precision: str = "",
    ) -> Operator:  # fmt: skip
        """[rows, inner] x [inner, columns]; ``keeps``: bytes of its output that stay."""
        kind = precision or self.workload.precision

        def time(m: float, n: float, k: float, layout: str) -> Timed:
            return efficiency.matmul(self.machine, m, n, k, kind, groups, layout)

        kernels = groups if self.machine.grouped_loop else 1
        if kind in ("fp8", "fp4"):
            kernels *= 3  # both operands are cast and scaled
        forward = time(rows, columns, inner, "forward")
        dgrad, wgrad = time(rows, inner, columns, "dgrad"), time(inner, columns, rows, "wgrad")
        return Operator(
            name, part, forward[0], dgrad[0], wgrad[0], keeps, kernels, inner * columns * groups,
            2 * rows * inner * columns * groups, measured(forward, dgrad, wgrad),
        )  # fmt: skip

    def vector(
        self, name: str, part: str, forward: float, backward: float, keeps: float,
        kernels: int = 1, layout: str = "copy",
    ) -> Operator:  # fmt: skip
        """An operator that moves so many bytes; ``layout``: ``copy``, ``norm``, ``activation``."""
        behind = layout if layout == "copy" else f"{layout}_backward"
        one = efficiency.vector(self.machine, forward, layout, kernels)
        two = efficiency.vector(self.machine, backward, behind, kernels)
        return Operator(
            name, part, one[0], two[0], 0.0, keeps, kernels, measured=measured(one, two)
        )

    def norm(
        self, size: float, keeps: float, name: str = "norm", part: str = "norm", kernels: int = 1
    ) -> Operator:
        """An RMSNorm of ``size`` bytes."""
        return self.vector(name, part, 2 * size, 3 * size, keeps, kernels, "norm")

    # -- a layer ---------------------------------------------------------------------------
    def visit(self, layer: Layer) -> List[Operator]:
        """All operators of one visit, in order."""
        state = self.between * self.hidden * self.element
        found: List[Operator] = []
        found += self._conditioning(layer)
        # The norm keeps its input (the residual stream) and its output, the product's input.
        found.append(self.norm(state, state))
        found.append(Operator("residual", "", 0.0, 0.0, 0.0, state, 0))
        found += self._latent(layer) if layer.attention.kv_rank else self._grouped(layer)
        found += self._after(layer, state)
        found.append(self.norm(state, state))
        found.append(Operator("residual", "", 0.0, 0.0, 0.0, state, 0))
        found += (
            self._experts(layer)
            if layer.ffn.experts
            else self._dense(layer.ffn.width, layer.ffn.inner, "mlp")
        )
        found += self._after(layer, state)
        return found

    def _after(self, layer: Layer, state: float) -> List[Operator]:
        """Behind a sublayer: its output norm if there is one, dropout, the sum."""
        found = []
        if layer.norms > 2 or (layer.conditioning is not None and layer.norms > 0):
            found.append(self.norm(state, state, "output norm"))
        mask = self.between * self.hidden if self.workload.dropout else 0.0
        found.append(self.vector("add", "", 3 * state + mask, state + 2 * mask, mask))
        return found

    def _conditioning(self, layer: Layer) -> List[Operator]:
        if layer.conditioning is None:
            return []
        t, h, c = self.between, self.hidden, layer.conditioning.bottleneck
        out = layer.conditioning.outputs
        return [
            self.product("condition", "", t, h, 2 * c, t * 2 * c * self.element),
            self.product("scales", "", t, c, out, t * out * self.element),
            self.vector("gate", "", 4 * t * h * self.element, 8 * t * h * self.element,
                        2 * t * h * self.element, 4),
        ]  # fmt: skip

    def _core(self, layer: Layer) -> Operator:
        """softmax(Q K') V of this rank's heads and queries."""
        a, w = layer.attention, self.workload
        heads = a.heads / self.tp
        rows = self.rows
        out = rows * heads * a.v_dim * self.element
        width = a.qk_dim + a.v_dim
        kind = "fp32" if w.precision == "fp32" else "bf16"
        if a.fused:
            flops = 2 * rows * a.keys_seen(w.sequence) * heads * width
            lse = rows * heads * 4
            size = None
            if a.window is None or a.window >= w.sequence:
                # Context parallelism leaves a rank fewer rows, or fewer heads: the same work.
                here = max(1, round(rows * heads / w.sequence))
                size = (w.sequence, here, a.qk_dim, a.v_dim)
            ahead = efficiency.attention(self.machine, size, flops, kind)
            behind = efficiency.attention(self.machine, size, 2.5 * flops, kind, backward=True)
            return Operator(
                "attention", "core_attn", ahead[0], behind[0], 0.0, out + lse, flops=flops,
                measured=measured(ahead, behind),
            )  # fmt: skip
        # Scores of all pairs are written, masked, normalised, dropped out and read again.
        pairs = rows * w.sequence * heads
        batch = max(1, round(w.micro_batch * heads))
        scores = efficiency.matmul(self.machine, w.sequence, w.sequence, a.qk_dim, w.precision,
                                   batch)  # fmt: skip
        mixed = efficiency.matmul(self.machine, w.sequence, a.v_dim, w.sequence, w.precision, batch)
        time, e = scores[0] + mixed[0], self.element
        forward = pairs * (3 * e + (2 * e + 1 if w.dropout else 0))
        backward = pairs * (4 * e + (2 * e + 1 if w.dropout else 0))
        keeps = pairs * (2 * e + 1 if w.dropout else e)
        one = efficiency.vector(self.machine, forward, kernels=2)
        two = efficiency.vector(self.machine, backward, kernels=2)
        return Operator(
            "attention", "core_attn", time + one[0], 2 * time + two[0], 0.0, out + keeps, 4,
            measured=measured(*3 * (scores, mixed), one, two),
        )  # fmt: skip

    def _grouped(self, layer: Layer) -> List[Operator]:
        a, t, e = layer.attention, self.rows, self.element
        keys = a.groups * (a.qk_dim + a.v_dim)
        width = (a.queries + keys) / self.tp
        turned = t * (a.queries + a.groups * a.qk_dim) / self.tp * e
        found = [
            self.product("qkv", "", t, self.hidden, width, t * width * e),
        ]
        if a.rope_dim:
            found.append(self.vector("rotary", "", 2 * turned, 2 * turned, 0.0, 2))
        found += [
            self._core(layer),
            self.product("projection", "", t, a.values / self.tp, self.hidden),
        ]
        return found

    def _latent(self, layer: Layer) -> List[Operator]:
        a, e = layer.attention, self.element
        between, rows = self.between, self.rows
        assert a.kv_rank is not None
        heads = a.heads / self.tp
        nope = a.qk_dim - a.rope_dim
        found: List[Operator] = []
        if a.q_rank is None:
            found.append(
                self.product("queries", "mla_up_proj", rows, self.hidden, a.queries / self.tp,
                             rows * a.queries / self.tp * e)
            )  # fmt: skip
        else:
            latent = between * a.q_rank * e
            found += [
                self.product("queries down", "", between, self.hidden, a.q_rank, latent),
                self.norm(latent, latent, "latent norm", ""),
                self.product("queries up", "mla_up_proj", rows, a.q_rank, a.queries / self.tp,
                             rows * a.queries / self.tp * e),
            ]  # fmt: skip
        latent = between * a.kv_rank * e
        rope = between * a.rope_dim * e
        up = rows * heads * (nope + a.v_dim) * e
        keys = rows * heads * a.qk_dim * e
        found += [
            self.product("keys down", "", between, self.hidden, a.kv_rank + a.rope_dim,
                         latent + rope),
            self.norm(latent, latent, "latent norm", ""),
            self.product("keys up", "mla_up_proj", rows, a.kv_rank, heads * (nope + a.v_dim),
                         rows * heads * a.v_dim * e),
            # rotary, and the shared rotary key copied to every head
            self.vector("heads", "mla_up_proj", up + 3 * keys, up + 3 * keys, keys, 6),
            self._core(layer),
            self.product("projection", "", rows, a.values / self.tp, self.hidden),
        ]  # fmt: skip
        return found

    def _dense(self, width: float, inner: float, part: str) -> List[Operator]:
        t, e, tp = self.rows, self.element, self.tp
        return [
            self.product("ffn in", part, t, self.hidden, inner / tp, t * inner / tp * e),
            self.vector("activation", f"{part}/act", t * (inner + width) / tp * e,
                        t * (2 * inner + width) / tp * e, t * width / tp * e,
                        layout="activation"),
            self.product("ffn out", part, t, width / tp, self.hidden),
        ]  # fmt: skip

    def _experts(self, layer: Layer) -> List[Operator]:
        ffn, e, w = layer.ffn, self.element, self.workload
        between, h = self.between, self.hidden
        routed = between * ffn.top_k * self.imbalance  # rows that leave, and arrive, on average
        arrived = routed * self.etp
        here = max(1, ffn.experts // w.grid.expert)
        rows = arrived / here
        table = between * ffn.experts * 4
        inner, width = ffn.inner / self.etp, ffn.width / self.etp
        token = h * e
        gather = (between + routed) * token
        order = 2 * arrived * token
        act, act_back = arrived * (inner + width) * e, arrived * (2 * inner + width) * e
        spare = 0.0 if w.probs_first else routed * token
        found = [
            self.product("router", "", between, h, ffn.experts, 2 * table,
                         precision="fp32" if w.precision == "fp32" else "bf16"),
            self.vector("top k", "", 4 * table, 4 * table, 0.0, 8),
            self.vector("permute", "moe", gather, gather, 0.0, 3),
            self.vector("sort", "moe", order, order, arrived * token, 3),
            self.product("experts in", "moe", rows, h, inner, arrived * inner * e, here),
            self.vector(
                "expert activation", "moe/act", ffn.passes * act, ffn.passes * act_back,
                arrived * width * e, layout="activation",
            ),
            self.product("experts out", "moe", rows, width, h, 0.0, here),
            self.vector("unsort", "moe", order, order, 0.0, 3),
            self.vector("unpermute", "moe", gather, gather, spare, 3),
        ]  # fmt: skip
        if ffn.shared:
            double = 2 if ffn.gated else 1
            found += self._dense(ffn.shared, double * ffn.shared, "moe/shared_experts")
        return found

    # -- ends of the model -----------------------------------------------------------------
    def embedding(self) -> List[Operator]:
        """Look-up of the rows; backward adds into the table's gradient."""
        size = self.between * self.hidden * self.element
        return [self.vector("embedding", "", 2 * size, 3 * size, 0.0, 3)]

    def head(self) -> List[Operator]:
        """Final norm, logits and loss of the whole micro-batch."""
        t, tp, e = self.rows, self.tp, self.element
        state = self.between * self.hidden * e
        vocabulary = self.workload.shape.vocab
        logits = t * vocabulary / tp
        extra = 0 if self.workload.fused_loss else 4
        return [
            self.norm(state, 2 * state, "final norm", ""),
            self.product("logits", "", t, self.hidden, vocabulary / tp, logits * e),
            self.vector("loss", "", logits * (e + 3 * extra), logits * (e + 2 * extra),
                        logits * extra, 6),
        ]  # fmt: skip

    def joint(self) -> List[Operator]:
        """Of one depth of multi-token prediction: the norms of its two inputs, their product."""
        t, h = self.between, self.hidden
        state = t * h * self.element
        return [
            self.norm(2 * state, 2 * state, kernels=2),
            self.product("join", "", t, 2 * h, h, 2 * state),
        ]
