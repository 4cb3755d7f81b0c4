"""SwiGLU times the probability in one pass; backward with the probability's gradient in another."""

from typing import Any, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import check, pieces, programs, whole_row


@triton.jit(do_not_specialize=["items"])
def swiglu_rows(
    gate_up_ptr, probs_ptr, out_ptr, items,
    F: tl.constexpr, BLOCK: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        row = item // PIECES
        columns = (item % PIECES) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < F
        gate_at = gate_up_ptr + tl.cast(row, tl.int64) * (2 * F) + columns
        gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(gate_at + F, mask=inside, other=0.0).to(tl.float32)
        prob = tl.load(probs_ptr + row).to(tl.float32)
        out = gate / (1.0 + tl.exp(-gate)) * up * prob
        at = out_ptr + tl.cast(row, tl.int64) * F + columns
        tl.store(at, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def swiglu_rows_backward(
    grad_ptr, gate_up_ptr, probs_ptr, grad_gate_up_ptr, grad_probs_ptr, rows,
    F: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        prob = tl.load(probs_ptr + row).to(tl.float32)
        origin = tl.cast(row, tl.int64) * F
        products = tl.full([BLOCK], 0.0, tl.float32)
        for first in range(0, F, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            inside = columns < F
            gate_at = 2 * origin + columns
            gate = tl.load(gate_up_ptr + gate_at, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(gate_up_ptr + gate_at + F, mask=inside, other=0.0).to(tl.float32)
            grad = tl.load(grad_ptr + origin + columns, mask=inside, other=0.0).to(tl.float32)
            sigmoid = 1.0 / (1.0 + tl.exp(-gate))
            silu = gate * sigmoid
            products += grad * silu * up
            weighted = grad * prob
            slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
            kind = grad_gate_up_ptr.dtype.element_ty
            at = grad_gate_up_ptr + gate_at
            tl.store(at, (weighted * up * slope).to(kind), mask=inside)
            tl.store(at + F, (weighted * silu).to(kind), mask=inside)
        total = tl.sum(products)
        tl.store(grad_probs_ptr + row, total.to(grad_probs_ptr.dtype.element_ty))


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, probs: Tensor) -> Tensor:
        check("weighted_swiglu", gate_up, probs)
        gate_up, probs = gate_up.contiguous(), probs.contiguous()
        ctx.save_for_backward(gate_up, probs)
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        if out.numel():
            block, warps = pieces(width)
            parts = triton.cdiv(width, block)
            swiglu_rows[programs(rows * parts)](
                gate_up, probs, out, rows * parts, width, block, parts, num_warps=warps
            )
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor]:  # type: ignore[override]
        gate_up, probs = ctx.saved_tensors
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        grad_gate_up, grad_probs = torch.empty_like(gate_up), torch.zeros_like(probs)
        if gate_up.numel():
            block, warps = whole_row(width, tensors=3)
            swiglu_rows_backward[programs(rows)](
                grad.contiguous(), gate_up, probs, grad_gate_up, grad_probs, rows, width, block,
                num_warps=warps,
            )  # fmt: skip
        return grad_gate_up, grad_probs


def weighted_swiglu(gate_up: Tensor, probs: Tensor) -> Tensor:
    """See ``loopmoe_kernels.weighted_swiglu``."""
    return _WeightedSwiGLU.apply(gate_up, probs)
