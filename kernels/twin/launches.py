"""A launch of every Ascend C kernel with its definition in float64: what the tests and the table
of ``python -m loopmoe_kernels.twin`` run. Shapes are the plan's (op_host/<op>_tiling.h)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple, Union

import torch
from torch import Tensor

from loopmoe_kernels.adaln_norm.reference import adaln_norm as adaln_definition
from loopmoe_kernels.combine.reference import combine as combine_definition
from loopmoe_kernels.permute.reference import permute as permute_definition
from loopmoe_kernels.twin.execute import CORES, UB_BYTES, Report, empty, plan, run
from loopmoe_kernels.twin.library import build
from loopmoe_kernels.weighted_swiglu.reference import weighted_swiglu as swiglu_definition

EPS = 1e-6
_TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}


@dataclass
class Launch:
    """Inputs, outputs to fill, and what the definition says of each.

    ``wanted`` is the float64 value; ``scale`` the sum of the magnitudes of its terms, which is
    what fp32 arithmetic is exact relative to; ``exact`` the outputs that hold bit for bit.
    """

    kernel: str
    shape: Tuple[Union[int, float], ...]
    inputs: Dict[str, Tensor]
    outputs: Dict[str, Tensor]
    wanted: Dict[str, Tensor]
    scale: Dict[str, Tensor] = field(default_factory=dict)
    exact: Dict[str, Tensor] = field(default_factory=dict)

    def run(self, cores: int = CORES, ub_bytes: int = UB_BYTES, strict: bool = True) -> Report:
        kernel = build(self.kernel)
        blocks, tiling = plan(kernel, self.shape, cores, ub_bytes)
        return run(kernel, self.inputs, self.outputs, tiling, blocks, strict)

    def error(self, name: str) -> float:
        """Largest error of an output, 1 being what is allowed: one ulp of its type (fp32: 4) and
        16 roundings of fp32 relative to the magnitude of the terms."""
        out, wanted = self.outputs[name], self.wanted[name]
        if out.numel() == 0:
            return 0.0
        ulps = 1 if out.dtype == torch.bfloat16 else 4
        allowed = ulps * ulp(wanted, out.dtype) + 16 * 2.0**-24 * self.scale.get(name, wanted).abs()
        return float(((out.double() - wanted).abs() / allowed).nan_to_num(nan=float("inf")).max())


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbours of ``dtype`` at each value."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(values.abs().clamp_min(info.tiny))
    return torch.ldexp(torch.full_like(values, info.eps), exponent - 1)


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def weighted_swiglu(rows: int, width: int, dtype: torch.dtype, large: bool = False) -> Launch:
    generator = torch.Generator().manual_seed(rows + width)
    gate_up = (_normal(generator, rows, 2 * width) * (40 if large else 1)).to(dtype)
    probs = torch.rand(rows, generator=generator)
    gate, up = gate_up.double().chunk(2, -1)
    return Launch(
        "weighted_swiglu",
        (rows, width, _TYPE_CODES[dtype], 0),
        {"gate_up": gate_up, "probs": probs},
        {"out": empty(rows, width, dtype=dtype)},
        {"out": swiglu_definition(gate_up.double(), probs.double())},
        # exp(-gate) of a rounded product: its error grows with the gate.
        {"out": gate * up * probs.double()[:, None]},
    )


def weighted_swiglu_grad(rows: int, width: int, dtype: torch.dtype, large: bool = False) -> Launch:
    forward = weighted_swiglu(rows, width, dtype, large)
    grad = _normal(torch.Generator().manual_seed(7), rows, width).to(dtype)
    exact = [x.double().requires_grad_() for x in forward.inputs.values()]
    out = swiglu_definition(*exact)
    grad_gate_up, grad_probs = torch.autograd.grad(out, exact, grad.double())
    gate, up = exact[0].detach().chunk(2, -1)
    weighted = (grad.double() * forward.inputs["probs"].double()[:, None]).abs()
    size = 1 + gate.abs()
    return Launch(
        "weighted_swiglu_grad",
        (rows, width, _TYPE_CODES[dtype], 1),
        {"grad": grad, **forward.inputs},
        {
            "grad_gate_up": empty(rows, 2 * width, dtype=dtype),
            "grad_probs": empty(rows, dtype=torch.float32),
        },
        {"grad_gate_up": grad_gate_up, "grad_probs": grad_probs},
        {
            "grad_gate_up": torch.cat((weighted * up.abs() * size, weighted * gate.abs()), -1),
            "grad_probs": (grad.double() * gate * up).abs().sum(-1),
        },
    )


def routing(tokens: int, top_k: int, kind: str) -> Tuple[Tensor, int]:
    """Slots [T, K] int32 and the number of rows R.

    kind: "random" order, "dropped" (a third are -1), "one" (all to one expert: rows in order),
    "none" (all dropped).
    """
    generator = torch.Generator().manual_seed(tokens * 31 + top_k)
    pairs = tokens * top_k
    kept = torch.ones(pairs, dtype=torch.bool)
    if kind == "dropped":
        kept = torch.rand(pairs, generator=generator) > 1 / 3
    elif kind == "none":
        kept = torch.zeros(pairs, dtype=torch.bool)
    rows = int(kept.sum())
    order = torch.arange(rows) if kind == "one" else torch.randperm(rows, generator=generator)
    slots = torch.full((pairs,), -1, dtype=torch.int32)
    slots[kept] = order.int()
    return slots.view(tokens, top_k), rows


def permute(tokens: int, hidden: int, top_k: int, dtype: torch.dtype, kind: str) -> Launch:
    slots, rows = routing(tokens, top_k, kind)
    x = _normal(torch.Generator().manual_seed(hidden), tokens, hidden).to(dtype)
    out = permute_definition(x, slots, rows)
    return Launch(
        "permute",
        (tokens, hidden * x.element_size(), top_k, rows),
        {"x": x, "slots": slots},
        {"out": empty(rows, hidden, dtype=dtype)},
        {"out": out.double()},
        exact={"out": out},
    )


def combine(
    tokens: int, hidden: int, top_k: int, dtype: torch.dtype, kind: str, weighted: bool = True
) -> Launch:
    slots, rows = routing(tokens, top_k, kind)
    generator = torch.Generator().manual_seed(hidden)
    y = _normal(generator, rows, hidden).to(dtype)
    probs = torch.rand(tokens, top_k, generator=generator)
    weights = probs if weighted else torch.ones_like(probs)
    # The kernel's own order in fp32: rounded the same, so the same bits.
    fp32 = torch.zeros(tokens, hidden)
    for k in range(top_k):
        named = slots[:, k] >= 0
        fp32[named] += y[slots[named, k].long()].float() * weights[named, k, None]
    return Launch(
        "combine",
        (tokens, hidden, top_k, rows, _TYPE_CODES[dtype], int(weighted), 0),
        {"y": y, "slots": slots, "probs": probs if weighted else torch.empty(0)},
        {"out": empty(tokens, hidden, dtype=dtype)},
        {"out": combine_definition(y.double(), slots, weights.double())},
        {"out": combine_definition(y.double().abs(), slots, weights.double())},
        {"out": fp32.to(dtype)},
    )


def combine_grad(tokens: int, hidden: int, top_k: int, dtype: torch.dtype, kind: str) -> Launch:
    forward = combine(tokens, hidden, top_k, dtype, kind)
    y, slots, probs = (forward.inputs[name] for name in ("y", "slots", "probs"))
    grad = _normal(torch.Generator().manual_seed(3), tokens, hidden).to(dtype)
    grad_y = torch.empty(y.shape[0], hidden)
    grad_y64 = torch.empty_like(grad_y, dtype=torch.float64)
    grad_probs, scale = torch.zeros(2, tokens, top_k, dtype=torch.float64)
    for k in range(top_k):
        named = slots[:, k] >= 0
        row = slots[named, k].long()
        grad_y[row] = probs[named, k, None] * grad[named].float()
        grad_y64[row] = probs[named, k, None].double() * grad[named].double()
        product = y[row].double() * grad[named].double()
        grad_probs[named, k], scale[named, k] = product.sum(-1), product.abs().sum(-1)
    return Launch(
        "combine_grad",
        (tokens, hidden, top_k, y.shape[0], _TYPE_CODES[dtype], 1, 1),
        {"grad": grad, "y": y, "slots": slots, "probs": probs},
        {
            "grad_y": empty(y.shape[0], hidden, dtype=dtype),
            "grad_probs": empty(tokens, top_k, dtype=torch.float32),
        },
        {"grad_y": grad_y64, "grad_probs": grad_probs},
        {"grad_probs": scale},
        {"grad_y": grad_y.to(dtype)},
    )


def _adaln_inputs(rows: int, width: int, dtype: torch.dtype, scale: float) -> Dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + width)
    return {
        "hidden": (_normal(generator, rows, width) * scale).to(dtype),
        "gamma": (_normal(generator, rows, width) / 2).to(dtype),
        "beta": (_normal(generator, rows, width) / 2).to(dtype),
    }


def adaln_norm(rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> Launch:
    inputs = _adaln_inputs(rows, width, dtype, scale)
    hidden, gamma, beta = (x.double() for x in inputs.values())
    inverse = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + EPS)
    normed = hidden * inverse
    return Launch(
        "adaln_norm",
        (rows, width, _TYPE_CODES[dtype], 0, EPS),
        inputs,
        {"out": empty(rows, width, dtype=dtype), "inverse": empty(rows, dtype=torch.float32)},
        {"out": adaln_definition(hidden, gamma, beta, EPS), "inverse": inverse[:, 0]},
        {"out": ((1 + gamma.abs()) * normed.abs() + beta.abs()), "inverse": inverse[:, 0]},
    )


def adaln_norm_grad(rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> Launch:
    inputs = _adaln_inputs(rows, width, dtype, scale)
    grad = _normal(torch.Generator().manual_seed(5), rows, width).to(dtype)
    exact = [x.double().requires_grad_() for x in inputs.values()]
    out = adaln_definition(*exact, EPS)
    grad_hidden, grad_gamma, _ = torch.autograd.grad(out, exact, grad.double())
    hidden, gamma, _ = (x.detach() for x in exact)
    inverse = torch.rsqrt(hidden.square().mean(-1, keepdim=True) + EPS)
    normed = hidden * inverse
    size = (grad.double() * (1 + gamma.abs())).abs()
    along_size = (size * normed.abs()).mean(-1, keepdim=True)
    return Launch(
        "adaln_norm_grad",
        (rows, width, _TYPE_CODES[dtype], 1, EPS),
        {
            "grad": grad,
            "hidden": inputs["hidden"],
            "gamma": inputs["gamma"],
            "inverse": inverse[:, 0].float(),
        },
        {
            "grad_hidden": empty(rows, width, dtype=dtype),
            "grad_gamma": empty(rows, width, dtype=dtype),
        },
        {
            "grad_hidden": grad_hidden,
            "grad_gamma": grad_gamma,
        },
        {"grad_hidden": (size + normed.abs() * along_size) * inverse},
    )


def shown(kernel: str) -> Optional[Launch]:
    """The launch of a kernel in the table of ``python -m loopmoe_kernels.twin``."""
    bf16 = torch.bfloat16
    launches = {
        "weighted_swiglu": lambda: weighted_swiglu(768, 1024, bf16),
        "weighted_swiglu_grad": lambda: weighted_swiglu_grad(768, 1024, bf16),
        "permute": lambda: permute(96, 7168, 8, bf16, "random"),
        "combine": lambda: combine(96, 7168, 8, bf16, "random"),
        "combine_grad": lambda: combine_grad(96, 7168, 8, bf16, "random"),
        "adaln_norm": lambda: adaln_norm(96, 7168, bf16),
        "adaln_norm_grad": lambda: adaln_norm_grad(96, 7168, bf16),
    }
    return launches[kernel]() if kernel in launches else None
