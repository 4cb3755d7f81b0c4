"""Run a job to its end: start its ranks on this machine, watch, restart from the last checkpoint.

The same for all launchers. Of a job on several nodes this is done on each, and all of them decide
alike (nodes.py). Every attempt has a folder and a rendezvous of its own, and leaves
``logs/attempt-<n>.json``. Not retried: input that is refused, training that stopped itself, a
request to stop, an error before the first step (it would only come again), and a job that fails
twice at the same step.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Dict, List, Optional, Sequence

from loopmoe_train.config.launcher_rules import spans_nodes
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device import environment
from loopmoe_train.errors import Interrupted, LoopMoEError, RankLost, Refused, RunFailed
from loopmoe_train.files import write_text
from loopmoe_train.launcher import batch, cause, hosts, local, wrapped
from loopmoe_train.launcher.cause import AGAIN, Fault, where
from loopmoe_train.launcher.job import Job
from loopmoe_train.launcher.meet import meet
from loopmoe_train.launcher.nodes import Ending, Nodes
from loopmoe_train.launcher.watch import watch
from loopmoe_train.redact import redact
from loopmoe_train.train.heartbeat import Sign

TRAIN = "loopmoe_train.train"


def launch(
    run: RunConfig, module: str = TRAIN, logs: str = "logs", overrides: Sequence[str] = ()
) -> bool:
    """Run ``python -m module <run folder>/run.yaml`` on every rank until all are done.

    The output of rank 0 is this process's; everything else goes to the folder ``logs`` of the run.
    Only training is restarted. Over several nodes the ranks get ``overrides`` instead of a file,
    and rank 0 makes the run of them.

    Returns:
        Whether rank 0 was here, or nobody on its machine has a command of its own.

    Raises:
        Refused: a job on several nodes that is no training, or whose nodes do not come together.
        RankLost: a rank was killed, stopped or hung, and restarts did not help.
        LoopMoEError: what the first failing rank said.
    """
    if run.launcher.kind in batch.KINDS:
        raise Refused(
            f"launcher={run.launcher.kind} is for `loopmoe train`", "do this with launcher=local"
        )
    command = [sys.executable, "-m", module]
    if not spans_nodes(run.launcher):
        return _until_done(run, [*command, str(run_dir(run) / "run.yaml")], logs)
    if not overrides:
        raise Refused(
            f"launcher={run.launcher.kind} over several nodes is for training",
            "do this on one machine",
        )
    command += overrides
    if run.launcher.kind != "torchrun":
        return _until_done(run, command, logs)
    nodes = meet(run, overrides)
    try:
        return _until_done(run, command, f"{logs}/node-{nodes.index}", nodes)
    finally:
        nodes.leave()


def _until_done(
    run: RunConfig, command: List[str], logs: str, nodes: Optional[Nodes] = None
) -> bool:
    """Start ``command`` on every rank, again and again until it is done or there is no sense in it;
    whether rank 0 was here."""
    history = History(run.launcher.max_restarts if command[2] == TRAIN else 0)
    began = time.time()
    while True:
        attempt = _Attempt(run, command, len(history.faults), began, logs, nodes)
        end = attempt.run_to_end(history)
        if end.fault is None:
            return nodes is None or 0 in attempt.signs
        refusal = history.add(end.fault, end.asked, end.steps_here)
        attempt.report(refusal)
        if refusal is not None:
            raise refusal
        fault = end.fault
        print(
            f"loopmoe train: {fault.error.what} -> restart {history.in_a_row} of "
            f"{run.launcher.max_restarts} from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )


def shown(run: RunConfig, overrides: List[str]) -> str:
    """Command lines that start the run composed of ``overrides`` by hand, for a shell."""
    if run.launcher.kind in batch.KINDS:
        return redact(batch.shown(run, overrides))
    words = [word for word in overrides if not word.startswith("launcher.dry_run=")]
    command, env = [sys.executable, "-m", TRAIN, *words], environment.for_ranks(run, os.environ)
    if run.launcher.kind == "local":
        rendezvous = f"file://{tempfile.gettempdir()}/loopmoe-{os.getpid()}"
        return redact(local.shown(run, command, {**env, "LOOPMOE_RENDEZVOUS": rendezvous}))
    env |= hosts.variables(run)
    around = {key: value for key, value in os.environ.items() if key != "LOOPMOE_STARTED"}
    line = wrapped.shown(wrapped.command(run, command, {**around, **env}), env)
    if run.launcher.nodes > 1:
        line = f"# on each of the {run.launcher.nodes} nodes\n{line}"
    return redact(line)


@dataclass
class History:
    """The faults of a job so far, and the rule by which it is started again.

    Attributes:
        limit: restarts in a row that get no further than an attempt before.
        in_a_row: how many of those there were.
    """

    limit: int
    faults: List[Fault] = field(default_factory=list)
    in_a_row: int = 0
    furthest: int = -1

    def add(self, fault: Fault, asked: List[int], steps_here: int) -> Optional[LoopMoEError]:
        """Take in a fault; None if the job shall be started again, else what the user is told.

        Args:
            asked: signals that the user sent meanwhile and that were passed on.
            steps_here: steps done in this attempt.
        """
        before = self.faults[-1] if self.faults else None
        self.faults.append(fault)
        error, reached = fault.error, _reached(fault)
        lost = isinstance(error, RankLost)
        if asked:
            return _as_asked(fault, asked, steps_here) or error
        if not (lost or (type(error) is RunFailed and steps_here)):
            return error
        if before is not None and _reached(before) == reached and self.limit:
            steps = fault.sign is not None and fault.sign.phase != "start"
            suspect = "data or step" if steps else "the machine or the settings"
            return type(error)(
                f"{error.what}; twice in a row {where(fault.sign)}: suspect {suspect}", error.fix
            )
        self.in_a_row = 1 if reached > self.furthest else self.in_a_row + 1
        self.furthest = max(self.furthest, reached)
        if self.in_a_row <= self.limit:
            return None
        if not self.limit:
            return error
        return type(error)(f"{error.what}; {self.limit} restarts got no further", error.fix)


def _as_asked(fault: Fault, asked: List[int], steps_here: int) -> Optional[LoopMoEError]:
    """What to tell of a fault that is just what the user's signals do; None if it is not."""
    name = signal.Signals(asked[0]).name
    if len(asked) > 1 and fault.signal == "SIGKILL":
        return RunFailed(f"killed at the second {name} {where(fault.sign)}", AGAIN)
    if fault.signal == name and not steps_here:
        return Interrupted(asked[0], f"it had not made a step yet; {AGAIN}")
    return None


def _reached(fault: Fault) -> int:
    """Steps done when it happened."""
    return fault.sign.step if fault.sign is not None else 0


class _Attempt:
    """One start of the job."""

    def __init__(
        self, run: RunConfig, command: List[str], number: int, began: float, logs: str,
        nodes: Optional[Nodes],
    ) -> None:  # fmt: skip
        self.run, self.command, self.number, self.began = run, command, number, began
        self.nodes = nodes
        self.logs = (run_dir(run) / logs).absolute()
        self.logs.mkdir(parents=True, exist_ok=True)
        self.file = _next_report(self.logs)
        for said in self.logs.glob("failure-*.json"):
            said.unlink()  # of ranks of an attempt before that had no folder to leave it in
        self.asked: List[int] = []
        self.signs: Dict[int, Sign] = {}
        self.failures: List[Dict[str, Any]] = []
        self.fault: Optional[Fault] = None
        self.failed_at = 0.0
        self.began_at = time.time()
        self.clock = self.began_at - time.monotonic()  # from CLOCK_MONOTONIC to the epoch

    @property
    def steps_here(self) -> int:
        """Steps done in this attempt."""
        return max((sign.steps_here for sign in self.signs.values()), default=0)

    def run_to_end(self, history: History) -> Ending:
        """Start, watch and clear away; how it ended, on all nodes."""
        previous = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        with tempfile.TemporaryDirectory(prefix="loopmoe-") as scratch:
            # Whoever finds it unfinished later knows that this process was killed.
            _write(self.file, self._where() | dict(outcome="running", scratch=scratch))
            if self.nodes is not None:
                self.nodes.begin(self.number)
            job = self._start(Path(scratch))
            try:
                for number in previous:
                    signal.signal(number, lambda n, frame: self._pass_on(job, n, frame))
                waiting = history.faults[-1] if history.faults else None
                try:
                    self.fault = watch(
                        job, self.run.launcher, self.logs, lambda signs: self._look(signs, waiting)
                    )
                except RankLost as gone:  # another node: there is nobody left to agree with
                    self._gives_up(job, gone)
                    raise
                self.failed_at = time.time()
                self.signs = job.signs()
                if self.fault is not None and self.fault.rank is not None:
                    # Its sockets close: the others notice and leave by themselves.
                    job.send_to(self.fault.rank, signal.SIGKILL)
            finally:
                job.end()
                for number, handler in previous.items():
                    signal.signal(number, handler)
            self.failures = cause.said(Path(scratch), self.logs)
        end = Ending(self.fault, self.asked, self.steps_here)
        if self.nodes is not None:
            try:
                end = self.nodes.agree(end)
            except RankLost as gone:
                self._gives_up(job, gone)
                raise
            self.fault = end.fault
        if self.fault is None:
            self.report(None)
        return end

    def _gives_up(self, job: Job, gone: RankLost) -> None:
        """Record that another node has left this one behind."""
        self.failed_at, self.signs = time.time(), self.signs or job.signs()
        self.fault = Fault(gone)
        self.report(gone)

    def _start(self, scratch: Path) -> Job:
        env = dict(
            os.environ,
            **environment.for_ranks(self.run, os.environ),
            LOOPMOE_SCRATCH=str(scratch),
            LOOPMOE_ATTEMPT=str(self.number),
        )
        if not spans_nodes(self.run.launcher):
            # A file, not a port: nothing to collide with and nothing to reach from outside.
            env["LOOPMOE_RENDEZVOUS"] = f"file://{scratch}/rendezvous"
        if self.number:
            env["LOOPMOE_RESUME"] = _resume(self.run, self.began)
            env["LOOPMOE_STARTED"] = str(time.time())
        if self.run.launcher.kind == "local":
            return local.start(self.run, self.command, env, self.logs)
        meeting = []
        if self.nodes is not None:
            meeting = wrapped.meeting(self.number, self.nodes.address)
        return wrapped.start(self.run, self.command, env, self.logs, meeting)

    def _pass_on(self, job: Job, number: int, frame: Optional[FrameType]) -> None:
        """First SIGINT or SIGTERM: passed on to the ranks, which finish the step. Second: kill."""
        job.send(signal.SIGKILL if self.asked else number)
        self.asked.append(number)

    def _look(self, signs: Dict[int, Sign], waiting: Optional[Fault]) -> Optional[Fault]:
        """A fault of another node, if there is one."""
        self._complete(signs, waiting)
        return self.nodes.news() if self.nodes is not None else None

    def _complete(self, signs: Dict[int, Sign], waiting: Optional[Fault]) -> None:
        """Complete the report of the attempt before when this one has made its first step."""
        run = self.run
        afar = run.launcher.kind == "mpirun" and spans_nodes(run.launcher)
        here = 1 if afar else run.cluster.devices // run.launcher.nodes
        if waiting is None or waiting.next_step_s is not None or len(signs) < here:
            return
        firsts = [sign.first_step_at for sign in signs.values()]
        if all(firsts):
            waiting.next_step_s = max(firsts) - waiting.last_sign_at
            if waiting.report_file is not None:
                _write(waiting.report_file, _read(waiting.report_file) | {
                    "fault_to_next_step_s": round(waiting.next_step_s, 3)
                })  # fmt: skip

    def _where(self) -> Dict[str, Any]:
        """What every report begins with."""
        return dict(
            attempt=self.number,
            launcher=self.run.launcher.kind,
            host=socket.gethostname(),
            pid=os.getpid(),
            began_at=self.began_at,
        )

    def report(self, refusal: Optional[LoopMoEError]) -> None:
        """Write ``attempt-<n>.json``."""
        fault = self.fault
        about: Dict[str, Any] = self._where() | dict(
            outcome="restarted" if fault and not refusal else "failed" if fault else "ended",
            ended_at=self.failed_at,
            ranks=[
                dict(rank=r, pid=s.pid, step=s.step, steps_here=s.steps_here, phase=s.phase,
                     phase_since=round(s.moved + self.clock, 3))
                for r, s in sorted(self.signs.items())
            ],
            failures=self.failures,
        )  # fmt: skip
        if fault is not None:
            about |= dict(
                cause=str(refusal or fault.error),
                exit_code=fault.error.exit_code,
                rank=fault.rank,
                signal=fault.signal,
                step=fault.sign.step if fault.sign else None,
                phase=fault.sign.phase if fault.sign else None,
                last_sign_at=round(fault.last_sign_at, 3),  # CLOCK_MONOTONIC
                detection_s=round(fault.detection_s, 3),
                fault_to_next_step_s=None,
            )
            fault.report_file = self.file
        _write(self.file, about)


def _resume(run: RunConfig, began: float) -> str:
    """Where a restarted attempt continues.

    A run that was told not to take what is in its folder must not do so after a restart either,
    except what it has itself saved since ``began`` (seconds of the epoch).
    """
    wish = run.checkpoint.resume
    if wish == "auto":
        return wish
    saved = [
        path
        for path in run_dir(run).glob("checkpoints/step-*/manifest.json")
        if path.stat().st_mtime >= began
    ]
    newest = max(saved, key=lambda path: path.stat().st_mtime, default=None)
    return str(newest.parent) if newest else wish


def _next_report(logs: Path) -> Path:
    taken = [p.stem.removeprefix("attempt-") for p in logs.glob("attempt-*.json")]
    return logs / f"attempt-{1 + max((int(n) for n in taken if n.isdigit()), default=-1)}.json"


def _write(path: Path, content: Dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> Dict[str, Any]:
    content: Dict[str, Any] = json.loads(path.read_text())
    return content
