"""Console of rank 0: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


class Progress:
    """Shows how far the run is. Never raises: a closed pipe silences it.

    Args:
        total_steps: last step of the run.
        every_s: seconds between plain lines (no terminal).
        stream: default stdout.
        live: a bar (True) or lines (False); default: a bar if the stream is a terminal.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        total_steps: int,
        every_s: float = 10.0,
        stream: TextIO | None = None,
        live: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.every_s = every_s
        self._stream = stream or sys.stdout
        able = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._is_live = able if live is None else live
        self._clock = clock
        self._bar: Any = None
        self._task: Any = None
        self._shown_at: float | None = None
        self._pace = _Pace()
        self._broken = False

    def start(self) -> None:
        """Open the bar (a terminal) or do nothing (lines come with the first record)."""
        if self._is_live and self._bar is None:
            self._guard(self._open_bar)

    def train(self, record: dict[str, Any]) -> None:
        """A training record (names of metrics.TRAIN_KEYS)."""
        self._pace.update(record.get("step_s"))
        step = int(record.get("step") or 0)
        now = self._clock()
        if self._bar is not None:
            wait = 0.1  # redrawing costs more than a tiny step
        else:
            wait = self.every_s
        is_end = step >= self.total_steps
        if self._shown_at is not None and now - self._shown_at < wait and not is_end:
            return
        self._shown_at = now
        facts = describe(record) + [f"ETA {self._pace.eta(self.total_steps - step)}"]
        if self._bar is not None:
            self._guard(lambda: self._move_bar(step, "  ".join(facts)))
        else:
            self._line(f"{self._step(step)}  " + "  ".join(facts))

    def validation(self, record: dict[str, Any]) -> None:
        """A validation record (metrics.VALID_KEYS, SET_STATS): always a line of its own."""
        step = int(record.get("step") or 0)
        text = f"validation loss {_fixed(record.get('val_loss'), 4)}"
        if record.get("val_bits_per_byte") is not None:
            text += f"  {_fixed(record['val_bits_per_byte'], 4)} bits/byte"
        sets = [
            f"{key.split('/')[1]} {_fixed(value, 4)}"
            for key, value in record.items()
            if key.startswith("val/") and key.endswith("/bits_per_byte")
        ]
        if sets:
            text += f"  ({', '.join(sets)})"
        self._line(f"{self._step(step)}  {text}")

    def note(self, text: str) -> None:
        """A line above the bar, or in its turn."""
        self._line(text)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back; may be called twice."""
        bar, self._bar = self._bar, None
        if bar is not None:
            self._guard(bar.stop)

    def _step(self, step: int) -> str:
        return f"step {step:>{len(str(self.total_steps))}}/{self.total_steps}"

    def _line(self, text: str) -> None:
        if self._bar is not None:
            # plain text: a path in brackets must not be taken for markup
            self._guard(
                lambda: self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
            )
        else:
            self._guard(lambda: print(text, file=self._stream, flush=True))

    def _guard(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except (OSError, ValueError):  # the reader of our output has gone; training stays
            self._broken = True
            bar, self._bar = self._bar, None
            if bar is not None:
                with contextlib.suppress(Exception):  # rich stumbles if it was half open
                    bar.stop()  # gives sys.stdout and sys.stderr back

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        class PatientConsole(Console):
            def on_broken_pipe(self) -> None:
                self.quiet = True
                raise BrokenPipeError  # rich would exit the process, that is: the training

        # no refresh thread: data workers may be forked while it holds a lock
        self._bar = RichProgress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            console=PatientConsole(file=self._stream, force_terminal=True),
            auto_refresh=False,
        )
        self._task = self._bar.add_task("train", total=self.total_steps, facts="starting")
        self._bar.start()

    def _move_bar(self, step: int, facts: str) -> None:
        self._bar.update(self._task, completed=step, facts=facts, refresh=True)


def describe(record: dict[str, Any]) -> list[str]:
    """Loss, bits per byte and speed of a training record as short phrases."""
    facts = [f"loss {_fixed(record.get('loss'), 4)}"]
    if record.get("bits_per_byte") is not None:
        facts.append(f"{_fixed(record['bits_per_byte'], 3)} bits/byte")
    speed = record.get("tokens_per_s")
    if speed is not None and math.isfinite(speed):
        facts.append(f"{speed:,.0f} tokens/s")
    return facts


def format_seconds(seconds: float) -> str:
    """``42 s``, ``3:07`` (minutes) or ``2:03:07`` (hours)."""
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _fixed(value: float | None, digits: int) -> str:
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "not finite"


class _Pace:
    """Seconds per step, smoothed; the first step (compilation, warm-up) is forgotten."""

    def __init__(self) -> None:
        self._mean: float | None = None
        self._seen = 0

    def update(self, step_s: float | None) -> None:
        if step_s is None or not math.isfinite(step_s):
            return
        self._seen += 1
        if self._mean is None or self._seen == 2:
            self._mean = step_s
        else:
            self._mean += 0.1 * (step_s - self._mean)

    def eta(self, steps_left: int) -> str:
        if self._mean is None:
            return "unknown"
        return format_seconds(max(steps_left, 0) * self._mean)
