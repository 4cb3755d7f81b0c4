"""Validation loss per token and bits per byte."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, List

import numpy as np
import torch
from megatron.core import parallel_state

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Batch, BatchLoader, rank_slice
from loopmoe_train.device.accelerator import accel
from loopmoe_train.parallel.reduce import sum_over_ranks


@dataclass
class Validation:
    """loss: nats per token; bits_per_byte: of the text that was predicted; tokens: how many."""

    loss: float
    bits_per_byte: float
    tokens: int


def validate(
    run: RunConfig, model: List[Any], loader: BatchLoader, token_bytes: np.ndarray
) -> Validation:
    """Predict the first windows of the validation split, always the same ones.

    Windows are read in order and each token is counted once; ranks share them, so the
    figure does not depend on the layout.

    Args:
        token_bytes: int64 [vocab], bytes of text a token stands for (0 for end of document).
    """
    chunk = model[0]
    chunk.eval()
    ranks = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    windows = loader.order.samples_per_epoch
    if run.eval_batches:
        windows = min(windows, run.eval_batches * run.global_batch_size)
    per_pass = run.micro_batch_size * ranks
    sizes = torch.from_numpy(np.asarray(token_bytes))
    total = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for first in range(0, math.ceil(windows / per_pass) * per_pass, per_pass):
            mine = rank_slice(first, 0, run.micro_batch_size, rank, ranks)
            batch = loader.batch(mine.start, len(mine))
            losses = _losses(chunk, batch).double()
            # The last pass may reach past the end: those windows are computed (experts on
            # other ranks need every rank) and not counted.
            counted = torch.tensor([float(sample < windows) for sample in mine]).unsqueeze(1)
            mask = (batch.loss_mask * counted).double()
            total[0] += (losses * mask).sum()
            total[1] += mask.sum()
            total[2] += (sizes[batch.labels] * mask).sum()
    chunk.train()
    nats, tokens, size = sum_over_ranks(total, parallel_state.get_data_parallel_group())
    return Validation(nats / max(tokens, 1), nats / math.log(2) / max(size, 1), int(tokens))


def _losses(chunk: Any, batch: Batch) -> torch.Tensor:
    """Cross entropy per token [b, s] in nats, on the host."""
    b = batch.to(accel.current_device())
    return chunk(b.tokens, b.position_ids, b.attention_mask, labels=b.labels).float().cpu()
