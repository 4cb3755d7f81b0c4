"""DeepSpeed's ZeRO optimizer with the interface of core's (engine=deepspeed).

Its gradients are means over the ranks of sums over tokens; its loss scale, by which a step divides
them, is set to tokens of the global batch / ranks, which leaves the mean over tokens that core
makes. States are named and stored like those of core's distributed optimizer, so that a
checkpoint fits either engine and any number of ranks.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
)
from torch import Tensor

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.model.build import build_chunks, named_weights
from loopmoe_train.optim.zero_engine import ZeroChunk, build_engine, mark_groups, name_device

#: DeepSpeed's key of a state (None: the fp32 weight) -> its name in a checkpoint
_STATES = {None: "param", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
#: What core's optimizers store of a parameter group.
_TOLD = (
    "lr", "betas", "eps", "weight_decay", "wd_mult", "lr_mult", "max_lr", "min_lr",
    "is_expert_parallel", "is_decoupled_lr", "default_config",
)  # fmt: skip


class ZeroOptimizer:
    """What a step, the schedule and checkpoints ask of an optimizer.

    Attributes:
        chained_optimizers: none: nothing to clip from outside, DeepSpeed's step clips by the norm
            of all parameters (``gradient_clipping`` of its settings).
    """

    chained_optimizers: Tuple[Any, ...] = ()

    def __init__(self, chunk: ZeroChunk) -> None:
        self._chunk = chunk
        self._zero = chunk.module.optimizer
        self._is_stage_3 = chunk.module.zero_optimization_stage() == 3
        self._make_states()

    @property
    def param_groups(self) -> List[Dict[str, Any]]:
        """Those of the optimizer inside."""
        groups: List[Dict[str, Any]] = self._zero.optimizer.param_groups
        return groups

    def scale_loss(self, loss: Tensor) -> Tensor:
        """fp32 and bf16 need no loss scale in backward."""
        return loss

    def zero_grad(self) -> None:
        """Clear the gradients of the model."""
        self._zero.zero_grad()

    def prepare_grads(self) -> bool:
        """Finish the reduction of a batch's gradients; a collective call."""
        engine = self._chunk.module
        engine.complete = True
        try:
            if engine.zero_optimization_partition_gradients():
                self._zero.finalize_gradient_accumulation_boundary()
            else:
                engine.allreduce_gradients()
        finally:
            engine.complete = False
        self._zero.loss_scale = 1 / (self._chunk.scale * dist.get_world_size())
        return False

    def get_grad_norm(self) -> float:
        """Norm [] of the mean gradient over all parameters, experts of all ranks among them;
        infinite if a gradient is not finite. A collective call."""
        from deepspeed.runtime.utils import combine_grad_norm_groups, is_invalid_grad_norm

        if self._is_stage_3:
            norm = combine_grad_norm_groups(self._zero._get_norm_groups())
        else:
            norm = self._zero.scaled_global_norm()
        return math.inf if is_invalid_grad_norm(norm) else float(norm) / self._zero.loss_scale

    def gradient_of(self, parameter: Any) -> Optional[Tensor]:
        """A parameter's gradient in full; a collective call of the ranks that share it."""
        from deepspeed.utils import safe_get_full_grad

        gradient: Optional[Tensor] = safe_get_full_grad(parameter)
        return gradient

    def step_with_ready_grads(self) -> bool:
        """Clip, update, share the weights; a collective call."""
        inner = self._zero.optimizer
        if hasattr(inner, "begin"):
            inner.begin()
        self._zero.step()
        self._zero.loss_scale = 1.0
        self._zero.zero_grad()
        return True

    # -- states --------------------------------------------------------------------------------
    def sharded_state_dict(
        self,
        model_sharded_state_dict: Dict[str, Any],
        is_loading: bool = False,
        metadata: Optional[Dict[str, Any]] = None,
    ) -> Dict[str, Any]:
        """States as core's distributed optimizer names them; a collective call, inside
        ``ZeroChunk.whole``.

        A parameter's states are gathered on the ranks that share it, and kept by one of them.

        Args:
            model_sharded_state_dict: the model's, made of its own parameters (``keep_vars``).
            is_loading: the tensors only name the places to fill.
            metadata: of core's interface; nothing here depends on it.
        """
        parameters = self._parameters()
        homes = get_param_id_to_sharded_param_map(model_sharded_state_dict, parameters)
        parts: Dict[bool, Dict[str, Any]] = {}
        for index, parameter in enumerate(parameters):
            home, expert = homes[index], _is_expert(parameter)
            group = _copies(parameter)
            mine = index % dist.get_world_size(group) == dist.get_rank(group)
            replica = (*home.replica_id[:-1], 0 if mine else 1)
            kept = parts.setdefault(expert, {})
            for key, name in _STATES.items():
                value = torch.empty(parameter.shape, dtype=torch.float32, device="meta")
                if not is_loading:
                    full = self._get(parameter, key)
                    value = full.to("cpu") if mine else value
                kept[f"{index}.{name}"] = make_sharded_optimizer_tensor(
                    replace(home, replica_id=replica), value, prefix=f"optimizer.state.{name}"
                )
        told = [
            dict(
                optimizer=dict(param_groups=self._settings_of(expert)),
                param_state=states,
                param_state_sharding_type="fully_reshardable",
            )
            for expert, states in sorted(parts.items())
        ]
        return told[0] if len(told) == 1 else dict(enumerate(told))

    def load_state_dict(self, state_dict: Dict[Any, Any]) -> None:
        """Take a loaded :meth:`sharded_state_dict`, also one that core's optimizer wrote."""
        parts = [state_dict] if "param_state" in state_dict else list(state_dict.values())
        states = {key: value for part in parts for key, value in part["param_state"].items()}
        for index, parameter in enumerate(self._parameters()):
            for key, name in _STATES.items():
                self._set(parameter, key, states[f"{index}.{name}"])
        step = max((float(value) for value in _steps(parts)), default=0.0)
        for flat in self._flats():
            counted = self._zero.optimizer.state[flat]["step"]
            if torch.is_tensor(counted):
                counted.fill_(step)
            else:
                self._zero.optimizer.state[flat]["step"] = int(step)

    def _parameters(self) -> List[Any]:
        return [parameter for _, parameter in named_weights([self._chunk])]

    def _settings_of(self, expert: bool) -> List[Dict[str, Any]]:
        """Core's part of the parameter groups, with the step as its optimizer tells it."""
        step = max(float(self._zero.optimizer.state[flat]["step"]) for flat in self._flats())
        return [
            {**{name: group[name] for name in _TOLD}, "step": step}
            for group in self.param_groups
            if group["is_expert_parallel"] == expert
        ]

    def _flats(self) -> List[Tensor]:
        """This rank's fp32 weights, flat, one per group (stage 3: sub-group)."""
        name = (
            "fp32_partitioned_groups_flat"
            if self._is_stage_3
            else ("single_partition_of_fp32_groups")
        )
        flats: List[Tensor] = getattr(self._zero, name)
        return flats

    def _make_states(self) -> None:
        """Zero states before the first step, so that a checkpoint finds a place for its own."""
        inner = self._zero.optimizer
        for flat in self._flats():
            inner.state[flat].update(
                step=inner.first_step() if hasattr(inner, "first_step") else torch.tensor(0.0),
                exp_avg=torch.zeros_like(flat),
                exp_avg_sq=torch.zeros_like(flat),
            )
        if not self._is_stage_3:
            self._zero._lazy_init_hp_params_optimizer_state()

    def _get(self, parameter: Any, key: Optional[str]) -> Tensor:
        """A state of a parameter in full; a collective call of the ranks that share it."""
        from deepspeed import utils

        found: Tensor = (
            utils.safe_get_full_fp32_param(parameter)
            if key is None
            else utils.safe_get_full_optimizer_state(parameter, key)
        )
        return found.view(parameter.shape)

    def _set(self, parameter: Any, key: Optional[str], value: Tensor) -> None:
        """Keep this rank's part of a state given in full."""
        from deepspeed import utils

        if self._is_stage_3:
            # The whole-value setter of stage 3 fails where the ranks do not divide the size.
            size = parameter.ds_tensor.ds_numel
            begin = size * dist.get_rank(_copies(parameter))
            mine = value.flatten()[begin : begin + size]
            value = torch.cat([mine, mine.new_zeros(size - mine.numel())])
            self._zero.set_local_hp_param(value, parameter, key)
        elif key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)


def build_zero(run: RunConfig, vocab_size: int) -> Tuple[List[Any], ZeroOptimizer]:
    """The model chunk of this rank under ZeRO, and its optimizer; a collective call."""
    from loopmoe_train.optim.build import adamw_groups

    name_device()
    (module,), config = build_chunks(run, vocab_size)
    groups = adamw_groups(run, [module])
    mark_groups(groups)
    engine = build_engine(run, module, _adamw(run, groups))
    chunk = ZeroChunk(config, engine)
    return [chunk], ZeroOptimizer(chunk)


def _adamw(run: RunConfig, groups: List[Dict[str, Any]]) -> torch.optim.Optimizer:
    optim = run.optim
    numbers: Dict[str, Any] = dict(
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
    if optim.offload_update == "deepspeed":
        from loopmoe_train.optim.deepspeed_adam import continuable

        return continuable()(groups, adamw_mode=True, **numbers)
    return torch.optim.AdamW(groups, fused=optim.offload == "cpu", **numbers)


def _is_expert(parameter: Any) -> bool:
    return not getattr(parameter, "allreduce", True)


def _copies(parameter: Any) -> Any:
    """The ranks among which a parameter's states are split."""
    if _is_expert(parameter):
        return parallel_state.get_expert_data_parallel_group()
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _steps(state: Any) -> Iterator[Any]:
    """Adam's step, wherever a form of core's states tells it."""
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if key in ("step", "common_step"):
            yield value
        elif isinstance(value, (dict, list)) and key != "param_state":
            yield from _steps(value)
