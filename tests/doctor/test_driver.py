"""The driver: a folder as /dev, another as its mount, a program as npu-smi."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loopmoe_train.doctor import driver
from tests.doctor.found import assert_finds, assert_passes


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """Eight NPUs and their managers."""
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in (*driver.MANAGERS, *(f"davinci{number}" for number in range(8))):
        (folder / name).touch()
    return folder


def test_all_are_there(dev: Path) -> None:
    assert_passes(driver.devices(dev, 8, {}), "driver/devices")
    assert_passes(driver.devices(dev, 8, {}), "driver/managers")


def test_devices_are_missing(dev: Path) -> None:
    (dev / "davinci3").unlink()
    checks = driver.devices(dev, 8, {})
    assert_finds(checks, "driver/devices", "FAIL", "7 of 8 NPUs", f"--device {dev}/davinci0")


def test_the_environment_hides_devices(dev: Path) -> None:
    checks = driver.devices(dev, 8, {"ASCEND_RT_VISIBLE_DEVICES": "0,1"})
    fix = "unset ASCEND_RT_VISIBLE_DEVICES"
    assert_finds(checks, "driver/devices", "FAIL", "shows 2 NPUs, the run needs 8", fix)


def test_a_manager_is_missing(dev: Path) -> None:
    (dev / "hisi_hdc").unlink()
    checks = driver.devices(dev, 8, {})
    assert_finds(checks, "driver/managers", "FAIL", "hisi_hdc", f"--device {dev}/hisi_hdc")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user can only be become by root")
def test_rights_are_missing(dev: Path) -> None:
    (dev / "davinci5").chmod(0o600)
    for folder in (dev, *dev.parents[:-1]):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 1:
            folder.chmod(0o755)
    code = (
        "import os, pathlib; from loopmoe_train.doctor import driver\n"
        f"os.chmod({str(dev)!r}, 0o755)\n"
        f"for name in os.listdir({str(dev)!r}):\n"
        f"    os.chmod(pathlib.Path({str(dev)!r}, name), 0o600 if name == 'davinci5' else 0o666)\n"
        "os.setuid(65534)\n"
        f"print(*driver.devices(pathlib.Path({str(dev)!r}), 8, {{}}), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    devices, managers = done.stdout.splitlines()
    assert "status='FAIL'" in devices and "davinci5" in devices and "HwHiAiUser" in devices
    assert "status='PASS'" in managers


def test_the_mount(tmp_path: Path) -> None:
    library = tmp_path / "driver" / "lib64" / "common" / "libc_sec.so"
    library.parent.mkdir(parents=True)
    library.touch()
    assert_passes(driver.mount(tmp_path / "driver"), "driver/mount")
    library.unlink()
    empty = driver.mount(tmp_path / "driver")
    assert_finds(empty, "driver/mount", "FAIL", "has no libraries", "-v /usr/local/Ascend/driver:")
    absent = driver.mount(tmp_path / "nothing")
    assert_finds(absent, "driver/mount", "FAIL", "is not there", "-v /usr/local/Ascend/driver:")


def npu_smi(folder: Path, script: str) -> str:
    program = folder / "npu-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(folder)


def test_npu_smi(tmp_path: Path) -> None:
    assert_passes(driver.npu_smi(npu_smi(tmp_path, "echo all well")), "driver/npu-smi")


def test_npu_smi_says_busy(tmp_path: Path) -> None:
    script = "echo 'dcmi module initialize failed. ret is -8005'; exit 255"
    found = driver.npu_smi(npu_smi(tmp_path, script))
    assert_finds(found, "driver/npu-smi", "FAIL", "another container or process", "proc-mem")


def test_npu_smi_fails(tmp_path: Path) -> None:
    found = driver.npu_smi(npu_smi(tmp_path, "echo no driver >&2; exit 3"))
    assert_finds(found, "driver/npu-smi", "FAIL", "ended with 3: no driver", "driver/mount")


def test_npu_smi_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_SECONDS", 0.3)
    found = driver.npu_smi(npu_smi(tmp_path, "exec sleep 30"))
    assert_finds(found, "driver/npu-smi", "FAIL", "took longer than", "dmesg")


def test_there_is_no_npu_smi(tmp_path: Path) -> None:
    found = driver.npu_smi(str(tmp_path))
    assert_finds(found, "driver/npu-smi", "WARN", "no npu-smi on PATH", "-v /usr/local/bin/npu-smi")
