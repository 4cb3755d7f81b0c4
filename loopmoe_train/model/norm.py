"""RMSNorm for every norm slot outside the loop's conditioning."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from loopmoe_kernels.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """``w * h / sqrt(mean(h^2) + eps)`` over the last dimension.

    Its weight is replicated over tensor-parallel ranks; with sequence parallelism each rank
    sees its own tokens only, and core sums the gradients of parameters marked so.

    Args:
        hidden_size: length of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] -> the same shape."""
        return rms_norm(hidden, self.weight, self.eps)
