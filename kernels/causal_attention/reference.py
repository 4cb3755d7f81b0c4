"""The definition, in plain operations."""

import torch
from torch import Tensor


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """``softmax(scale * q k^T, keys up to the query's position) v``.

    query, key: [n, s, d_qk]; value: [n, s, d_v] -> [n, s, d_v].
    """
    length = query.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    scores = (query @ key.transpose(1, 2) * scale).masked_fill(later, float("-inf"))
    return scores.softmax(-1) @ value
