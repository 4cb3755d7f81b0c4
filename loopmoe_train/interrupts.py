"""SIGINT and SIGTERM outside training: unwind, and tell it in one line."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from types import FrameType
from typing import Iterator, NoReturn, Optional

from loopmoe_train.errors import Interrupted


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, like Ctrl-C, unwind what is being done inside.

    Raises:
        Interrupted: one of the two arrived; also if what was inside went on to its end, since an
            exception that meets Python in a finaliser is lost there.
    """
    number: Optional[signal.Signals] = None

    def interrupt(received: int, frame: Optional[FrameType]) -> NoReturn:
        nonlocal number
        number = signal.Signals(received)
        raise KeyboardInterrupt

    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for each, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup
            signal.signal(each, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        number = number or signal.SIGINT
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if number is not None:
        raise Interrupted(number, "run the same command again")
