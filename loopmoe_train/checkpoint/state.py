"""What a checkpoint holds on each rank: weights, optimizer, schedule, random numbers, position."""

from __future__ import annotations

from typing import Any, Dict, List

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from loopmoe_train.device.accelerator import accel
from loopmoe_train.model.build import bare, unique_name


def capture(
    model: List[Any],
    optimizer: ChainedOptimizer,
    scheduler: OptimizerParamScheduler,
    prefixes: Dict[str, str],
    position: Dict[str, int],
) -> Dict[str, Any]:
    """This rank's state; weights are named by unique layer.

    Args:
        prefixes: from ``layer_names``.
        position: step and consumed samples.
    """
    return {
        "model": [
            {unique_name(k, prefixes): v for k, v in bare(chunk).state_dict().items()
             if isinstance(v, torch.Tensor)}
            for chunk in model
        ],
        "optimizer": [_optimizer_state(part) for part in optimizer.chained_optimizers],
        "scheduler": scheduler.state_dict(),
        "rng": {
            "host": torch.get_rng_state(),
            "device": accel.rng_state(),
            "tracker": dict(get_cuda_rng_tracker().get_states()),
        },
        "position": position,
    }  # fmt: skip


def restore(
    state: Dict[str, Any],
    model: List[Any],
    optimizer: ChainedOptimizer,
    scheduler: OptimizerParamScheduler,
    prefixes: Dict[str, str],
) -> Dict[str, int]:
    """Put a captured state back; returns the position."""
    for chunk, saved in zip(model, state["model"]):
        module = bare(chunk)
        named = {k: saved[unique_name(k, prefixes)] for k, v in module.state_dict().items()
                 if isinstance(v, torch.Tensor)}  # fmt: skip
        # Core leaves non-tensor "_extra_state" entries, which hold nothing here.
        missing, unexpected = module.load_state_dict(named, strict=False)
        real = [k for k in missing if not k.endswith("_extra_state")]
        if real or unexpected:
            raise RuntimeError(f"weights do not fit: missing {real}, unexpected {unexpected}")
    for part, saved in zip(optimizer.chained_optimizers, state["optimizer"]):
        _restore_optimizer(part, saved)
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"]["host"])
    accel.set_rng_state(state["rng"]["device"])
    get_cuda_rng_tracker().set_states(state["rng"]["tracker"])
    return state["position"]


def _optimizer_state(part: Any) -> Dict[str, Any]:
    if isinstance(part, DistributedOptimizer):
        shards = [part._get_main_param_and_optimizer_states(p) for p in _parameters(part)]
        return {"common": part.state_dict(), "shards": shards}
    return {"common": part.state_dict()}


def _restore_optimizer(part: Any, saved: Dict[str, Any]) -> None:
    part.load_state_dict(saved["common"])
    for parameter, tensors in zip(_parameters(part), saved.get("shards", [])):
        part._set_main_param_and_optimizer_states(parameter, tensors)


def _parameters(part: DistributedOptimizer) -> List[torch.nn.Parameter]:
    """Parameters of which this rank holds a shard, in the optimizer's order."""
    return list(part.model_param_group_index_map)
