"""The definition, in plain operations. Differentiable in the logits."""

from typing import Optional, Tuple

import torch
from torch import Tensor


def router_topk(
    logits: Tensor, bias: Optional[Tensor], k: int, scale: float
) -> Tuple[Tensor, Tensor]:
    """logits: [T, E]; bias: [E] or None -> weights [T, k], experts [T, k]."""
    scores = torch.sigmoid(logits.to(torch.promote_types(logits.dtype, torch.float32)))
    ranked = scores.detach() if bias is None else scores.detach() + bias
    # A stable sort: of equal ones the lower index comes first.
    experts = torch.sort(ranked, dim=-1, descending=True, stable=True).indices[:, :k]
    chosen = scores.gather(1, experts)
    weights = scale * chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
    return weights, experts.to(torch.int32)
