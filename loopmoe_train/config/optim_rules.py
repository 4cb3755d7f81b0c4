"""Rules of who updates the weights, where and how fast: `optim` and `engine`."""

from __future__ import annotations

from typing import Callable, Sequence

from loopmoe_train.config.model_rules import Problems
from loopmoe_train.config.schema import RunConfig


def _schedule(config: RunConfig) -> Problems:
    if config.optim.min_lr > config.optim.lr:
        yield f"optim.min_lr={config.optim.min_lr} is above optim.lr={config.optim.lr}: lower it"
    if config.optim.warmup_steps >= config.steps:
        yield (
            f"optim.warmup_steps={config.optim.warmup_steps} leaves nothing of steps="
            f"{config.steps}: lower it, or train longer"
        )
    decay, left = config.optim.decay_steps, config.steps - config.optim.warmup_steps
    if config.optim.schedule == "wsd" and decay is not None and 0 < left < decay:
        yield (
            f"optim.decay_steps={decay} is more than the {left} steps after the warmup: "
            "lower it, or train longer"
        )


def _optimizer(config: RunConfig) -> Problems:
    if config.optim.kind != "muon":
        return
    if not config.parallel.distributed_optimizer:
        yield (
            "optim.kind=muon spreads whole matrices over the data-parallel ranks: "
            "set parallel.distributed_optimizer=true"
        )
    if config.parallel.overlap_param_gather:
        yield (
            "parallel.overlap_param_gather gathers shards of core's distributed optimizer, which "
            "optim.kind=muon does not use: set it to false"
        )


def _offload(config: RunConfig) -> Problems:
    optim = config.optim
    if optim.offload == "none":
        if optim.offload_update != "torch":
            yield (
                f"optim.offload_update={optim.offload_update} says who updates offloaded states: "
                "set optim.offload=cpu, or leave it out"
            )
        return
    if optim.kind != "adamw":
        yield f"optim.offload={optim.offload} is for optim.kind=adamw, not {optim.kind}"
    if not config.parallel.distributed_optimizer:
        yield (
            f"optim.offload={optim.offload} keeps the states of core's distributed optimizer: "
            "set parallel.distributed_optimizer=true"
        )


def _engine(config: RunConfig) -> Problems:
    parallel = config.parallel
    if config.engine == "megatron":
        if parallel.zero_stage != 1:
            yield f"parallel.zero_stage={parallel.zero_stage} is for engine=deepspeed"
        return
    for name in (
        "tensor_parallel_size", "context_parallel_size", "pipeline_parallel_size",
        "expert_tensor_parallel_size",
    ):  # fmt: skip
        if getattr(parallel, name) > 1:
            yield (
                f"parallel.{name}={getattr(parallel, name)}: engine=deepspeed is for data and "
                "expert parallelism: set it to 1, or use engine=megatron"
            )
    for name in ("overlap_grad_reduce", "overlap_param_gather"):
        if getattr(parallel, name):
            yield f"parallel.{name}=true is for engine=megatron: set it to false"
    if not parallel.distributed_optimizer:
        yield "engine=deepspeed spreads optimizer states: set parallel.distributed_optimizer=true"
    if config.optim.kind != "adamw":
        yield f"engine=deepspeed has optim.kind=adamw, not {config.optim.kind}"


RULES: Sequence[Callable[[RunConfig], Problems]] = (_schedule, _optimizer, _offload, _engine)
