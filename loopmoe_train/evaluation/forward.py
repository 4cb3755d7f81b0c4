"""The forward pass alone, through whatever pipeline the model stands on."""

from __future__ import annotations

from typing import Any, Iterator, List, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from loopmoe_train.data.batches import Batch, context_slice
from loopmoe_train.device.accelerator import accel
from loopmoe_train.parallel.groups import context_place
from loopmoe_train.parallel.reduce import max_over_ranks
from loopmoe_train.spec.context import place_of


@torch.no_grad()
def outputs(model: List[Any], batches: Sequence[Batch], losses: bool) -> List[Tensor]:
    """What the model makes of micro-batches of one shape; a collective call of the ranks that share
    the model, in evaluation mode.

    Args:
        batches: whole sequences, on any device; every context-parallel rank takes its slice.
        losses: cross entropy per token [b, s] in nats; else logits [b, s, vocabulary].

    Returns:
        Per micro-batch, for the tokens of this rank; [] on all but the last pipeline stage.
    """
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    # Chunks take turns in groups of as many micro-batches as stages: the last one stands in.
    missing = -len(batches) % stages if len(model) > 1 else 0
    filled = [*batches, *[batches[-1]] * missing]

    def moved() -> Iterator[Batch]:
        for batch in filled:
            yield context_slice(batch, *context_place()).to(accel.current_device())

    def step(iterator: Iterator[Batch], chunk: Any) -> Tuple[Tensor, Any]:
        batch = next(iterator)
        output = chunk(
            batch.tokens,
            batch.position_ids,
            batch.attention_mask,
            labels=batch.labels if losses else None,
            # The loss is computed on each tensor-parallel rank's part of the vocabulary.
            runtime_gather_output=None if losses else True,
        )
        return output, lambda found, non_loss_data: found

    modes = [chunk.training for chunk in model]
    for chunk in model:
        chunk.eval()
    try:
        found: List[Tensor] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=moved() if len(model) == 1 else [moved() for _ in model],
            model=model,
            num_microbatches=len(filled),
            seq_length=filled[0].tokens.shape[1],
            micro_batch_size=filled[0].tokens.shape[0],
            forward_only=True,
            collect_non_loss_data=True,
        )
    finally:
        for chunk, training in zip(model, modes):
            chunk.train(training)
    return found[: len(batches)]


def next_token(model: List[Any], window: Sequence[int], length: int, choose: Any) -> int:
    """The token that follows a window; a collective call, the same on every rank.

    Args:
        window: token ids, at most ``length``; what is filled up behind them, causality hides.
        length: of the sequence that is computed.
        choose: logits [vocabulary], fp32 on the host -> token id.
    """
    tokens = torch.tensor([[*window, *[0] * (length - len(window))]])
    positions = torch.arange(length).unsqueeze(0)
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), positions, None)
    found = outputs(model, [batch], losses=False)
    place = place_of(len(window) - 1, length, *context_place())
    drawn: Optional[int] = None
    if found and place is not None:
        drawn = choose(found[0][0, place].float().cpu())
    # Ranks that hold the same logits could differ in their last bit: one of them decides.
    holder = int(max_over_ranks(torch.tensor([dist.get_rank() if drawn is not None else -1]))[0])
    told = torch.tensor([drawn if drawn is not None else 0], device=accel.current_device())
    dist.broadcast(told, src=holder)
    return int(told)
