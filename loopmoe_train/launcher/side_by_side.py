"""Several commands, a few at a time: the runs of a sweep or a study."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from loopmoe_train.train.stop import end_with_parent

POLL_S = 0.5
REFUSED = 2


@dataclass
class Command:
    """One of them; what it says goes to ``log``."""

    name: str
    words: List[str]
    log: Path


def run_side_by_side(
    commands: Sequence[Command],
    at_a_time: int,
    each_poll: Callable[[List[str], Dict[str, int]], None],
    seconds: Optional[float] = None,
) -> Dict[str, int]:
    """Run them in order, ``at_a_time`` at once; exit codes by name of those that were started.

    A command that fails does not keep the others from running, unless it was refused: then no
    further one is started. At the end of ``seconds``, or if this process is interrupted, those that
    run get SIGTERM once (training then saves and leaves) and no further one is started.

    Args:
        each_poll: called with the names of those running and the exit codes so far.

    Raises:
        KeyboardInterrupt: this process was; all of them have ended by then.
    """
    waiting = list(commands)
    running: Dict[str, subprocess.Popen[bytes]] = {}
    codes: Dict[str, int] = {}
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                command = waiting.pop(0)
                running[command.name] = _start(command)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    codes[name] = process.returncode
                    del running[name]
                    if process.returncode == REFUSED:
                        waiting.clear()
            each_poll(list(running), codes)
            if deadline is not None and time.monotonic() >= deadline:
                deadline = None
                waiting.clear()
                _send(running, signal.SIGTERM)
            time.sleep(POLL_S)
    except BaseException:
        _send(running, signal.SIGTERM)
        _await(running)
        raise
    return codes


def _start(command: Command) -> subprocess.Popen[bytes]:
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with open(command.log, "ab") as log:
        return subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )


def _send(running: Dict[str, subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in running.values():
        process.send_signal(number)


def _await(running: Dict[str, subprocess.Popen[bytes]]) -> None:
    """Wait for all to save and leave; being interrupted once more kills them."""
    try:
        for process in running.values():
            process.wait()
    except KeyboardInterrupt:
        _send(running, signal.SIGTERM)  # their second: they kill their ranks
        for process in running.values():
            process.wait()
