"""Core's optimizers describe the same state in three forms; here any is read as any other.

Keys and values of the moments are equal. What differs: the distributed optimizer names its fp32
weights ``param`` and tells the step in its groups; the one for 16-bit weights names them
``fp32_param``; the one for fp32 weights has no second copy. The latter two keep the step apart.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, TypeVar

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, FP32Optimizer

_WEIGHTS = ("optimizer.state.param.", "optimizer.state.fp32_param.", "")
T = TypeVar("T")


def stored(found: Mapping[str, List[T]], key: str) -> List[T]:
    """What is stored under ``key``, or under the name that another optimizer gives it."""
    if key in found:
        return found[key]
    prefix = next((one for one in _WEIGHTS[:2] if key.startswith(one)), None)
    if prefix is not None:
        for other in _WEIGHTS:
            if other + key[len(prefix) :] in found:
                return found[other + key[len(prefix) :]]
    return []


def in_form_of(optimizer: Any, state: Any) -> Any:
    """The values that all ranks share, in the form that ``optimizer`` reads.

    Args:
        state: of one optimizer, or of a chain by number, in any form.
    """
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    if len(parts) == 1:
        return _converted(parts[0], state)
    if set(state) != set(range(len(parts))):
        return state  # of a chain with a form of its own, as Muon's
    return {place: _converted(part, state[place]) for place, part in enumerate(parts)}


def _converted(optimizer: Any, state: Dict[str, Any]) -> Dict[str, Any]:
    inner = state.get("optimizer", state)
    groups = inner.get("param_groups")
    if groups is None:
        return state
    is_distributed = "state" not in inner
    wants_distributed = isinstance(optimizer, DistributedOptimizer)
    known = (DistributedOptimizer, Float16OptimizerWithFloat16Params, FP32Optimizer)
    nested = not isinstance(optimizer, FP32Optimizer)
    if not isinstance(optimizer, known) or (
        is_distributed == wants_distributed and ("optimizer" in state) == nested
    ):
        return state
    step = inner.get("state", {}).get("common_step")
    if step is None:
        step = next((group["step"] for group in groups if "step" in group), 0.0)
    plain = [{k: v for k, v in group.items() if k not in ("step", "params")} for group in groups]
    if wants_distributed:
        told = [{**group, "step": float(step)} for group in plain]
        return {
            "optimizer": {"param_groups": told},
            "param_state_sharding_type": "fully_reshardable",
        }
    # No step, no entry: as core, which has none before the first one.
    common = {"common_step": torch.tensor(float(step))} if float(step) else {}
    apart = {"state": common, "param_groups": plain}
    return {"optimizer": apart} if nested else apart
