"""megatron-core's own pipeline schedules over chunks that compute nothing.

Shows in which order core calls forward and backward (a test holds spec.schedule to it), and how
long a step takes of which every action's length is known (bench/pipeline_waits.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, List, Optional, Tuple

import torch
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig

# Called in place of a forward ("F") or backward ("B"): kind, micro-batch, chunk
Act = Callable[[str, int, int], None]

SHAPE = (2, 1, 4)  # sequence, micro-batch, hidden: what stages send each other


class _Chunk(torch.nn.Module):
    """One slot of the pipeline: keeps what core hands it, and passes it on."""

    def __init__(self, config: TransformerConfig, chunk: int, act: Act) -> None:
        super().__init__()
        self.config, self.chunk, self.act = config, chunk, act
        self.model_type = ModelType.encoder_or_decoder
        self.given: Optional[torch.Tensor] = None

    def set_input_tensor(self, tensors: List[Optional[torch.Tensor]]) -> None:
        self.given = tensors[0]

    def forward(self, micro_batch: int) -> torch.Tensor:
        given = torch.ones(SHAPE, requires_grad=True) if self.given is None else self.given
        return _Acted.apply(given, self.act, micro_batch, self.chunk)


class _Acted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, act: Act, *place: int) -> torch.Tensor:
        ctx.act, ctx.place = act, place
        act("F", *place)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.act("B", *ctx.place)
        return gradient, None, None, None


def use_stages(stages: int) -> None:
    """Make core's groups for a pipeline of ``stages``, in place of those there are."""
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        pipeline_model_parallel_size=stages, create_gloo_process_groups=False
    )


def run_step(
    micro_batches: int,
    chunks: int,
    act: Act,
    group: Optional[int] = None,
    overlap: bool = False,
) -> None:
    """One step of the schedule that core picks, on this rank's stage.

    Args:
        group: core's ``microbatch_group_size_per_vp_stage``.
        overlap: core's ``overlap_p2p_comm``; only the interleaved schedule knows it.

    Raises:
        ValueError, RuntimeError: core refuses the sizes.
    """
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    virtual = chunks if chunks > 1 else None
    parallel_state.set_virtual_pipeline_model_parallel_world_size(virtual)
    config = TransformerConfig(
        num_layers=stages * chunks,
        hidden_size=SHAPE[2],
        num_attention_heads=1,
        pipeline_model_parallel_size=stages,
        virtual_pipeline_model_parallel_size=virtual,
        microbatch_group_size_per_vp_stage=group,
        pipeline_dtype=torch.float32,
        # Over gloo: with two stages batched messages mismatch, and deallocation takes away what
        # an overlapped send still reads.
        batch_p2p_comm=False,
        overlap_p2p_comm=overlap and chunks > 1,
        deallocate_pipeline_outputs=False,
    )

    def forward(numbers: Iterator[int], chunk: _Chunk) -> Tuple[torch.Tensor, Any]:
        return chunk(next(numbers)), lambda out: (out.sum(), {})

    model = [_Chunk(config, chunk, act) for chunk in range(chunks)]
    numbers = [iter(range(micro_batches)) for _ in model]
    get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=numbers if virtual else numbers[0],
        model=model if virtual else model[0],
        num_microbatches=micro_batches,
        seq_length=SHAPE[0],
        micro_batch_size=SHAPE[1],
        forward_only=False,
    )
