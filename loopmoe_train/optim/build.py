"""AdamW by megatron-core (plain, or sharded over data-parallel ranks) and its schedule."""

from __future__ import annotations

from typing import Any, List, Tuple

import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from loopmoe_train.config.schema import RunConfig


def build_optimizer(
    run: RunConfig, model: List[Any]
) -> Tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Optimizer over ``model`` chunks and the schedule, counted in optimizer steps."""
    optim = run.optim
    config = OptimizerConfig(
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
        use_distributed_optimizer=run.parallel.distributed_optimizer,
        overlap_param_gather=run.parallel.overlap_param_gather,
    )
    optimizer = get_megatron_optimizer(config, model)
    decay = optim.decay_steps or max(1, run.steps // 5)
    scheduler = OptimizerParamScheduler(
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
        wsd_decay_steps=decay if optim.schedule == "wsd" else None,
        lr_wsd_decay_style="linear",
    )
    return optimizer, scheduler
