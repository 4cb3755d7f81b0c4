"""One rank: ``python -m loopmoe_train.train --run RUN/run.yaml``, started by a launcher.

Ends in an exit code and, if it fails, one line for the launcher; the traceback is in the log.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Callable, List, NoReturn, Tuple

from loopmoe_train.config import run_file
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import LoopMoEError, RankLost, RunFailed
from loopmoe_train.redact import redact, redact_output

# How gloo, NCCL and torch's store say that a peer is silent or gone.
_HUNG = ("Timed out waiting", "collective operation timeout", "Timed out after", "timed out after")
_LOST = (
    "DistBackendError", "DistNetworkError", "Connection closed by peer", "Connection reset by peer",
    "Broken pipe",
)  # fmt: skip


def main(argv: List[str], body: Callable[[RunConfig], None]) -> int:
    """Run ``body`` on the run named by ``--run``; returns the exit code."""
    redact_output()
    try:
        if len(argv) != 2 or argv[0] != "--run":
            raise RunFailed("usage: python -m loopmoe_train.train --run RUN/run.yaml")
        body(run_file.load(Path(argv[1])))
        return 0
    except LoopMoEError as error:
        return _tell(error, lost_peer=False)
    except Exception as error:
        traceback.print_exc()
        return _tell(*_explain(error))


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
    entry = dict(
        rank=int(os.environ.get("RANK", "0")),
        what=redact(error.what),
        fix=redact(error.fix),
        exit_code=error.exit_code,
        lost_peer=lost_peer,
        time=time.time(),
    )
    target = os.environ.get("LOOPMOE_FAILURE_FILE")
    if target:
        partial = Path(target).with_suffix(".tmp")
        partial.write_text(json.dumps(entry))
        os.replace(partial, target)
    else:
        print(f"loopmoe train: rank {entry['rank']}: {error}", file=sys.stderr)
    return error.exit_code


def _train(run: RunConfig) -> None:
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
