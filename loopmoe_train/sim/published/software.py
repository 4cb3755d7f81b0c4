"""What differs from a machine's preset in the software that a family of rows was measured with.

A preset stands for a current stack. Older attention kernels, products limited by power, or
steps that are not captured as graphs are slower by more than one factor for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Tuple


@dataclass(frozen=True)
class Software:
    """Fields of ``cluster.efficiency`` that some rows need.

    Attributes:
        before: versions below this one only; "": all.
    """

    family: str
    machines: Tuple[str, ...]
    reached: Dict[str, float]
    before: str = ""

    def holds(self, family: str, machine: str, version: str) -> bool:
        """Whether it is for such a row."""
        old = not self.before or (bool(version) and version < self.before)
        return family == self.family and (not self.machines or machine in self.machines) and old


SOFTWARE: Tuple[Software, ...] = (
    # FlashAttention of 2023, before there was one for Hopper
    Software("MPT", ("h100",), {"matmul": 0.55, "matmul_fp8": 0.36, "attention": 0.27,
                                "attention_backward": 0.22}),
    Software("MPT", ("a100",), {"matmul": 0.7, "attention": 0.38, "attention_backward": 0.33}),
    # HBM2e parts at 500 W, torch's own attention
    Software("TTN", ("h100",), {"matmul": 0.45, "matmul_fp8": 0.36, "attention": 0.27,
                                "attention_backward": 0.21}),
    Software("SMX", ("b200",), {"matmul": 0.48, "attention": 0.43, "attention_backward": 0.36}),
    # one product per expert, before the containers that fuse them
    Software("NVB", (), {"grouped": 0.5}, before="26.06"),
)  # fmt: skip
