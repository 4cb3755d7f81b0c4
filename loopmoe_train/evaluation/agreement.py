"""Early-exit agreement: does the model predict the same token with fewer or more iterations?"""

from __future__ import annotations

from typing import Any, List, Sequence

import torch
from megatron.core import parallel_state

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Loader, rank_slice
from loopmoe_train.device.accelerator import accel
from loopmoe_train.model.iterations import running
from loopmoe_train.parallel.reduce import sum_over_ranks

PASSES = 4  # micro-batches per rank


@torch.no_grad()
def top_agreement(
    run: RunConfig, model: List[Any], loader: Loader, iterations: Sequence[int]
) -> List[float]:
    """For each number of iterations: share of tokens whose most probable next token is that of
    ``run.model.loop.iterations``, on a fixed piece of held-out text. A collective call."""
    chunk = model[0]
    chunk.eval()
    ranks = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    same = torch.zeros(len(iterations) + 1, dtype=torch.float64)
    for index in range(PASSES):
        mine = rank_slice(0, index, run.micro_batch_size, rank, ranks)
        batch = loader.batch(mine.start, len(mine)).to(accel.current_device())

        def top(count: int, b: Any = batch) -> torch.Tensor:
            with running(model, count):
                logits = chunk(b.tokens, b.position_ids, b.attention_mask)
            return logits.argmax(-1).cpu()

        trained = top(run.model.loop.iterations)
        same[:-1] += torch.tensor([(top(count) == trained).sum().item() for count in iterations])
        same[-1] += trained.numel()
    chunk.train()
    *agreeing, tokens = sum_over_ranks(same, parallel_state.get_data_parallel_group())
    return [count / tokens for count in agreeing]
