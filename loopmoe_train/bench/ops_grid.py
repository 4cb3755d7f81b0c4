"""Which operators ``loopmoe bench ops`` measures: sizes that layers of transformers have."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Dict, List, Tuple

from loopmoe_train.sim.table import Size, work


@dataclass(frozen=True)
class Grid:
    """Sizes of problems; a problem of tokens through a matrix has three products.

    Attributes:
        rows: tokens.
        widths: of a matrix, either side.
        groups: (experts, tokens of each).
        experts: (outputs, inputs) of an expert's matrix.
        sequences, heads, dims: of attention; dims: of queries and keys, and of values.
        moved: bytes that a vector operator reads and writes.
        most: FLOPs of one operator; larger ones are left out.
        block_s: seconds of operators between two looks at the clock, at least.
    """

    rows: Tuple[int, ...]
    widths: Tuple[int, ...]
    groups: Tuple[Tuple[int, int], ...]
    experts: Tuple[Tuple[int, int], ...]
    sequences: Tuple[int, ...]
    heads: Tuple[int, ...]
    dims: Tuple[Tuple[int, int], ...]
    moved: Tuple[int, ...]
    most: float
    block_s: float

    def problems(self) -> Dict[str, List[Size]]:
        """Of every kind, as ``forward`` has them; of vector operators the bytes."""
        found: Dict[str, List[Size]] = {
            "matmul": list(product(self.rows, self.widths, self.widths)),
            "grouped": [(*group, *matrix) for group in self.groups for matrix in self.experts],
            "attention": [
                (sequence, heads, *dims)
                for sequence, heads, dims in product(self.sequences, self.heads, self.dims)
            ],
            "vector": [(size,) for size in self.moved],
        }
        return {
            kind: [one for one in sizes if kind == "vector" or work(kind, "", one) <= self.most]
            for kind, sizes in found.items()
        }


_PROCESSOR = Grid(
    rows=(64, 256, 1024, 4096), widths=(64, 256, 1024, 4096),
    groups=((4, 16), (4, 64), (4, 256), (16, 16), (16, 64), (16, 256), (64, 16), (64, 64)),
    experts=((64, 128), (128, 64), (256, 256), (1024, 512), (512, 1024)),
    sequences=(128, 256, 512, 1024, 2048), heads=(4, 16), dims=((32, 32), (64, 64), (128, 128)),
    moved=tuple(2**power for power in range(14, 28, 2)),
    most=2.2e9, block_s=1e-3,
)  # fmt: skip
_ACCELERATOR = Grid(
    rows=(1024, 4096, 16384), widths=(512, 1024, 2048, 4096, 8192, 16384),
    groups=((4, 512), (4, 2048), (8, 128), (8, 512), (8, 2048), (32, 128), (32, 512), (64, 128)),
    experts=((1024, 2048), (2048, 1024), (3072, 2048), (2048, 1536), (4096, 7168), (7168, 2048)),
    sequences=(2048, 4096, 8192, 32768), heads=(8, 32),
    dims=((64, 64), (128, 128), (192, 128)),
    moved=tuple(2**power for power in range(22, 33, 2)),
    most=9e12, block_s=5e-3,
)  # fmt: skip
_QUICK = Grid(
    rows=(64, 128), widths=(64,), groups=((4, 16),), experts=((64, 64),), sequences=(64,),
    heads=(2,), dims=((16, 16),), moved=(2**16, 2**18), most=1e9, block_s=1e-4,
)  # fmt: skip


def grid_of(device: str, quick: bool) -> Grid:
    """The sizes for a kind of device; ``quick``: a few small ones, to try whether it works."""
    if quick:
        return _QUICK
    return _PROCESSOR if device == "cpu" else _ACCELERATOR


# Vector operators by their bytes: how many times they read or write a row of ROW elements.
PASSES = {"copy": 2, "norm": 2, "norm_backward": 3, "activation": 3, "activation_backward": 5}
ROW = 256


def rows_of(layout: str, problem: Size, element: int) -> int:
    """Rows that a vector operator takes so as to move about so many bytes."""
    return max(1, round(problem[0] / (PASSES[layout] * ROW * element)))


def size_of(kind: str, layout: str, problem: Size, element: int) -> Size:
    """The size under which a layout of a problem stands in the table.

    Args:
        element: bytes of a number.
    """
    if kind == "vector":
        return (rows_of(layout, problem, element) * PASSES[layout] * ROW * element,)
    if kind == "attention":
        return problem
    *groups, rows, columns, inner = problem
    if layout == "dgrad":
        return (*groups, rows, inner, columns)
    if layout == "wgrad":
        return (*groups, inner, columns, rows)
    return problem
