"""Training several runs from one command: what `loopmoe train -m` and `loopmoe study` share."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional, Sequence

from loopmoe_train.errors import Refused, RunFailed

if TYPE_CHECKING:
    from loopmoe_train.train.planned import Planned

_TRAIN = [sys.executable, "-m", "loopmoe_train.cli", "train"]


def train_several(
    planned: Sequence[Planned], side_by_side: int, minutes: Optional[float] = None
) -> Dict[str, int]:
    """Prepare the data they share, then train those that are not done; exit codes by name.

    Args:
        minutes: after so long what runs is saved and stopped.

    Raises:
        Refused: this machine or the text is not fit for one of them.
    """
    from loopmoe_train.data.mixture import ensure_mixture
    from loopmoe_train.launcher.side_by_side import Command, run_side_by_side
    from loopmoe_train.observe.watch import Watch
    from loopmoe_train.train.preflight import check_machine, check_text, starts_here

    for one in planned:
        if not starts_here(one.run):
            raise Refused(
                f"launcher={one.run.launcher.kind}: several runs are trained on this machine, one "
                "after another",
                "start each with `loopmoe train`, or use launcher=local",
            )
        check_machine(one.run, one.run.cluster.devices)
    left = [one for one in planned if not one.is_done()]
    for one in left:
        check_text(one.run, ensure_mixture(one.run, print))
    commands = [Command(one.name, [*_TRAIN, *one.words], _log(one)) for one in left]
    runs = {one.name: (one.folder, one.run.steps) for one in left}
    with Watch(runs, len(planned), len(planned) - len(left)) as watch:
        seconds = None if minutes is None else 60 * minutes
        return run_side_by_side(commands, side_by_side, watch.look, seconds)


def say_what_is_left(planned: Sequence[Planned], codes: Dict[str, int], stopped: bool) -> None:
    """Say it in a line if something is.

    Args:
        stopped: the time was limited, so that a run may have been ended before it trained.

    Raises:
        RunFailed: a run ended otherwise than by being done or stopped.
    """
    left = [one for one in planned if not one.is_done()]
    fine = {0, 128 + signal.SIGTERM} if stopped else {0}
    failed = [one for one in left if codes.get(one.name, 0) not in fine]
    if failed:
        names = ", ".join(one.name for one in failed)
        raise RunFailed(
            f"{len(failed)} of {len(planned)} runs failed ({names}); {failed[0].name} said: "
            f"{_last_line(_log(failed[0]))}",
            f"see {_log(failed[0])}; the same command starts them again",
        )
    if left and stopped and not any((one.folder / "metrics.jsonl").exists() for one in left):
        print("no run that is left has made a step: give it more time")
    elif left:
        print(f"{len(planned) - len(left)} of {len(planned)} runs done; the same command goes on")


def _log(one: Planned) -> Path:
    return one.folder / "logs" / "console.log"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
