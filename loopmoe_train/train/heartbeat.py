"""Signs of life of one rank, in a small memory-mapped file that outlives the process.

A daemon thread writes the time: the process runs. The main loop says which phase it is in and after
how many steps: the training moves. The supervisor (``launcher/watch.py``) reads both. Without a
supervisor (``LOOPMOE_SCRATCH`` unset) all of this does nothing, except that SIGUSR1 always prints
the Python stacks of the process.

Times are of CLOCK_MONOTONIC, in seconds, one clock for all processes of a machine.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional

BEAT_S = 0.25

_BEAT = struct.Struct("<d")  # first, since its own thread writes it
_REST = struct.Struct("<qqqddd16sq")
_SIZE = _BEAT.size + _REST.size


@dataclass(frozen=True)
class Sign:
    """What a rank last said.

    Attributes:
        beat: when the process last ran Python; written every ``BEAT_S`` seconds.
        step: optimizer steps done in the whole run.
        steps_here: those of them done by this process.
        moved: when the phase was entered.
        first_step_at: when the first step of this process ended; 0 before.
        longest_step_s: longest step of this process, the first left out.
        phase: start, step, evaluate, save, finish.
        done: the rank has ended as it should.
    """

    beat: float
    pid: int
    step: int
    steps_here: int
    moved: float
    first_step_at: float
    longest_step_s: float
    phase: str
    done: bool

    @property
    def where(self) -> str:
        """The phase in words."""
        said = {
            "step": f"in step {self.step + 1}",
            "evaluate": f"while evaluating after step {self.step}",
            "save": f"while saving step {self.step}",
            "finish": f"while finishing after step {self.step}",
        }
        return said.get(self.phase, "while starting")


class _Writer:
    """This process's file."""

    def __init__(self, path: Path) -> None:
        partial = path.with_suffix(".new")
        partial.write_bytes(bytes(_SIZE))
        with open(partial, "r+b") as stream:
            self.map = mmap.mmap(stream.fileno(), _SIZE)
        self.sign = Sign(0.0, os.getpid(), 0, 0, time.monotonic(), 0.0, 0.0, "start", False)
        self._write()
        os.replace(partial, path)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while True:
            _BEAT.pack_into(self.map, 0, time.monotonic())
            time.sleep(BEAT_S)

    def _write(self) -> None:
        s = self.sign
        _REST.pack_into(
            self.map, _BEAT.size, s.pid, s.step, s.steps_here, s.moved, s.first_step_at,
            s.longest_step_s, s.phase.encode(), s.done,
        )  # fmt: skip

    def at(self, phase: str, step: int, done: bool = False) -> None:
        old, now = self.sign, time.monotonic()
        here, first, longest = old.steps_here, old.first_step_at, old.longest_step_s
        if old.phase == "step" and step > old.step:
            here += 1
            first = first or now
            longest = max(longest, now - old.moved) if here > 1 else 0.0
        self.sign = Sign(0.0, old.pid, step, here, now, first, longest, phase, done)
        self._write()


_writer: Optional[_Writer] = None


def scratch() -> Optional[Path]:
    """Folder of the supervisor of this machine; None without one (a rank that mpirun has started on
    another machine has the variable and not the folder)."""
    named = os.environ.get("LOOPMOE_SCRATCH")
    return Path(named) if named and os.path.isdir(named) else None


def beat_file(scratch: Path, rank: int) -> Path:
    """Where rank ``rank`` beats."""
    return scratch / f"beat-{rank}"


def beat_files(folder: Path) -> Dict[int, Path]:
    """Those that are there, by rank."""
    names = {path.name.removeprefix("beat-"): path for path in folder.glob("beat-*")}
    return {int(rank): path for rank, path in names.items() if rank.isdigit()}


def stacks_file(scratch: Path, rank: int) -> Path:
    """Where rank ``rank`` writes its Python stacks on SIGUSR1."""
    return scratch / f"stacks-{rank}.txt"


def start(rank: int) -> None:
    """Begin to beat if a supervisor asked for it, and print stacks on SIGUSR1."""
    global _writer
    folder = scratch()
    stacks = open(stacks_file(folder, rank), "w") if folder else sys.stderr  # noqa: SIM115
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    if folder and _writer is None:
        _writer = _Writer(beat_file(folder, rank))


def at(phase: str, step: int) -> None:
    """The main loop enters ``phase`` with ``step`` steps done."""
    if _writer is not None:
        _writer.at(phase, step)


def done() -> None:
    """This rank ends as it should."""
    if _writer is not None:
        _writer.at("finish", _writer.sign.step, done=True)


def read(path: Path) -> Optional[Sign]:
    """The last sign in ``path``, or None before the first."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    (beat,) = _BEAT.unpack_from(content, 0)
    pid, step, here, moved, first, longest, phase, finished = _REST.unpack_from(content, _BEAT.size)
    name = phase.rstrip(b"\0").decode()
    return Sign(beat, pid, step, here, moved, first, longest, name, bool(finished))
