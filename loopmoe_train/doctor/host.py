"""The machine under the ranks: memory, limits, processors, clock, what was left behind."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Iterator, Mapping

from loopmoe_train.doctor.check import Check, failed, passed, warned
from loopmoe_train.doctor.limits import Limits

_MIB, _GIB = 2.0**20, 2.0**30
_SHM_DOCKER = 64 * _MIB  # what a container gets that asks for nothing
_SHM_PER_RANK = 0.5 * _GIB
_RANK_BYTES = 1.0 * _GIB  # Python, torch and its libraries
_FILES_ALONE = 200  # that a rank opens by itself: libraries, datasets, logs
_GROUPS = 10  # of one rank in which it may have a socket to every other
_SKEW_S = 2.0
_STALE_LOCK_S = 600.0


def shm(folder: Path, ranks: int) -> Check:
    """Size of the shared memory, which collectives of one machine and data loaders use."""
    try:
        about = os.statvfs(folder)
    except OSError as error:
        return failed(
            "host/shm", f"{folder}: {error.strerror}", f"mount -t tmpfs -o size=16g tmpfs {folder}"
        )
    size, free = about.f_frsize * about.f_blocks, about.f_frsize * about.f_bavail
    want = max(1.0 * _GIB, ranks * _SHM_PER_RANK)
    what = f"{folder} has {_bytes(size)}, {_bytes(free)} of it free, for {ranks} ranks"
    fix = "start the container with --shm-size=16g, or: mount -o remount,size=16g " + str(folder)
    if min(size, free) <= _SHM_DOCKER:
        return failed("host/shm", what, fix)
    return warned("host/shm", what, fix) if free < want else passed("host/shm", what)


def open_files(limits: Limits, world: int) -> Check:
    """A rank may have a socket to every other one in every group."""
    soft, hard = limits.open_files
    need = _FILES_ALONE + _GROUPS * world
    what = f"{soft:g} open files are allowed, a rank of {world} may need {need}"
    if soft >= need:
        return passed("host/open-files", what)
    if hard >= need:
        return failed("host/open-files", what, f"ulimit -n {max(need, int(min(hard, 65536)))}")
    return failed(
        "host/open-files",
        f"{what}; the hard limit is {hard:g}",
        f"start the container with --ulimit nofile={max(need, 65536)}, or raise nofile in "
        "/etc/security/limits.conf",
    )


def locked_memory(limits: Limits, device: str, nodes: int) -> Check:
    """What RDMA registers is locked."""
    shown = "no limit" if limits.locked_memory == float("inf") else _bytes(limits.locked_memory)
    if device == "cpu" or nodes == 1:
        return passed("host/locked-memory", f"{shown}; no RDMA on {nodes} node with {device}")
    if limits.locked_memory == float("inf"):
        return passed("host/locked-memory", shown)
    return warned(
        "host/locked-memory",
        f"{shown} may be locked; RDMA between {nodes} nodes may need more",
        "start the container with --ulimit memlock=-1, or: ulimit -l unlimited",
    )


def processors(limits: Limits, ranks: int, threads: int, device: str) -> Check:
    """A device is fed by one busy thread and helpers; without one, the ranks' threads compute.

    Args:
        ranks: on this machine.
        threads: that compute in a rank.
    """
    each = threads if device == "cpu" else max(2, threads)
    need = ranks * each
    what = f"{limits.processors:g} processors for {ranks} ranks of {each}"
    if limits.processors >= need:
        return passed("host/processors", what)
    fewer = f"cluster.devices={max(1, int(limits.processors / each))}"
    fix = f"start the container with --cpus={need}, or {fewer}"
    return warned("host/processors", f"{what}: they take turns", fix)


def threads(environment: Mapping[str, str], limits: Limits, ranks: int) -> Check:
    """OMP_NUM_THREADS as ranks inherit it that torchrun or mpirun start."""
    value = environment.get("OMP_NUM_THREADS", "")
    if not value:
        return passed("host/threads", "OMP_NUM_THREADS is not set: launcher.threads_per_rank holds")
    fits = max(1, int(limits.processors // ranks))
    if not value.isdigit() or int(value) < 1:
        return failed(
            "host/threads",
            f"OMP_NUM_THREADS={value}: not a number",
            f"export OMP_NUM_THREADS={fits}",
        )
    total = int(value) * ranks
    what = f"OMP_NUM_THREADS={value} of {ranks} ranks on {limits.processors:g} processors"
    if total > limits.processors and int(value) > 1:
        return warned("host/threads", f"{what}: they disturb one another",
                      f"export OMP_NUM_THREADS={fits}")  # fmt: skip
    return passed("host/threads", what)


def memory(limits: Limits, ranks: int) -> Check:
    """The host's part of a rank, without its tensors."""
    what = f"{_bytes(limits.memory)} for {ranks} ranks"
    if limits.memory >= ranks * _RANK_BYTES:
        return passed("host/memory", what)
    return warned(
        "host/memory",
        f"{what}; Python and torch alone take about {_bytes(_RANK_BYTES)} each",
        f"start the container with --memory={int(ranks * _RANK_BYTES / _GIB * 2)}g",
    )


def clock(folder: Path, installed: Path, now: float) -> Check:
    """The clock against files that cannot be younger than now.

    Args:
        folder: where the run will write: maybe a file server's, with a clock of its own.
        installed: a file that was written in the past.
        now: seconds of the epoch.
    """
    fix = "sudo chronyc makestep, or: sudo timedatectl set-ntp true"
    behind = installed.stat().st_mtime - now
    if behind > _SKEW_S:
        return failed(
            "host/clock",
            f"the clock is {_span(behind)} behind the installed files",
            fix,
        )
    before = time.time()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as probe:
        written = os.fstat(probe.fileno()).st_mtime - before + now
    off = written - now
    if abs(off) > _SKEW_S:
        return warned(
            "host/clock", f"files in {folder} are dated {off:+.1f} s off this clock", fix
        )  # fmt: skip
    return passed("host/clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def build_locks(folders: list[Path], now: float) -> Iterator[Check]:
    """Locks of builds of torch extensions: a killed build leaves its own, the next waits forever.

    Args:
        folders: as TORCH_EXTENSIONS_DIR and its default.
    """
    stale = [
        file
        for folder in folders if folder.is_dir()
        for file in folder.glob("**/lock")
        if now - file.stat().st_mtime > _STALE_LOCK_S
    ]  # fmt: skip
    if not stale:
        yield passed("host/build-locks", "none is left behind")
    for file in stale:
        age = _span(now - file.stat().st_mtime)
        yield failed(
            "host/build-locks",
            f"{file} is {age} old: the next build of that extension waits for it",
            f"rm {file}",
        )


def extension_folders(environment: Mapping[str, str]) -> list[Path]:
    """Where torch builds extensions."""
    named = environment.get("TORCH_EXTENSIONS_DIR")
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return [Path(named)] if named else [Path(cache) / "torch_extensions"]


def _bytes(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB else f"{size / _MIB:.0f} MiB"


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
