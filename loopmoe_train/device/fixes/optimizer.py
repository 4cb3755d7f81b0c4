"""Repairs of core's distributed optimizer."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from loopmoe_train.device.fixes.fix import CORE, SUPPORTED, Fix, wrap


def _state_before_first_step(module: ModuleType) -> None:
    @wrap("optimizer-state-before-first-step", module.DistributedOptimizer, "state_dict")
    def state_dict(original: Any, self: Any) -> dict[str, Any]:
        inner = self.optimizer
        if isinstance(inner, torch.optim.Optimizer) and not inner.state:
            _initialize_moments(inner)
        return original(self)


def _initialize_moments(optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer create its state without a trace in parameters or step count.

    Core's own `_init_optimizer_states_with_dummy_values` takes a real step: weight decay shrinks
    the parameters once and Adam counts from one.
    """
    settings = [(group["lr"], group.get("weight_decay")) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for group, (rate, decay) in zip(optimizer.param_groups, settings, strict=True):
        group["lr"] = rate
        if decay is not None:
            group["weight_decay"] = decay
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].zero_()


def _state_without_step_key(module: ModuleType) -> None:
    @wrap(
        "optimizer-state-without-step-key",
        module.DistributedOptimizer,
        "_set_main_param_and_optimizer_states",
    )
    def put(original: Any, self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        if not self.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8:
            group, order = self.model_param_group_index_map[model_param]
            state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
            if "step" in state:
                # set by load_state_dict already; it is not a tensor of the checkpoint
                tensors = {"step": state["step"], **tensors}
        with torch.no_grad():
            original(self, model_param, tensors)


def _step_shared_on_resume(module: ModuleType) -> None:
    @wrap("optimizer-step-shared-on-resume", module.DistributedOptimizer, "load_state_dict")
    def load_state_dict(original: Any, self: Any, state_dict: dict[str, Any]) -> None:
        original(self, state_dict)
        for state in self.optimizer.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].detach().clone()


def _step_of_empty_part(module: ModuleType) -> None:
    @wrap("optimizer-step-of-empty-part", module.ChainedOptimizer, "sharded_state_dict")
    def sharded_state_dict(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        parts = [part.optimizer for part in self.chained_optimizers]
        steps = [float(s["step"]) for part in parts for s in part.state.values() if "step" in s]
        empty = [part for part in parts if not any(g["params"] for g in part.param_groups)]
        for part in empty:
            part.state[_NO_PARAMETER] = {"step": torch.tensor(max(steps, default=0.0))}
        try:
            return original(self, *args, **kwargs)
        finally:
            for part in empty:
                del part.state[_NO_PARAMETER]


def _offload_without_te(module: ModuleType) -> None:
    from megatron.core.utils import get_te_version

    @wrap("optimizer-offload-without-te", module, "is_te_min_version")
    def is_te_min_version(original: Any, *args: Any, **kwargs: Any) -> bool:
        return get_te_version() is not None and original(*args, **kwargs)


_NO_PARAMETER: Any = "no parameter"
_DISTRIBUTED_OPTIMIZER = CORE + "optimizer.distrib_optimizer"

FIXES: tuple[Fix, ...] = (
    Fix(
        "optimizer-state-before-first-step",
        _DISTRIBUTED_OPTIMIZER,
        SUPPORTED,
        "state_dict asserts a step count, which a fresh optimizer lacks: loading into it fails.",
        _state_before_first_step,
    ),
    Fix(
        "optimizer-state-without-step-key",
        _DISTRIBUTED_OPTIMIZER,
        SUPPORTED,
        "Loading copies every state of torch's Adam, also `step`, which checkpoints do not hold, "
        "and writes in place to leaves that require gradients.",
        _state_without_step_key,
    ),
    Fix(
        "optimizer-step-shared-on-resume",
        _DISTRIBUTED_OPTIMIZER,
        SUPPORTED,
        "SILENT: after loading all parameters share one step tensor; each step advances it once "
        "per parameter, so Adam's bias correction is wrong from then on.",
        _step_shared_on_resume,
    ),
    Fix(
        "optimizer-step-of-empty-part",
        CORE + "optimizer.optimizer",
        SUPPORTED,
        "The experts' optimizer of a pipeline stage without experts has no parameter whose state "
        "could tell the step that a checkpoint needs: describing it fails.",
        _step_of_empty_part,
    ),
    Fix(
        "optimizer-offload-without-te",
        CORE + "optimizer.optimizer_config",
        SUPPORTED,
        "An optimizer that holds the fp32 weights itself asks for TransformerEngine's version, "
        "which is None without it: TypeError.",
        _offload_without_te,
    ),
)
