"""Console of several runs at once, read from their folders: bars on a terminal, else lines."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, TextIO, Tuple

from loopmoe_train.observe.jsonl import last_record
from loopmoe_train.observe.progress import format_seconds


class Watch:
    """Says which runs go on, how far they are, and what came of those that ended.

    Args:
        runs: name -> (run folder, its last step).
        total, done: runs in all, and those done before.
        every_s: seconds between lines where there is no terminal.
    """

    def __init__(
        self,
        runs: Dict[str, Tuple[Path, int]],
        total: int,
        done: int,
        every_s: float = 60.0,
        stream: Optional[TextIO] = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runs, self.total, self.done = runs, total, done
        self.every_s, self.stream, self.clock = every_s, stream or sys.stdout, clock
        self.began = self.shown = clock()
        self.begun_at: Dict[str, float] = {}
        self.told: Dict[str, int] = {}
        self.bars: Dict[str, Any] = {}
        self.live: Any = None

    def __enter__(self) -> Watch:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[facts]}", markup=False),
                console=Console(file=self.stream),
                auto_refresh=False,
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def look(self, running: List[str], codes: Dict[str, int]) -> None:
        """To be called now and then with those running and the exit codes of those ended."""
        for name in running:
            self.begun_at.setdefault(name, self.clock())
        for name in codes.keys() - self.told.keys():
            self.told[name] = codes[name]
            self._ended(name, codes[name])
        if self.live is not None:
            for name in running:
                self._move(name)
            self.live.refresh()
        elif self.clock() - self.shown >= self.every_s and running:
            self.shown = self.clock()
            self._line("   ".join(f"{name} {self._facts(name)}" for name in running))

    def _ended(self, name: str, code: int) -> None:
        folder, steps = self.runs[name]
        if name in self.bars:
            self.live.remove_task(self.bars.pop(name))
        last = last_record(folder / "metrics.jsonl")
        took = format_seconds(self.clock() - self.begun_at.get(name, self.began))
        if code == 0 and last.get("step") == steps:
            self.done += 1
            bits = last.get("val_bits_per_byte")
            what = f"{bits:.4f} bits/byte" if bits is not None else "done"
            more = f", about {self._to_go()} to go" if self.done < self.total else ""
            self._line(f"[{self.done}/{self.total}] {name}: {what} in {took}{more}")
        else:
            state = "stopped" if code in (0, 130, 143) else f"ended with code {code}"
            self._line(f"{name}: {state} after step {last.get('step', 0)}, {took}")

    def _to_go(self) -> str:
        """Time for what is left, at the pace so far; runs that are under way count by steps."""
        going = [name for name in self.begun_at if name not in self.told]
        parts = [last_record(self.runs[n][0] / "metrics.jsonl").get("step", 0) / self.runs[n][1]
                 for n in going]  # fmt: skip
        made = len(self.told) + sum(parts)
        left = self.total - self.done - sum(parts)
        return format_seconds((self.clock() - self.began) / made * left)

    def _move(self, name: str) -> None:
        folder, steps = self.runs[name]
        if name not in self.bars:
            self.bars[name] = self.live.add_task(name, total=steps, facts="starting")
        step = last_record(folder / "metrics.jsonl").get("step", 0)
        self.live.update(self.bars[name], completed=step, facts=self._facts(name))

    def _facts(self, name: str) -> str:
        folder, steps = self.runs[name]
        last = last_record(folder / "metrics.jsonl")
        loss = f" loss {last['loss']:.3f}" if isinstance(last.get("loss"), float) else ""
        return f"{last.get('step', 0)}/{steps}{loss}"

    def _line(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)
