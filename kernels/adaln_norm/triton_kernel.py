"""Norm and modulation in one pass; backward in another, from one kept number per token.

gamma and beta may be pieces of a wider tensor (the modulation's output, split): their rows lie a
stride apart and are read in place.
"""

from typing import Any, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import check, programs, whole_row


@triton.jit(do_not_specialize=["rows", "eps"])
def adaln_rows(
    hidden_ptr, gamma_ptr, beta_ptr, out_ptr, inverse_ptr, rows, gamma_stride, beta_stride, eps,
    H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for item in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(item, tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < H
        # Asked for before the sum over the row is waited for.
        x = tl.load(hidden_ptr + row * H + columns, mask=inside, other=0.0).to(tl.float32)
        gamma = tl.load(gamma_ptr + row * gamma_stride + columns, mask=inside, other=0.0)
        beta = tl.load(beta_ptr + row * beta_stride + columns, mask=inside, other=0.0)
        squares = x * x
        for first in range(BLOCK, H, BLOCK):
            rest = tl.load(
                hidden_ptr + row * H + first + columns, mask=first + columns < H, other=0.0
            ).to(tl.float32)  # fmt: skip
            squares += rest * rest
        inverse = 1.0 / tl.sqrt(tl.sum(squares) / H + eps)
        tl.store(inverse_ptr + row, inverse)
        out = x * inverse * (1.0 + gamma.to(tl.float32)) + beta.to(tl.float32)
        kind = out_ptr.dtype.element_ty
        tl.store(out_ptr + row * H + columns, out.to(kind), mask=inside)
        for first in range(BLOCK, H, BLOCK):
            inside = first + columns < H
            x = tl.load(hidden_ptr + row * H + first + columns, mask=inside).to(tl.float32)
            gamma = tl.load(gamma_ptr + row * gamma_stride + first + columns, mask=inside)
            beta = tl.load(beta_ptr + row * beta_stride + first + columns, mask=inside)
            out = x * inverse * (1.0 + gamma.to(tl.float32)) + beta.to(tl.float32)
            tl.store(out_ptr + row * H + first + columns, out.to(kind), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def adaln_rows_backward(
    grad_ptr, hidden_ptr, gamma_ptr, inverse_ptr, grad_hidden_ptr, grad_gamma_ptr, rows,
    gamma_stride, H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    for item in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.cast(item, tl.int64)
        columns = tl.arange(0, BLOCK)
        inside = columns < H
        inverse = tl.load(inverse_ptr + row)
        grad = tl.load(grad_ptr + row * H + columns, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(hidden_ptr + row * H + columns, mask=inside, other=0.0).to(tl.float32)
        gamma = tl.load(gamma_ptr + row * gamma_stride + columns, mask=inside, other=0.0)
        normed = x * inverse
        grad_normed = grad * (1.0 + gamma.to(tl.float32))
        products = grad_normed * normed
        for first in range(BLOCK, H, BLOCK):
            within = first + columns < H
            g = tl.load(grad_ptr + row * H + first + columns, mask=within, other=0.0)
            h = tl.load(hidden_ptr + row * H + first + columns, mask=within, other=0.0)
            m = tl.load(gamma_ptr + row * gamma_stride + first + columns, mask=within, other=0.0)
            scaled = g.to(tl.float32) * (1.0 + m.to(tl.float32))
            products += scaled * (h.to(tl.float32) * inverse)
        # d/dh of h * inverse(h): project out the component along h.
        along = tl.sum(products) / H
        hidden_kind = grad_hidden_ptr.dtype.element_ty
        gamma_kind = grad_gamma_ptr.dtype.element_ty
        at = row * H + columns
        tl.store(grad_gamma_ptr + at, (grad * normed).to(gamma_kind), mask=inside)
        grad_hidden = (grad_normed - normed * along) * inverse
        tl.store(grad_hidden_ptr + at, grad_hidden.to(hidden_kind), mask=inside)
        for first in range(BLOCK, H, BLOCK):
            within = first + columns < H
            at = row * H + first + columns
            g = tl.load(grad_ptr + at, mask=within).to(tl.float32)
            n = tl.load(hidden_ptr + at, mask=within).to(tl.float32) * inverse
            m = tl.load(gamma_ptr + row * gamma_stride + first + columns, mask=within)
            tl.store(grad_gamma_ptr + at, (g * n).to(gamma_kind), mask=within)
            grad_hidden = (g * (1.0 + m.to(tl.float32)) - n * along) * inverse
            tl.store(grad_hidden_ptr + at, grad_hidden.to(hidden_kind), mask=within)


def _rows(x: Tensor) -> Tensor:
    """[..., H] -> [T, H]; a piece of a wider tensor stays where it is."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


class _AdaLNNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        check("adaln_norm", hidden, gamma, beta)
        flat, gamma_rows, beta_rows = _rows(hidden).contiguous(), _rows(gamma), _rows(beta)
        rows, width = flat.shape
        out = torch.empty_like(flat)
        inverse = torch.empty(rows, dtype=torch.float32, device=hidden.device)
        if flat.numel():
            block, warps = whole_row(width, tensors=3)
            adaln_rows[programs(rows)](
                flat, gamma_rows, beta_rows, out, inverse, rows, gamma_rows.stride(0),
                beta_rows.stride(0), eps, width, block, num_warps=warps,
            )  # fmt: skip
        ctx.save_for_backward(flat, gamma_rows, inverse)
        ctx.shape, ctx.beta_dtype = hidden.shape, beta.dtype
        return out.view(hidden.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        hidden, gamma, inverse = ctx.saved_tensors
        rows, width = hidden.shape
        flat = grad.reshape(-1, width).contiguous()
        grad_hidden = torch.empty_like(hidden)
        grad_gamma = torch.empty(hidden.shape, dtype=gamma.dtype, device=gamma.device)
        if hidden.numel():
            block, warps = whole_row(width, tensors=3)
            adaln_rows_backward[programs(rows)](
                flat, hidden, gamma, inverse, grad_hidden, grad_gamma, rows, gamma.stride(0),
                width, block, num_warps=warps,
            )  # fmt: skip
        shape = ctx.shape
        return grad_hidden.view(shape), grad_gamma.view(shape), grad.to(ctx.beta_dtype), None


def adaln_norm(hidden: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """See ``loopmoe_kernels.adaln_norm``."""
    return _AdaLNNorm.apply(hidden, gamma, beta, eps)
