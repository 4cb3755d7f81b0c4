"""Validation loss per token and bits per byte, of every validation set and of the whole."""

from __future__ import annotations

import gzip
import math
from dataclasses import dataclass
from typing import Any, Dict, List

import numpy as np
import torch
from megatron.core import parallel_state

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import BatchLoader, context_slice, rank_slice
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.evaluation.forward import outputs
from loopmoe_train.parallel.groups import context_place, data_place
from loopmoe_train.parallel.reduce import sum_over_tokens

_TOGETHER = 4  # micro-batches per stage that go through a pipeline at once


@dataclass
class HeldOut:
    """One validation set.

    Attributes:
        in_whole: it belongs to a dataset that the run trains on, so the whole includes it.
        gzip_bits_per_byte: what ``gzip -9`` needs for all of it, each document alone.
        size: utf-8 bytes of all of it.
    """

    name: str
    loader: BatchLoader
    in_whole: bool
    gzip_bits_per_byte: float
    size: int


@dataclass
class Validation:
    """loss: nats per token; bits_per_byte: of the text that was predicted; tokens: how many."""

    loss: float
    bits_per_byte: float
    tokens: int


@dataclass
class Validations:
    """The whole, and each set apart if there are several (else nothing more to tell)."""

    whole: Validation
    sets: Dict[str, Validation]


def validate(
    run: RunConfig, model: List[Any], held_out: List[HeldOut], token_bytes: np.ndarray
) -> Validations:
    """Predict the first windows of every validation set, always the same ones.

    Windows are read in order and each token is counted once; ranks share them, so the
    figures do not depend on the layout. In the whole every predicted token weighs the same.

    Args:
        token_bytes: int64 [vocab], bytes of text a token stands for (0 for end of document).
    """
    sizes = torch.from_numpy(np.asarray(token_bytes))
    totals = torch.stack([_measure(run, model, one.loader, sizes) for one in held_out])
    totals = torch.tensor(sum_over_tokens(totals.flatten()), dtype=torch.float64).view(-1, 3)
    belongs = torch.tensor([one.in_whole for one in held_out])
    sets = {one.name: _figures(total) for one, total in zip(held_out, totals)}
    return Validations(_figures(totals[belongs].sum(0)), sets if len(sets) > 1 else {})


def windows_read(run: RunConfig, loader: BatchLoader) -> int:
    """Windows of a validation set that are predicted: its first ones, or all."""
    windows = loader.order.samples_per_epoch
    return min(windows, run.eval_batches * run.global_batch_size or windows)


def gzip_bits_per_byte(run: RunConfig, held_out: List[HeldOut], tokenizer: Tokenizer) -> float:
    """Yardstick of :func:`validate`: what ``gzip -9`` needs for the text of the same windows of
    the sets in the whole, each document compressed alone."""
    bits = size = 0.0
    for one in held_out:
        if not one.in_whole:
            continue
        windows, reader = windows_read(run, one.loader), one.loader.reader
        if windows == one.loader.order.samples_per_epoch:
            bits += one.gzip_bits_per_byte * one.size  # measured when it was tokenised
            size += one.size
            continue
        left = windows * run.sequence_length + 1
        for number, length in enumerate(reader.document_lengths.tolist()):
            if left <= 0:
                break
            text = tokenizer.decode(reader.document(number, 0, min(left, length))).encode()
            bits += 8 * len(gzip.compress(text, 9, mtime=0))
            size += len(text)
            left -= length
    return bits / size


def _figures(total: torch.Tensor) -> Validation:
    nats, tokens, size = total.tolist()
    return Validation(nats / max(tokens, 1), nats / math.log(2) / max(size, 1), int(tokens))


def _measure(
    run: RunConfig, model: List[Any], loader: BatchLoader, sizes: torch.Tensor
) -> torch.Tensor:
    """Nats, tokens and bytes that this rank predicted: float64 [3]; zeros but on the last stage."""
    rank, ranks = data_place()
    stages = parallel_state.get_pipeline_model_parallel_world_size()
    windows = windows_read(run, loader)
    per_pass = run.micro_batch_size * ranks
    passes = math.ceil(windows / per_pass)
    together = _TOGETHER * stages if stages > 1 else 1
    total = torch.zeros(3, dtype=torch.float64)
    for first in range(0, passes, together):
        group = range(first, min(first + together, passes))
        # The last pass may reach past the end: those windows are computed (experts on other ranks
        # need every rank) and not counted.
        mine = [rank_slice(0, index, run.micro_batch_size, rank, ranks) for index in group]
        batches = [loader.batch(samples.start, len(samples)) for samples in mine]
        for batch, samples, losses in zip(batches, mine, outputs(model, batches, losses=True)):
            counted = torch.tensor([float(sample < windows) for sample in samples]).unsqueeze(1)
            batch = context_slice(batch, *context_place())
            mask = (batch.loss_mask * counted).double()
            total[0] += (losses.float().cpu().double() * mask).sum()
            total[1] += mask.sum()
            total[2] += (sizes[batch.labels] * mask).sum()
    return total
