"""Watch the ranks of one attempt from outside until they end, stop or hang."""

from __future__ import annotations

import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional

import psutil

from loopmoe_train.config.schema import LauncherConfig
from loopmoe_train.errors import RankLost, RunFailed
from loopmoe_train.launcher import cause
from loopmoe_train.launcher.cause import Fault
from loopmoe_train.launcher.job import Job
from loopmoe_train.train.heartbeat import Sign, stacks_file

POLL_S = 0.1
_LAST_WORDS_S = 0.2  # for a rank that failed first to write its line
_LAUNCHER_S = 1.5  # for torchrun or mpirun to report how a rank ended
_MPIRUN_S = 10.0  # for mpirun to end the ranks on other machines and report
_MOST_PER_POLL_S = 0.5  # a machine that was asleep must not look like a rank that was
_HANG_FLOOR_S = 60.0
_HANG_FACTOR = 10.0

Poll = Callable[[Dict[int, Sign]], Optional[Fault]]


def watch(job: Job, limits: LauncherConfig, logs: Path, each_poll: Poll) -> Optional[Fault]:
    """Return None when every rank has ended as it should, else what went wrong first.

    Noticed: a rank that ended, by any exit or signal (at the next look, every 0.1 s); one that
    neither beats nor uses the processor for ``heartbeat_seconds`` (stopped, or stuck in a system
    call or with Python's lock held); one whose phase lasts longer than ``hang_limit``. Of a hang
    the Python stacks of all ranks are left in ``logs``.

    Args:
        each_poll: called with the present signs at every look; a fault of another node, which ends
            what runs here too.
    """
    pulses: Dict[int, _Pulse] = {}
    looked = time.monotonic()
    while True:
        now = time.monotonic()
        passed, looked = min(now - looked, _MOST_PER_POLL_S), now
        signs = job.signs()
        elsewhere = each_poll(signs)
        for rank, sign in signs.items():
            pulses.setdefault(rank, _Pulse(sign)).feel(sign, passed)
        fault = (
            _ended(job, logs, pulses)
            or _silent(signs, pulses, limits, logs)
            or _hung(job, signs, pulses, limits, logs)
            or (elsewhere and _explained(job, elsewhere, signs, pulses, logs))
        )
        if fault is not None or job.over():
            return fault
        time.sleep(POLL_S)


def hang_limit(sign: Sign, limits: LauncherConfig) -> Optional[float]:
    """Seconds that this rank may stay in its phase; None: no limit.

    The first step compiles, allocates and connects: it and all before it are bounded only by
    ``timeout_minutes`` of the collectives, which end them.
    """
    if sign.done or sign.steps_here == 0:
        return None
    if limits.hang_seconds is not None:
        return limits.hang_seconds
    if sign.phase != "step" or sign.steps_here < 2:
        return None
    return max(_HANG_FLOOR_S, _HANG_FACTOR * sign.longest_step_s)


def _explained(
    job: Job, elsewhere: Fault, signs: Dict[int, Sign], pulses: Dict[int, _Pulse], logs: Path
) -> Fault:
    """A fault of another node; of a hang that was seen there the cause may be here."""
    if not isinstance(elsewhere.error, RankLost) or not elsewhere.hang:
        return elsewhere
    stacks = keep_stacks(job, logs)
    behind = _furthest_behind(signs)
    guilty = [rank for rank in behind if rank in stacks and not waits(stacks[rank])]
    if not guilty:
        return elsewhere
    return cause.hung(guilty, signs[guilty[0]], pulses[guilty[0]].stuck_s, logs)


def keep_stacks(job: Job, logs: Path) -> Dict[int, str]:
    """Let every rank that can write its Python stacks into ``logs``; text by rank."""
    job.send(signal.SIGUSR1)
    time.sleep(0.3)
    stacks = {}
    for rank in range(job.world):
        written = stacks_file(job.scratch, rank)
        if written.exists() and written.stat().st_size:
            stacks[rank] = written.read_text(errors="replace")
            shutil.copy(written, logs / f"stacks-rank-{rank}.txt")
    return stacks


@dataclass
class _Pulse:
    """How long a rank has been silent and without progress, in seconds this process was awake."""

    sign: Sign
    silent_s: float = 0.0
    stuck_s: float = 0.0
    processor_s: float = 0.0
    status: str = ""

    def feel(self, sign: Sign, passed: float) -> None:
        self.stuck_s = 0.0 if sign.moved != self.sign.moved else self.stuck_s + passed
        if sign.beat != self.sign.beat or self._works(sign):
            self.silent_s = 0.0
        else:
            self.silent_s += passed
        self.sign = sign

    def _works(self, sign: Sign) -> bool:
        """Whether the process, though it does not beat, uses the processor: then it holds
        Python's lock for long, which is no harm."""
        try:
            process = psutil.Process(sign.pid)
            self.status = process.status()
            used = sum(process.cpu_times()[:2])
        except psutil.Error:
            return False
        before, self.processor_s = self.processor_s, used
        return used > before and self.status != psutil.STATUS_STOPPED


def _ended(job: Job, logs: Path, pulses: Dict[int, _Pulse]) -> Optional[Fault]:
    if not _bad(job) and not _failed_afar(job):
        return None
    detected = time.monotonic()
    time.sleep(_LAST_WORDS_S)
    deadline = detected + (_LAUNCHER_S if job.here is not None else _MPIRUN_S)
    while None in _bad(job).values() and not job.over() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    signs = job.signs()
    if not signs and job.told_by is not None and not cause.said(job.scratch, logs):
        words = _last_line(logs)
        return Fault(RunFailed(f"the ranks did not start: {words}", f"see {logs}"))
    bad = _bad(job)
    if not bad and not cause.said(job.scratch, logs):
        words = _last_line(logs)
        return Fault(RunFailed(f"a rank on another machine ended badly: {words}", f"see {logs}"))
    if job.here is None and signs:
        # Ranks go in step: one on another machine is about where those here are.
        slowest = min(signs.values(), key=lambda sign: sign.step)
        signs = {**dict.fromkeys(range(job.world), slowest), **signs}
    fault = cause.cause(bad, signs, job.scratch, logs)
    pulse = pulses.get(-1 if fault.rank is None else fault.rank)
    fault.last_sign_at = pulse.sign.beat if pulse else detected
    fault.detection_s = detected - fault.last_sign_at
    if isinstance(fault.error, RankLost) and "answer in time" in fault.error.what:
        keep_stacks(job, logs)
    return fault


def _failed_afar(job: Job) -> bool:
    """Whether mpirun over several machines has failed."""
    return job.here is None and job.processes[0].poll() not in (None, 0)


def _bad(job: Job) -> Dict[int, Optional[int]]:
    """Ends of ranks that had not finished."""
    signs = job.signs()
    return {
        rank: code
        for rank, code in job.endings().items()
        if code or rank not in signs or not signs[rank].done
    }


def _silent(
    signs: Dict[int, Sign], pulses: Dict[int, _Pulse], limits: LauncherConfig, logs: Path
) -> Optional[Fault]:
    for rank, sign in signs.items():
        pulse = pulses[rank]
        if not sign.done and pulse.silent_s > limits.heartbeat_seconds:
            fault = cause.stopped(rank, sign, pulse.status, pulse.silent_s, logs)
            fault.last_sign_at = sign.beat
            fault.detection_s = time.monotonic() - sign.beat
            return fault
    return None


def _hung(
    job: Job,
    signs: Dict[int, Sign],
    pulses: Dict[int, _Pulse],
    limits: LauncherConfig,
    logs: Path,
) -> Optional[Fault]:
    late = []
    for rank, sign in signs.items():
        limit = hang_limit(sign, limits)
        if limit is not None and pulses[rank].stuck_s > limit:
            late.append(rank)
    if not late:
        return None
    detected = time.monotonic()
    stacks = keep_stacks(job, logs)
    behind = _furthest_behind(signs)
    # Who is not waiting for others is the one that others wait for.
    guilty = [rank for rank in behind if rank in stacks and not waits(stacks[rank])]
    # All wait: for a rank elsewhere, if there is one.
    follows = not guilty and job.here != job.world
    guilty = guilty or behind
    sign = signs[guilty[0]]
    fault = cause.hung(guilty, sign, pulses[guilty[0]].stuck_s, logs, follows)
    fault.last_sign_at = sign.moved
    fault.detection_s = detected - sign.moved
    return fault


def _furthest_behind(signs: Dict[int, Sign]) -> List[int]:
    least = min(sign.step for sign in signs.values())
    return [rank for rank, sign in signs.items() if sign.step == least and not sign.done]


def waits(stacks: str) -> bool:
    """Whether the main thread of a stack dump is inside one of torch's collectives."""
    threads = stacks.split("\n\n")
    main = next((text for text in threads if "in <module>" in text), "")
    return "torch/distributed/" in main


def _last_line(logs: Path) -> str:
    """What torchrun or mpirun said when it could not start anything."""
    lines = [
        line.strip()
        for name in ("torchrun.log", "mpirun.log")
        if (logs / name).exists()
        for line in (logs / name).read_text(errors="replace").splitlines()
        if any(letter.isalpha() for letter in line)
    ]
    return " ".join(lines[:3])[:300] or "nothing is known"
