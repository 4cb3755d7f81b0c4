"""Failures the user is told about in one line: what, where, why, what to do.

Exit codes (contract): 0 done, 1 failed at run time, 2 refused input,
3 training stopped itself, 4 a rank was lost or hung, 128 + n signal n while data was prepared.
"""

from __future__ import annotations

import signal


class LoopMoEError(Exception):
    """Base of every failure that ends in one line instead of a traceback.

    Args:
        what: the sentence that names the failure and where it is.
        fix: what to do about it (an imperative clause), or "".
    """

    exit_code = 1

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        what = " ".join(self.what.split())
        fix = " ".join(self.fix.split())
        return f"{what} -> {fix}" if fix else what


class RunFailed(LoopMoEError):
    """Something broke while running (exit code 1)."""

    exit_code = 1


class Refused(LoopMoEError):
    """The input is wrong and nothing was started (exit code 2)."""

    exit_code = 2


class TrainingStopped(LoopMoEError):
    """Training stopped itself: non-finite gradients, divergence (exit code 3)."""

    exit_code = 3


class RankLost(LoopMoEError):
    """A rank died or hung (exit code 4)."""

    exit_code = 4


class Interrupted(LoopMoEError):
    """A signal ended it outside training (exit code 128 + signal, as shells have it)."""

    def __init__(self, number: int, fix: str) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}", fix)
        self.exit_code = 128 + number


class AlreadyTold(Exception):
    """Another process has told why; this one ends with the same exit code and says nothing."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code
