"""A byte counter for people: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator, Optional

_LINE_EVERY_S = 5.0


@contextmanager
def progress(
    label: str, total: Optional[int], console_print: Callable[[str], None]
) -> Iterator[Callable[[int], None]]:
    """Yield ``advance(bytes)``. ``total`` in bytes; None when it is not known before the end."""
    if sys.stderr.isatty():
        with _bar(label, total) as advance:
            yield advance
        return
    start = last = time.monotonic()
    done = 0

    def advance_lines(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            console_print(_line(label, done, total, now - start))

    yield advance_lines
    console_print(_line(label, done, done, time.monotonic() - start))


def _line(label: str, done: int, total: Optional[int], seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    line = f"{label}: {done / 1e6:.1f} MB in {seconds:.1f} s, {rate / 1e6:.2f} MB/s"
    if total is not None and total > done:
        line += f", {(total - done) / max(rate, 1.0):.0f} s left"
    return line


@contextmanager
def _bar(label: str, total: Optional[int]) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
