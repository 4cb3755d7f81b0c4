"""What a trace of profiled steps tells: time of operators, share of idling, share of collectives.

Reads Chrome's trace events, as torch.profiler writes them on cpu and cuda and torch_npu.profiler
on Ascend. Steps are ranges called ``train step <n>`` (see train/profile.py); what lies outside them
is left out. How Ascend's traces look was read in torch_npu 2.13's parsers and in its manual; none
has been seen.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

from loopmoe_train.files import write_text

STEP = "train step "
Interval = Tuple[float, float]

# Categories of work on a GPU, and the process that holds an NPU's work.
_DEVICE_KINDS = ("kernel", "gpu_memcpy", "gpu_memset")
_DEVICE_PROCESS = "Ascend Hardware"
# Rows in which torch_npu sums up an NPU's time, and how libraries call their collectives.
_NPU_ROWS = ("Communication", "Free")
_COLLECTIVE = ("nccldevkernel", "ncclkernel", "hcom_", "gloo:")


@dataclass
class Operator:
    """One kind of work: calls, milliseconds without what it calls itself, share of all steps."""

    name: str
    calls: int
    ms: float
    share: float


@dataclass
class Profile:
    """Of one rank.

    Attributes:
        where: "device", or "host" if nothing but the host computed.
        step_ms: mean length of a step.
        idle_share: part of the steps in which the device had nothing to do: the host had not
            submitted it yet, or other ranks were late. On the host: in which no operator ran, that
            is Python between operators.
        collective_share: part of the steps in which a collective ran or waited for other ranks.
        exposed_share: part in which a collective ran and nothing else did.
        operators: the longest first.
    """

    steps: List[int]
    where: str
    step_ms: float
    idle_share: float
    collective_share: float
    exposed_share: float
    operators: List[Operator]

    def lines(self) -> List[str]:
        """A few lines for the console."""
        first, last = self.steps[0], self.steps[-1]
        idle = "device idle" if self.where == "device" else "outside operators (Python)"
        top = ", ".join(f"{one.name} {100 * one.share:.0f} %" for one in self.operators[:3])
        return [
            f"profile of steps {first} to {last}: {self.step_ms:.1f} ms a step, {idle} "
            f"{100 * self.idle_share:.0f} %, collectives {100 * self.collective_share:.0f} % "
            f"({100 * self.exposed_share:.0f} % uncovered)",
            f"longest: {top}",
        ]

    def table(self) -> str:
        """The lines and all operators, for a text file."""
        rows = [f"{'share':>7} {'ms':>10} {'calls':>8}  operator"]
        for one in self.operators:
            rows.append(f"{100 * one.share:6.1f}% {one.ms:10.3f} {one.calls:8d}  {one.name}")
        return "\n".join([*self.lines(), "", *rows]) + "\n"

    def as_dict(self) -> Dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_profile(trace: Path, top: int = 40) -> Profile:
    """Summarize a trace file.

    Args:
        top: so many operators are kept.

    Raises:
        ValueError: it is no whole trace, or holds no step.
        OSError: it cannot be read.
    """
    content = json.loads(trace.read_text(errors="replace"))
    events = content["traceEvents"] if isinstance(content, dict) else content
    return summarize(events, top)


def summarize(events: Sequence[Dict[str, Any]], top: int = 40) -> Profile:
    """Summarize trace events; times in them are microseconds.

    Raises:
        ValueError: they hold no step.
    """
    whole = [event for event in events if event.get("ph") == "X" and "ts" in event]
    steps: Dict[int, Interval] = {}
    for event in whole:
        name = str(event.get("name", ""))
        if name.startswith(STEP) and event.get("cat") not in ("gpu_user_annotation",):
            steps[int(name.removeprefix(STEP))] = _interval(event)
    if not steps:
        raise ValueError("the trace holds no step")
    windows, total = list(steps.values()), _length(steps.values())
    inside = [event for event in whole if _within(_interval(event), windows)]
    device = _device_events(events, inside)
    work = device or [event for event in inside if _is_host_work(event)]
    collectives = [event for event in work if _is_collective(str(event["name"]))]
    computing = [event for event in work if not _is_collective(str(event["name"]))]
    rows = {name: [e for e in inside if e.get("name") == name] for name in _NPU_ROWS}
    busy = _clip(_union(map(_interval, work)), windows)
    idle = total - _length(busy)
    talking = _union(map(_interval, rows["Communication"] or collectives))
    if rows["Free"]:  # torch_npu has worked it out
        idle = _length(_clip(_union(map(_interval, rows["Free"])), windows))
    talking = _clip(talking, windows)
    # on the host a collective is part of the operator that asked for it
    other = _clip(_union(map(_interval, computing)), windows) if device else []
    exposed = _length(talking) - _overlap(talking, other)
    return Profile(
        steps=sorted(steps),
        where="device" if device else "host",
        step_ms=total / len(steps) / 1e3,
        idle_share=max(0.0, idle / total),
        collective_share=_length(talking) / total,
        exposed_share=max(0.0, exposed / total),
        operators=_operators(work, total)[:top],
    )


def _device_events(
    events: Iterable[Dict[str, Any]], inside: Iterable[Dict[str, Any]]
) -> List[Dict[str, Any]]:
    processes = {
        event.get("pid")
        for event in events
        if event.get("name") == "process_name"
        and _DEVICE_PROCESS in str(event.get("args", {}).get("name", ""))
    }
    return [e for e in inside if e.get("cat") in _DEVICE_KINDS or e.get("pid") in processes]


def _is_host_work(event: Dict[str, Any]) -> bool:
    return event.get("cat") == "cpu_op" or _is_collective(str(event.get("name", "")))


def _is_collective(name: str) -> bool:
    return name.lower().startswith(_COLLECTIVE)


def _operators(work: Iterable[Dict[str, Any]], total: float) -> List[Operator]:
    """By name, with the time of an operator that another one on its thread calls taken off that."""
    by_thread: Dict[Any, List[Dict[str, Any]]] = defaultdict(list)
    for event in work:
        by_thread[event.get("pid"), event.get("tid")].append(event)
    own: Dict[str, float] = defaultdict(float)
    calls: Dict[str, int] = defaultdict(int)
    for thread in by_thread.values():
        open_calls: List[Tuple[float, str]] = []
        for event in sorted(thread, key=lambda e: (float(e["ts"]), -float(e.get("dur", 0)))):
            begin, end = _interval(event)
            while open_calls and open_calls[-1][0] <= begin:
                open_calls.pop()
            name = str(event["name"])
            if open_calls:
                own[open_calls[-1][1]] -= end - begin
            own[name] += end - begin
            calls[name] += 1
            open_calls.append((end, name))
    order = sorted(own, key=lambda name: -own[name])
    return [Operator(name, calls[name], own[name] / 1e3, own[name] / total) for name in order]


# -- intervals -----------------------------------------------------------------------------------


def _interval(event: Dict[str, Any]) -> Interval:
    begin = float(event["ts"])
    return begin, begin + float(event.get("dur", 0))


def _within(one: Interval, windows: Iterable[Interval]) -> bool:
    return any(one[0] < end and one[1] > begin for begin, end in windows)


def _union(intervals: Iterable[Interval]) -> List[Interval]:
    joined: List[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _clip(intervals: Iterable[Interval], windows: Sequence[Interval]) -> List[Interval]:
    return [
        (max(begin, first), min(end, last))
        for begin, end in intervals
        for first, last in windows
        if begin < last and end > first
    ]


def _overlap(some: Sequence[Interval], others: Sequence[Interval]) -> float:
    return _length(_clip(some, others))


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in intervals)


# -- what a run folder holds ---------------------------------------------------------------------


def found_profiles(folder: Path) -> Dict[int, Profile]:
    """Profiles that a run has left, by rank; damaged ones are left out."""
    found: Dict[int, Profile] = {}
    for path in sorted(folder.glob("profile/rank-*.json")):
        number = path.name.removeprefix("rank-").removesuffix(".json")
        if number.isdigit():
            try:
                values = json.loads(path.read_text())
                values["operators"] = [Operator(**one) for one in values["operators"]]
                found[int(number)] = Profile(**values)
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return dict(sorted(found.items()))


def main(trace: Path) -> None:
    """Write what a trace tells beside it: rank-0.trace.json -> rank-0.txt and rank-0.json."""
    found = read_profile(trace)
    stem = trace.name.removesuffix(".trace.json")
    write_text(trace.with_name(f"{stem}.txt"), found.table())
    write_text(trace.with_name(f"{stem}.json"), json.dumps(found.as_dict(), indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
