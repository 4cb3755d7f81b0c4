"""Causal or masked attention on one rank: torch's scaled_dot_product_attention, or on a processor
our blocks. Needs no megatron.core."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from loopmoe_kernels.causal_attention import MAX_LENGTH, causal_attention


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Optional[Tensor] = None,
    dropout: float = 0.0,
    scale: Optional[float] = None,
) -> Tensor:
    """Attend on this rank alone; the queries are the last ones of the keys' tokens.

    Args:
        query: [q, b, heads, d_qk].
        key, value: [s, b, groups, d], s >= q.
        mask: None for causal, else bool [b, 1, q, s], True = not attended.
        scale: factor on the scores; None: 1 / sqrt(d_qk).

    Returns:
        [q, b, heads * d_v].
    """
    length, b, heads, _ = query.shape
    q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    seen = k.shape[2]
    plain = mask is None and not dropout and k.shape[1] == heads
    if q.is_cpu and plain and seen <= MAX_LENGTH and q.dtype == torch.float32:
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        out = causal_attention(*(x.flatten(0, 1) for x in (q, k, v)), factor)
        out = out.view(b, heads, length, -1)
    else:
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=_last_causal(q, seen) if mask is None else ~mask,
            dropout_p=dropout,
            is_causal=mask is None and seen == length,
            scale=scale,
            enable_gqa=k.shape[1] != heads,
        )
    return out.permute(2, 0, 1, 3).reshape(length, b, heads * v.shape[-1])


def _last_causal(query: Tensor, seen: int) -> Optional[Tensor]:
    """Mask of queries [b, heads, q, d], the last of ``seen`` tokens; None: they are all.

    torch's ``is_causal`` would take them for the first ones. Its lower-right bias spares the
    fused kernels of an accelerator the mask; a processor's kernel needs it.
    """
    length = query.shape[2]
    if length == seen:
        return None
    if query.is_cpu:
        return torch.ones(length, seen, dtype=torch.bool).tril(seen - length)
    return causal_lower_right(length, seen)
