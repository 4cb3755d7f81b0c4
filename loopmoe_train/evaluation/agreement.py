"""Early-exit agreement: does the model predict the same token with fewer or more iterations?"""

from __future__ import annotations

from typing import Any, List, Sequence

import torch

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Loader, rank_slice
from loopmoe_train.evaluation.forward import outputs
from loopmoe_train.model.iterations import running
from loopmoe_train.parallel.groups import data_place
from loopmoe_train.parallel.reduce import sum_over_tokens

PASSES = 4  # micro-batches per rank


def top_agreement(
    run: RunConfig, model: List[Any], loader: Loader, iterations: Sequence[int]
) -> List[float]:
    """For each number of iterations: share of tokens whose most probable next token is that of
    ``run.model.loop.iterations``, on a fixed piece of held-out text. A collective call."""
    rank, ranks = data_place()
    slices = [rank_slice(0, index, run.micro_batch_size, rank, ranks) for index in range(PASSES)]
    batches = [loader.batch(mine.start, len(mine)) for mine in slices]

    def top(count: int) -> List[torch.Tensor]:
        with running(model, count):
            return [logits.argmax(-1).cpu() for logits in outputs(model, batches, losses=False)]

    trained = top(run.model.loop.iterations)
    same = torch.zeros(len(iterations) + 1, dtype=torch.float64)
    for number, count in enumerate(iterations):
        same[number] = sum((a == b).sum().item() for a, b in zip(top(count), trained))
    same[-1] = sum(tokens.numel() for tokens in trained)
    *agreeing, tokens = sum_over_tokens(same)
    return [count / tokens for count in agreeing]
