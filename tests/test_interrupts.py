"""SIGINT and SIGTERM outside training are told, even where Python loses the exception."""

from __future__ import annotations

import os
import signal

import pytest

from loopmoe_train.errors import Interrupted
from loopmoe_train.interrupts import interruptible

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_it_unwinds_and_is_told(number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in BOTH]
    unwound = []
    with pytest.raises(Interrupted, match=number.name) as caught, interruptible():
        try:
            os.kill(os.getpid(), number)
        finally:
            unwound.append(True)
    assert unwound and caught.value.exit_code == 128 + number
    assert [signal.getsignal(n) for n in BOTH] == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", BOTH)
def test_an_exception_lost_in_a_finaliser_is_told_at_the_end(number: signal.Signals) -> None:
    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    went_on = []
    with pytest.raises(Interrupted, match=number.name), interruptible():
        Swallows()
        went_on.append(True)
    assert went_on


def test_nesting_and_what_was_ignored_before() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible(), interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
