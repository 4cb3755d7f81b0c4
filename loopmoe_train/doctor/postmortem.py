"""Why a run ended, by what it has left: which rank was where, who failed first, whom to suspect."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

import psutil

from loopmoe_train.doctor import signatures
from loopmoe_train.doctor.attempts import Attempt, Span, read
from loopmoe_train.doctor.check import Check, failed, look, passed, warned
from loopmoe_train.errors import Refused
from loopmoe_train.observe.jsonl import read_jsonl

_SHOWN = 4
_AGAIN = "the same `loopmoe train` command goes on from the last checkpoint"


def examine(folder: Path) -> List[Check]:
    """All that can be told of the run in ``folder``.

    Raises:
        Refused: it is no run folder.
    """
    if not (folder / "run.yaml").is_file():
        raise Refused(
            f"{folder}: no run folder (there is no run.yaml)",
            "loopmoe doctor --postmortem runs/NAME",
        )
    attempts = read(folder)
    last = attempts[-1] if attempts else None
    found = look("postmortem/end", lambda: [end(attempts)])
    if last is not None:
        found += look("postmortem/spans", lambda: [spans(last.spans())])
        found += look("postmortem/first-error", lambda: [first_error(last)])
        found += look("postmortem/suspect", lambda: [suspect(attempts)])
    found += look("postmortem/logs", lambda: logs(folder, last))
    found += look("postmortem/metrics", lambda: [metrics(folder)])
    found += look("postmortem/checkpoint", lambda: checkpoint(folder))
    return found


def end(attempts: Sequence[Attempt]) -> Check:
    """How the last attempt ended."""
    if not attempts:
        return warned(
            "postmortem/end",
            "no attempt was recorded: the ranks were started by torchrun or mpirun alone",
            "start with `loopmoe train launcher=torchrun`, which watches and records",
        )
    last = attempts[-1]
    count = f"{len(attempts)} {'attempt' if len(attempts) == 1 else 'attempts'}"
    if last.outcome == "ended":
        return passed("postmortem/end", f"ended as it should, after {count}")
    if last.outcome == "running":
        return _unfinished(last, count)
    guilty = last.guilty or {}
    what, _, fix = str(guilty.get("cause", "unknown cause")).rpartition(" -> ")
    when = _moment(guilty.get("ended_at"))
    if last.outcome == "restarted":
        return failed(
            "postmortem/end",
            f"{count}; the last was to be followed by another: {what or fix}",
            f"the launcher ended in between; {_AGAIN}",
        )
    return failed(
        "postmortem/end", f"{count}; failed{when}: {what or fix}", fix if what else _AGAIN
    )


def _unfinished(last: Attempt, count: str) -> Check:
    report = next(one for one in last.reports if one.get("outcome", "running") == "running")
    pid, host = report.get("pid"), report.get("host", "unknown host")
    began = _moment(report.get("began_at"))
    if pid and psutil.pid_exists(int(pid)) and _began_before(int(pid), report.get("began_at")):
        return passed("postmortem/end", f"{count}; process {pid} on {host} still runs it{began}")
    return failed(
        "postmortem/end",
        f"{count}; the last one, begun{began}, has no end: the launcher (process {pid} on {host}) "
        "was killed, or the machine went down",
        f"dmesg -T | grep -i -E 'oom|killed process' on {host}; {_AGAIN}",
    )


def _began_before(pid: int, moment: object) -> bool:
    """Whether the process is older than the record: not another one with its number."""
    try:
        return psutil.Process(pid).create_time() <= float(str(moment)) + 1
    except (psutil.Error, ValueError):
        return False


def spans(found: Sequence[Span]) -> Check:
    """Phase and step of every rank; ranks in the same place are told together."""
    if not found:
        return warned("postmortem/spans", "no rank was seen: none had started",
                      "see logs/rank-0.log, and torchrun.log or mpirun.log there")  # fmt: skip
    places = Counter(span.words for span in found)
    told = []
    for words, _ in places.most_common(_SHOWN):
        ranks = [span for span in found if span.words == words]
        since = min(span.since for span in ranks)
        hosts = ", ".join(dict.fromkeys(span.host for span in ranks))
        numbers = _ranges([span.rank for span in ranks])
        told.append(f"{numbers} ({hosts}) {words}{_moment(since) if since else ''}")
    least, most = min(span.step for span in found), max(span.step for span in found)
    what = "; ".join(told)
    if least < most:
        behind = [span for span in found if span.step == least]
        return warned(
            "postmortem/spans", f"{what}; behind: {_ranges([span.rank for span in behind])}",
            f"look at {', '.join(dict.fromkeys(span.host for span in behind))} and at "
            f"logs/rank-{behind[0].rank}.log first",
        )  # fmt: skip
    return passed("postmortem/spans", what)


def first_error(last: Attempt) -> Check:
    """The earliest line that a rank told."""
    told = last.failures()
    if not told:
        return passed("postmortem/first-error", "no rank told an error: none failed by itself")
    first = next((one for one in told if not one["lost_peer"]), told[0])
    host = first.get("host") or last.host_of(first["rank"])
    also = [one["rank"] for one in told if one is not first]
    after = f"; after it {_ranges(also)}" if also else ""
    only = " (it only lost another rank)" if first["lost_peer"] else ""
    found = warned if first["lost_peer"] else failed
    return found(
        "postmortem/first-error",
        f"rank {first['rank']} on {host}{_moment(first['time'])}: {first['what']}{only}{after}",
        first["fix"] or f"see logs/rank-{first['rank']}.log",
    )


def suspect(attempts: Sequence[Attempt]) -> Check:
    """Whom to look at, and why."""
    faults = [(one, one.guilty) for one in attempts]
    guilty = [(one, report) for one, report in faults if report is not None]
    last = attempts[-1]
    if not guilty:
        if last.outcome == "running":
            return _of_spans(last)
        return passed("postmortem/suspect", "nobody")
    attempt, report = guilty[-1]
    rank, name = report.get("rank"), report.get("signal")
    host = attempt.host_of(rank)
    where = next((span.words for span in attempt.spans() if span.rank == rank), "")
    how = f"ended by {name}" if name else "named by the cause"
    times = sum(one.host_of(two.get("rank")) == host for one, two in guilty)
    often = f"; {times} of {len(guilty)} faults were on {host}" if len(guilty) > 1 else ""
    what = f"rank {rank} on {host}: {how} {where}{often}"
    if rank is None:
        what = f"no rank stands out; host {host}"
    fix = _advice(report, attempt, host)
    if last.outcome == "ended":
        return warned("postmortem/suspect", f"{what}; a restart got over it", fix)
    return failed("postmortem/suspect", what, fix)


def _of_spans(last: Attempt) -> Check:
    found = last.spans()
    least = min((span.step for span in found), default=0)
    behind = [span for span in found if span.step == least]
    hosts = ", ".join(dict.fromkeys(span.host for span in behind)) or last.host_of(None)
    return warned(
        "postmortem/suspect", f"the launcher itself, on {last.host_of(None)}: it was killed",
        f"dmesg -T | tail -50 on {hosts}",
    )  # fmt: skip


def _advice(report: dict[str, object], attempt: Attempt, host: str) -> str:
    cause, name, rank = str(report.get("cause", "")), report.get("signal"), report.get("rank")
    if name == "SIGKILL":
        return (
            f"dmesg -T | grep -i -E 'oom|killed process' on {host}: if it was memory, loopmoe "
            "plan; if not, who sent it"
        )
    if name == "SIGSTOP":
        return f"on {host}: who stopped it (a debugger, a scheduler, a full terminal)? {_AGAIN}"
    stack = _stack(attempt, rank)
    if "hang" in cause:
        place = f"; it stood at {stack}" if stack else ""
        return f"cat logs/stacks-rank-{rank}.txt{place}; loopmoe doctor --cluster on the same hosts"
    if name:
        return f"cat logs/rank-{rank}.log; dmesg -T | tail -50 on {host}"
    fix = cause.rpartition(" -> ")[2] if " -> " in cause else ""
    return fix or f"cat logs/rank-{rank}.log"


def _stack(attempt: Attempt, rank: object) -> Optional[str]:
    """Innermost line of the main thread of a rank's stacks."""
    for folder in attempt.logs:
        file = folder / f"stacks-rank-{rank}.txt"
        if file.is_file():
            threads = file.read_text(errors="replace").split("\n\n")
            main = next((text for text in threads if "in <module>" in text), "")
            inner = re.search(r'File "([^"]+)", line (\d+) in (\w+)', main)
            if inner:
                return f"{inner[3]} ({Path(inner[1]).name}:{inner[2]})"
    return None


def logs(folder: Path, last: Optional[Attempt]) -> Iterator[Check]:
    """Known messages in the ends of all logs."""
    folders = last.logs if last else [folder / "logs"]
    files = sorted({file for one in folders for file in one.glob("*.log")})
    hits = signatures.scan(files)
    for hit in hits[: 2 * _SHOWN]:
        where = hit.file.relative_to(folder) if hit.file.is_relative_to(folder) else hit.file
        yield warned("postmortem/logs", f"{where}: {hit.means}: {hit.line}", hit.fix)
    if not hits:
        yield passed("postmortem/logs", f"no known message in {len(files)} logs")


def metrics(folder: Path) -> Check:
    """The last recorded step."""
    file = folder / "metrics.jsonl"
    lines = [one for one in read_jsonl(file) if "loss" in one] if file.is_file() else []
    if not lines:
        return warned("postmortem/metrics", "no step was recorded",
                      "see logs/rank-0.log: the run ended before its first step")  # fmt: skip
    last = lines[-1]
    if last["loss"] is None or last.get("grad_norm", 0.0) is None:
        return failed(
            "postmortem/metrics", f"step {last['step']}: the loss or the gradient is no number",
            "lower optim.lr, or continue before it: checkpoint.resume=runs/NAME/checkpoints/step-N",
        )  # fmt: skip
    return passed(
        "postmortem/metrics", f"{last['step']} steps recorded, last loss {last['loss']:.4g}"
    )


def checkpoint(folder: Path) -> Iterator[Check]:
    """From where the same command goes on, and what it does anew."""
    from loopmoe_train.checkpoint.load import verify  # imports torch
    from loopmoe_train.checkpoint.manifest import committed

    file = folder / "metrics.jsonl"
    done = max(
        (int(one["step"]) for one in (read_jsonl(file) if file.is_file() else [])), default=0
    )
    folders = committed(folder / "checkpoints")
    for one in folders:
        try:
            step = verify(one).step
        except Refused as error:
            yield warned("postmortem/checkpoint", error.what, "nothing, if an older one is whole")
            continue
        lost = f"; {done - step} later steps are made again" if done > step else ""
        yield passed("postmortem/checkpoint", f"{one} is whole: step {step}{lost}")
        return
    if folders:
        yield failed(
            "postmortem/checkpoint",
            f"none of {len(folders)} is whole: the same command will be refused",
            "restore one from a copy, or begin again with name=ANOTHER",
        )
        return
    yield warned(
        "postmortem/checkpoint", "there is none: the run begins at step 0 again",
        "checkpoint.interval=N saves every N steps",
    )  # fmt: skip


def _ranges(numbers: Sequence[int]) -> str:
    """rank 3; ranks 0-3, 7."""
    parts: List[List[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    words = [str(low) if low == high else f"{low}-{high}" for low, high in parts]
    shown = ", ".join(words[:8]) + (", ..." if len(words) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"


def _moment(seconds: object) -> str:
    if not isinstance(seconds, (int, float)) or not seconds:
        return ""
    return time.strftime(" at %Y-%m-%d %H:%M:%S", time.localtime(seconds))
