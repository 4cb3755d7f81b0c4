"""Capacity balancing: a looped model as large, as costly and as attentive as a vanilla one.

arXiv 2606.04438 (facts/loopmoe.md, section 4): looping leaves attention weights as they are
and lets a token reach more distinct experts, so rho = A_attn / A_ffn falls and N, the total,
with it. Larger MLA ranks and narrower experts restore rho at equal F (FLOPs per token), more
routed experts restore N. Hidden size, heads, top-k and shared experts stay.

Three equations (N, F, rho) for four numbers (two ranks, width, experts): the ranks grow by the
same number of steps, as in the paper, unless unequal growth gains more than 1 % of residual
for each step of difference.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Iterator, List, Optional, Tuple

from loopmoe_train.config.schema import ModelConfig
from loopmoe_train.errors import Refused
from loopmoe_train.spec.arithmetic import forward_flops_per_token, parameters
from loopmoe_train.spec.capacity import UniqueExperts, attention_ffn_ratio, independent

_UNEVEN = 0.01  # residual that a step of difference between the ranks' growth must gain
_FURTHEST = 4  # steps by which one rank may outgrow the other


@dataclass(frozen=True)
class Layout:
    """Prefix, body and suffix layers, and the iterations of the body."""

    prefix: int
    body: int
    suffix: int
    iterations: int

    def __str__(self) -> str:
        return f"{self.prefix}/{self.body}/{self.suffix}x{self.iterations}"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """From ``2/2/2x4``.

        Raises:
            Refused: written otherwise, or not a loop.
        """
        found = re.fullmatch(r"(\d+)/(\d+)/(\d+)x(\d+)", text)
        if not found:
            raise Refused(
                f"loop {text!r}: not a layout", "write PREFIX/BODY/SUFFIXxK, e.g. 2/2/2x4"
            )
        layout = cls(*map(int, found.groups()))
        if layout.prefix < 1 or layout.body < 1 or layout.iterations < 2:
            raise Refused(
                f"loop {text}: needs a prefix layer, a body layer and 2 iterations at least",
                "e.g. 2/2/2x4",
            )
        return layout


@dataclass(frozen=True)
class Multiples:
    """What sizes are multiples of: tiles of the matrix products, and the ranks experts go to."""

    rank: int = 128
    width: int = 32
    experts: int = 8


@dataclass(frozen=True)
class Point:
    """Where a model operates: N parameters, F forward FLOPs per token, rho."""

    parameters: float
    flops: float
    ratio: float

    def residuals(self, reference: Point) -> Tuple[float, float, float]:
        """Relative distance from ``reference`` in N, F and rho."""
        return (
            self.parameters / reference.parameters - 1,
            self.flops / reference.flops - 1,
            self.ratio / reference.ratio - 1,
        )


@dataclass(frozen=True)
class Setting:
    """What balancing assumes.

    Attributes:
        vocab_size: with embeddings and head in N and F.
        sequence_length: of the attention scores in F.
        unique: how many distinct experts the iterations reach.
        count_iter_adaln: IterAdaLN's matrices belong to F. The published configurations match
            without them.
    """

    vocab_size: int
    sequence_length: int
    unique: UniqueExperts = independent
    count_iter_adaln: bool = False

    def point(self, model: ModelConfig) -> Point:
        """Where ``model`` operates. Multi-token prediction is left out of N and F."""
        flops = forward_flops_per_token(model, self.vocab_size, self.sequence_length)
        left_out = flops["mtp"] + (0 if self.count_iter_adaln else flops["iter_adaln"])
        return Point(
            parameters(model, self.vocab_size)["total"],
            sum(flops.values()) - left_out,
            attention_ffn_ratio(model, self.unique),
        )


def balance(
    reference: ModelConfig, layout: Layout, setting: Setting, multiples: Multiples
) -> ModelConfig:
    """The looped model whose N, F and rho are nearest to those of ``reference``.

    Nearest: least sum of squared relative residuals, on the grid of ``multiples``. The loop's
    other settings (IterAdaLN's width, gate) are taken from ``reference.loop``.

    Raises:
        Refused: the reference is looped or has no MLA ranks, or the layout does not fit it.
    """
    _check(reference, layout, multiples)
    target = setting.point(reference)
    start = _looped(reference, layout)
    best: Optional[Tuple[float, ModelConfig]] = None
    for model, unevenness in _candidates(start, reference, setting, target, multiples):
        score = sum(r * r for r in setting.point(model).residuals(target))
        score += (_UNEVEN * unevenness) ** 2
        if best is None or score < best[0]:
            best = score, model
    if best is None:
        raise Refused(
            f"no widths bring {layout} to the FLOPs of {reference.name}",
            "loop fewer layers or iterations, or use smaller multiples",
        )
    return best[1]


def _check(reference: ModelConfig, layout: Layout, multiples: Multiples) -> None:
    if reference.loop.iterations > 1:
        raise Refused(
            f"{reference.name} is looped already: balance starts from a vanilla model",
            "name one with loop.iterations=1, e.g. model=vanilla_3b",
        )
    if reference.attention.kind != "mla":
        raise Refused(
            f"{reference.name} has no MLA ranks to enlarge (attention.kind="
            f"{reference.attention.kind})",
            "balance a model with model.attention.kind=mla",
        )
    if layout.prefix < reference.dense_layers:
        raise Refused(
            f"the loop has {layout.prefix} prefix layers, fewer than model.dense_layers="
            f"{reference.dense_layers}",
            "add prefix layers",
        )
    for name, value in vars(multiples).items():
        if value < 1:
            raise Refused(f"{name} multiple {value}: must be at least 1")


def _looped(reference: ModelConfig, layout: Layout) -> ModelConfig:
    """``reference`` in the new layout, its widths not yet changed."""
    name = reference.name.replace("vanilla", "loopmoe")
    return replace(
        reference,
        name=name if name != reference.name else f"{reference.name}_looped",
        prefix_layers=layout.prefix,
        body_layers=layout.body,
        suffix_layers=layout.suffix,
        loop=replace(reference.loop, iterations=layout.iterations),
    )


def _sized(
    model: ModelConfig,
    like: ModelConfig,
    ranks: Tuple[Optional[int], int],
    width: int,
    experts: int,
) -> ModelConfig:
    """``model`` in these sizes; its dense FFN keeps the proportion to an expert of ``like``."""
    dense = like.dense_ffn_hidden_size * width / like.moe.expert_hidden_size
    return replace(
        model,
        dense_ffn_hidden_size=max(8, 8 * round(dense / 8)),
        attention=replace(model.attention, q_lora_rank=ranks[0], kv_lora_rank=ranks[1]),
        moe=replace(model.moe, expert_hidden_size=width, num_experts=experts),
    )


def _candidates(
    start: ModelConfig, reference: ModelConfig, setting: Setting, target: Point, grid: Multiples
) -> Iterator[Tuple[ModelConfig, int]]:
    """Models on the grid near the solution, with how unevenly their ranks grew (steps)."""
    one_rank = reference.attention.q_lora_rank is None
    for lead in [0] if one_rank else range(-_FURTHEST, _FURTHEST + 1):
        step, passed = max(0, lead), 0
        while passed < 2:
            ranks = _grown(reference, step, step - lead, grid.rank)
            if ranks is None:
                break
            real = _solve(start, reference, ranks, setting, target)
            if real is None:
                break
            width, experts = real
            for w in _around(width, grid.width, 1):
                for e in _around(experts * width / w, grid.experts, start.moe.top_k):
                    yield _sized(start, reference, ranks, w, e), lead
            # Attention grows with every step and the experts shrink: once past rho, only
            # rounding can make one step more worth its while.
            nearest = _sized(start, reference, ranks, max(1, round(width)), round(experts))
            passed += setting.point(nearest).ratio > target.ratio
            step += 1


def _grown(
    reference: ModelConfig, q_steps: int, kv_steps: int, multiple: int
) -> Optional[Tuple[Optional[int], int]]:
    """Ranks so many steps above those of the reference; None: below them."""
    if q_steps < 0 or kv_steps < 0:
        return None
    q, kv = reference.attention.q_lora_rank, reference.attention.kv_lora_rank
    grown_kv = _ceil(kv, multiple) + kv_steps * multiple
    return (None if q is None else _ceil(q, multiple) + q_steps * multiple), grown_kv


def _solve(
    start: ModelConfig,
    reference: ModelConfig,
    ranks: Tuple[Optional[int], int],
    setting: Setting,
    target: Point,
) -> Optional[Tuple[float, float]]:
    """Width and experts, as real numbers, that give F and N with these ranks; None: no such width.

    F is linear in the width and N in the experts, so that two points of each are enough. The
    router's share of F depends on the experts: a second round takes the first one's.
    """
    unit, experts = reference.moe.expert_hidden_size, reference.moe.num_experts
    for _ in range(2):
        a = setting.point(_sized(start, reference, ranks, unit, experts)).flops
        b = setting.point(_sized(start, reference, ranks, 2 * unit, experts)).flops
        width = unit + unit * (target.flops - a) / (b - a)
        if width < 1:
            return None
        w = max(1, round(width))
        more = 4 * reference.moe.num_experts
        a = setting.point(_sized(start, reference, ranks, w, more)).parameters
        b = setting.point(_sized(start, reference, ranks, w, 2 * more)).parameters
        real = more + more * (target.parameters - a) / (b - a)
        experts = max(start.moe.top_k, round(real))
    return width, max(real, start.moe.top_k)


def _around(value: float, multiple: int, least: int) -> List[int]:
    """Two multiples on each side of ``value``, not below ``least``."""
    below, low = math.floor(value / multiple), _ceil(least, multiple)
    return sorted({max(low, multiple * (below + step)) for step in (-1, 0, 1, 2)})


def _ceil(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
