"""One rank of a run.

  python -m loopmoe_train.train [--run] RUN/run.yaml     started by `loopmoe train`
  torchrun --nproc-per-node 2 -m loopmoe_train.train [setting=value ...]
  mpirun -np 2 python -m loopmoe_train.train [setting=value ...]

In the bare forms rank 0 composes, checks and prepares the run and hands its text to the others
(train/bare.py); ``cluster.devices`` is the number of processes. If rank 0 refuses, all leave and
one line is printed. `loopmoe report RUN` draws the pictures afterwards.

A rank ends with 0 done (also when asked to stop), 1 failed, 2 refused, 3 training stopped itself,
4 a peer was lost. What starts the ranks makes its own code of it:

* torchrun: 0 if every rank ended with 0, else 1, whatever the rank's code was. It restarts after
  any failure if told so (--max-restarts N), refusals too: our store has a prefix per attempt, so
  that a restart works. When torchrun itself gets SIGTERM it passes it on, the ranks save and end
  with 0, and torchrun nevertheless ends with 1.
* mpirun: the code of the first rank that failed (Open MPI: 128 + signal for a killed one), after
  ending the others.

`loopmoe train launcher=torchrun|mpirun` watches from outside and keeps the codes above.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Callable, List, NoReturn, Optional, Tuple

from loopmoe_train.config import run_file
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import AlreadyTold, LoopMoEError, RankLost, Refused, RunFailed
from loopmoe_train.files import write_text
from loopmoe_train.parallel.environment import place
from loopmoe_train.redact import redact, redact_output
from loopmoe_train.train import heartbeat
from loopmoe_train.train.stop import end_with_parent

# How gloo, NCCL and torch's store say that a peer is silent or gone.
_HUNG = (
    "Timed out waiting",
    "Wait timeout",
    "collective operation timeout",
    "Timed out after",
    "timed out after",
)
_LOST = (
    "DistBackendError", "DistNetworkError", "Connection closed by peer", "Connection reset by peer",
    "Broken pipe",
)  # fmt: skip


def main(
    argv: List[str],
    body: Callable[[RunConfig], None],
    run_of: Optional[Callable[[List[str]], RunConfig]] = None,
) -> int:
    """Run ``body`` on the run that ``argv`` names or composes; returns the exit code.

    Args:
        run_of: the run of a command line, if it is not to be agreed upon and prepared by all.
    """
    end_with_parent()
    redact_output()
    try:
        rank = place().rank
        _redirect(rank)
        heartbeat.start(rank)
        body((run_of or _run)(argv))
        heartbeat.done()
        return 0
    except AlreadyTold as told:
        return told.exit_code
    except Exception as error:
        return _told(error)


def _told(error: Exception) -> int:
    """Tell a failure of this rank; returns its exit code."""
    if isinstance(error, LoopMoEError):
        return _tell(error, lost_peer=False)
    traceback.print_exc()
    return _tell(*_explain(error))


def _run(argv: List[str]) -> RunConfig:
    words = argv[1:] if argv[:1] == ["--run"] else argv
    if len(words) != 1 or not Path(words[0]).is_file():
        if words != argv:
            raise Refused(
                f"--run {' '.join(words)}: there is no such file",
                "python -m loopmoe_train.train --run RUN/run.yaml",
            )
        from loopmoe_train.train.bare import agree  # imports torch

        return agree(argv, _told)
    run = run_file.load(Path(words[0]))
    # A restarted attempt continues where the one before it saved.
    run.checkpoint.resume = os.environ.get("LOOPMOE_RESUME", run.checkpoint.resume)
    return run


def _redirect(rank: int) -> None:
    """Send the output to logs/ as our launcher does it for ranks that it starts itself."""
    logs = os.environ.get("LOOPMOE_LOGS")
    if logs and not os.path.isdir(logs):  # mpirun hands on what is written on other machines
        if rank:
            os.dup2(2, 1)
    elif logs:
        log = os.open(f"{logs}/rank-{rank}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for stream in (2,) if rank == 0 else (1, 2):
            os.dup2(log, stream)


def failure_file(scratch: Path, rank: int) -> Path:
    """Where a rank leaves its one line."""
    return scratch / f"failure-{rank}.json"


def _explain(error: Exception) -> Tuple[LoopMoEError, bool]:
    """What to tell about an unexpected error, and whether it only followed another rank's end."""
    said = f"{type(error).__name__}: {error}"
    if any(words in said for words in _HUNG):
        hung = RankLost(
            f"another rank did not answer in time: {said.splitlines()[0][:300]}",
            "see logs/ of the run folder for one that is stuck, or raise launcher.timeout_minutes",
        )
        return hung, True
    lost_peer = any(words in said for words in _LOST)
    return RunFailed(said[:600], "the traceback is in logs/ of the run folder"), lost_peer


def _tell(error: LoopMoEError, lost_peer: bool) -> int:
    try:
        rank = place().rank
    except Refused:
        rank = 0
    entry = dict(
        rank=rank,
        what=redact(error.what),
        fix=redact(error.fix),
        exit_code=error.exit_code,
        lost_peer=lost_peer,
        time=time.time(),
        host=socket.gethostname(),
    )
    # On a machine without supervisor: where it looks for the logs, if that is seen here.
    told_in = heartbeat.scratch() or Path(os.environ.get("LOOPMOE_LOGS", "/nowhere"))
    if told_in.is_dir():
        write_text(failure_file(told_in, rank), json.dumps(entry))
    else:
        print(f"loopmoe train: rank {rank}: {error}", file=sys.stderr, flush=True)
    return error.exit_code


def _train(run: RunConfig) -> None:
    if place().rank == 0 and "LOOPMOE_SCRATCH" not in os.environ:  # else the front door has it
        from loopmoe_train.train.claim import claim

        claim(run)
    # Imported here: a wrong command line or run.yaml is told without waiting for torch.
    from loopmoe_train.train.run import train

    train(run)


def leave(code: int) -> NoReturn:
    """End this process at once.

    Not sys.exit: after a failure other ranks may be gone, and the process group's destructor
    would wait for them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:], _train))
