"""Start the ranks of a run on this machine, one process each."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Dict, List

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.launcher.job import Job
from loopmoe_train.train.claim import claims
from loopmoe_train.train.stop import end_with_parent


def start(run: RunConfig, command: List[str], env: Dict[str, str], logs: Path) -> Job:
    """One process per rank; the output of rank 0 is this process's, the rest goes to ``logs``.

    Args:
        command: what a rank runs.
        env: what all ranks have in common.
    """
    ranks = []
    for rank in range(run.cluster.devices):
        with open(logs / f"rank-{rank}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                env={**env, **_place(run, rank)},
                stdout=None if rank == 0 else log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
                start_new_session=True,
                preexec_fn=end_with_parent,
                pass_fds=claims(),
            )
        ranks.append(process)
    return Job(ranks, run.cluster.devices, run.cluster.devices, Path(env["LOOPMOE_SCRATCH"]))


def shown(run: RunConfig, command: List[str], env: Dict[str, str]) -> str:
    """The commands of all ranks as shell lines."""
    lines = []
    for rank in range(run.cluster.devices):
        words = [f"{key}={value}" for key, value in {**env, **_place(run, rank)}.items()]
        lines.append(" ".join(map(shlex.quote, [*words, *command])))
    return " &\n".join(lines)


def _place(run: RunConfig, rank: int) -> Dict[str, str]:
    world = str(run.cluster.devices)
    return dict(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=world, LOCAL_WORLD_SIZE=world
    )  # fmt: skip
