"""Muon: momentum, then a step along the nearest orthogonal matrix (Jordan et al. 2024).

For a matrix W [n, m] with gradient G:

    M = momentum * M + (1 - momentum) * G
    D = (1 - momentum) * G + momentum * M         (Nesterov; else D = M)
    W = W - lr * weight_decay * W - lr * update_rms * sqrt(max(n, m)) * orthogonalize(D)

An orthogonal [n, m] has RMS 1 / sqrt(max(n, m)), so an update has RMS ``update_rms * lr``
whatever the shape: with 0.2 that of a typical AdamW step, and the two share one learning rate
and weight decay (Moonlight, arXiv 2502.16982, section 2.2).
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, Optional

import torch
from torch import Tensor

from loopmoe_train.optim.newton_schulz import orthogonalize

# Set on a parameter whose rows hold several matrices one after the other (gate and up).
STACKED = "stacked_matrices"


def as_matrices(tensor: Tensor, stacked: int = 1) -> Tensor:
    """A view of a weight as the matrices it holds, [..., n, m].

    Args:
        tensor: [n, m]; a stack of expert matrices [E, n, m]; or experts' gate and up
            [E, d, 2, f] -> [E, 2, d, f].
        stacked: matrices that lie one after the other in the rows: [stacked * n, m] ->
            [stacked, n, m].
    """
    if tensor.ndim == 4:
        return tensor.movedim(2, 1)
    return tensor.unflatten(0, (stacked, -1)) if stacked > 1 else tensor


class Muon(torch.optim.Optimizer):
    """Over weights that are matrices, or stacks of them (:func:`as_matrices`).

    Args:
        params: parameters or parameter groups; gradients are fp32.
        lr, weight_decay, momentum, nesterov, update_rms: see the module.
        steps: of Newton-Schulz.
        dtype: of its matrix products; None: that of the gradient.

    State per parameter: ``momentum_buffer``, of the parameter's shape.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = 5,
        update_rms: float = 0.2,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))
        # Not in the groups: a checkpoint must not bring old settings back.
        self.momentum = momentum
        self.nesterov = nesterov
        self.steps = steps
        self.update_rms = update_rms
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; gradients stay as they are."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        buffer = self.state_of(parameter)["momentum_buffer"]
        buffer.lerp_(parameter.grad, 1 - self.momentum)
        direction = parameter.grad.lerp(buffer, self.momentum) if self.nesterov else buffer
        stacked = getattr(parameter, STACKED, 1)
        matrices = as_matrices(direction, stacked)
        update = orthogonalize(matrices, self.steps, self.dtype)
        scale = self.update_rms * math.sqrt(max(matrices.shape[-2:]))
        parameter.mul_(1 - lr * weight_decay)
        as_matrices(parameter, stacked).sub_(update, alpha=lr * scale)

    def state_of(self, parameter: Tensor) -> Dict[str, Tensor]:
        """The parameter's state, made at first use."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state
