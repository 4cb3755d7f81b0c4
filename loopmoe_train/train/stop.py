"""SIGINT and SIGTERM ask the loop to finish the step, save and leave."""

from __future__ import annotations

import ctypes
import signal
import sys
from types import FrameType
from typing import Optional

# Looked up once: between fork and exec nothing should be loaded.
_PRCTL = ctypes.CDLL(None).prctl if sys.platform.startswith("linux") else None


class StopRequest:
    """Remembers the first signal; installing it replaces Python's handlers."""

    def __init__(self) -> None:
        self.signal_name: Optional[str] = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Optional[FrameType]) -> None:
        self.signal_name = self.signal_name or signal.Signals(number).name

    def __bool__(self) -> bool:
        return self.signal_name is not None


def end_with_parent() -> None:
    """Ask Linux to send SIGTERM when the parent dies, so that no rank is left behind.

    Our launchers call it in the new process, before anything is imported there; a rank calls it
    too, since torchrun and mpirun do not.
    """
    if _PRCTL is not None:
        pr_set_pdeathsig = 1
        _PRCTL(pr_set_pdeathsig, signal.SIGTERM)
