"""Sample order: a pure function of (seed, dataset fingerprint, sample number).

In every epoch the documents of a split are shuffled, laid end to end, and cut into windows of
``sequence_length`` inputs; the label of the last input is the first token of the next window.
The windows are shuffled too. Nothing here knows about ranks, batches or what ran before, so a
run that resumes on another layout continues with exactly the samples that were left.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import numpy as np

from loopmoe_train.errors import Refused
from loopmoe_train.files import atomic_write

_EPOCHS_IN_MEMORY = 2  # a batch may straddle two
_DIGEST_BYTES = 32


class Piece(NamedTuple):
    """``length`` tokens of document ``document`` from token ``offset``."""

    document: int
    offset: int
    length: int


@dataclass(frozen=True)
class _Epoch:
    documents: np.ndarray  # int64 [documents]: document at each place of the epoch
    starts: np.ndarray  # int64 [documents + 1]: tokens before each place
    windows: np.ndarray  # int64 [samples]: window that is served as the i-th sample


class SampleOrder:
    """Maps a global sample number to pieces of documents.

    Args:
        document_lengths: int64 [documents], tokens of each document of the split.
        sequence_length: inputs per sample; a sample has one token more.
        seed: of the run.
        fingerprint: of the dataset.
        cache_dir: folder for the index arrays of an epoch; None: they are computed when needed.
        shuffle: False serves the windows of the unshuffled documents in order (validation).

    Raises:
        Refused: the split has fewer than ``sequence_length + 1`` tokens.
    """

    def __init__(
        self,
        document_lengths: np.ndarray,
        sequence_length: int,
        seed: int,
        fingerprint: str,
        cache_dir: Optional[Path] = None,
        shuffle: bool = True,
    ) -> None:
        self._lengths = np.asarray(document_lengths, dtype=np.int64)
        self.num_tokens = int(self._lengths.sum(dtype=np.int64))
        self.sequence_length = sequence_length
        self._key = f"{seed}:{fingerprint}"
        self._cache_dir = Path(cache_dir) if cache_dir is not None and shuffle else None
        self._shuffle = shuffle
        self._epochs: Dict[int, _Epoch] = {}
        if self.num_tokens < sequence_length + 1:
            raise Refused(
                f"the split has {self.num_tokens} tokens, one sample of"
                f" sequence_length={sequence_length} needs {sequence_length + 1}",
                "lower sequence_length or give data.source more text",
            )

    @property
    def samples_per_epoch(self) -> int:
        """Whole windows in one pass; up to ``sequence_length`` tokens at the end are left out."""
        return (self.num_tokens - 1) // self.sequence_length

    def sample(self, index: int) -> List[Piece]:
        """Pieces of global sample ``index`` >= 0: ``sequence_length + 1`` tokens, none empty."""
        if index < 0:
            raise IndexError(f"sample {index}")
        number, place = divmod(int(index), self.samples_per_epoch)
        epoch = self._epoch(number)
        begin = int(epoch.windows[place]) * self.sequence_length
        end = begin + self.sequence_length + 1
        # side="right" steps over empty documents, which share their start with the next one
        at = int(np.searchsorted(epoch.starts, begin, side="right")) - 1
        pieces: List[Piece] = []
        while begin < end:
            offset = begin - int(epoch.starts[at])
            length = min(end, int(epoch.starts[at + 1])) - begin
            if length > 0:
                pieces.append(Piece(int(epoch.documents[at]), offset, length))
                begin += length
            at += 1
        return pieces

    def _epoch(self, number: int) -> _Epoch:
        number = number if self._shuffle else 0
        if number not in self._epochs:
            while len(self._epochs) >= _EPOCHS_IN_MEMORY:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[number] = self._load(number) or self._build(number)
        return self._epochs[number]

    def _build(self, number: int) -> _Epoch:
        documents = self._permutation(len(self._lengths), f"{number}:documents")
        starts = np.zeros(len(documents) + 1, dtype=np.int64)
        np.cumsum(self._lengths[documents], out=starts[1:])
        windows = self._permutation(self.samples_per_epoch, f"{number}:windows")
        epoch = _Epoch(documents, starts, windows)
        self._save(number, epoch)
        return epoch

    def _permutation(self, size: int, purpose: str) -> np.ndarray:
        """int64 [size]. Sorts raw Philox words: numpy promises those, not its shuffles, to stay."""
        if not self._shuffle:
            return np.arange(size, dtype=np.int64)
        digest = hashlib.sha256(f"{self._key}:{purpose}".encode()).digest()
        generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
        return np.argsort(generator.random_raw(size), kind="stable").astype(np.int64, copy=False)

    def _cache_file(self, number: int) -> Optional[Path]:
        if self._cache_dir is None:
            return None
        identity = hashlib.sha256(f"{self._key}:{self.sequence_length}:".encode())
        identity.update(np.ascontiguousarray(self._lengths).data)
        return self._cache_dir / f"order-{identity.hexdigest()[:16]}-epoch{number}.bin"

    def _save(self, number: int, epoch: _Epoch) -> None:
        path = self._cache_file(number)
        if path is None:
            return
        parts = (epoch.documents, epoch.starts, epoch.windows)
        body = np.concatenate(parts).astype("<i8").tobytes()
        try:
            with atomic_write(path) as stream:
                stream.write(hashlib.sha256(body).digest())
                stream.write(body)
        except OSError:
            pass  # a read-only or full disk costs the shortcut, not the run

    def _load(self, number: int) -> Optional[_Epoch]:
        """The cached epoch; None when there is none or its bytes are not what was written."""
        path = self._cache_file(number)
        documents = len(self._lengths)
        count = 2 * documents + 1 + self.samples_per_epoch
        if path is None:
            return None
        try:
            if os.path.getsize(path) != _DIGEST_BYTES + 8 * count:
                return None
            raw = np.fromfile(path, dtype=np.uint8)
        except OSError:
            return None
        body = raw[_DIGEST_BYTES:]
        if hashlib.sha256(body.data).digest() != raw[:_DIGEST_BYTES].tobytes():
            return None
        values = body.view("<i8")
        starts_end = 2 * documents + 1
        return _Epoch(values[:documents], values[documents:starts_end], values[starts_end:])
