"""CANN that is missing, half there or broken: real libraries, built by the compiler."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Dict, List

import pytest

from loopmoe_train.doctor.cann import LIBRARIES, cann
from loopmoe_train.doctor.check import Check
from tests.doctor.found import assert_finds, assert_passes


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation: set_env.sh, and libraries that can be loaded."""
    root = tmp_path_factory.mktemp("Ascend")
    (root / "latest" / "lib64").mkdir(parents=True)
    (root / "set_env.sh").touch()
    empty = root / "empty.c"
    empty.touch()
    for name in LIBRARIES:
        library = root / "latest" / "lib64" / name
        subprocess.run(["g++", "-shared", "-o", str(library), "-xc", str(empty)], check=True)
    return root


def sourced(toolkit: Path) -> Dict[str, str]:
    home = toolkit / "latest"
    return {
        "PATH": os.environ["PATH"],
        "ASCEND_TOOLKIT_HOME": str(home),
        "LD_LIBRARY_PATH": str(home / "lib64"),
    }


def found(environment: Dict[str, str], toolkit: Path, device: str = "npu") -> List[Check]:
    return list(cann(environment, device, "2.12.0", [str(toolkit / "set_env.sh")]))


def test_a_sound_one(toolkit: Path) -> None:
    assert all(check.status == "PASS" for check in found(sourced(toolkit), toolkit))


def test_not_sourced(toolkit: Path) -> None:
    checks = found({"PATH": os.environ["PATH"]}, toolkit)
    source = f"source {toolkit}/set_env.sh"
    assert_finds(checks, "cann/environment", "FAIL", "nor ASCEND_TOOLKIT_HOME is set", source)
    assert_finds(checks, "cann/libraries", "FAIL", "libhccl.so: cannot open", source)


def test_not_installed(tmp_path: Path) -> None:
    checks = found({"PATH": os.environ["PATH"]}, tmp_path)
    assert_finds(checks, "cann/libraries", "FAIL", "libascendcl.so", "install CANN 9.1")


def test_a_home_that_is_gone(toolkit: Path) -> None:
    environment = sourced(toolkit) | {"ASCEND_TOOLKIT_HOME": str(toolkit / "8.0")}
    checks = found(environment, toolkit)
    assert_finds(checks, "cann/environment", "FAIL", "/8.0: there is no such folder", "set_env.sh")


def test_a_damaged_library(toolkit: Path, tmp_path: Path) -> None:
    for name in LIBRARIES:
        content = (toolkit / "latest" / "lib64" / name).read_bytes()
        (tmp_path / name).write_bytes(content[:100] if name == "libhccl.so" else content)
    environment = sourced(toolkit) | {"LD_LIBRARY_PATH": str(tmp_path)}
    checks = found(environment, toolkit)
    assert_finds(checks, "cann/libraries", "FAIL", "libhccl.so: ", f"source {toolkit}/set_env.sh")


def test_torch_npu_without_cann_on_a_processor(toolkit: Path) -> None:
    checks = found({"PATH": os.environ["PATH"]}, toolkit, "cpu")
    assert_finds(checks, "cann/libraries", "WARN", "libhccl.so", "TORCH_DEVICE_BACKEND_AUTOLOAD=0")
    assert_passes(cann({}, "cpu", None), "cann/environment")
