"""The definition, in plain operations."""

import torch.nn.functional as F
from torch import Tensor


def weighted_swiglu(gate_up: Tensor, probs: Tensor) -> Tensor:
    """``silu(gate) * up * p``: [T, 2f] (gate | up) and [T] -> [T, f]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up * probs.unsqueeze(-1).to(gate_up.dtype)
