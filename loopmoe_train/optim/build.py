"""The optimizer of a run and its schedule.

``adamw``: by megatron-core, plain or sharded over data-parallel ranks, on the device or on the
host. ``muon``: Muon for the
matrices inside layers and AdamW for the rest, both spread over the ranks by whole parameters.
"""

from __future__ import annotations

import itertools
from typing import Any, Callable, Dict, List, Tuple

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    _get_param_groups,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.model.build import bare
from loopmoe_train.optim.host import TorchUpdate, in_place_of_cores
from loopmoe_train.optim.layerwise import AdamW, LayerwiseOptimizer, part
from loopmoe_train.optim.matrices import by_muon, cost, mark_stacked
from loopmoe_train.optim.muon import STACKED, Muon
from loopmoe_train.optim.ownership import Owned


def build_optimizer(
    run: RunConfig, model: List[Any]
) -> Tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Optimizer over ``model`` chunks and the schedule, counted in optimizer steps."""
    config = _core_config(run)
    optimizer: MegatronOptimizer
    if run.optim.kind == "muon":
        optimizer = _muon_and_adamw(run, config, model)
    elif run.optim.offload == "cpu":
        with in_place_of_cores(_updates[run.optim.offload_update]):
            optimizer = get_megatron_optimizer(config, model)
    else:
        optimizer = get_megatron_optimizer(config, model)
    return optimizer, schedule(run, optimizer)


def adamw_groups(run: RunConfig, model: List[Any]) -> List[Dict[str, Any]]:
    """Core's parameter groups of the trained parameters of ``model``: vectors without weight
    decay and experts apart."""
    config = _core_config(run)
    return _get_param_groups(model, config, get_standard_config_overrides(config))


def _deepspeed() -> Any:
    from loopmoe_train.optim.deepspeed_adam import DeepSpeedUpdate

    return DeepSpeedUpdate()


_updates: Dict[str, Callable[[], Any]] = {"torch": TorchUpdate, "deepspeed": _deepspeed}


def _core_config(run: RunConfig) -> OptimizerConfig:
    optim = run.optim
    on_host = optim.offload == "cpu"
    return OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=optim.min_lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        bf16=run.precision == "bf16",
        params_dtype=torch.bfloat16 if run.precision == "bf16" else torch.float32,
        use_distributed_optimizer=run.parallel.distributed_optimizer and optim.kind == "adamw",
        overlap_param_gather=run.parallel.overlap_param_gather,
        # The optimizer holds the fp32 weights itself, and the device none.
        optimizer_cpu_offload=on_host,
        use_precision_aware_optimizer=on_host,
    )


def _muon_and_adamw(
    run: RunConfig, config: OptimizerConfig, model: List[Any]
) -> LayerwiseOptimizer:
    optim = run.optim
    matrices: List[Tensor] = []
    rest: List[Tensor] = []
    for chunk in model:
        for name, parameter in bare(chunk).named_parameters():
            mark_stacked(name, parameter)
            (matrices if by_muon(name, parameter) else rest).append(parameter)
    owned: List[Owned] = []
    muon = part(
        Muon(
            _groups(config, matrices, cost, owned),
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            steps=optim.newton_schulz_steps,
            update_rms=optim.update_rms,
            dtype=accel.product_dtype,
        ),
        config,
    )
    for parameter in matrices:
        master = getattr(parameter, "main_param", None)
        if master is not None:
            setattr(master, STACKED, getattr(parameter, STACKED, 1))
    adamw = part(
        AdamW(
            _groups(config, rest, Tensor.numel, owned),
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
        ),
        config,
    )
    return LayerwiseOptimizer([muon, adamw], owned)


def _groups(
    config: OptimizerConfig,
    parameters: List[Tensor],
    cost_of: Callable[[Tensor], float],
    owned: List[Owned],
) -> List[Dict[str, Any]]:
    """Parameter groups, as core's schedule and optimizers read them, of what this rank owns.

    Experts have a reduction group of their own, vectors no weight decay. Every rank has the
    same groups; where it owns nothing, a group is empty.

    Args:
        owned: gets one entry per group.
    """
    groups = []
    for expert, decayed in itertools.product((False, True), (True, False)):
        chosen = [
            parameter
            for parameter in parameters
            if getattr(parameter, "allreduce", True) != expert and (parameter.ndim > 1) == decayed
        ]
        if not chosen:
            continue
        copies = (
            parallel_state.get_expert_data_parallel_group()
            if expert
            else parallel_state.get_data_parallel_group(with_context_parallel=True)
        )
        owned.append(Owned(chosen, [cost_of(parameter) for parameter in chosen], copies))
        groups.append(
            dict(
                params=owned[-1].mine,
                wd_mult=1.0 if decayed else 0.0,
                lr_mult=1.0,
                is_expert_parallel=expert,
                is_decoupled_lr=False,
                default_config=True,
                max_lr=config.lr,
                min_lr=config.min_lr,
            )
        )
    return groups


def schedule(run: RunConfig, optimizer: Any) -> OptimizerParamScheduler:
    """The learning-rate schedule over ``optimizer``, counted in optimizer steps."""
    optim = run.optim
    decay = optim.decay_steps or max(1, run.steps // 5)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=optim.lr,
        min_lr=optim.min_lr,
        lr_warmup_steps=optim.warmup_steps,
        lr_decay_steps=run.steps,
        lr_decay_style={"cosine": "cosine", "wsd": "WSD", "constant": "constant"}[optim.schedule],
        start_wd=optim.weight_decay,
        end_wd=optim.weight_decay,
        wd_incr_steps=run.steps,
        wd_incr_style="constant",
        # A run that is continued with other settings follows those, not the checkpoint's.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
        wsd_decay_steps=decay if optim.schedule == "wsd" else None,
        lr_wsd_decay_style="linear",
    )
