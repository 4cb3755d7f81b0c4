"""The calls that ``loopmoe bench kernels`` times: each op beside what else computes the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from torch import Tensor

from loopmoe_kernels import adaln_norm, combine, dispatch_index, permute, router_topk
from loopmoe_kernels import weighted_swiglu as swiglu
from loopmoe_kernels.adaln_norm import reference as adaln_definition
from loopmoe_kernels.combine import reference as combine_definition
from loopmoe_kernels.dispatch_index import reference as dispatch_definition
from loopmoe_kernels.dispatch_index.cases import experts_of
from loopmoe_kernels.expert_major_index import expert_major_index
from loopmoe_kernels.permute import reference as permute_definition
from loopmoe_kernels.registry import name_of
from loopmoe_kernels.router_topk import reference as router_definition
from loopmoe_kernels.weighted_swiglu import reference as swiglu_definition
from loopmoe_train.bench import kernels_peers
from loopmoe_train.device.accelerator import accel

Size = Tuple[int, int, int]  # tokens, hidden size, top k
OURS = "ours"
EXPERTS = 256  # of the router and the dispatch
RANKS = 8  # of the exchange behind which rows are put in another order


@dataclass
class Problem:
    """One op on one size.

    Attributes:
        inputs: what is differentiated; none: no backward is timed.
        forward, backward: bytes that a call must read and write at least.
        definition: in plain operations, of the inputs; also compiled.
        call: the op, of the inputs and ``implementation=``.
        peers: of installed packages: name -> function of the inputs.
        own_eager: torch's operations are put together in another way than in the definition.
    """

    op: str
    inputs: List[Tensor]
    forward: int
    backward: int
    definition: Callable[..., Any]
    call: Callable[..., Any]
    peers: Dict[str, Callable[..., Any]] = field(default_factory=dict)
    own_eager: bool = True

    def sides(self, compiled: bool) -> Dict[str, Callable[..., Any]]:
        """What computes it, ours first; then the definition as torch runs it and compiled, the
        version for processors in torch's operations, peers."""
        by_vendor = self.op in ("permute", "combine", "reorder")
        chosen = name_of(self.op, torch.device(accel.device_type), vendor_fits=by_vendor)
        found: Dict[str, Callable[..., Any]] = {OURS: self.call, "definition": self.definition}
        if chosen != "eager" and self.own_eager:
            found["eager"] = lambda *x: self.call(*x, implementation="eager")
        if chosen == "vendor":
            found["triton"] = lambda *x: self.call(*x, implementation="triton")
        if compiled:
            found["compiled"] = torch.compile(self.definition, dynamic=False)
        return {**found, **self.peers}


def problems(size: Size, dtype: torch.dtype) -> Iterator[Problem]:
    """Every op on one size, one at a time: the largest take gigabytes."""
    (tokens, hidden, top_k), device = size, accel.current_device()
    element, rows = dtype.itemsize, tokens * top_k
    experts = max(EXPERTS, top_k) if hidden >= 1024 else max(16, top_k)
    chosen = experts_of("random", tokens, top_k, experts).to(device)
    slots = dispatch_index.dispatch_index(chosen, experts)[0]
    short, long = tokens * hidden * element, rows * hidden * element  # bytes of x and of y

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, device=device).sub_(0.5).to(dtype).requires_grad_()

    def weights() -> Tensor:
        return torch.rand(tokens, top_k, device=device, requires_grad=True)

    yield Problem(
        "permute", [random(tokens, hidden)], short + long + 4 * rows, short + long + 4 * rows,
        lambda x: permute_definition.permute(x, slots, rows),
        lambda x, **named: permute.permute(x, slots, rows, dropless=True, **named),
        kernels_peers.permutes(chosen, experts),
    )  # fmt: skip
    yield Problem(
        "combine", [random(rows, hidden), weights()],
        short + long + 8 * rows, short + 2 * long + 12 * rows,
        lambda y, p: combine_definition.combine(y, slots, p),
        lambda y, p, **named: combine.combine(y, slots, p, dropless=True, **named),
        kernels_peers.combines(chosen, experts),
    )  # fmt: skip
    counts = torch.full((RANKS, experts), rows // (RANKS * experts), device=device)
    counts[0, 0] += rows - counts.sum()
    order = expert_major_index(counts, rows).unsqueeze(1)
    yield Problem(
        "reorder", [random(rows, hidden)], 2 * long + 4 * rows, 2 * long + 4 * rows,
        lambda x: permute_definition.permute(x, order, rows),
        lambda x, **named: permute.permute(x, order, rows, dropless=True, **named),
    )  # fmt: skip
    width = 2048 if hidden >= 4096 else 1024 if hidden >= 2048 else hidden // 2
    part = rows * width * element
    yield Problem(
        "swiglu", [random(rows, 2 * width), weights().detach().flatten().requires_grad_()],
        3 * part + 4 * rows, 5 * part + 8 * rows,
        swiglu_definition.weighted_swiglu, swiglu.weighted_swiglu,
    )  # fmt: skip
    # As the model has them: pieces of one tensor.
    gamma, beta = (x.detach().requires_grad_() for x in random(tokens, 2 * hidden).chunk(2, -1))
    yield Problem(
        "adaln", [random(tokens, hidden), gamma, beta], 4 * short, 5 * short + 4 * tokens,
        lambda *x: adaln_definition.adaln_norm(*x, 1e-6),
        lambda *x, **named: adaln_norm.adaln_norm(*x, 1e-6, **named),
    )  # fmt: skip
    bias, table = torch.rand(experts, device=device), tokens * experts * 4
    logits = torch.randn(tokens, experts, device=device, requires_grad=True)
    yield Problem(
        "router_topk", [logits], table + 8 * rows, 2 * table + 8 * rows,
        lambda x: router_definition.router_topk(x, bias, top_k, 1.0)[0],
        lambda x, **named: router_topk.router_topk(x, bias, top_k, 1.0, **named)[0],
        own_eager=False,
    )  # fmt: skip
    yield Problem(
        "dispatch_index", [], 8 * rows + 8 * experts, 0,
        lambda: dispatch_definition.dispatch_index(chosen, experts),
        lambda **named: dispatch_index.dispatch_index(chosen, experts, **named),
        own_eager=False,
    )  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Two results are equal to rounding (of bf16)."""
    ours, theirs = _tensors(one), _tensors(other)
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and (a.float() - b.float()).norm() <= 2e-2 * a.float().norm() + 1e-9
        for a, b in zip(ours, theirs)
    )


def _tensors(result: Any) -> List[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
