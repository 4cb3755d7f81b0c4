"""IterAdaLN: the norm that tells a looped layer which iteration it is in.

arXiv 2606.04438. For a token state h in iteration k:

    v_k = MLP_iter(PE(k))                       one vector per iteration
    c   = Linear(h) + v_k                       token-wise condition
    [gamma, beta, alpha] = Linear0(SiLU(c))     zero-initialised; alpha on attention only
    IterAdaLN(h) = (1 + gamma) * h / sqrt(mean(h^2) + eps) + beta

The attention branch is added as alpha * (...), the MoE branch ungated.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from loopmoe_kernels.adaln_norm import adaln_norm
from loopmoe_train.config.schema import LoopConfig
from loopmoe_train.device.accelerator import accel


def iteration_code(iteration: int, size: int, max_period: float = 10000.0) -> Tensor:
    """PE(k): sinusoid of length ``size``, cosines then sines (DiT's time-step code)."""
    half = size // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
    angles = iteration * frequencies
    return torch.cat([angles.cos(), angles.sin()])


class IterationMLP(nn.Sequential):
    """MLP_iter: Linear -> SiLU -> Linear on PE(k), [code size] -> [width]."""

    def __init__(self, code_size: int, width: int) -> None:
        super().__init__(nn.Linear(code_size, width), nn.SiLU(), nn.Linear(width, width))


class Modulation(NamedTuple):
    """gamma, beta: [..., hidden]; alpha: [..., hidden] or [..., 1], None on the MoE branch."""

    gamma: Tensor
    beta: Tensor
    alpha: Optional[Tensor]


class IterAdaLN(nn.Module):
    """Fits a norm slot: one tensor in, one tensor out.

    Args:
        config: core's configuration.
        hidden_size: d.
        eps: of the RMSNorm, which has no static scale.
        loop: widths and gate kind.
        iteration: k, 1..K, constant for this visit.
        gated: attention branch (computes alpha as well).
        iteration_mlp: MLP_iter owned elsewhere (the attention branch's, or another layer's);
            None: this module owns one.
    """

    def __init__(
        self,
        config: TransformerConfig,
        hidden_size: int,
        eps: float,
        *,
        loop: LoopConfig,
        iteration: int,
        gated: bool,
        iteration_mlp: Optional[IterationMLP] = None,
    ) -> None:
        super().__init__()
        width = loop.bottleneck or hidden_size
        gate = 0 if not gated else hidden_size if loop.gate == "vector" else 1
        self.eps = eps
        self.splits = [hidden_size, hidden_size] + ([gate] if gated else [])
        self.code_size = loop.iteration_code_size
        self.condition = nn.Linear(hidden_size, width)
        self.modulation = nn.Linear(width, sum(self.splits))
        if iteration_mlp is None:
            self.iteration_mlp = IterationMLP(loop.iteration_code_size, width)
        else:
            self.__dict__["iteration_mlp"] = iteration_mlp
        for parameter in self.parameters():
            parameter.data = parameter.data.to(config.params_dtype)
            # Token-wise and replicated: summed over tensor-parallel ranks like a norm's weight.
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.set_iteration(iteration)

    def set_iteration(self, iteration: int) -> None:
        """Fix k for the life of this visit (called once when the visit is built)."""
        self.iteration = iteration
        code = iteration_code(iteration, self.code_size)
        # Not a buffer: a cast of the model to bf16 must not round it.
        self.__dict__["code"] = code.to(accel.current_device())
        self.__dict__["pending_gate"] = None

    def modulate(self, hidden: Tensor) -> Modulation:
        """gamma, beta (and alpha) for states ``hidden`` [..., d]."""
        code = self.code.to(self.condition.weight.dtype)
        condition = F.silu(self.condition(hidden) + self.iteration_mlp(code))
        parts = self.modulation(condition).split(self.splits, dim=-1)
        return Modulation(parts[0], parts[1], parts[2] if len(parts) == 3 else None)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., d] -> [..., d]; a gated one keeps alpha for the residual add of the same visit."""
        gamma, beta, alpha = self.modulate(hidden)
        if alpha is not None:
            self.__dict__["pending_gate"] = (hidden, torch.is_grad_enabled(), alpha)
        return adaln_norm(hidden, gamma, beta, self.eps)

    def gate(self, hidden: Tensor) -> Tensor:
        """alpha for ``hidden``, the tensor this norm was last given.

        It is taken over from :meth:`forward` only if that saw this very tensor in this very
        gradient mode. Otherwise (the norm alone is recomputed in backward, or schedules
        interleave visits) it is computed again: slower, never stale.
        """
        pending, self.__dict__["pending_gate"] = self.__dict__["pending_gate"], None
        if pending is not None:
            seen, grad_enabled, alpha = pending
            if seen is hidden and grad_enabled == torch.is_grad_enabled():
                return alpha
        return self.modulate(hidden).alpha
