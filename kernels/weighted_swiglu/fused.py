"""One autograd node: keeps only its inputs, so the experts' output need not be kept for the
router's gradient (the probability enters before the second matrix)."""

from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _WeightedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, probs: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, probs)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up).mul_(probs.unsqueeze(-1).to(gate_up.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor]:  # type: ignore[override]
        gate_up, probs = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        weighted = grad * probs.unsqueeze(-1).to(grad.dtype)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(weighted, activated, out=grad_up)
        activated.mul_(up)
        grad_probs = torch.linalg.vecdot(grad.float(), activated.float()).to(probs.dtype)
        grad_gate.copy_(torch.ops.aten.silu_backward(weighted.mul_(up), gate))
        return grad_gate_up, grad_probs


def weighted_swiglu(gate_up: Tensor, probs: Tensor) -> Tensor:
    """See ``loopmoe_kernels.weighted_swiglu``."""
    return _WeightedSwiGLU.apply(gate_up, probs)
