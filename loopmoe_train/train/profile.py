"""Profile of a few steps (``profile.steps``): RUN/profile/rank-<r>.trace.json for Perfetto, .txt
with the operators, .json with the shares.

A profile may fail in any way (full disk, profiler, parser): then one line warns, and training
goes on. A trace is written by a thread and read by a process of its own; still, stopping the
profiler and writing hold Python for some seconds per 100 MB: a few steps are enough.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterator, Optional

import torch

from loopmoe_train.config.profile_rules import profiled_steps
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.observe.trace import STEP


class Capture:
    """Records the steps that a run wants profiled on this rank.

    Args:
        rank: of this process.
        say: takes a line for the user.
    """

    def __init__(self, run: RunConfig, rank: int, say: Callable[[str], None]) -> None:
        wanted = profiled_steps(run.profile.steps) if rank in run.profile.ranks else None
        self._steps = wanted or range(0)
        self._folder, self._rank, self._say = run_dir(run) / "profile", rank, say
        self._profiler: Any = None
        self._writer: Optional[threading.Thread] = None

    def step(self, number: int) -> ContextManager[None]:
        """Around a step; ``number`` counts from 1."""
        return self._recorded(number) if number in self._steps else contextlib.nullcontext()

    @contextlib.contextmanager
    def _recorded(self, number: int) -> Iterator[None]:
        last = self._steps[-1]  # a failure clears them
        with self._safely("start"):
            if self._profiler is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                accel.synchronize()
                profiler = accel.profiler()
                profiler.start()
                self._profiler = profiler
        with torch.profiler.record_function(f"{STEP}{number}"):
            yield
            if self._profiler is not None:
                accel.synchronize()  # what the step has submitted belongs to it
        if number == last:
            self.close()

    def close(self) -> None:
        """Stop recording and have what was recorded written; a second call changes nothing."""
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        self._steps = range(0)
        with self._safely("stop"):
            profiler.stop()
            # a daemon: a trace that takes for ever must not keep the run from ending
            self._writer = threading.Thread(target=self._write, args=(profiler,), daemon=True)
            self._writer.start()

    def finish(self, patience_s: float = 300.0) -> None:
        """Wait until all is written, at the end of the run."""
        self.close()
        if self._writer is not None:
            self._writer.join(patience_s)
            if self._writer.is_alive():
                self._say(f"warning: profile of rank {self._rank}: still being written; left")
            self._writer = None

    def _write(self, profiler: Any) -> None:
        trace = self._folder / f"rank-{self._rank}.trace.json"
        with self._safely("write", trace):
            profiler.export_chrome_trace(str(trace))
            # not here: reading a large file would keep Python from the training
            command = [sys.executable, "-m", "loopmoe_train.observe.trace", str(trace)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                words = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise RuntimeError(words[-1])

    @contextlib.contextmanager
    def _safely(self, doing: str, trace: Optional[Path] = None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._steps, self._profiler = range(0), None
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            left = f"; {trace.name} is not whole" if trace is not None and trace.exists() else ""
            self._say(
                f"warning: profile of rank {self._rank}: could not {doing}: {why}{left}; training "
                "goes on"
            )
