"""Every kernel compiles to machine code of two GPUs, where there is none: shared memory, and the
16-byte accesses that its speed depends on. It says nothing about the speed itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, List

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels.launches import KERNELS, Launch, call_all, recorded

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one block may have
LONGEST_NAME = 49  # of a kernel, on an Ascend NPU
STREAMS = (
    "permute_rows", "combine_rows", "combine_rows_backward", "swiglu_rows",
    "swiglu_rows_backward", "adaln_rows", "adaln_rows_backward",
)  # fmt: skip


def launches(tokens: int, width: int, top_k: int, experts: int, dtype: torch.dtype) -> List[Launch]:
    with recorded() as found:
        call_all(tokens, width, top_k, experts, dtype)
    return found


def compiled(launch: Launch, compute_capability: int) -> Any:
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs=launch.constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in launch.aligned},
    )
    return triton.compile(
        source,
        target=GPUTarget("cuda", compute_capability, 32),
        options={"num_warps": launch.warps},
    )


@pytest.mark.parametrize("compute_capability", SHARED)
@pytest.mark.parametrize("width, dtype", [(7168, torch.bfloat16), (41, torch.float32)])
def test_every_launch_compiles(width: int, dtype: torch.dtype, compute_capability: int) -> None:
    found = launches(32, width, 8, 64, dtype)
    assert {one.name for one in found} == KERNELS
    for one in found:
        made = compiled(one, compute_capability)
        assert made.asm["cubin"][:4] == b"\x7fELF", one.name
        assert made.metadata.shared <= SHARED[compute_capability], one.name
        assert len(one.grid) == 1 and len(one.name) <= LONGEST_NAME
        if width == 7168 and one.name in STREAMS:
            assert _widest(made.asm["ptx"], "ld") == _widest(made.asm["ptx"], "st") == 16, one.name


def _widest(ptx: str, what: str) -> int:
    """Bytes of the widest access to memory."""
    pattern = rf"{what}\.global\S*?(?:\.v(\d))?\.b(\d+)\b"
    return max(int(many or 1) * int(bits) // 8 for many, bits in re.findall(pattern, ptx))


def test_every_kernel_is_called() -> None:
    """The set above is what the sources have: a new kernel must be launched by call_all."""
    files = sorted((Path(__file__).parents[2] / "kernels").glob("*/triton_kernel.py"))
    assert len(files) == 7
    trees = [ast.parse(file.read_text()) for file in files]
    made = {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any("jit" in ast.unparse(one) for one in node.decorator_list)
    }
    assert made == KERNELS
