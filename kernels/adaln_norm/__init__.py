"""RMSNorm without a scale of its own, modulated per token: ``(1 + gamma) * norm(h) + beta``."""

from typing import Optional

from torch import Tensor

from loopmoe_kernels.registry import pick

__all__ = ["adaln_norm"]


def adaln_norm(
    hidden: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    *,
    implementation: Optional[str] = None,
) -> Tensor:
    """``(1 + gamma) * hidden / sqrt(mean(hidden^2) + eps) + beta``, statistics in fp32.

    Args:
        hidden, gamma, beta: [..., d]; gamma and beta may be pieces of a wider tensor.
        eps: added to the mean square.
        implementation: None: the device's.

    Returns:
        [..., d] in the dtype of ``hidden``.

    Raises:
        ValueError: the three have not one shape.
    """
    if not hidden.shape == gamma.shape == beta.shape:
        raise ValueError(
            f"adaln_norm: hidden {list(hidden.shape)}, gamma {list(gamma.shape)}, beta "
            f"{list(beta.shape)} have not one shape"
        )
    return pick("adaln_norm", hidden.device, implementation)(hidden, gamma, beta, eps)
