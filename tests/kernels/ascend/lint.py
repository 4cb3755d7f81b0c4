"""What triton-ascend's linalg form lets pass, and the machine or the compiler behind it does not.

Limits: triton-ascend's migration guide and its page of atomic_add. The rule of on-chip memory is a
lower bound: what it refuses cannot fit, what it lets pass may still not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Tuple

ON_CHIP = 192 * 1024  # bytes of a vector core's buffer
BUFFERS = 2  # multibuffering holds everything twice
GRID = 65535
NAME = 49  # characters of a kernel's name
_BITS = {"i1": 8, "i8": 8, "i16": 16, "bf16": 16, "f16": 16, "i32": 32, "f32": 32, "i64": 64,
         "f64": 64, "index": 64}  # fmt: skip
_SHAPED = r"((?:\d+x)+)(" + "|".join(_BITS) + r")\b"
_VECTOR = r"tensor<(?:\d+x)+"

_RULES = (
    (r"(?:\b|x)f64\b", "float64, which the machine has not"),
    (r"(?:\b|x)f8E\w+", "float8, which the machine has not"),
    (r"(?i)(?=.*atomic)(?=.*(?:\b|x)(?:i64|f64)\b)", "an atomic operation on 64 bits"),
    (r"\bsort\b|triton_sort", "a sort"),
    (r"ExtractedLoadOrStore|DiscreteMemAccess",
     "an access by a vector of indices, element by element"),
    (rf"arith\.cmpi .*{_VECTOR}i(?:32|64)>", "a comparison of integer vectors, one by one"),
    (rf"arith\.(?:add|sub)i .*{_VECTOR}i64>", "an addition of int64 vectors"),
)  # fmt: skip


def faults(text: str, name: str, grid: Tuple[int, ...]) -> Iterator[str]:
    """What is wrong with a kernel.

    Args:
        text: its linalg form.
        name, grid: of its launch.
    """
    used = on_chip(text)
    if used > ON_CHIP:
        yield f"on-chip memory: {used} bytes of {ON_CHIP}"
    if len(grid) != 1 or not 0 < grid[0] <= GRID:
        yield f"grid {grid}: not one dimension of at most {GRID}"
    if len(name) > NAME:
        yield f"name of {len(name)} characters, more than {NAME}"
    for pattern, what in _RULES:
        if any(re.search(pattern, line) for line in text.splitlines()):
            yield what
    # A mask that is no range of columns: the block is read, mixed and written whole. Another
    # program's elements in it are overwritten, and those behind the tensor's end.
    stores = re.findall(r"materialize_in_destination (%\S+) in writable (%\S+) ", text)
    if any(
        f"{value} = arith.select" in text and f"memref.copy {target}," in text
        for value, target in stores
    ):
        yield "a store of scattered elements, which writes the whole block"


def on_chip(text: str) -> int:
    """Bytes of what is allocated and of the largest value, twice."""
    buffers = [
        _bytes(*found) for found in re.findall(rf"memref\.alloc\(\).*?memref<{_SHAPED}", text)
    ]
    values = [_bytes(*found) for found in re.findall(rf"tensor<{_SHAPED}", text)]
    return BUFFERS * (sum(buffers) + max(values, default=0))


def _bytes(shape: str, kind: str) -> int:
    return math.prod(map(int, shape.split("x")[:-1])) * _BITS[kind] // 8
