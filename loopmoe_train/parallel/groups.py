"""Join the job, make megatron-core's process groups, seed this rank, leave."""

from __future__ import annotations

from datetime import timedelta
from typing import Tuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.errors import RunFailed
from loopmoe_train.moe.dispatch import levels
from loopmoe_train.parallel.environment import place
from loopmoe_train.parallel.rendezvous import choose_interface, store
from loopmoe_train.spec.exchange import TWO_LEVEL
from loopmoe_train.spec.placement import placement_of


def join(run: RunConfig) -> None:
    """Join the default group and build all groups of the layout.

    Who this is comes from :mod:`environment`, where the others are from :mod:`rendezvous`.

    Raises:
        RunFailed: the number of processes is not ``cluster.devices``.
    """
    here = place()
    if here.world != run.cluster.devices:
        raise RunFailed(
            f"cluster.devices={run.cluster.devices} but {here.world} processes were started",
            f"start {run.cluster.devices}, or set cluster.devices={here.world}",
        )
    choose_interface(here)
    accel.set_device(here.local_rank)
    accel.use_deterministic(run.cluster.deterministic)
    timeout = timedelta(minutes=run.launcher.timeout_minutes)
    job = store()
    job.set_timeout(timeout)
    dist.init_process_group(
        accel.communication_backend,
        store=job,
        rank=here.rank,
        world_size=here.world,
        timeout=timeout,
    )
    make_groups(run, timeout)
    seed_rank(run.seed)


def make_groups(run: RunConfig, timeout: timedelta) -> None:
    """Core's groups for this layout over an existing default group."""
    parallel, chunks = run.parallel, placement_of(run).chunks
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_parallel_size,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        expert_model_parallel_size=parallel.expert_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
        # Core says int and makes a timedelta of it: fractions are as good.
        distributed_timeout_minutes=timeout.total_seconds() / 60,  # type: ignore[arg-type]
    )
    levels.make(run.cluster.devices_per_node, run.model.moe.dispatcher in TWO_LEVEL)


def data_place() -> Tuple[int, int]:
    """Rank and size of the data-parallel group: who takes which samples."""
    return (
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )


def context_place() -> Tuple[int, int]:
    """Rank and size of the context-parallel group: who takes which tokens of a sample."""
    return (
        parallel_state.get_context_parallel_rank(),
        parallel_state.get_context_parallel_world_size(),
    )


def seed_rank(seed: int) -> None:
    """Seed dropout: alike for ranks that share a token, apart for those that do not.

    Core's tracker adds the tensor-parallel rank, where its layers work on tokens of their own.
    """
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    place = parallel_state.get_data_parallel_rank(with_context_parallel=True) * stages
    place += parallel_state.get_pipeline_model_parallel_rank()
    rank_seed = seed + 1000 * place
    torch.manual_seed(rank_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(rank_seed, force_reset_rng=True)


def leave() -> None:
    """Tear everything down; safe to call twice."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    store.cache_clear()
