"""Batches: samples of the global order as tensors. The only data module that imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional

import numpy as np
import torch

from loopmoe_train.config.schema import DataConfig
from loopmoe_train.data.indexed import IndexedReader
from loopmoe_train.data.order import Piece, SampleOrder


@dataclass
class Batch:
    """``b`` samples of ``s`` inputs, on the CPU."""

    tokens: torch.Tensor  # int64 [b, s]
    labels: torch.Tensor  # int64 [b, s], tokens one step later
    loss_mask: torch.Tensor  # float32 [b, s], 1: the prediction counts
    position_ids: torch.Tensor  # int64 [b, s]
    attention_mask: Optional[torch.Tensor]  # bool [b, 1, s, s], True: hidden; None: plain causal

    def to(self, device: Any) -> Batch:
        """The same batch on ``device``."""
        mask = self.attention_mask
        return Batch(
            tokens=self.tokens.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            loss_mask=self.loss_mask.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            attention_mask=None if mask is None else mask.to(device, non_blocking=True),
        )


def rank_slice(
    consumed: int, micro_step: int, micro_batch_size: int, dp_rank: int, dp_size: int
) -> range:
    """Sample numbers of one data-parallel rank in one micro step.

    Micro step m of a global batch that starts at ``consumed`` is one contiguous run of
    ``micro_batch_size * dp_size`` samples, rank r holds its r-th part. So the union over ranks
    and micro steps is the same for every ``dp_size`` that divides the global batch.
    """
    if not 0 <= dp_rank < dp_size:
        raise ValueError(f"dp_rank {dp_rank} of {dp_size}")
    first = consumed + (micro_step * dp_size + dp_rank) * micro_batch_size
    return range(first, first + micro_batch_size)


class BatchLoader:
    """Reads any run of samples; holds no position, so resuming needs no state.

    Args:
        reader: tokens of the split.
        order: of the same split.
        config: for ``eod_mask_loss`` and ``reset_attention_mask``.

    Raises:
        ValueError: ``order`` was made for other documents.
    """

    def __init__(self, reader: IndexedReader, order: SampleOrder, config: DataConfig) -> None:
        if reader.num_tokens != order.num_tokens:
            raise ValueError(
                f"{reader.prefix} has {reader.num_tokens} tokens, its order {order.num_tokens}"
            )
        self.reader = reader
        self.order = order
        self.config = config

    def batch(self, first_sample: int, count: int) -> Batch:
        """Samples ``first_sample`` to ``first_sample + count`` of the global order."""
        length = self.order.sequence_length
        tokens = np.empty((count, length + 1), dtype=np.int64)
        loss_mask = np.ones((count, length), dtype=np.float32)
        positions = np.tile(np.arange(length, dtype=np.int64), (count, 1))
        segments = np.zeros((count, length), dtype=np.int64)
        for row in range(count):
            pieces = self.order.sample(first_sample + row)
            begin = 0
            for number, piece in enumerate(pieces):
                end = begin + piece.length
                tokens[row, begin:end] = self.reader.document(*piece)
                segments[row, begin:end] = number
                if self.config.reset_attention_mask:
                    positions[row, begin:end] -= begin
                begin = end
            if self.config.eod_mask_loss:
                loss_mask[row, _last_inputs(pieces)] = 0.0
        whole = torch.from_numpy(tokens)
        return Batch(
            tokens=whole[:, :-1].contiguous(),
            labels=whole[:, 1:].contiguous(),
            loss_mask=torch.from_numpy(loss_mask),
            position_ids=torch.from_numpy(positions),
            attention_mask=self._mask(torch.from_numpy(segments)),
        )

    def _mask(self, segments: torch.Tensor) -> Optional[torch.Tensor]:
        """bool [b, 1, s, s] from segment numbers [b, s]: other documents and the future hidden."""
        if not self.config.reset_attention_mask:
            return None
        length = segments.shape[1]
        other = segments[:, :, None] != segments[:, None, :]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        return (other | future)[:, None]


def _last_inputs(pieces: List[Piece]) -> List[int]:
    """Positions whose label belongs to the next document: the ends of all pieces but the last."""
    ends = np.cumsum([piece.length for piece in pieces[:-1]], dtype=np.int64)
    return [int(end) - 1 for end in ends]
