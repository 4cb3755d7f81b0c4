"""One program per token: its row of scores stays in registers while the k best are taken out."""

from typing import Any, Optional, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loopmoe_kernels.launch import check, programs


@triton.jit(do_not_specialize=["tokens", "scale"])
def choose_experts(
    logits_ptr, bias_ptr, weights_ptr, experts_ptr, tokens, scale,
    E: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, KS: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    # Compared as fp32: an NPU compares vectors of integers one by one.
    numbers, places = tl.arange(0, BLOCK).to(tl.float32), tl.arange(0, KS).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    numbers, inside = columns.to(tl.float32), columns < E
    for token in range(tl.program_id(0), tokens, tl.num_programs(0)):
        at = logits_ptr + tl.cast(token, tl.int64) * E + columns
        logits = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        scores = 1.0 / (1.0 + tl.exp(-logits))
        ranked = scores
        if BIASED:
            ranked += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        ranked = tl.where(numbers < E, ranked, float("-inf"))
        chosen = tl.full([KS], 0.0, tl.float32)
        experts = tl.full([KS], 0.0, tl.float32)
        for place in tl.static_range(K):
            # Of equal ones the lowest index; NaN is equal to none and yields BLOCK, a dropped one.
            best = tl.min(tl.where(ranked == tl.max(ranked, 0), numbers, BLOCK), 0)
            score = tl.sum(tl.where(numbers == best, scores, 0.0), 0)
            ranked = tl.where(numbers == best, float("-inf"), ranked)
            chosen = tl.where(places == place, score, chosen)
            experts = tl.where(places == place, best, experts)
        weights = scale * chosen / (tl.sum(chosen, 0) + 1e-20)
        out = tl.arange(0, KS)
        tl.store(weights_ptr + token * K + out, weights, mask=out < K)
        tl.store(experts_ptr + token * K + out, experts.to(tl.int32), mask=out < K)


@triton.jit(do_not_specialize=["tokens", "scale"])
def choose_experts_backward(
    grad_ptr, logits_ptr, experts_ptr, grad_logits_ptr, tokens, scale,
    E: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)
    numbers, inside = columns.to(tl.float32), columns < E
    for token in range(tl.program_id(0), tokens, tl.num_programs(0)):
        origin = tl.cast(token, tl.int64) * E
        logits = tl.load(logits_ptr + origin + columns, mask=inside, other=0.0).to(tl.float32)
        scores = 1.0 / (1.0 + tl.exp(-logits))
        grads = tl.full([BLOCK], 0.0, tl.float32)
        chosen = tl.full([BLOCK], 0.0, tl.float32)
        for place in tl.static_range(K):
            here = numbers == tl.load(experts_ptr + token * K + place).to(tl.float32)
            grads = tl.where(here, tl.load(grad_ptr + token * K + place), grads)
            chosen = tl.where(here, scores, chosen)
        total = tl.sum(chosen, 0) + 1e-20
        along = tl.sum(grads * chosen, 0) / total
        # chosen is zero where nothing was chosen, and so is the gradient.
        grad_logits = scale * (grads - along) / total * chosen * (1.0 - scores)
        kind = grad_logits_ptr.dtype.element_ty
        tl.store(grad_logits_ptr + origin + columns, grad_logits.to(kind), mask=inside)


class _RouterTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, bias: Optional[Tensor], k: int, scale: float
    ) -> Tuple[Tensor, Tensor]:
        check("router_topk", logits)
        (tokens, experts), device = logits.shape, logits.device
        logits = logits.contiguous()
        weights = torch.empty(tokens, k, dtype=torch.float32, device=device)
        chosen = torch.empty(tokens, k, dtype=torch.int32, device=device)
        if tokens:
            block = triton.next_power_of_2(experts)
            choose_experts[programs(tokens)](
                logits, logits if bias is None else bias.contiguous(), weights, chosen, tokens,
                scale, experts, k, block, triton.next_power_of_2(k), bias is not None, num_warps=1,
            )  # fmt: skip
        ctx.save_for_backward(logits, chosen)
        ctx.scale = scale
        ctx.mark_non_differentiable(chosen)
        return weights, chosen

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor, _: Any
    ) -> Tuple[Tensor, None, None, None]:
        logits, chosen = ctx.saved_tensors
        (tokens, experts), k = logits.shape, chosen.shape[1]
        grad_logits = torch.empty_like(logits)
        if tokens:
            block = triton.next_power_of_2(experts)
            choose_experts_backward[programs(tokens)](
                grad.contiguous(), logits, chosen, grad_logits, tokens, ctx.scale, experts, k,
                block, num_warps=1,
            )  # fmt: skip
        return grad_logits, None, None, None


def router_topk(
    logits: Tensor, bias: Optional[Tensor], k: int, scale: float
) -> Tuple[Tensor, Tensor]:
    """See ``loopmoe_kernels.router_topk``."""
    return _RouterTopK.apply(logits, bias, k, scale)
