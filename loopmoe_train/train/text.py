"""The prepared text of a run: tokenizer, training and validation batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import BatchLoader
from loopmoe_train.data.dataset import load_dataset
from loopmoe_train.data.indexed import IndexedReader
from loopmoe_train.data.order import SampleOrder
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.errors import Refused


@dataclass
class Text:
    """Batches of both splits and what is needed to name and measure them."""

    tokenizer: Tokenizer
    train: BatchLoader
    valid: BatchLoader
    vocab_size: int
    token_bytes: np.ndarray  # int64 [vocab]
    fingerprint: str
    gzip_bits_per_byte: float
    bytes_per_token: float  # mean of the training split


def open_text(run: RunConfig) -> Text:
    """Open the dataset that the front door prepared.

    Raises:
        Refused: no complete dataset in ``data.path``.
    """
    folder = Path(run.data.path)
    info = load_dataset(folder)
    if info is None:
        raise Refused(f"{folder}: no prepared dataset", "run `loopmoe data` first")
    tokenizer = Tokenizer(folder / "tokenizer.model")
    vocab_size = run.model.vocab_size or tokenizer.vocab_size
    loaders = {}
    for split in ("train", "valid"):
        reader = IndexedReader(folder / split)
        order = SampleOrder(
            reader.document_lengths,
            run.sequence_length,
            run.seed,
            info.fingerprint,
            cache_dir=folder / "order" if split == "train" else None,
            shuffle=split == "train",
        )
        loaders[split] = BatchLoader(reader, order, run.data)
    return Text(
        tokenizer=tokenizer,
        train=loaders["train"],
        valid=loaders["valid"],
        vocab_size=vocab_size,
        token_bytes=tokenizer.token_bytes(),
        fingerprint=info.fingerprint,
        gzip_bits_per_byte=info.gzip9_bits_per_byte,
        bytes_per_token=info.train.bytes_per_token,
    )
