"""Names the gradients that are not finite, for the one line that ends a run."""

from __future__ import annotations

from typing import Any, List

import torch
import torch.distributed as dist

from loopmoe_train.model.build import named_weights


def describe_non_finite(model: List[Any]) -> str:
    """First bad parameter of each rank and how many there are; a collective call."""
    bad = [
        name
        for name, parameter in named_weights(model)
        if parameter.requires_grad and not torch.isfinite(parameter.main_grad).all()
    ]
    everywhere: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, (len(bad), bad[0] if bad else ""))
    found = [
        f"rank {rank}: {count} parameters, first {name}"
        for rank, (count, name) in enumerate(everywhere)
        if count
    ]
    return "; ".join(found) or "only the norm of all of them together"
