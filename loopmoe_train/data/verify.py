"""Check a prepared dataset down to the last byte.

The .bin is hashed against dataset.json. It ends every document with a token that no text encodes
to, so it also says where the index must cut, how many documents and bytes of text there are, and
thereby whether .idx and the counts of dataset.json are right, without a hash of their own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List

import numpy as np

from loopmoe_train.data.dataset import (
    SPLITS,
    DatasetInfo,
    SplitInfo,
    dataset_fingerprint,
    load_dataset,
)
from loopmoe_train.data.indexed import IndexedReader, bin_path, idx_path, token_dtype
from loopmoe_train.data.tokenizer import Tokenizer
from loopmoe_train.errors import Refused

_BLOCK_TOKENS = 1 << 20
_SAMPLED_DOCUMENTS = 64  # per split
_FIX = "build it again with `loopmoe data --force`, or restore the file"


@dataclass(frozen=True)
class Verified:
    """A dataset that is as it was written; ``decoded`` documents were also read as text."""

    info: DatasetInfo
    decoded: int


@dataclass(frozen=True)
class _Content:
    """What a .bin itself tells; ``ends`` int64 [documents]: position of each last token."""

    sha256: str
    tokens: int
    text_bytes: int
    largest_id: int
    ends: np.ndarray


def verify_dataset(folder: Path, on_bytes: Callable[[int], None] = lambda count: None) -> Verified:
    """Check every file of the dataset in ``folder``.

    Args:
        on_bytes: gets the number of bytes read so far of the .bin files (for progress).

    Raises:
        Refused: there is no dataset, or a file is not the one that was written; it is named.
    """
    info = load_dataset(folder)
    if info is None:
        raise Refused(
            f"{folder}/dataset.json is missing: no prepared dataset", "run `loopmoe data`"
        )
    _check_card(info)
    tokenizer = info.tokenizer()
    if tokenizer.fingerprint != info.tokenizer_fingerprint:
        raise Refused(f"{info.tokenizer_path} is not the tokenizer of this dataset", _FIX)
    decoded = 0
    for name, split in zip(SPLITS, (info.train, info.valid)):
        content = _read(bin_path(info.prefix(name)), tokenizer, on_bytes)
        _check_bin(bin_path(info.prefix(name)), split, content, tokenizer)
        reader = _check_index(info.prefix(name), content)
        _check_counts(info, name, split, content)
        decoded += _decode_some(reader, tokenizer)
    return Verified(info, decoded)


def _check_card(info: DatasetInfo) -> None:
    """dataset.json must agree with its own fingerprint."""
    hashes = [info.train.bin_sha256, info.valid.bin_sha256]
    expected = dataset_fingerprint(
        info.corpus_fingerprint, info.tokenizer_fingerprint, info.settings, hashes
    )
    if expected != info.fingerprint:
        raise Refused(f"{info.path}/dataset.json was changed: its fingerprint does not fit", _FIX)


def _read(path: Path, tokenizer: Tokenizer, on_bytes: Callable[[int], None]) -> _Content:
    dtype = token_dtype(tokenizer.vocab_size)
    sizes = tokenizer.token_bytes()
    digest = hashlib.sha256()
    ends: List[np.ndarray] = [np.empty(0, np.int64)]
    tokens = text_bytes = largest = 0
    try:
        with open(path, "rb") as stream:
            while block := stream.read(_BLOCK_TOKENS * dtype.itemsize):
                digest.update(block)
                on_bytes(len(block))
                whole = len(block) // dtype.itemsize  # a torn end fails the hash
                ids = np.frombuffer(block, dtype, whole)
                ends.append(np.flatnonzero(ids == tokenizer.eod_id) + tokens)
                largest = max(largest, int(ids.max(initial=0)))
                text_bytes += int(sizes[ids[(ids >= 0) & (ids < len(sizes))]].sum())
                tokens += whole
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror})", _FIX) from None
    return _Content(digest.hexdigest(), tokens, text_bytes, largest, np.concatenate(ends))


def _check_bin(path: Path, split: SplitInfo, content: _Content, tokenizer: Tokenizer) -> None:
    if content.sha256 != split.bin_sha256:
        raise Refused(f"{path} has changed since it was written", _FIX)
    if content.largest_id >= tokenizer.vocab_size:
        raise Refused(
            f"{path} holds token {content.largest_id}, its tokenizer has {tokenizer.vocab_size}",
            _FIX,
        )


def _check_index(prefix: Path, content: _Content) -> IndexedReader:
    reader = IndexedReader(prefix)
    if not np.array_equal(np.cumsum(reader.document_lengths) - 1, content.ends):
        raise Refused(f"{idx_path(prefix)} does not cut the text where its documents end", _FIX)
    return reader


def _check_counts(info: DatasetInfo, name: str, split: SplitInfo, content: _Content) -> None:
    found = {
        "documents": (split.documents, len(content.ends)),
        "tokens": (split.tokens, content.tokens),
        "bytes": (split.bytes, content.text_bytes),
    }
    for key, (written, counted) in found.items():
        if written != counted:
            raise Refused(
                f"{info.path}/dataset.json says {written} {key} in {name}, there are {counted}",
                _FIX,
            )


def _decode_some(reader: IndexedReader, tokenizer: Tokenizer) -> int:
    """Documents over the whole split must be what the tokenizer makes of their text."""
    count = min(reader.num_documents, _SAMPLED_DOCUMENTS)
    for number in range(count):
        index = number * reader.num_documents // count
        ids = [int(token) for token in reader.document(index)[:-1]]
        if tokenizer.encode(tokenizer.decode(ids)) != ids:
            raise Refused(
                f"{bin_path(reader.prefix)} document {index} is no text of this tokenizer", _FIX
            )
    return count
