"""The definition, in plain operations."""

import torch
from torch import Tensor


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """``softmax(scale * q k^T, keys up to the query's position) v``.

    query: [n, q, d_qk], of the last q <= s positions; key: [n, s, d_qk]; value: [n, s, d_v]
    -> [n, q, d_v].
    """
    queries, keys = query.shape[1], key.shape[1]
    later = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
    later = later.triu(1 + keys - queries)
    scores = (query @ key.transpose(1, 2) * scale).masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ value
