"""What the launcher has left of every attempt of a run: ``logs/attempt-<n>.json``."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from loopmoe_train.train import heartbeat

_UNKNOWN = "unknown host"


@dataclass
class Span:
    """Where a rank was last seen."""

    rank: int
    host: str
    step: int
    phase: str
    since: float = 0.0  # seconds of the epoch; 0: not told

    @property
    def words(self) -> str:
        """The phase in words."""
        if self.phase == "step":
            return f"in step {self.step + 1}"
        if self.phase == "start":
            return "while starting"
        return f"in {self.phase} after step {self.step}"


@dataclass
class Attempt:
    """One start of the job, over all of its nodes.

    Attributes:
        number: of its files.
        reports: as written, one of every node.
        logs: folders of them.
    """

    number: int
    reports: List[Dict[str, Any]] = field(default_factory=list)
    logs: List[Path] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """running (also: killed), failed, restarted or ended; the worst of its nodes."""
        found = {report.get("outcome", "running") for report in self.reports}
        return next((w for w in ("running", "failed", "restarted") if w in found), "ended")

    @property
    def guilty(self) -> Optional[Dict[str, Any]]:
        """The report that tells the cause, that of the guilty rank's node first."""
        told = [report for report in self.reports if report.get("cause")]
        own = [
            report for report in told
            if report.get("rank") in {one["rank"] for one in report.get("ranks", [])}
        ]  # fmt: skip
        return next(iter(own or told), None)

    def spans(self) -> List[Span]:
        """Of every rank that was seen."""
        found = []
        for report in self.reports:
            host = report.get("host", _UNKNOWN)
            for one in report.get("ranks", []):
                since = float(one.get("phase_since", 0.0))
                found.append(Span(one["rank"], host, one["step"], one["phase"], since))
            if "ranks" not in report and report.get("scratch"):
                found += _beats(Path(report["scratch"]), host)
        return sorted(found, key=lambda span: span.rank)

    def failures(self) -> List[Dict[str, Any]]:
        """What ranks told before they ended, by time; those that lost a peer among them."""
        told = [one for report in self.reports for one in report.get("failures", [])]
        return sorted(told, key=lambda one: float(one["time"]))

    def host_of(self, rank: Optional[int]) -> str:
        """Of a rank that was seen; of the only node otherwise."""
        hosts = {span.rank: span.host for span in self.spans()}
        only = {report.get("host", _UNKNOWN) for report in self.reports}
        return hosts.get(-1 if rank is None else rank) or ", ".join(sorted(only)) or _UNKNOWN


def read(folder: Path) -> List[Attempt]:
    """Attempts of the run in ``folder``, in order; a report that cannot be read counts as one that
    was killed while it was written."""
    found: Dict[int, Attempt] = {}
    logs = folder / "logs"
    for file in sorted([*logs.glob("attempt-*.json"), *logs.glob("node-*/attempt-*.json")]):
        number = file.stem.removeprefix("attempt-")
        if not number.isdigit():
            continue
        attempt = found.setdefault(int(number), Attempt(int(number)))
        try:
            report = json.loads(file.read_text())
        except (OSError, ValueError):
            report = {}
        attempt.reports.append(report if isinstance(report, dict) else {})
        attempt.logs.append(file.parent)
    return [found[number] for number in sorted(found)]


def _beats(scratch: Path, host: str) -> List[Span]:
    """Last signs in the folder of a supervisor that was killed, if they are of this boot."""
    clock = time.time() - time.monotonic()
    found = []
    for file in scratch.glob("beat-*"):
        number = file.name.removeprefix("beat-")
        sign = heartbeat.read(file) if number.isdigit() else None
        if sign is not None:
            found.append(Span(int(number), host, sign.step, sign.phase, sign.moved + clock))
    return found
