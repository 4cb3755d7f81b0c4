"""Blocks of queries against the keys they may see, in matrix products of torch.

torch's fused attention on a processor computes the masked half too when the sequence is
shorter than its key block (512), and computes the scores again in backward. Here a block of
queries meets only the keys up to its end, and the probabilities are kept: n * s^2 / 2 numbers,
which is why long sequences are left to torch's.

Queries may be the last ones only (a rank of context parallelism holds a piece of the sequence).
"""

from typing import Any, Tuple

import torch
from torch import Tensor

BLOCK = 64
MAX_LENGTH = 1024


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out = torch.empty((*query.shape[:2], value.shape[2]), dtype=query.dtype)
        later = torch.full((BLOCK, BLOCK), float("-inf"), dtype=query.dtype).triu(1)
        before = key.shape[1] - query.shape[1]
        probabilities = []
        for start, end in _blocks(query.shape[1]):
            seen = before + end
            scores = torch.bmm(query[:, start:end] * scale, key[:, :seen].transpose(1, 2))
            scores[:, :, before + start :].add_(later[: end - start, : end - start])
            probabilities.append(scores.softmax(-1))
            torch.bmm(probabilities[-1], value[:, :seen], out=out[:, start:end])
        ctx.save_for_backward(query, key, value, *probabilities)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        query, key, value, *probabilities = ctx.saved_tensors
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        before = key.shape[1] - query.shape[1]
        for (start, end), probs in zip(_blocks(query.shape[1]), probabilities):
            above, seen = grad[:, start:end], before + end
            grad_value[:, :seen].baddbmm_(probs.transpose(1, 2), above)
            grad_probs = torch.bmm(above, value[:, :seen].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
            torch.bmm(grad_scores, key[:, :seen], out=grad_query[:, start:end])
            grad_key[:, :seen].baddbmm_(
                grad_scores.transpose(1, 2), query[:, start:end], alpha=ctx.scale
            )
        return grad_query.mul_(ctx.scale), grad_key, grad_value, None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """``softmax(scale * q k^T, keys up to the query's position) v``.

    Args:
        query: [n, q, d_qk] float32, n: batch times heads; the last q <= s positions.
        key: [n, s, d_qk].
        value: [n, s, d_v].
        scale: factor on the scores.

    Returns:
        [n, q, d_v].
    """
    return _BlockedAttention.apply(query, key, value, scale)


def _blocks(length: int) -> list[Tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
