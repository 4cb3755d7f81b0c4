"""Megatron's indexed dataset: ``PREFIX.bin`` (token ids, back to back) and ``PREFIX.idx``.

Byte-compatible with ``megatron.core.datasets.indexed_dataset`` in both directions. The index is
little-endian: magic, version u64, dtype code u8, sequence count S u64, boundary count D+1 u64,
then int32 [S] sequence lengths in tokens, int64 [S] byte offsets into the .bin, and int64 [D+1]
document boundaries as sequence indices.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Dict, Optional, Type

import numpy as np

from loopmoe_train.errors import Refused
from loopmoe_train.files import atomic_write

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_VERSION = 1
_TOKEN_DTYPES: Dict[int, np.dtype[Any]] = {
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_MAX_SEQUENCE = 2**31 - 1  # lengths are int32 in the file


def bin_path(prefix: Path) -> Path:
    """``PREFIX.bin`` (dots inside the prefix are kept)."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """``PREFIX.idx``."""
    return prefix.with_name(prefix.name + ".idx")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Dtype that megatron-core's builder also picks: uint16 below 65500 ids, else int32."""
    return _TOKEN_DTYPES[8 if vocab_size < 65500 else 4]


class IndexedWriter:
    """Streams documents into ``PREFIX.bin``/``.idx``; use it in a ``with`` block.

    Nothing appears under the final names before the block ends; then the .bin, then the .idx.
    After that ``bin_sha256``, ``num_documents`` and ``num_tokens`` describe what was written.
    """

    def __init__(self, prefix: Path, vocab_size: int) -> None:
        self.prefix = Path(prefix)
        self.vocab_size = vocab_size
        self.dtype = token_dtype(vocab_size)
        self._lengths = array("q")
        self._hash = hashlib.sha256()
        self._files = ExitStack()

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens added so far."""
        return sum(self._lengths)

    @property
    def bin_sha256(self) -> str:
        """Hex hash of the .bin written so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> IndexedWriter:
        self._stream = self._files.enter_context(atomic_write(bin_path(self.prefix)))
        return self

    def add_document(self, tokens: Any) -> None:
        """Append one document: integer ids [n] in [0, vocab_size).

        Raises:
            ValueError: an id outside the vocabulary, or more than 2**31 - 1 tokens.
        """
        ids = np.asarray(tokens)
        if ids.size > _MAX_SEQUENCE:
            raise ValueError(f"a document of {ids.size} tokens exceeds the format's 2**31 - 1")
        if ids.size and not (0 <= int(ids.min()) and int(ids.max()) < self.vocab_size):
            raise ValueError(f"token ids reach outside [0, {self.vocab_size})")
        data = ids.astype(self.dtype).tobytes()
        try:
            self._stream.write(data)
        except OSError as error:
            error.filename = str(bin_path(self.prefix))  # else the innermost writer names its own
            raise
        self._hash.update(data)
        self._lengths.append(ids.size)

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if kind is not None:
            self._files.__exit__(kind, error, trace)
            return
        # an index of an earlier dataset must never meet the new .bin
        idx_path(self.prefix).unlink(missing_ok=True)
        self._files.close()
        lengths = np.array(self._lengths, dtype=np.int64)
        offsets = (np.cumsum(lengths) - lengths) * self.dtype.itemsize
        code = next(code for code, dtype in _TOKEN_DTYPES.items() if dtype == self.dtype)
        with atomic_write(idx_path(self.prefix)) as stream:
            stream.write(_HEADER.pack(_MAGIC, _VERSION, code, len(lengths), len(lengths) + 1))
            stream.write(lengths.astype("<i4").tobytes())
            stream.write(offsets.astype("<i8").tobytes())
            stream.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())


class IndexedReader:
    """Memory-mapped documents of ``PREFIX.bin``/``.idx``.

    Attributes:
        document_lengths: int64 [documents], tokens of each.

    Raises:
        Refused: a file is missing, damaged, or the two do not belong together.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = Path(prefix)
        self._read_index()
        self._check_bin()
        path = bin_path(self.prefix)
        # an empty file cannot be mapped
        self._tokens = (
            np.memmap(path, dtype=self.dtype, mode="r")
            if self.num_tokens
            else np.empty(0, dtype=self.dtype)
        )

    def _refuse(self, path: Path, why: str) -> Refused:
        return Refused(f"{path} {why}", "build the dataset again with `loopmoe data --force`")

    def _read_index(self) -> None:
        path = idx_path(self.prefix)
        try:
            size = os.path.getsize(path)
            with open(path, "rb") as stream:
                header = stream.read(_HEADER.size)
        except OSError as error:
            raise self._refuse(path, f"cannot be read ({error.strerror})") from None
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise self._refuse(path, "is not a Megatron index (bad magic)")
        _, version, code, sequences, boundaries = _HEADER.unpack(header)
        if version != _VERSION or code not in _TOKEN_DTYPES:
            raise self._refuse(path, f"has version {version}, dtype code {code}: not supported")
        expected = _HEADER.size + sequences * 12 + boundaries * 8
        if size != expected or boundaries < 1:
            raise self._refuse(path, f"has {size} bytes, its counts need {expected}")
        self.dtype = _TOKEN_DTYPES[code]
        raw = np.memmap(path, dtype=np.uint8, mode="r", offset=0)
        start = _HEADER.size
        lengths = raw[start : start + 4 * sequences].view("<i4").astype(np.int64)
        start += 4 * sequences
        self._offsets = raw[start : start + 8 * sequences].view("<i8").astype(np.int64)
        edges = raw[start + 8 * sequences :].view("<i8").astype(np.int64)
        self._check_index(path, lengths, edges)
        # tokens before sequence i; a document may span several sequences
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        self._starts = before[edges]
        self.document_lengths: np.ndarray = np.diff(self._starts)

    def _check_index(self, path: Path, lengths: np.ndarray, edges: np.ndarray) -> None:
        if len(lengths) and int(lengths.min()) < 0:
            raise self._refuse(path, "has a negative length")
        packed = (np.cumsum(lengths, dtype=np.int64) - lengths) * self.dtype.itemsize
        if not np.array_equal(packed, self._offsets):
            raise self._refuse(path, "has offsets that do not match its lengths")
        if edges[0] != 0 or edges[-1] != len(lengths) or (np.diff(edges) < 0).any():
            raise self._refuse(path, "has document boundaries that do not match its sequences")

    def _check_bin(self) -> None:
        path = bin_path(self.prefix)
        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise self._refuse(path, f"cannot be read ({error.strerror})") from None
        expected = self.num_tokens * self.dtype.itemsize
        if size != expected:
            raise self._refuse(path, f"has {size} bytes, its index needs {expected}")

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self.document_lengths)

    @property
    def num_tokens(self) -> int:
        """Number of tokens over all documents."""
        return int(self._starts[-1])

    def document(self, index: int, offset: int = 0, length: Optional[int] = None) -> np.ndarray:
        """Token ids of document ``index`` from ``offset``, at most ``length``: a view, file dtype.

        Raises:
            IndexError: no such document, or a part that reaches outside of it.
        """
        if not 0 <= index < self.num_documents:
            raise IndexError(f"document {index} of {self.num_documents} in {self.prefix}")
        total = int(self.document_lengths[index])
        count = total - offset if length is None else length
        if offset < 0 or count < 0 or offset + count > total:
            raise IndexError(f"tokens {offset}+{count} of document {index}, which has {total}")
        start = int(self._starts[index]) + offset
        return self._tokens[start : start + count]
