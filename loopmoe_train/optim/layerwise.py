"""Optimizers spread over data-parallel ranks by whole parameters.

Muon needs whole matrices, so states cannot be sharded by ranges of a flat buffer as core's
distributed optimizer shards Adam's. Here each parameter has one owner among the ranks that hold
it: dense ones in the data-parallel group, experts in the expert-data-parallel group. Core's DDP
all-reduces gradients; the owner alone keeps states (and the fp32 copy of a bf16 weight) and
updates; then the owners share the weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
)
from megatron.core.optimizer import (
    ChainedOptimizer,
    Float16OptimizerWithFloat16Params,
    FP32Optimizer,
    MegatronOptimizer,
    OptimizerConfig,
)
from torch import Tensor

from loopmoe_train.optim.ownership import Owned

_MASTER = "fp32_param"  # core's name of the fp32 copy in a checkpoint


def part(inner: torch.optim.Optimizer, config: OptimizerConfig) -> MegatronOptimizer:
    """``inner`` over this rank's own parameters, with core's handling of gradients and of the
    fp32 copies of bf16 weights."""
    wrapped: MegatronOptimizer
    if config.bf16:
        wrapped = Float16OptimizerWithFloat16Params(inner, config, None, _fill_state)
    else:
        wrapped = FP32Optimizer(inner, config, _fill_state)
    # Every gradient counts on one rank, its owner: the norm is a sum over all ranks.
    wrapped.grad_stats_parallel_group = None
    return wrapped


def _fill_state(inner: Any, config: Any = None) -> None:
    """Zero states where there are none yet, so that a checkpoint finds a place for its own."""
    for group in inner.param_groups:
        for parameter in group["params"]:
            inner.state_of(parameter)


class AdamW(torch.optim.AdamW):
    """torch's AdamW, which can make a parameter's state before its first step."""

    def state_of(self, parameter: Tensor) -> Dict[str, Tensor]:
        """The parameter's state, made at first use."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


class LayerwiseOptimizer(ChainedOptimizer):
    """Core's chain of optimizers, followed by the exchange of what the owners have updated.

    Args:
        parts: from :func:`part`, one per kind of optimizer.
        owned: the parameters of all parts; a part's inner optimizer holds ``mine`` of its own.
    """

    def __init__(self, parts: List[MegatronOptimizer], owned: Sequence[Owned]) -> None:
        super().__init__(parts)
        self.owned = list(owned)

    @torch.no_grad()
    def step_with_ready_grads(self) -> bool:
        """Update what this rank owns, then share; a collective call."""
        done = super().step_with_ready_grads()
        for parameters in self.owned:
            parameters.share()
        return done

    def sharded_state_dict(
        self,
        model_sharded_state_dict: Dict[str, Any],
        is_loading: bool = False,
        metadata: Optional[Dict[str, Any]] = None,
    ) -> Dict[str, Any]:
        """States as sharded tensors named and placed like their parameters; a collective call.

        So a checkpoint fits any number of data- and expert-parallel ranks, however the
        parameters are owned then.

        Args:
            model_sharded_state_dict: the model's, made of its own parameters (``keep_vars``).
            is_loading: the tensors only name the places to fill (new states are zero).
            metadata: of core's interface; nothing here depends on it.

        Raises:
            ValueError: a parameter is missing from ``model_sharded_state_dict``.
        """
        states: Dict[str, Any] = {}
        for number, one in enumerate(self.chained_optimizers):
            one.init_state_fn(one.optimizer, one.config)
            pairs = list(_weights(one))
            homes = get_param_id_to_sharded_param_map(
                model_sharded_state_dict, [weight for weight, _ in pairs]
            )
            for index, (weight, master) in enumerate(pairs):
                if index not in homes:
                    raise ValueError(f"a parameter {tuple(weight.shape)} has no sharded tensor")
                home = replace(homes[index], replica_id=_owner(homes[index].replica_id))
                for key, value in _tensors(one, weight, master):
                    states[f"{number}.{index}.{key}"] = make_sharded_optimizer_tensor(
                        home, value, prefix=f"optimizer.state.{key}"
                    )
        return {"layerwise": states, "adam_step": self._adam_step()}

    def load_state_dict(self, state_dict: Any) -> None:
        """Take a loaded :meth:`sharded_state_dict`, or this rank's own ``state_dict``."""
        if not isinstance(state_dict, dict) or "layerwise" not in state_dict:
            super().load_state_dict(state_dict)
            return
        with torch.no_grad():
            for number, one in enumerate(self.chained_optimizers):
                one.init_state_fn(one.optimizer, one.config)
                for index, (weight, master) in enumerate(_weights(one)):
                    for key, value in _tensors(one, weight, master):
                        value.copy_(state_dict["layerwise"][f"{number}.{index}.{key}"])
                    if "step" in one.optimizer.state[master]:
                        one.optimizer.state[master]["step"].fill_(state_dict["adam_step"])

    def _adam_step(self) -> int:
        """Adam's step, the same for all parameters; a rank may own none."""
        steps = [0]
        for one in self.chained_optimizers:
            steps += [int(s["step"]) for s in one.optimizer.state.values() if "step" in s]
        everywhere: List[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, max(steps))
        return max(everywhere)


def _owner(replica_id: Any) -> Any:
    """The last index of a replica counts copies over data-parallel ranks; only the owner's is."""
    return (*replica_id[:-1], 0) if isinstance(replica_id, tuple) else 0


def _weights(one: MegatronOptimizer) -> Iterator[Tuple[Tensor, Tensor]]:
    """(model's weight, tensor that the inner optimizer updates) of this rank, in a fixed order."""
    model_of = {}
    for weights, masters in zip(
        getattr(one, "float16_groups", []), getattr(one, "fp32_from_float16_groups", [])
    ):
        model_of.update(zip(masters, weights))
    for parameter in one.get_parameters():
        yield model_of.get(parameter, parameter), parameter


def _tensors(one: Any, weight: Tensor, master: Tensor) -> Iterator[Tuple[str, Tensor]]:
    """(name, tensor) of what a checkpoint keeps for one parameter beside the weight itself."""
    if master is not weight:
        yield _MASTER, master
    for key, value in one.optimizer.state[master].items():
        if key != "step":
            yield key, value
