"""A start by torchrun or mpirun alone: rank 0 makes the run, the others get it from the store.

The text of the run travels, and every machine prepares the dataset at ``data.path`` for itself (at
most once: the folder is locked while it is built). The run folder alone has to be one for all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any, Callable, Dict, List

import torch

from loopmoe_train.config import run_file
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.mixture import ensure_mixture
from loopmoe_train.errors import AlreadyTold, Refused
from loopmoe_train.parallel.environment import Place, place
from loopmoe_train.parallel.rendezvous import store
from loopmoe_train.train import shared
from loopmoe_train.train.preflight import (
    build_operators,
    check_environment,
    check_machine,
    prepare,
    set_environment,
)

_PATIENCE = timedelta(hours=24)  # rank 0 may have a corpus to tokenise first
_READ_S = 20.0  # for the others to read that rank 0 leaves


def agree(overrides: List[str], tell: Callable[[Exception], int]) -> RunConfig:
    """The run that all ranks train, composed by rank 0 from ``overrides``.

    Args:
        tell: tells a failure to the user; returns the exit code.

    Raises:
        Refused: this machine lacks devices, the run folder, or the same data as that of rank 0.
        AlreadyTold: rank 0 refused.
    """
    here = place()
    threads_given = "OMP_NUM_THREADS" in os.environ
    if here.rank == 0:
        reply = _compose(overrides, here, tell)
    else:
        job = store()
        job.set_timeout(_PATIENCE)
        reply = json.loads(job.get("run"))
        job.add("read", 1)
        if "exit_code" in reply:
            raise AlreadyTold(reply["exit_code"])
    run = run_file.parse(reply["run"], "the run that rank 0 composed")
    if not here.one_machine and here.rank and here.local_rank == 0:
        shared.look_for(reply["mark"], run_file.run_dir(run), here.rank)
    if here.rank:
        set_environment(run)
        _prepare_here(run, here, reply["dataset"])
    if not threads_given:
        torch.set_num_threads(run.launcher.threads_per_rank)
    return run


def _compose(overrides: List[str], here: Place, tell: Callable[[Exception], int]) -> Dict[str, Any]:
    """Make the run and hand it out; if that fails, hand out the exit code."""
    job = store()
    try:
        words = _with_world(overrides, here)
        resume = os.environ.get("LOOPMOE_RESUME")  # a supervisor starts the job again
        run, text = prepare(
            words, lambda line: print(line, flush=True), here.local_world, again=resume is not None
        )
        if text is None:
            raise Refused("launcher.dry_run=true: the ranks are running", "leave it out")
    except Exception as error:
        # Told first: torchrun and mpirun end this rank as soon as another one has left.
        code = tell(error)
        job.set("run", json.dumps({"exit_code": code}))
        _wait_for_readers(here.world - 1)
        raise AlreadyTold(code) from error
    except BaseException:
        job.set("run", json.dumps({"exit_code": 1}))
        raise
    run.checkpoint.resume = resume or run.checkpoint.resume
    run.runs_dir = os.path.abspath(run.runs_dir)  # not every rank need be in the same folder
    mark = shared.mark(run_file.run_dir(run))
    reply = {"run": run_file.dump(run), "dataset": text.fingerprint, "mark": mark}
    job.set("run", json.dumps(reply))
    return reply


def _with_world(overrides: List[str], here: Place) -> List[str]:
    """``cluster.devices`` is the number of processes; a contradiction is refused."""
    for word in overrides:
        key, _, value = word.partition("=")
        if key == "cluster.devices" and value != str(here.world):
            raise Refused(
                f"cluster.devices={value} but {here.world} processes were started",
                f"start {value}, or leave cluster.devices out",
            )
    # Last, so that it also holds where a cluster preset counts devices.
    return [*overrides, f"cluster.devices={here.world}"]


def _wait_for_readers(readers: int) -> None:
    """The store may end with this process: let the others read it first."""
    deadline = time.monotonic() + _READ_S
    while store().add("read", 0) < readers and time.monotonic() < deadline:
        time.sleep(0.05)


def _prepare_here(run: RunConfig, here: Place, fingerprint: str) -> None:
    check_environment(run, here=True)
    check_machine(run, here.local_world)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    build_operators(run, say)
    found = ensure_mixture(run, say)
    if found.fingerprint != fingerprint:
        raise Refused(
            f"rank {here.rank}: {run.data.path} holds another dataset here than on rank 0",
            "copy that of rank 0, or delete this one so that it is made again",
        )
