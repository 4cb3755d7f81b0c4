"""Files that are either complete or absent, also after a kill or a power cut."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Iterator


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary stream whose content appears at ``path`` when the block ends without error.

    An exception inside the block leaves ``path`` as it was and removes the temporary file. An
    OSError that names no file (a full disk) gets the name of this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Make ``text`` the whole content of ``path``, or leave it as it was."""
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8"))


def temporary_name(path: Path) -> Path:
    """A fresh hidden name beside ``path``: same file system, so the rename is atomic."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(path: Path) -> None:
    """Delete temporary files of ``path`` that a killed process left behind.

    Call it only where no other process can be writing ``path`` (under a lock).
    """
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable; a no-op where folders cannot be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse fsync on folders
    finally:
        os.close(handle)
