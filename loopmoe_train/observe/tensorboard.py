"""TensorBoard beside metrics.jsonl: the same names, steps and values (as float32)."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopmoe_train.observe.jsonl import scalars
from loopmoe_train.observe.sinks import to_stderr
from loopmoe_train.redact import redact


class TensorBoardSink:
    """Event files in one folder, for ``tensorboard --logdir``; never at the cost of the run.

    Written with the package ``tensorboard`` itself: this process may have no torch. The first
    exception becomes one warning line and switches the sink off.

    Args:
        folder: of the event files; each start of the run adds one.
        first_step: readers forget what earlier starts wrote for this step and later ones, so
            that a run continued from a checkpoint shows one curve. 0: forget everything.
        warn: takes the warning line; default: stderr.
    """

    def __init__(
        self, folder: Path | str, first_step: int = 0, warn: Callable[[str], None] | None = None
    ) -> None:
        self._warn = warn or to_stderr
        self._writer: Any = None
        try:
            self._writer = _start(Path(folder), first_step)
        except Exception as error:  # whatever it is, the run is worth more than its curves
            self._give_up("start", error)

    def write(self, record: dict[str, Any]) -> None:
        """Store the record's numbers; each is on disk when this returns."""
        if self._writer is None:
            return
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [
                Summary.Value(tag=name, simple_value=value)
                for name, value in scalars(record).items()
            ]
            event = Event(wall_time=time.time(), step=int(record["step"]))
            event.summary.CopyFrom(Summary(value=values))
            self._writer.add_event(event)
            self._writer.flush()
        except Exception as error:
            self._give_up("log", error)

    def close(self, status: str = "done") -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close()
        except Exception as error:
            self._give_up("finish", error)

    def _give_up(self, action: str, error: Exception) -> None:
        self._writer = None
        reason = redact(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
        self._warn(f"tensorboard could not {action} ({reason}); training goes on, "
                   "see metrics.jsonl")  # fmt: skip


def _start(folder: Path, first_step: int) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    start = SessionLog(status=SessionLog.START)
    writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))
    writer.flush()
    return writer
