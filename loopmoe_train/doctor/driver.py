"""The NPU driver as a container sees it: device files, mounts, npu-smi.

Never run on an NPU by us.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Iterator, List, Mapping, Sequence

from loopmoe_train.doctor.check import Check, failed, passed, warned

MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")
MOUNT = Path("/usr/local/Ascend/driver")
_BUSY = "-8005"
_SECONDS = 30.0


def devices(dev: Path, needed: int, environment: Mapping[str, str]) -> Iterator[Check]:
    """Device files of NPUs and of their managers.

    Args:
        dev: ``/dev``.
        needed: NPUs of the run on this machine.
    """
    found = sorted(
        (one.name for one in dev.glob("davinci*") if re.fullmatch(r"davinci\d+", one.name)),
        key=lambda name: int(name[7:]),
    )
    shown = environment.get("ASCEND_RT_VISIBLE_DEVICES")
    count = min(len(found), len([w for w in shown.split(",") if w])) if shown else len(found)
    docker = "start the container with " + " ".join(
        f"--device {dev}/davinci{number}" for number in range(min(needed, 16))
    )
    closed = _closed(dev, found)
    if count < needed and shown and len(found) >= needed:
        yield failed(
            "driver/devices",
            f"ASCEND_RT_VISIBLE_DEVICES={shown} shows {count} NPUs, the run needs {needed} here",
            "unset ASCEND_RT_VISIBLE_DEVICES",
        )
    elif count < needed:
        yield failed(
            "driver/devices", f"{count} of {needed} NPUs in {dev} ({', '.join(found)})", docker
        )
    elif closed:
        yield failed("driver/devices", _rights(dev, closed), _group_fix(closed))
    else:
        yield passed("driver/devices", f"{count} NPUs in {dev}, {needed} needed")
    missing = [name for name in MANAGERS if not (dev / name).exists()]
    closed = _closed(dev, MANAGERS)
    if missing:
        yield failed(
            "driver/managers",
            f"not in {dev}: {', '.join(missing)}",
            "start the container with " + " ".join(f"--device {dev}/{name}" for name in missing),
        )
    elif closed:
        yield failed("driver/managers", _rights(dev, closed), _group_fix(closed))
    else:
        yield passed("driver/managers", f"{', '.join(MANAGERS)} in {dev}")


def _closed(dev: Path, names: Sequence[str]) -> List[str]:
    """Those that are there and may not be used by this user."""
    return [
        name for name in names
        if (dev / name).exists() and not os.access(dev / name, os.R_OK | os.W_OK)
    ]  # fmt: skip


def _rights(dev: Path, closed: List[str]) -> str:
    return f"user {os.getuid()} may not read and write {dev}/{f', {dev}/'.join(closed)}"


def _group_fix(closed: List[str]) -> str:
    return "sudo usermod -aG HwHiAiUser $USER, and log in again (they belong to that group)"


def mount(folder: Path = MOUNT) -> Check:
    """The driver's folder, which a container gets from its host."""
    if not folder.is_dir() or not any((folder / "lib64").glob("**/*.so")):
        why = "has no libraries in lib64" if folder.is_dir() else "is not there"
        return failed(
            "driver/mount",
            f"{folder} {why}",
            f"start the container with -v {MOUNT}:{MOUNT} -v /etc/ascend_install.info:"
            "/etc/ascend_install.info",
        )
    about = folder / "version.info"
    version = re.search(r"(?im)^version\s*=\s*(\S+)", about.read_text()) if about.exists() else None
    return passed("driver/mount", f"{folder}, version {version[1] if version else 'not told'}")


def npu_smi(path: str) -> Check:
    """``npu-smi info``.

    Args:
        path: where to look for it, as PATH.
    """
    program = shutil.which("npu-smi", path=path)
    if program is None:
        return warned(
            "driver/npu-smi",
            "there is no npu-smi on PATH: health and use of the NPUs were not looked at",
            "start the container with -v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi",
        )
    try:
        done = subprocess.run(
            [program, "info"], capture_output=True, text=True, timeout=_SECONDS, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        why = f"took longer than {_SECONDS:.0f} s" if "timed out" in str(error) else str(error)
        return failed(
            "driver/npu-smi", f"`{program} info` {why}", "look at the host: dmesg | tail -50"
        )
    said = " ".join((done.stdout + done.stderr).split())
    if _BUSY in said:
        return failed(
            "driver/npu-smi",
            f"`npu-smi info` says {_BUSY}: another container or process has the device",
            "on the host: npu-smi info -t proc-mem -i 0, then stop that process or container",
        )
    if done.returncode:
        return failed(
            "driver/npu-smi",
            f"`{program} info` ended with {done.returncode}: {said[:200] or 'it said nothing'}",
            "on the host: npu-smi info; where that works, mount the driver as driver/mount says",
        )
    return passed("driver/npu-smi", "`npu-smi info` ends well")
