"""Inputs of the test and the benchmark, also of combine.

name -> (case of dispatch_index, hidden size, dtype name, empty rows behind the last).
"""

from itertools import product
from typing import Tuple

from torch import Tensor

from loopmoe_kernels.dispatch_index.cases import CASES as ROUTINGS
from loopmoe_kernels.dispatch_index.cases import experts_of
from loopmoe_kernels.dispatch_index.reference import dispatch_index

CASES = {
    "no token": ("no token", 16, "float32", 0),
    "one token": ("one token", 16, "float32", 0),
    "no row": ("all dropped", 16, "float32", 0),
    "all dropped": ("all dropped", 16, "float32", 3),
    "odd": ("odd", 41, "float32", 0),
    "odd bf16": ("odd", 41, "bfloat16", 0),
    "empty experts": ("empty experts", 64, "float32", 0),
    "all to one": ("all to one", 7, "float32", 0),
    "skewed bf16": ("skewed", 256, "bfloat16", 0),
    "dropped": ("dropped", 48, "float32", 5),
    "dropped bf16": ("dropped", 48, "bfloat16", 5),
    "several pieces": ("one token", 3 * 512, "bfloat16", 1),
    "a piece and a bit": ("one token", 1031, "float32", 1),
    "long rows": ("two tokens", 4096 + 8, "float32", 0),
    "long rows, odd": ("two tokens, odd", 4096 + 8, "bfloat16", 0),
    "more than a row at once": ("one token", 8192 + 16, "bfloat16", 0),
}

# (tokens, hidden size, top k) of the benchmark.
ACCELERATOR = tuple(product((4096, 8192, 16384), (2048, 4096, 7168), (8,)))
PROCESSOR = ((512, 256, 4), (2048, 512, 8))
QUICK = ((64, 64, 2),)


def slots_of(case: str) -> Tuple[Tensor, int, bool]:
    """slots [T, K], rows, and whether every row is named and none dropped."""
    routing, _, _, empty = CASES[case]
    slots, counts = dispatch_index(experts_of(*ROUTINGS[routing]), ROUTINGS[routing][3])
    rows = int(counts.sum()) + empty
    return slots, rows, rows == slots.numel()
