"""No module outside device/ (and config, spec, sim: pure descriptions; the kernels' registry; the
doctor, who looks for what each of them needs) names a device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = {"cuda", "npu", "nccl", "hccl"}
MAY_NAME_THEM = {"device", "config", "spec", "sim", "registry.py", "doctor"}


def offences(source: str) -> Iterator[str]:
    """What in the source names a device: torch.cuda, torch_npu, or a string that is its name."""
    for node in ast.walk(ast.parse(source)):
        found = ""
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "npu", "is_cuda", "is_npu"):
            found = node.attr
        elif isinstance(node, ast.Import):
            found = next((n.name for n in node.names if _is_device_module(n.name)), "")
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{item.name}" for item in node.names]
            found = next((name for name in names if _is_device_module(name)), "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = node.value if node.value.partition(":")[0] in NAMES else ""
        if found:
            yield f"line {node.lineno}: {found}"  # type: ignore[attr-defined]


def _is_device_module(name: str) -> bool:
    return name.split(".")[0] == "torch_npu" or name.startswith(("torch.cuda", "torch.npu"))


def modules() -> list[Path]:
    found = [*(ROOT / "loopmoe_train").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    return [p for p in found if p.relative_to(ROOT).parts[1] not in MAY_NAME_THEM]


def test_no_module_names_a_device() -> None:
    found = {
        str(path.relative_to(ROOT)): list(offences(path.read_text(encoding="utf-8")))
        for path in modules()
    }
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.cuda.synchronize()",
        "import torch_npu",
        "import torch.cuda",
        "from torch import cuda",
        "from torch.npu import x",
        "from torch_npu.contrib import transfer_to_npu",
        "x.to('cuda')",
        "x.to('npu:0')",
        "x.cuda()",
        "x.is_cuda",
        "backend = 'nccl'",
        "f('hccl')",
    ],
)
def test_the_scan_sees(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize("source", ["accel.synchronize()", '"""Runs on cuda."""', "cuda = 1"])
def test_the_scan_lets_pass(source: str) -> None:
    assert not list(offences(source))
