"""One rank's tensors: a safetensors file whose every tensor has a hash, taken while writing."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import torch
import xxhash
from torch import Tensor

from loopmoe_train.errors import Refused

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Shard:
    """A rectangular part of a global tensor.

    Attributes:
        key: name of the global tensor.
        offset: where the part begins in it, per dimension.
        global_shape: of the whole tensor.
        tensor: the part, on the host, contiguous.
    """

    key: str
    offset: Tuple[int, ...]
    global_shape: Tuple[int, ...]
    tensor: Tensor


@dataclass(frozen=True)
class ShardEntry:
    """Where a shard lies: bytes [begin, end) of ``file``, and what they must hash to (XXH3-128)."""

    key: str
    offset: Tuple[int, ...]
    shape: Tuple[int, ...]
    global_shape: Tuple[int, ...]
    dtype: str
    file: str
    begin: int
    end: int
    xxh3: str

    @classmethod
    def from_json(cls, entry: Dict[str, Any]) -> ShardEntry:
        """Raises TypeError or ValueError for anything that is not an entry."""
        fields = dict(entry)
        for name in ("offset", "shape", "global_shape"):
            fields[name] = tuple(int(size) for size in fields[name])
        made = cls(**fields)
        size = torch.Size(made.shape).numel() * _DTYPES[made.dtype].itemsize
        if (
            made.end - made.begin != size
            or made.begin < 0
            or os.path.basename(made.file) != (made.file)
        ):
            raise ValueError(f"{made.key}: an impossible place")
        return made


def write_shards(path: Path, shards: Sequence[Shard]) -> Tuple[List[ShardEntry], Dict[str, Any]]:
    """Write ``shards`` to a new safetensors file and sync it.

    Returns:
        An entry per shard, and one of the file: name, bytes, and the hash of its header.

    Raises:
        OSError: the file exists or cannot be written.
    """
    header: Dict[str, Any] = {}
    position = 0
    for shard in shards:
        size = shard.tensor.numel() * shard.tensor.element_size()
        name = f"{shard.key}@{','.join(map(str, shard.offset))}"
        header[name] = {
            "dtype": _NAMES[shard.tensor.dtype],
            "shape": list(shard.tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = struct.pack("<Q", len(text)) + text
    entries = []
    with open(path, "xb") as stream:
        stream.write(head)
        for shard, place in zip(shards, header.values()):
            data = _bytes_of(shard.tensor)
            digest = xxhash.xxh3_128()
            for begin in range(0, len(data), _BLOCK):
                digest.update(data[begin : begin + _BLOCK])
                stream.write(data[begin : begin + _BLOCK])
            begin, end = (len(head) + offset for offset in place["data_offsets"])
            entries.append(
                ShardEntry(shard.key, shard.offset, tuple(shard.tensor.shape), shard.global_shape,
                           place["dtype"], path.name, begin, end, digest.hexdigest())
            )  # fmt: skip
        stream.flush()
        os.fsync(stream.fileno())
    about = {
        "name": path.name,
        "bytes": len(head) + position,
        "header_bytes": len(head),
        "header_xxh3": xxhash.xxh3_128_hexdigest(head),
    }
    return entries, about


def read_shard(folder: Path, entry: ShardEntry) -> Tensor:
    """The tensor of ``entry``, verified.

    Raises:
        Refused: the file is missing, cut, or its bytes are not those that were written.
    """
    path = folder / entry.file
    data = read_exactly(path, entry.begin, entry.end - entry.begin, f"tensor {entry.key}")
    if xxhash.xxh3_128_hexdigest(data) != entry.xxh3:
        raise damaged(path, f"tensor {entry.key} is not what was written")
    if not data:
        return torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    return torch.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)


def check_header(folder: Path, about: Dict[str, Any]) -> None:
    """Verify what no tensor's hash covers: the size and the header of one file.

    Raises:
        Refused: they are not what was written.
    """
    path = folder / str(about["name"])
    head = read_exactly(path, 0, int(about["header_bytes"]), "its header")
    if xxhash.xxh3_128_hexdigest(head) != about["header_xxh3"]:
        raise damaged(path, "its header is not what was written")
    if path.stat().st_size != about["bytes"]:
        raise damaged(path, f"{path.stat().st_size} bytes, {about['bytes']} were written")


def read_exactly(path: Path, begin: int, size: int, what: str) -> bytearray:
    """``size`` bytes from ``begin``.

    Raises:
        Refused: the file is missing or shorter.
    """
    data = bytearray(size)
    try:
        with open(path, "rb") as stream:
            stream.seek(begin)
            found = stream.readinto(data)
    except OSError as error:
        raise damaged(path, f"{what} cannot be read ({error.strerror})") from error
    if found != size:
        raise damaged(path, f"{what} is cut off")
    return data


def damaged(path: Path, why: str) -> Refused:
    """The refusal of a file that is not what was written."""
    return Refused(f"{path}: damaged, {why}", "resume from an older one with checkpoint.resume=DIR")


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy())
