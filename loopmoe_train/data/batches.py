"""Batches: samples of the global order as tensors. The only data module that imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Protocol, Sequence

import numpy as np
import torch

from loopmoe_train.config.schema import DataConfig
from loopmoe_train.data.indexed import IndexedReader
from loopmoe_train.data.interleave import Interleave
from loopmoe_train.data.order import SampleOrder
from loopmoe_train.spec.context import chunks_of


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


class Loader(Protocol):
    """Gives any run of samples of a global order."""

    def batch(self, first_sample: int, count: int) -> Batch:
        """Samples ``first_sample`` to ``first_sample + count``."""


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


def context_slice(batch: Batch, rank: int, size: int) -> Batch:
    """The tokens of one context-parallel rank (spec/context.py). ``attention_mask`` stays that of
    the whole sequence.

    Raises:
        ValueError: the sequence cannot be cut so.
    """
    if size == 1:
        return batch
    length = batch.tokens.shape[1]
    if length % (2 * size) or not 0 <= rank < size:
        raise ValueError(f"rank {rank} of {size} cannot hold two chunks of {length} tokens")

    def mine(x: torch.Tensor) -> torch.Tensor:
        parts = x.chunk(2 * size, dim=1)
        return torch.cat([parts[chunk] for chunk in chunks_of(rank, size)], dim=1)

    return Batch(
        tokens=mine(batch.tokens),
        labels=mine(batch.labels),
        loss_mask=mine(batch.loss_mask),
        position_ids=mine(batch.position_ids),
        attention_mask=batch.attention_mask,
    )


class BatchLoader:
    """Reads any run of samples of one split; holds no position, so resuming needs no state.

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

    def window(self, sample: int) -> List[np.ndarray]:
        """Tokens of one sample, a piece per document: ``sequence_length + 1`` in all."""
        return [self.reader.document(*piece) for piece in self.order.sample(sample)]

    def batch(self, first_sample: int, count: int) -> Batch:
        """Samples ``first_sample`` to ``first_sample + count`` of the global order."""
        samples = range(first_sample, first_sample + count)
        return collate([self.window(sample) for sample in samples], self.config)


class MixtureLoader:
    """A loader over several splits; like :class:`BatchLoader` it holds no position.

    Args:
        loaders: of the members, each with an order of its own.
        interleave: says which of them gives a sample.
    """

    def __init__(self, loaders: Sequence[BatchLoader], interleave: Interleave) -> None:
        self.loaders = loaders
        self.interleave = interleave

    def window(self, sample: int) -> List[np.ndarray]:
        """Tokens of one sample of the mixture, a piece per document."""
        member, own = self.interleave.locate(sample)
        return self.loaders[member].window(own)

    def batch(self, first_sample: int, count: int) -> Batch:
        """Samples ``first_sample`` to ``first_sample + count`` of the mixture."""
        samples = range(first_sample, first_sample + count)
        return collate([self.window(sample) for sample in samples], self.loaders[0].config)


def collate(windows: Sequence[Sequence[np.ndarray]], config: DataConfig) -> Batch:
    """Windows of equal length (each a list of pieces of documents) as one batch."""
    length = sum(map(len, windows[0])) - 1
    tokens = np.empty((len(windows), length + 1), dtype=np.int64)
    loss_mask = np.ones((len(windows), length), dtype=np.float32)
    positions = np.tile(np.arange(length + 1, dtype=np.int64), (len(windows), 1))
    segments = np.zeros((len(windows), length + 1), dtype=np.int64)
    for row, pieces in enumerate(windows):
        begin = 0
        for number, piece in enumerate(pieces):
            end = begin + len(piece)
            tokens[row, begin:end] = piece
            segments[row, begin:end] = number
            if config.reset_attention_mask:
                positions[row, begin:end] -= begin
            if config.eod_mask_loss and end <= length:
                loss_mask[row, end - 1] = 0.0  # its label begins the next document
            begin = end
    whole = torch.from_numpy(tokens)
    mask = torch.from_numpy(segments[:, :-1]) if config.reset_attention_mask else None
    return Batch(
        tokens=whole[:, :-1].contiguous(),
        labels=whole[:, 1:].contiguous(),
        loss_mask=torch.from_numpy(loss_mask),
        position_ids=torch.from_numpy(positions[:, :-1]).contiguous(),
        attention_mask=None if mask is None else _hidden(mask),
    )


def _hidden(segments: torch.Tensor) -> torch.Tensor:
    """bool [b, 1, s, s] from segment numbers [b, s]: other documents and the future hidden."""
    length = segments.shape[1]
    other = segments[:, :, None] != segments[:, None, :]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    return (other | future)[:, None]
