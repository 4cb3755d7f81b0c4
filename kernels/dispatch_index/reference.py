"""The definition, in plain operations: a stable sort of the pairs (token, k) by expert."""

from typing import Tuple

import torch
from torch import Tensor


def dispatch_index(experts: Tensor, num_experts: int) -> Tuple[Tensor, Tensor]:
    """experts: [T, K]; outside of 0 .. num_experts - 1: dropped -> slots [T, K], counts [E]."""
    pairs = experts.flatten().long()
    dropped = (pairs < 0) | (pairs >= num_experts)
    pairs = pairs.masked_fill(dropped, num_experts)
    order = torch.argsort(pairs, stable=True)
    place = torch.arange(len(pairs), device=pairs.device)
    slots = torch.empty_like(pairs).scatter_(0, order, place).masked_fill_(dropped, -1)
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=pairs.device)
    counts.scatter_add_(0, pairs, torch.ones_like(pairs))
    return slots.view(experts.shape).to(torch.int32), counts[:num_experts]
