"""The definition, in plain operations."""

import torch
from torch import Tensor


def permute(x: Tensor, slots: Tensor, rows: int, dropless: bool = False) -> Tensor:
    """``out[slots[t, k]] = x[t]``; rows that no slot names are zero.

    x: [T, H]; slots: [T, K], -1: dropped -> [rows, H].
    """
    tokens, top_k = slots.shape
    target = torch.where(slots < 0, rows, slots).flatten().long()
    token = torch.arange(tokens, device=x.device).repeat_interleave(top_k)
    nothing = torch.full((rows + 1,), tokens, device=x.device)  # the row of zeros below
    source = nothing.scatter(0, target, token)[:rows]
    return torch.cat([x, x.new_zeros(1, x.shape[1])])[source]
