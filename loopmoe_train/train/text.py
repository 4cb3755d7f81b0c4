"""The prepared text of a run: tokenizer, training and validation batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List

import numpy as np

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import BatchLoader, Loader, MixtureLoader
from loopmoe_train.data.dataset import DatasetInfo
from loopmoe_train.data.mixture import Mixture, open_mixture
from loopmoe_train.data.order import SampleOrder
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.evaluation.perplexity import HeldOut


@dataclass
class Text:
    """Batches of both splits and what is needed to name and measure them."""

    tokenizer: Tokenizer
    mixture: Mixture
    train: Loader
    probe: Loader  # held-out text in the proportions of the training samples
    valid: List[HeldOut]  # of every member, then of the datasets that are only measured
    vocab_size: int
    token_bytes: np.ndarray  # int64 [vocab]
    bytes_per_token: float  # mean of the training samples


def open_text(run: RunConfig) -> Text:
    """Open the datasets that the front door checked.

    Raises:
        Refused: a dataset is missing, unfinished or damaged, or they do not fit together.
    """
    mixture = open_mixture(run)
    tokenizer = mixture.tokenizer_of.tokenizer()
    infos = [member.info for member in mixture.members]
    train = [_loader(run, info, "train") for info in infos]
    valid = [_loader(run, info, "valid") for info in infos]
    held_out = [
        _held_out(member.name, loader, True, member.info)
        for member, loader in zip(mixture.members, valid)
    ]
    for name, info in mixture.extra.items():
        held_out.append(_held_out(name, _loader(run, info, "valid"), False, info))
    interleave = mixture.interleave()
    return Text(
        tokenizer=tokenizer,
        mixture=mixture,
        train=MixtureLoader(train, interleave),
        probe=MixtureLoader(valid, interleave),
        valid=held_out,
        vocab_size=run.model.vocab_size or tokenizer.vocab_size,
        token_bytes=tokenizer.token_bytes(),
        bytes_per_token=mixture.bytes_per_token,
    )


def _held_out(name: str, loader: BatchLoader, in_whole: bool, info: DatasetInfo) -> HeldOut:
    return HeldOut(name, loader, in_whole, info.gzip9_bits_per_byte, info.valid.bytes)


def _loader(run: RunConfig, info: DatasetInfo, split: str) -> BatchLoader:
    reader = info.reader(split)
    order = SampleOrder(
        reader.document_lengths,
        run.sequence_length,
        run.seed,
        info.fingerprint,
        cache_dir=info.prefix("order") if split == "train" else None,
        shuffle=split == "train",
    )
    return BatchLoader(reader, order, run.data)
