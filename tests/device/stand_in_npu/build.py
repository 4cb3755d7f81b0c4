"""Compiles device.cpp against the installed torch, once per source and torch; half a minute."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WHEEL = ROOT / ".torch-npu"


def library() -> Path:
    """The compiled device; skips where the wheel or a compiler is missing."""
    if not (WHEEL / "torch_npu").is_dir():
        pytest.skip("make .venv/.installed-dev brings torch_npu's wheel")
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    source = (HERE / "device.cpp").read_bytes()
    key = hashlib.sha256(source + torch.__version__.encode()).hexdigest()[:16]
    target = WHEEL / "stand-in" / f"{key}.so"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        folder = Path(torch.__file__).parent
        made = target.with_suffix(f".{os.getpid()}")
        subprocess.run(
            ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", f"-I{folder}/include", "-o", made,
             HERE / "device.cpp", f"-L{folder}/lib", "-ltorch", "-ltorch_cpu", "-lc10"],
            check=True,
        )  # fmt: skip
        made.replace(target)
    return target


def variables(record: Path) -> dict[str, str]:
    """Environment of processes that shall find the stand-in as torch_npu."""
    return dict(
        os.environ,
        STAND_IN_LIBRARY=str(library()),
        STAND_IN_WHEEL=str(WHEEL),
        STAND_IN_RECORD=str(record),
        # the wheel's folder tells its version; the stand-in is found before what it stands for
        PYTHONPATH=f"{HERE}{os.pathsep}{WHEEL}",
        ASCEND_HOME_PATH="/",
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
    )
