"""The lock of a run folder: one process and its ranks at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Dict, List

from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused

_claimed: Dict[Path, IO[str]] = {}


def claim(run: RunConfig) -> None:
    """:func:`claim_folder` of the run folder."""
    claim_folder(run_dir(run))


def claim_folder(folder: Path) -> None:
    """Make the folder and keep all other processes out of it for the life of this one.

    Raises:
        Refused: it cannot be written, or another process has it.
    """
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
        path = (folder / ".lock").resolve()
        if path in _claimed:
            _claimed.pop(path).close()  # our own from before, of a folder that may be a new one
        stream = open(path, "a+")
        try:
            # The kernel frees it when this process and what inherits it (`claims`) have ended.
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stream:
                stream.seek(0)
                owner = stream.read()
            raise Refused(
                f"{folder} is in use by process {owner} or its ranks",
                "wait for its end, or choose another name=",
            ) from None
        except OSError:
            pass  # some network file systems have no locks
        _claimed[path] = stream
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
    except OSError as error:
        raise Refused(
            f"{folder}: cannot be used as a run folder ({error.strerror})",
            "choose another runs_dir= or name=",
        ) from error


def claims() -> List[int]:
    """Descriptors of what :func:`claim` holds, for the ranks: they may outlive a killed front door
    by a step and a save."""
    return [stream.fileno() for stream in _claimed.values()]
