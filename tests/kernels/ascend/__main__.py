"""Lowers every launch of every op, and the planted faults; ends with 1 if a rule is broken or a
fault is missed."""

from __future__ import annotations

import sys

import torch

from loopmoe_kernels.launch import ASCEND
from tests.kernels.ascend.lint import ON_CHIP, faults, on_chip
from tests.kernels.ascend.lower import lower
from tests.kernels.ascend.planted import planted
from tests.kernels.launches import KERNELS, call_all, recorded

# tokens, hidden size, top k, experts, dtype
SIZES = (
    (64, 7168, 8, 256, torch.bfloat16),
    (64, 41, 3, 7, torch.float32),
    (20000, 2048, 1, 512, torch.bfloat16),
)


def main() -> int:
    """Prints a table; returns the exit code."""
    if not ASCEND:
        print("this triton is not triton-ascend: use `make kernels-ascend`")
        return 2
    wrong = 0
    for size in SIZES:
        with recorded() as launches:
            call_all(*size)
        missing = KERNELS - {one.name for one in launches}
        wrong += len(missing)
        print(f"\ntokens, hidden, top k, experts, dtype: {size}", *missing)
        for one in launches:
            text = lower(one)
            found = list(faults(text, one.name, one.grid))
            wrong += len(found)
            share = on_chip(text) / ON_CHIP
            print(f"  {one.name:26} grid {one.grid[0]:3} on chip {share:4.0%}  "
                  f"{'; '.join(found) or 'ok'}")  # fmt: skip
    missed = 0
    print("\nplanted faults")
    for what, one in planted().items():
        found = list(faults(lower(one), one.name, one.grid))
        seen = any(what in fault for fault in found)
        missed += not seen
        print(f"  {one.name:26} {'found' if seen else 'MISSED'}: {'; '.join(found)}")
    print(f"\n{wrong} faults in our kernels; {missed} of {len(planted())} planted ones missed")
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())
