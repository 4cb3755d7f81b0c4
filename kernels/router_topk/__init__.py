"""The router's choice: sigmoid scores, the k best with a bias, weights without it."""

from typing import Optional, Tuple

from torch import Tensor

from loopmoe_kernels.registry import pick

__all__ = ["router_topk"]


def router_topk(
    logits: Tensor,
    bias: Optional[Tensor],
    k: int,
    scale: float = 1.0,
    *,
    implementation: Optional[str] = None,
) -> Tuple[Tensor, Tensor]:
    """The k experts with the largest ``sigmoid(logits) + bias``; of equal ones the lower index.

    Args:
        logits: [T, E], fp32, bf16 or fp16.
        bias: [E] or None; takes part in the choice alone and gets no gradient.
        k: experts of a token, 1 .. E.
        scale: sum of a token's weights.
        implementation: None: the device's.

    Returns:
        weights: [T, k] fp32, the scores of the chosen over their sum (+ 1e-20), times ``scale``.
        experts: [T, k] int32, best first.

    Raises:
        ValueError: shapes do not fit, or k is not 1 .. E.
    """
    if logits.dim() != 2 or not 1 <= k <= logits.shape[1]:
        raise ValueError(f"router_topk: k={k} of logits {list(logits.shape)}, not [T, E >= k]")
    if bias is not None and bias.shape != logits.shape[1:]:
        raise ValueError(f"router_topk: bias {list(bias.shape)} beside {logits.shape[1]} experts")
    return pick("router_topk", logits.device, implementation)(logits, bias, k, scale)
