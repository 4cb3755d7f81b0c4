"""Test hook: break this process on purpose. Off unless ``LOOPMOE_FAULT`` is set.

``LOOPMOE_FAULT=KIND@rank1@step5@PHASE`` breaks rank 1 when it begins step 5 (PHASE step) or begins
to save after step 5 (PHASE save); ``@after0.05`` waits that many seconds first, in another thread,
so that the fault falls inside the phase; ``@always`` also breaks restarted attempts, else only the
first. Kinds: kill (SIGKILL), stop (SIGSTOP), sigterm, hang (the main thread sleeps, the heartbeat
goes on), exit (leaves with code 0), raise, nan (in the loss mask of this step), full (files of
this process cannot grow beyond 4 KiB, as on a full disk).
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator

import torch.distributed as dist

from loopmoe_train.data.batches import Batch
from loopmoe_train.errors import Refused
from loopmoe_train.train.step import TrainState

_FORM = re.compile(
    r"(?P<kind>\w+)@rank(?P<rank>\d+)@step(?P<step>\d+)@(?P<phase>step|save)"
    r"(@after(?P<after>[\d.]+))?(?P<always>@always)?"
)


def at(phase: str, step: int, state: TrainState) -> None:
    """Break this rank if ``LOOPMOE_FAULT`` names it, this phase and this step."""
    spec = os.environ.get("LOOPMOE_FAULT")
    if not spec:
        return
    form = _FORM.fullmatch(spec)
    if form is None or form["kind"] not in _KINDS:
        raise Refused(f"LOOPMOE_FAULT={spec}: not a fault", "see loopmoe_train/train/faults.py")
    here = (phase, step, dist.get_rank()) == (form["phase"], int(form["step"]), int(form["rank"]))
    first = os.environ.get("LOOPMOE_ATTEMPT", "0") == "0"
    if here and (first or form["always"]):
        act = _KINDS[form["kind"]]
        if form["after"]:
            threading.Timer(float(form["after"]), act, [state]).start()
        else:
            act(state)


def _signal(number: int) -> Callable[[TrainState], None]:
    return lambda state: os.kill(os.getpid(), number)


def _exit(state: TrainState) -> None:
    sys.stdout.flush()
    os._exit(0)


def _raise(state: TrainState) -> None:
    raise RuntimeError("injected by LOOPMOE_FAULT")


def _nan(state: TrainState) -> None:
    sound = state.micro_batches

    def poisoned(consumed: int) -> Iterator[Batch]:
        for batch in sound(consumed):
            yield replace(batch, loss_mask=batch.loss_mask * float("nan"))

    state.micro_batches = poisoned


def _full(state: TrainState) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))


_KINDS: Dict[str, Callable[[TrainState], Any]] = {
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "sigterm": _signal(signal.SIGTERM),
    "hang": lambda state: time.sleep(3600),
    "exit": _exit,
    "raise": _raise,
    "nan": _nan,
    "full": _full,
}
