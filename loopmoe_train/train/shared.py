"""Whether all nodes of a job see one run folder, found out when it starts.

Every rank writes its part of a checkpoint into the run folder, and rank 0 makes them one: with a
disk of its own on each node no checkpoint would ever be whole.
"""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path

from loopmoe_train.errors import Refused
from loopmoe_train.files import write_text

_PATIENCE_S = 30.0  # network file systems show a new file late


def mark(folder: Path) -> str:
    """Leave a mark in the run folder; what it says."""
    words = secrets.token_hex(8)
    write_text(_file(folder), words)
    return words


def look_for(words: str, folder: Path, rank: int, patience_s: float = _PATIENCE_S) -> None:
    """Find the mark that rank 0 has left.

    Raises:
        Refused: it is not here.
    """
    deadline = time.monotonic() + patience_s
    while _read(folder) != words:
        if time.monotonic() > deadline:
            raise Refused(
                f"rank {rank} on {socket.gethostname()} does not see what rank 0 has written into "
                f"{folder}: checkpoints need one run folder for all nodes",
                "put it on a disk that they share: runs_dir=FOLDER (NFS, Lustre, a shared volume)",
            )
        time.sleep(0.2)


def _file(folder: Path) -> Path:
    return folder / ".shared"


def _read(folder: Path) -> str:
    try:
        return _file(folder).read_text()
    except OSError:
        return ""
