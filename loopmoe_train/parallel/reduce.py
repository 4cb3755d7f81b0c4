"""Small sums, maxima and unions over ranks, for reports: not for gradients."""

from __future__ import annotations

from typing import Any, List

import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from loopmoe_train.device.accelerator import accel


def sum_over_ranks(values: Tensor, group: Any = None) -> List[float]:
    """``values`` [n], of any device and dtype, summed over the ranks of ``group`` (None: all).

    A collective call; waits for the device.
    """
    return _reduced(values, dist.ReduceOp.SUM, group)


def max_over_ranks(values: Tensor, group: Any = None) -> List[float]:
    """As :func:`sum_over_ranks`, the largest of each."""
    return _reduced(values, dist.ReduceOp.MAX, group)


def sum_over_tokens(values: Tensor) -> List[float]:
    """Sums over the tokens of all ranks, of what the last pipeline stage counted for the tokens of
    its rank (zeros elsewhere). A collective call of all ranks; all get the sums.

    Tensor-parallel ranks of the last stage have the same tokens: each counts for its share.
    """
    share = parallel_state.get_tensor_model_parallel_world_size()
    return [value / share for value in sum_over_ranks(values)]


def token_group() -> Any:
    """The ranks that hold this stage's layers and tokens of their own: with sequence parallelism
    those of the tensor, context and data groups."""
    return parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)


def of_all_stages(mine: Any) -> List[Any]:
    """What every pipeline stage has, in order; a collective call of the pipeline group."""
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    found: List[Any] = [mine] * stages
    if stages > 1:
        group = parallel_state.get_pipeline_model_parallel_group()
        dist.all_gather_object(found, mine, group=group)
    return found


def _reduced(values: Tensor, operation: Any, group: Any) -> List[float]:
    mine = values.detach().to(device=accel.current_device(), dtype=accel.sum_dtype)
    dist.all_reduce(mine, op=operation, group=group)
    return [float(value) for value in mine.tolist()]
