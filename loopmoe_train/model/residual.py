"""The bias-dropout-add slot: output norm (sandwich norm), gate, residual add."""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from loopmoe_train.model.iter_adaln import IterAdaLN

WithBias = Tuple[Tensor, Optional[Tensor]]


class ResidualAdd(nn.Module):
    """``residual + alpha * dropout(norm(x + bias))`` in core's bias-dropout-add slot.

    Args:
        output_norm: the second norm of the sandwich, or None.
        gated_by: the visit's IterAdaLN that gives alpha, or None for no gate. Held
            unregistered: it belongs to the norm slot.
    """

    def __init__(self, output_norm: Optional[nn.Module], gated_by: Optional[IterAdaLN]) -> None:
        super().__init__()
        self.output_norm = output_norm
        self.__dict__["gated_by"] = gated_by

    def forward(self, training: bool, fused: bool) -> Callable[[WithBias, Tensor, float], Tensor]:
        """Core asks for the function with these two flags; there is one function here."""

        def add(x_with_bias: WithBias, residual: Tensor, dropout: float) -> Tensor:
            x, bias = x_with_bias
            if bias is not None:
                x = x + bias
            if self.output_norm is not None:
                x = self.output_norm(x)
            if dropout:
                x = F.dropout(x, dropout, training)
            gated_by = self.__dict__["gated_by"]
            if gated_by is None:
                return residual + x
            return residual.addcmul(gated_by.gate(residual), x)

        return add
