"""What a container or a login may use: processors and memory of its cgroup, limits of a process."""

from __future__ import annotations

import math
import os
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """Of this process.

    Attributes:
        processors: that it may run on, of its affinity and its cgroup's quota.
        memory: bytes that its cgroup may hold; of the machine where there is no limit.
        open_files: soft limit, and hard.
        locked_memory: bytes, soft; infinite without a limit.
    """

    processors: float
    memory: float
    open_files: Tuple[float, float]
    locked_memory: float


def here(root: Path = CGROUP) -> Limits:
    """Those of this process; ``root`` is where cgroups are mounted."""
    import psutil

    processors = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    quota = cgroup_processors(root)
    memory = float(psutil.virtual_memory().total)
    limit = cgroup_memory(root)
    return Limits(
        processors=min(processors, quota) if quota else processors,
        memory=min(memory, limit) if limit else memory,
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_memory=_limit(getattr(resource, "RLIMIT_MEMLOCK", resource.RLIMIT_NOFILE))[0],
    )


def cgroup_processors(root: Path) -> Optional[float]:
    """Processors of time that the cgroup gets (v2, then v1); None without a quota."""
    words = _read(root / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit():
        return int(words[0]) / int(words[1])
    for folder in (root / "cpu", root / "cpu,cpuacct"):
        quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(quota) > 0:
            return int(quota) / int(period)
    return None


def cgroup_memory(root: Path) -> Optional[float]:
    """Bytes that the cgroup may hold (v2, then v1); None without a limit."""
    for file in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        said = _read(file)
        if said.isdigit() and int(said) < 2**60:  # v1 writes its largest number for no limit
            return float(said)
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _limit(kind: int) -> Tuple[float, float]:
    soft, hard = resource.getrlimit(kind)
    no_limit = resource.RLIM_INFINITY
    return (
        math.inf if soft == no_limit else float(soft),
        math.inf if hard == no_limit else float(hard),
    )
