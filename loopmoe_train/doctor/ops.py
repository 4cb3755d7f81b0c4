"""Every op of loopmoe_kernels on its own cases: against its definition, and against itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List

import torch
from torch import Tensor

from loopmoe_kernels import (
    adaln_norm,
    causal_attention,
    combine,
    dispatch_index,
    expert_major_index,
    permute,
    rms_norm,
    router_topk,
    weighted_swiglu,
)
from loopmoe_kernels.adaln_norm import cases as adaln_cases
from loopmoe_kernels.adaln_norm import reference as adaln_definition
from loopmoe_kernels.causal_attention import cases as attention_cases
from loopmoe_kernels.causal_attention import reference as attention_definition
from loopmoe_kernels.combine import reference as combine_definition
from loopmoe_kernels.dispatch_index import cases as dispatch_cases
from loopmoe_kernels.dispatch_index import reference as dispatch_definition
from loopmoe_kernels.expert_major_index import cases as order_cases
from loopmoe_kernels.expert_major_index import reference as order_definition
from loopmoe_kernels.permute import cases as permute_cases
from loopmoe_kernels.permute import reference as permute_definition
from loopmoe_kernels.rms_norm import cases as rms_cases
from loopmoe_kernels.rms_norm import reference as rms_definition
from loopmoe_kernels.router_topk import cases as router_cases
from loopmoe_kernels.router_topk import reference as router_definition
from loopmoe_kernels.weighted_swiglu import cases as swiglu_cases
from loopmoe_kernels.weighted_swiglu import reference as swiglu_definition

# Largest error of a value or gradient, relative to its norm: a few roundings of the format.
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@dataclass
class Call:
    """One op on one case.

    Attributes:
        inputs: on the processor; those that are floating point are differentiated.
        ours: the op, of the inputs on the device.
        definition: of the inputs, in float64 on the processor.
        device: the only kind that has the op; "": all have it.
    """

    op: str
    case: str
    inputs: List[Tensor]
    ours: Callable[..., Any]
    definition: Callable[..., Any]
    device: str = ""


def calls() -> Iterator[Call]:
    """All ops on all their cases."""
    for make in (_norms, _swiglu, _router, _index, _moves, _attention):
        yield from make()


def errors(call: Call, device: torch.device) -> List[str]:
    """What of the op is not what its definition gives: one sentence each.

    The definition is computed in float64 on the processor, which needs no such format of the
    device.
    """
    ours = _results(call.ours, call.inputs, lambda x: x.to(device))
    exact = _results(call.definition, call.inputs, _exact)
    return [
        f"{call.op} ({call.case}): {name} {why}"
        for (name, mine), (_, wanted) in zip(ours.items(), exact.items())
        if (why := _differs(mine.cpu(), wanted, call.inputs[0].dtype))
    ]


def differs_from_itself(call: Call, device: torch.device) -> bool:
    """Whether the op gives other bits when it is called again."""
    first, second = (_results(call.ours, call.inputs, lambda x: x.to(device)) for _ in range(2))
    return any(not torch.equal(first[name], second[name]) for name in first)


def _results(
    op: Callable[..., Any], inputs: List[Tensor], place: Callable[[Tensor], Tensor]
) -> Dict[str, Tensor]:
    """Values of ``op``, and gradients of what is differentiable."""
    placed = [place(x.clone()) for x in inputs]
    leaves = [x.requires_grad_() for x in placed if x.is_floating_point()]
    out = op(*placed)
    values = [out] if isinstance(out, Tensor) else list(out)
    found = {f"value {number}": value.detach() for number, value in enumerate(values)}
    if values[0].requires_grad:
        generator = torch.Generator().manual_seed(1)
        upstream = torch.randn(values[0].shape, generator=generator)
        values[0].backward(upstream.to(values[0]))
        for number, leaf in enumerate(leaves):
            grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            found[f"gradient {number}"] = grad
    return found


def _exact(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _differs(mine: Tensor, wanted: Tensor, dtype: torch.dtype) -> str:
    if mine.shape != wanted.shape:
        return f"has shape {list(mine.shape)}, not {list(wanted.shape)}"
    if not wanted.is_floating_point():
        wrong = int((mine != wanted).sum())
        return f"has {wrong} wrong entries of {wanted.numel()}" if wrong else ""
    if not torch.isfinite(mine).all():
        return "is not finite"
    error, norm = float((mine.double() - wanted).norm()), float(wanted.norm())
    allowed = _TOLERANCE[dtype] * norm + 1e-12
    return f"is off by {error / max(norm, 1e-30):.1e} of its norm" if error > allowed else ""


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _norms() -> Iterator[Call]:
    for case, (shape, kind) in adaln_cases.CASES.items():
        dtype, scale = getattr(torch, kind), 1e3 if case == "large values" else 1.0
        hidden, gamma, beta = (_random(*shape, seed=seed) for seed in range(3))
        inputs = [(hidden * scale).to(dtype), (gamma * 0.5).to(dtype), (beta * 0.5).to(dtype)]
        yield Call(
            "adaln_norm", case, inputs,
            lambda *x: adaln_norm.adaln_norm(*x, 1e-6),
            lambda *x: adaln_definition.adaln_norm(*x, 1e-6),
        )  # fmt: skip
    for case, (shape, kind) in rms_cases.CASES.items():
        dtype = getattr(torch, kind)
        inputs = [_random(*shape).to(dtype), (1 + 0.5 * _random(shape[-1], seed=1)).to(dtype)]
        yield Call(
            "rms_norm", case, inputs,
            lambda *x: rms_norm.rms_norm(*x, 1e-6),
            lambda *x: rms_definition.rms_norm(*x, 1e-6),
        )  # fmt: skip


def _swiglu() -> Iterator[Call]:
    for case, (rows, width, kind) in swiglu_cases.CASES.items():
        probs = torch.rand(rows, generator=torch.Generator().manual_seed(1))
        inputs = [_random(rows, 2 * width).to(getattr(torch, kind)), probs]
        yield Call(
            "weighted_swiglu", case, inputs, weighted_swiglu.weighted_swiglu,
            swiglu_definition.weighted_swiglu,
        )  # fmt: skip


def _router() -> Iterator[Call]:
    for case, (tokens, experts, k, biased, kind) in router_cases.CASES.items():
        logits = _random(tokens, experts).to(getattr(torch, kind))
        bias = 0.3 * _random(experts, seed=1) if biased else None
        yield Call(
            "router_topk", case, [logits],
            lambda x, k=k, b=bias: router_topk.router_topk(x, _like(b, x), k, 2.5),
            lambda x, k=k, b=bias: router_definition.router_topk(x, b, k, 2.5),
        )  # fmt: skip


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.device)


def _index() -> Iterator[Call]:
    for case, about in dispatch_cases.CASES.items():
        experts = about[3]
        yield Call(
            "dispatch_index", case, [dispatch_cases.experts_of(*about)],
            lambda x, n=experts: dispatch_index.dispatch_index(x, n),
            lambda x, n=experts: dispatch_definition.dispatch_index(x, n),
        )  # fmt: skip
    for case, (table, behind) in order_cases.CASES.items():
        counts = torch.tensor(table)
        rows = int(counts.sum()) + behind
        yield Call(
            "expert_major_index", case, [counts],
            lambda x, n=rows: expert_major_index.expert_major_index(x, n),
            lambda x, n=rows: order_definition.expert_major_index(x, n),
        )  # fmt: skip


def _moves() -> Iterator[Call]:
    for case, (_, width, kind, _) in permute_cases.CASES.items():
        slots, rows, dropless = permute_cases.slots_of(case)
        dtype = getattr(torch, kind)
        promise = {"dropless": dropless}
        yield Call(
            "permute", case, [_random(slots.shape[0], width).to(dtype), slots],
            lambda x, s, n=rows, p=promise: permute.permute(x, s, n, **p),
            lambda x, s, n=rows: permute_definition.permute(x, s, n),
        )  # fmt: skip
        probs = torch.rand(slots.shape, generator=torch.Generator().manual_seed(1))
        yield Call(
            "combine", case, [_random(rows, width).to(dtype), slots, probs],
            lambda y, s, w, p=promise: combine.combine(y, s, w, **p),
            lambda y, s, w: combine_definition.combine(y, s, w),
        )  # fmt: skip


def _attention() -> Iterator[Call]:
    for case, (n, s, d_qk, d_v, *last) in attention_cases.CASES.items():
        queries = last[0] if last else s
        sizes = ((n, queries, d_qk), (n, s, d_qk), (n, s, d_v))
        inputs = [_random(*size, seed=seed) for seed, size in enumerate(sizes)]
        yield Call(
            "causal_attention", case, inputs,
            lambda *x: causal_attention.causal_attention(*x, 0.3),
            lambda *x: attention_definition.causal_attention(*x, 0.3),
            device="cpu",
        )  # fmt: skip
