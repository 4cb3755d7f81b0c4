"""Messages that are known to mean something, and what to do about each.

Ascend's codes: EI is HCCL, EL the driver, EE the runtime (the vendor's list of fault codes in the
troubleshooting guide of CANN). A code that is not listed here is shown as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence

_TAIL = 512 * 1024  # bytes of a log's end that are read
_CODE = re.compile(r"\b(E[A-Z]\d{4}|ERR\d{5})\b")


@dataclass(frozen=True)
class Signature:
    """One message.

    Attributes:
        pattern: in a line of a log.
        means: what happened.
        fix: what to do.
    """

    pattern: str
    means: str
    fix: str


KNOWN: Sequence[Signature] = (
    Signature(
        r"\bEI0006\b|wait socket establish timeout",
        "HCCL could not connect to a rank in time",
        "loopmoe doctor --cluster names it; where ranks start slowly: export "
        "HCCL_CONNECT_TIMEOUT=900",
    ),
    Signature(
        r"\bEI0015\b|topo exchange server get socket timeout",
        "HCCL: some ranks never came to the first one",
        "loopmoe doctor --cluster names them; HCCL_SOCKET_IFNAME must name the same network "
        "everywhere",
    ),
    Signature(
        r"\bEI0002\b|Notify register has not received",
        "HCCL: a rank waited in a collective until HCCL_EXEC_TIMEOUT for another one",
        "look at the rank that failed first, not at this one; if none did: a step is slow there",
    ),
    Signature(
        r"\bEI0014\b", "HCCL does not accept the rank table",
        "unset RANK_TABLE_FILE, or make one of the version of this chip",
    ),
    Signature(
        r"NPU out of memory|CUDA out of memory|OutOfMemoryError|\bEL0004\b",
        "the device's memory is full",
        "loopmoe plan finds a layout that fits; or memory=full, or micro_batch_size=1",
    ),
    Signature(
        r"-8005\b", "another process or container has the NPU",
        "npu-smi info -t proc-mem -i 0, then stop it",
    ),
    Signature(
        r"lib(?:hccl|ascendcl|opapi)\.so: cannot open",
        "CANN is not on the library path",
        "source /usr/local/Ascend/ascend-toolkit/set_env.sh",
    ),
    Signature(
        r"No space left on device|Disk quota exceeded", "a disk is full",
        "df -h; free space, checkpoint.keep=1, or runs_dir=FOLDER elsewhere",
    ),
    Signature(
        r"Bus error|SIGBUS", "a mapped file or the shared memory ended short",
        "start the container with --shm-size=16g; loopmoe data verify",
    ),
    Signature(
        r"Too many open files", "the limit of open files was reached", "ulimit -n 65536",
    ),
    Signature(
        r"Address already in use|EADDRINUSE", "the store's port is taken",
        "loopmoe doctor --quick names who has it; or another MASTER_PORT",
    ),
    Signature(
        r"NCCL (?:WARN|error)|ncclSystemError|ncclRemoteError", "NCCL lost a peer or its network",
        "export NCCL_DEBUG=INFO and look at the rank that failed first",
    ),
    Signature(
        r"fall back to run on the CPU|fallback to CPU",
        "an operator ran on the processor instead of the NPU",
        "export TORCH_NPU_FALLBACK_CPU_DISABLE=1 names the place",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Hit:
    """A signature in a log."""

    file: Path
    line: str
    means: str
    fix: str


def scan(files: Sequence[Path]) -> List[Hit]:
    """The first line of each signature, and of each unlisted code, in every file's end."""
    found: List[Hit] = []
    for file in files:
        seen = set()
        for line in _end(file).splitlines():
            hit = _hit(file, line)
            if hit is not None and hit.means not in seen:
                seen.add(hit.means)
                found.append(hit)
    return found


def _hit(file: Path, line: str) -> Optional[Hit]:
    shown = " ".join(line.split())[:200]
    for one in KNOWN:
        if re.search(one.pattern, line):
            return Hit(file, shown, one.means, one.fix)
    code = _CODE.search(line)
    if code:
        fix = f"look {code[1]} up in the fault codes of CANN's troubleshooting guide"
        return Hit(file, shown, f"{code[1]} of Ascend's libraries", fix)
    return None


def _end(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _TAIL))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
