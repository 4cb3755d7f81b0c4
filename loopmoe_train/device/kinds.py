"""Types of what the facade hands out: streams, events, profilers. The device's own objects fit."""

from __future__ import annotations

from typing import Any, Protocol


class Event(Protocol):
    """A point in a stream's order of work."""

    def record(self, stream: Any = None) -> Any: ...

    def wait(self, stream: Any = None) -> Any: ...

    def query(self) -> bool: ...

    def synchronize(self) -> Any: ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to ``end``; both made with ``enable_timing=True``."""


class Stream(Protocol):
    """An order of work on a device."""

    def record_event(self, event: Any = None) -> Any: ...

    def wait_event(self, event: Any) -> Any: ...

    def wait_stream(self, stream: Any) -> Any: ...

    def query(self) -> bool: ...

    def synchronize(self) -> Any: ...


class Profiler(Protocol):
    """Records what host and device do between ``start`` and ``stop``."""

    def start(self) -> Any: ...

    def stop(self) -> Any: ...

    def export_chrome_trace(self, path: str) -> Any:
        """Write the record as Chrome's trace events, which Perfetto shows."""
