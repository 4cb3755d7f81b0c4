"""A model chunk under DeepSpeed's ZeRO (engine=deepspeed), driven by core's schedule.

Core keeps forward, losses, router biases and the order of micro-batches; DeepSpeed takes what
core's DistributedDataParallel does otherwise: gradients are reduced (stage 1 at the end of a
batch, 2 and 3 after every micro-batch) and, with stage 3, weights are gathered layer by layer.

Two things DeepSpeed knows of its own MoE layers alone. It finds expert weights by the attribute
that core gives them (``allreduce=False``); what it lacks are their groups and, in stages 1 and 2,
the flag that there are any. Stage 3 reads placement attributes that its AutoEP sets.

Sources: ZeRO, arXiv 1910.02054; deepspeed 0.19 runtime/engine.py, runtime/zero/.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from torch import nn

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.errors import Refused

_EXPERTS = "experts"  # DeepSpeed's name of the groups


class ZeroChunk(nn.Module):
    """What core's schedule, checkpoints and evaluation expect of a wrapped chunk.

    Attributes:
        config: core's, of the model (the engine has one of its own under that name).
        module: DeepSpeed's engine.
        scale: one over the tokens of the global batch, once its gradients are complete.
    """

    def __init__(self, config: Any, engine: Any) -> None:
        super().__init__()
        self.config = config
        self.module = engine
        self.ddp_config = DistributedDataParallelConfig()
        self.scale = 1.0

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.module(*arguments, **named)

    def zero_grad_buffer(self) -> None:
        """Gradients are cleared by the optimizer, which has them."""

    def finish_grad_sync(self, force_all_reduce: bool = False) -> None:
        """Core's reduction; DeepSpeed's is in backward and in the optimizer's prepare_grads."""

    def scale_gradients(self, scale: float) -> None:
        """Remembered for the optimizer, whose step divides by the loss scale anyway."""
        self.scale = float(scale)

    @contextmanager
    def whole(self, changed: bool = False) -> Iterator[None]:
        """Every weight of this rank is there in full, also with stage 3; a collective call.

        Args:
            changed: what was written inside, the same on all copies, is kept.
        """
        split = [p for p in self.module.parameters() if hasattr(p, "ds_id")]
        if split:
            split[0].all_gather(param_list=split)
        try:
            yield
        finally:
            if split:
                split[0].partition(param_list=split, has_been_updated=changed)


def build_engine(run: RunConfig, module: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """DeepSpeed's engine around ``module`` and ``optimizer``; a collective call.

    Raises:
        Refused: DeepSpeed does not support this device or setting.
    """
    os.environ.setdefault("DS_ACCELERATOR", accel.device_type)
    import deepspeed.comm
    import deepspeed.ops
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.utils import groups

    # Collectives of inference over shared memory: compiled at the start, of use to no training, and
    # two runs of one user would share their files.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed(accel.communication_backend, verbose=False)
    groups._get_expert_parallel_group_dict()[_EXPERTS] = (
        parallel_state.get_expert_model_parallel_group()
    )
    groups._get_expert_data_parallel_group_dict()[_EXPERTS] = (
        parallel_state.get_expert_data_parallel_group()
    )
    experts = [p for p in module.parameters() if not getattr(p, "allreduce", True)]
    for parameter in experts:
        parameter.group_name = _EXPERTS  # type: ignore[attr-defined]
        if run.parallel.zero_stage == 3:
            _place(parameter)

    class Engine(DeepSpeedEngine):
        """Gradients are complete when the optimizer says so, not by a count of micro-batches."""

        complete = False

        def is_gradient_accumulation_boundary(self) -> bool:
            return self.complete

        def _configure_distributed_model(self, model: nn.Module) -> None:
            super()._configure_distributed_model(model)
            self.has_moe_layers = bool(experts) and run.parallel.zero_stage < 3

    settings = _settings(run)
    try:
        config = DeepSpeedConfig(settings)
        return Engine(
            args=None, model=module, optimizer=optimizer, config=settings, config_class=config
        )
    except (ValueError, AssertionError) as error:
        raise Refused(
            f"engine=deepspeed: DeepSpeed refuses it: {str(error).splitlines()[0][:200]}",
            "use engine=megatron",
        ) from error


def _place(parameter: Any) -> None:
    parameter.ds_zero_placement_family = "autoep_expert"
    parameter.ds_zero_partition_group_name = _EXPERTS
    parameter.ds_zero_partition_process_group = parallel_state.get_expert_data_parallel_group()


def mark_groups(groups: List[Dict[str, Any]]) -> None:
    """Name core's parameter groups of experts as DeepSpeed reads it."""
    for group in groups:
        if group["is_expert_parallel"]:
            group.update(moe=True, name=_EXPERTS)


def _settings(run: RunConfig) -> Dict[str, Any]:
    """DeepSpeed's configuration of a run."""
    zero: Dict[str, Any] = dict(
        stage=run.parallel.zero_stage,
        overlap_comm=False,
        contiguous_gradients=True,
        stage3_param_persistence_threshold=0,  # no weight is kept whole: a checkpoint asks all
    )
    if run.optim.offload == "cpu":
        zero["offload_optimizer"] = dict(device="cpu", pin_memory=bool(accel.may_pin(True)))
    return dict(
        train_micro_batch_size_per_gpu=run.micro_batch_size,
        train_batch_size=run.micro_batch_size * run.cluster.devices,
        gradient_accumulation_steps=1,
        managed_gradient_accumulation=False,  # we say when; a batch may grow
        gradient_clipping=run.optim.clip_grad,
        zero_optimization=zero,
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
        bf16=dict(enabled=run.precision == "bf16"),
        communication_data_type="fp32",
    )
