"""One rank of an examination of all.

  python -m loopmoe_train.doctor RUN/run.yaml    as `loopmoe doctor --cluster` starts it
  torchrun ... -m loopmoe_train.doctor [--json FILE] [setting=value ...]
  mpirun ... python -m loopmoe_train.doctor [--json FILE] [setting=value ...]

In the bare forms every rank composes the run for itself, so that differing checkouts are found.
Rank 0, or the first rank that came, prints; it ends with 1 if anything failed.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import List, Optional

from loopmoe_train.config import run_file
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import AlreadyTold, Refused
from loopmoe_train.files import write_text
from loopmoe_train.parallel.environment import place
from loopmoe_train.train.__main__ import leave, main

FOUND = "doctor.json"  # in the run folder of a launched examination


def compose(words: List[str]) -> RunConfig:
    """The run of this rank: a run.yaml, or composed of ``words``.

    Raises:
        Refused: a word that is no setting, or the run cannot be.
    """
    if len(words) == 1 and Path(words[0]).is_file():
        return run_file.load(Path(words[0]))
    from loopmoe_train.config.compose import compose

    world = place().world
    return compose(
        ["name=doctor", "launcher.timeout_minutes=1", *words, f"cluster.devices={world}"]
    )


def examine(run: RunConfig, target: Optional[str], launched: bool) -> None:
    """Examine and tell.

    Args:
        target: where rank 0 writes JSON; None: nowhere, "-": to stdout instead of the table.
        launched: `loopmoe doctor` shows what is found.

    Raises:
        Missing: ranks of a launched job did not come.
        AlreadyTold: something failed.
    """
    from loopmoe_train.doctor.check import FAIL, report, verdict
    from loopmoe_train.doctor.cluster import Examination
    from loopmoe_train.doctor.meeting import Missing
    from loopmoe_train.doctor.show import show
    from loopmoe_train.parallel.rendezvous import early_store

    here = place()
    patience = timedelta(minutes=run.launcher.timeout_minutes)
    try:
        store = early_store(patience)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise Refused(
            f"nobody listens at MASTER_ADDR and MASTER_PORT: rank 0 is not there ({said})",
            "start rank 0, or see network/port of `loopmoe doctor` on its machine",
        ) from error

    def say(stage: str) -> None:
        if here.rank == 0:
            print(f"doctor: {stage}", file=sys.stderr, flush=True)

    mine, missing = Examination(run, here, store, [], say=say), None
    try:
        mine.examine()
    except Missing as error:
        missing = error
    if here.rank == (missing.reporter if missing else 0):
        text = json.dumps(report(mine.checks), indent=1) + "\n"
        if target == "-":
            print(text, end="", flush=True)
        elif target is not None:
            write_text(Path(target), text)
        if not launched and target != "-":
            show(mine.checks, sys.stdout)
    if missing:
        # A front door hears it from this rank; else the rank that reports has told it.
        raise missing if launched else AlreadyTold(1)
    if here.rank == 0 and not launched and verdict(mine.checks) == FAIL:
        raise AlreadyTold(1)


def _start(argv: List[str]) -> int:
    target: Optional[str] = None
    words = list(argv)
    if "--json" in words:
        at = words.index("--json")
        named = words[at + 1 : at + 2]
        target = named[0] if named and "=" not in named[0] else "-"
        del words[at : at + (1 if target == "-" else 2)]
    launched = len(words) == 1 and Path(words[0]).is_file()

    def body(run: RunConfig) -> None:
        examine(run, str(run_file.run_dir(run) / FOUND) if launched else target, launched)

    return main(words, body, compose)


if __name__ == "__main__":
    leave(_start(sys.argv[1:]))
