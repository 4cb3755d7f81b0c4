"""A rank without a model: beats, steps, and goes wrong when told. Starts in a tenth of a second."""

from __future__ import annotations

import os
import signal
import sys
import time

from loopmoe_train.errors import RunFailed
from loopmoe_train.train import heartbeat
from loopmoe_train.train.__main__ import leave, main


def body(fault: str) -> None:
    """Ten steps of 0.05 s; rank 1 goes wrong in step 4 of the first attempt (`always`: of all)."""
    kind, _, when = fault.partition("-")
    wrong = os.environ["RANK"] == "1" and (os.environ["LOOPMOE_ATTEMPT"] == "0" or when)
    for step in range(10):
        heartbeat.at("step", step)
        if wrong and step == 3:
            _go_wrong(kind)
        time.sleep(0.05)
    heartbeat.at("finish", 10)


def _go_wrong(kind: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "hang":
        _dig_a_hole()
    elif kind == "exit":
        os._exit(0)
    elif kind == "code":
        os._exit(7)
    elif kind == "raise":
        raise ValueError("seven is not a token")
    elif kind == "refuse":
        raise RunFailed("the third step is not to be had")
    elif kind == "lock":
        # Computes with Python's lock held: no beat, but no harm either.
        sum(range(int(float(os.environ["FAKE_LOCK"]))))


def _dig_a_hole() -> None:
    time.sleep(3600)


if __name__ == "__main__":
    fault = os.environ["FAKE_FAULT"]
    leave(main(sys.argv[1:], lambda run: body(fault)))
