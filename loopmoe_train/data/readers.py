"""Texts of record files: JSON lines, plain or compressed, and Parquet.

Every reader streams and yields (record number from 1, text). Damage is refused with the file and
the line or row. The compression of a file is no part of its name: ``a.jsonl`` and ``a.jsonl.gz``
with the same lines are the same documents. Parquet is another container with a name of its own.
"""

from __future__ import annotations

import gzip
import importlib
import io
import json
import zlib
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, Tuple

from loopmoe_train.errors import Refused

Records = Iterator[Tuple[int, str]]

_BATCH_ROWS = 256  # of Parquet rows that are text at one time
_READ_BLOCK = 1 << 16
_ZSTD_WINDOW = 2**31  # what `zstd --long=31` writes
_COMPRESSIONS = (".gz", ".zst")


def reader_of(path: Path) -> Callable[[Path], Records] | None:
    """The reader for files of this name; None: it is not a record file."""
    if path.name.endswith(".parquet"):
        return read_parquet
    return read_jsonl if plain_name(path.name).endswith(".jsonl") else None


def plain_name(name: str) -> str:
    """The name of a record file without its compression (``a.jsonl.gz`` -> ``a.jsonl``)."""
    for ending in _COMPRESSIONS:
        if name.endswith(".jsonl" + ending):
            return name.removesuffix(ending)
    return name


def read_jsonl(path: Path) -> Records:
    """The string field "text" of every line that is not blank.

    Raises:
        Refused: the file cannot be read, is damaged, or a line has no such field.
    """
    number = 0
    try:
        with _open(path) as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _text_of_line(line, path, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        why = "it is truncated" if isinstance(error, EOFError) else str(error)
        raise Refused(
            f"{path} line {number + 1}: the compressed data is damaged ({why})",
            "fetch or compress the file again",
        ) from None
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror}", "check its permissions") from None


def read_parquet(path: Path) -> Records:
    """The string column ``text``, one row group after another.

    Raises:
        Refused: pyarrow is missing; the file cannot be read, is damaged or has no such column; or
            a row has no text.
    """
    pyarrow = _library("pyarrow", path)
    parquet = _library("pyarrow.parquet", path)
    row = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            _check_column(file.schema_arrow, pyarrow.types, path)
            for batch in file.iter_batches(_BATCH_ROWS, columns=["text"], use_threads=False):
                for text in batch.column(0):
                    row += 1
                    value = text.as_py()
                    if value is None:
                        raise Refused(
                            f"{path} row {row}: text is null", "leave such rows out of the file"
                        )
                    yield row, value
            if row != file.metadata.num_rows:
                raise OSError(f"{file.metadata.num_rows} rows were promised")
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.strerror:
            raise Refused(
                f"cannot read {path}: {error.strerror}", "check its permissions"
            ) from None
        why = " ".join(str(error).split())[:200]
        raise Refused(f"{path} row {row + 1}: damaged Parquet ({why})", "fetch it again") from None


def _check_column(schema: Any, types: Any, path: Path) -> None:
    names: Dict[str, Any] = dict(zip(schema.names, schema.types))
    kind = names.get("text")
    if kind is not None and types.is_dictionary(kind):
        kind = kind.value_type
    if kind is None or not (types.is_string(kind) or types.is_large_string(kind)):
        has = f"of type {kind}" if kind is not None else f"but {', '.join(names) or 'none'}"
        raise Refused(
            f'{path} has no string column "text" {has}',
            "rename or convert the column with the text",
        )


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Refused(
            f"reading {path} needs {name.partition('.')[0]}, which is not installed",
            "pip install 'loopmoe-train[data]'",
        ) from None


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        return io.BufferedReader(_Zstandard(path), _READ_BLOCK)
    return open(path, "rb")


class _Zstandard(io.RawIOBase):
    """Decompressed bytes of a .zst file of any number of frames.

    The library's own stream reader takes a truncated file for a short one; this one raises.

    Raises:
        EOFError: the file ends inside a frame.
        zlib.error: it is not Zstandard data (one error type for both compressions).
    """

    def __init__(self, path: Path) -> None:
        zstandard = _library("zstandard", path)
        self._error: type[Exception] = zstandard.ZstdError
        self._codec = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame = self._codec.decompressobj()
        self._inside = False  # of a frame
        self._ready = memoryview(b"")
        self._file = open(path, "rb")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._inside = self._codec.decompressobj(), False
            block = block or self._file.read(_READ_BLOCK)
            if not block:
                if self._inside:
                    raise EOFError
                return 0
            try:
                self._ready = memoryview(self._frame.decompress(block))
            except self._error as error:
                raise zlib.error(str(error)) from None
            self._inside = not self._frame.eof
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _text_of_line(line: bytes, path: Path, number: int) -> str:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _bad_line(path, number, f"is not a JSON object in utf-8 ({error})") from None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise _bad_line(path, number, 'has no string field "text"')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _bad_line(path, number, "holds a lone surrogate, which utf-8 cannot store") from None
    return text


def _bad_line(path: Path, number: int, why: str) -> Refused:
    return Refused(f"{path} line {number} {why}", 'write one {"text": "..."} per line')
