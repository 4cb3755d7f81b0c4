"""SwiGLU of routed experts with the router's probability inside: ``silu(gate) * up * p``."""

from typing import Optional

from torch import Tensor

from loopmoe_kernels.registry import pick

__all__ = ["weighted_swiglu"]


def weighted_swiglu(
    gate_up: Tensor, probs: Tensor, *, implementation: Optional[str] = None
) -> Tensor:
    """``silu(gate) * up * p``; keeps its inputs only.

    Args:
        gate_up: [T, 2f], gate then up.
        probs: [T], the router's weight of each row.
        implementation: None: the device's.

    Returns:
        [T, f] in the dtype of ``gate_up``.

    Raises:
        ValueError: shapes do not fit.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or probs.shape != gate_up.shape[:1]:
        raise ValueError(
            f"weighted_swiglu: {list(gate_up.shape)} and probs {list(probs.shape)}, not [T, 2f] "
            "and [T]"
        )
    return pick("weighted_swiglu", gate_up.device, implementation)(gate_up, probs)
