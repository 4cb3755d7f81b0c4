"""Run megatron-core's schedules over small chunks and write down the order of the calls.

Runs on the ranks of one launch (tests.dist.ranks).
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import torch.distributed as dist

from loopmoe_train.device.accelerator import select

WIDTH = 4
Record = Tuple[str, int, int]  # kind, micro-batch, chunk


class Chunk(torch.nn.Module):
    """One slot of the pipeline: a matrix, and the input that core hands it."""

    def __init__(self, config: Any, chunk: int) -> None:
        from megatron.core.enums import ModelType

        super().__init__()
        self.config, self.chunk = config, chunk
        self.model_type = ModelType.encoder_or_decoder
        self.linear = torch.nn.Linear(WIDTH, WIDTH)
        self.given: Optional[torch.Tensor] = None

    def set_input_tensor(self, tensors: List[Optional[torch.Tensor]]) -> None:
        self.given = tensors[0]

    def forward(self, fresh: torch.Tensor) -> torch.Tensor:
        return self.linear(fresh if self.given is None else self.given)


class _Noted(torch.autograd.Function):
    """Identity whose backward writes itself down."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, record: List[Record], *place: int) -> torch.Tensor:
        context.record, context.place = record, place
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:
        context.record.append(("B", *context.place))
        return gradient, None, None, None


def record(cases: List[Dict[str, Any]]) -> List[Any]:
    """For each case the calls on this rank's stage, or the words with which core refused."""
    select("cpu")
    from megatron.core import parallel_state

    dist.init_process_group(
        "gloo",
        init_method=os.environ["LOOPMOE_RENDEZVOUS"],
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=60),
    )
    results: List[Any] = []
    stages = 0
    for case in cases:
        if case["stages"] != stages:  # groups take longer than a case: keep them
            stages = case["stages"]
            parallel_state.destroy_model_parallel()
            parallel_state.initialize_model_parallel(
                pipeline_model_parallel_size=stages, create_gloo_process_groups=False
            )
        parallel_state.set_virtual_pipeline_model_parallel_world_size(
            case["chunks"] if case["chunks"] > 1 else None
        )
        try:
            results.append(_calls(**case))
        except (ValueError, RuntimeError) as error:
            results.append(str(error))
    return results


def _calls(
    stages: int, micro_batches: int, chunks: int, group: Optional[int], overlap: bool
) -> List[Record]:
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(
        num_layers=stages * chunks,
        hidden_size=WIDTH,
        num_attention_heads=1,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        microbatch_group_size_per_vp_stage=group,
        pipeline_dtype=torch.float32,
        # Over gloo: with two stages batched messages mismatch; an overlapped send still reads
        # what deallocation takes away.
        batch_p2p_comm=False,
        overlap_p2p_comm=overlap and chunks > 1,
        deallocate_pipeline_outputs=False,
    )
    calls: List[Record] = []

    def step(numbers: Iterator[int], chunk: Chunk) -> Tuple[torch.Tensor, Any]:
        micro_batch = next(numbers)
        calls.append(("F", micro_batch, chunk.chunk))
        out = chunk(torch.ones(2, 1, WIDTH))
        noted = _Noted.apply(out, calls, micro_batch, chunk.chunk)
        return noted, lambda y: (y.sum(), {})

    model = [Chunk(config, chunk) for chunk in range(chunks)]
    numbers = [iter(range(micro_batches)) for _ in model]
    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=numbers if chunks > 1 else numbers[0],
        model=model if chunks > 1 else model[0],
        num_microbatches=micro_batches,
        seq_length=2,
        micro_batch_size=1,
        forward_only=False,
    )
    return calls
