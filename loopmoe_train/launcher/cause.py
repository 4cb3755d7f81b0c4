"""Why a job ended badly: from exit codes and what the ranks said to one line."""

from __future__ import annotations

import json
import math
import re
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional

from loopmoe_train.errors import LoopMoEError, RankLost, Refused, RunFailed, TrainingStopped
from loopmoe_train.train.heartbeat import Sign

KINDS = {kind.exit_code: kind for kind in (RunFailed, Refused, TrainingStopped, RankLost)}
# Of a rank on a machine that does not see the run folder; mpirun hands it on.
_IN_LOG = re.compile(r"^loopmoe train: rank (?P<rank>\d+): (?P<what>.*?)( -> (?P<fix>.*))?$", re.M)
AGAIN = "the same command resumes from the last checkpoint"


@dataclass
class Fault:
    """One failure of a job.

    Attributes:
        error: what the user is told.
        rank: the rank that caused it, if known.
        sign: the last sign of that rank.
        signal: what killed or stopped it.
        last_sign_at: its last sign of life (a hang: of progress), CLOCK_MONOTONIC.
        detection_s: from then to noticing, in seconds.
        next_step_s: from then to the end of the first step of the next attempt.
        report_file: where the attempt is reported.
        hang: nobody got further, for whatever reason.
        follows: it came of something elsewhere: of a peer that is gone, or of another node.
    """

    error: LoopMoEError
    rank: Optional[int] = None
    sign: Optional[Sign] = None
    signal: Optional[str] = None
    last_sign_at: float = 0.0
    detection_s: float = 0.0
    next_step_s: Optional[float] = None
    report_file: Optional[Path] = None
    hang: bool = False
    follows: bool = False


def cause(
    endings: Dict[int, Optional[int]], signs: Dict[int, Sign], scratch: Path, logs: Path
) -> Fault:
    """The fault behind the ends of these ranks; the first event, not the loudest.

    A killed rank explains the others; so does one that left early. Then comes what the ranks
    said: a rank that loses its peer fails too, a moment later, and says so. A rank of which
    nothing is known comes before those, since somebody must have been lost.
    """
    told = said(scratch, logs)
    silent = {r: c for r, c in endings.items() if r not in {entry["rank"] for entry in told}}
    own_words = [entry for entry in told if not entry["lost_peer"]]
    for rank, code in silent.items():
        if code is not None and code < 0 and code != -signal.SIGTERM:
            return killed(rank, code, signs.get(rank), logs)
    for rank, code in silent.items():
        if code == 0 and not _done(signs, rank):
            return _left(rank, signs.get(rank), "left with exit code 0", logs)
    if own_words:
        return _told(own_words[0], signs)
    for rank, code in silent.items():
        if code is None:
            return _left(rank, signs.get(rank), "ended without a word", logs)
    if told:
        return _told(told[0], signs)
    for rank, code in silent.items():
        if code is not None and code < 0:
            return killed(rank, code, signs.get(rank), logs)
    rank, code = next((r, c) for r, c in silent.items() if c)
    error = RunFailed(
        f"rank {rank} ended with exit code {code} and said nothing",
        f"see {logs}/rank-{rank}.log",
    )
    # Rank 0 tells for all why a run is refused; on its node it is known.
    return Fault(error, rank, signs.get(rank), follows=True)


def killed(rank: int, code: int, sign: Optional[Sign], logs: Path) -> Fault:
    """The fault of a rank that a signal ended."""
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    error = RankLost(
        f"rank {rank} was ended by {name}{hint} {where(sign)}; the other ranks were stopped",
        f"see {logs}/rank-{rank}.log; {AGAIN}",
    )
    return Fault(error, rank, sign, name)


def stopped(rank: int, sign: Sign, status: str, silent_s: float, logs: Path) -> Fault:
    """The fault of a rank that has not run for ``silent_s`` seconds; ``status`` is the system's."""
    by_signal = status == "stopped"
    how = "was stopped by SIGSTOP" if by_signal else f"is stuck outside Python ({status})"
    error = RankLost(
        f"rank {rank} {how} {where(sign)}: no sign of life for {silent_s:.1f} s; it was killed",
        f"see {logs}/rank-{rank}.log, or raise launcher.heartbeat_seconds; {AGAIN}",
    )
    return Fault(error, rank, sign, "SIGSTOP" if by_signal else None)


def hung(ranks: List[int], sign: Sign, stuck_s: float, logs: Path, follows: bool = False) -> Fault:
    """The fault of ranks that run but get no further."""
    who = f"rank {ranks[0]} hangs" if len(ranks) == 1 else f"ranks {ranks} hang"
    if follows:
        who = f"a rank on another machine hangs, for which rank {ranks[0]} waits"
    error = RankLost(
        f"{who} {where(sign)}: no progress for {stuck_s:.1f} s; the job was killed",
        f"see {logs}/stacks-*.txt for where, or raise launcher.hang_seconds; {AGAIN}",
    )
    return Fault(error, ranks[0], sign, hang=True, follows=follows)


def where(sign: Optional[Sign]) -> str:
    """The phase of a rank in words."""
    return sign.where if sign is not None else "while starting"


def _done(signs: Dict[int, Sign], rank: int) -> bool:
    return rank in signs and signs[rank].done


def _left(rank: int, sign: Optional[Sign], how: str, logs: Path) -> Fault:
    error = RankLost(
        f"rank {rank} {how} {where(sign)}, before the run was over; the other ranks were stopped",
        f"see {logs}/rank-{rank}.log; {AGAIN}",
    )
    return Fault(error, rank, sign)


def _told(entry: Dict[str, Any], signs: Dict[int, Sign]) -> Fault:
    rank = int(entry["rank"])
    kind = KINDS.get(entry["exit_code"], RunFailed)
    error = kind(f"rank {rank}: {entry['what']}", entry["fix"])
    return Fault(error, rank, signs.get(rank), follows=bool(entry["lost_peer"]))


def _from_log(match: re.Match[str]) -> Dict[str, Any]:
    refused = Refused.exit_code  # what keeps a run from starting there; the disk is the reason
    return dict(rank=int(match["rank"]), what=match["what"], fix=match["fix"] or "",
                exit_code=refused, lost_peer=False, time=math.inf)  # fmt: skip


def said(scratch: Path, logs: Path) -> List[Dict[str, Any]]:
    """The lines that failing ranks left, the earliest first, lost peers last."""
    files = [path for folder in (scratch, logs) for path in folder.glob("failure-*.json")]
    told = [json.loads(path.read_text()) for path in files]
    if (logs / "mpirun.log").exists():
        told += map(_from_log, _IN_LOG.finditer((logs / "mpirun.log").read_text(errors="replace")))
    return sorted(told, key=lambda entry: (entry["lost_peer"], entry["time"]))
