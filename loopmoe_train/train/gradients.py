"""Names the gradients that are not finite, for the one line that ends a run."""

from __future__ import annotations

from typing import Any, Callable, List, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from loopmoe_train.model.build import named_weights


def _main_grad(parameter: Any) -> Optional[Tensor]:
    return parameter.main_grad if parameter.requires_grad else None


def describe_non_finite(
    model: List[Any], gradient_of: Callable[[Any], Optional[Tensor]] = _main_grad
) -> str:
    """First bad parameter of each rank and how many there are; a collective call.

    Args:
        gradient_of: a parameter's gradient, None without one; where core's DistributedDataParallel
            keeps it unless something else does.
    """
    bad = [
        name
        for name, parameter in named_weights(model)
        if (gradient := gradient_of(parameter)) is not None and not torch.isfinite(gradient).all()
    ]
    everywhere: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, (len(bad), bad[0] if bad else ""))
    found = [
        f"rank {rank}: {count} parameters, first {name}"
        for rank, (count, name) in enumerate(everywhere)
        if count
    ]
    return "; ".join(found) or "only the norm of all of them together"
