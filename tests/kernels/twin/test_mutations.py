"""Every line of the kernels that synchronises is deleted in turn: the twin must notice each.

A line that nothing misses is either superfluous or a blind spot of the twin. Long (one build per
line), so it runs with `make parity`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest
import torch

from loopmoe_kernels import twin
from loopmoe_kernels.twin import launches
from loopmoe_kernels.twin.library import ROOT

pytestmark = pytest.mark.parity

SYNC = re.compile(
    r"^\s*(Settle\(\);|Sync<.*>\(\);|\w+\.(FreeTensor|EnQue)\(.*\);|PipeBarrier<.*>\(\);)"
)
HELPERS = ROOT / "ascendc" / "common" / "kernel.h"


def lines_of(path: Path) -> List[int]:
    return [i for i, line in enumerate(path.read_text().splitlines()) if SYNC.match(line)]


def trials(name: str) -> Iterator[Tuple[launches.Launch, int]]:
    """Launches of one block each that go round every loop: several tiles, columns and tokens."""
    for dtype in (torch.bfloat16, torch.float32):
        for rows, width, ub_bytes in ((7, 1500, 16384), (40, 64, 16384), (1200, 8, 196608)):
            if name in ("permute", "combine", "combine_grad"):
                for kind in ("dropped", "none"):
                    tokens = min(rows, 300)
                    yield getattr(launches, name)(tokens, width, 8, dtype, kind), ub_bytes
            else:
                yield getattr(launches, name)(rows, width, dtype), ub_bytes


def fails(kernel: twin.Kernel, name: str) -> bool:
    for launch, ub_bytes in trials(name):
        blocks, tiling = twin.plan(kernel, launch.shape, 1, ub_bytes)
        try:
            twin.run(kernel, launch.inputs, launch.outputs, tiling, blocks)
        except twin.TwinFault:
            return True
    return False


def without(path: Path, line: int, folder: Path) -> None:
    """Lay the sources of all operations out in ``folder``, with one line of ``path`` missing."""
    shutil.rmtree(folder, ignore_errors=True)
    for tree in (ROOT / "ascendc", *ROOT.glob("*/ascendc")):
        shutil.copytree(tree, folder / tree.relative_to(ROOT))
    text = path.read_text().splitlines()
    del text[line]
    (folder / path.relative_to(ROOT)).write_text("\n".join(text) + "\n")


def noticed(name: str, folder: Path) -> bool:
    source = twin.kernels()[name]
    mutant = folder / source.relative_to(ROOT)
    built = twin.compile_source(mutant, source.parents[2].name, folder)
    return fails(built[f"loopmoe_{name}"], name)


@pytest.mark.parametrize("name", twin.kernels())
def test_every_synchronising_line_of_a_kernel_is_missed(name: str, tmp_path: Path) -> None:
    source = twin.kernels()[name]
    kept = []
    for line in lines_of(source):
        without(source, line, tmp_path / "mutant")
        if not noticed(name, tmp_path / "mutant"):
            kept.append(f"{source.name}:{line + 1}")
    assert lines_of(source) and not kept, "\n".join(kept)


def test_every_synchronising_line_of_the_helpers_is_missed(tmp_path: Path) -> None:
    kept = []
    for line in lines_of(HELPERS):
        without(HELPERS, line, tmp_path / "mutant")
        if not any(
            noticed(name, tmp_path / "mutant") for name in ("combine_grad", "adaln_norm", "permute")
        ):
            kept.append(f"{HELPERS.name}:{line + 1}")
    assert not kept, "\n".join(kept)
