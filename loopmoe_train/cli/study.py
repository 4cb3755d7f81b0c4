"""A controlled study: several models, several seeds, the same documents in the same order.

usage: loopmoe study [NAME] [study.KEY=VALUE ...] [setting=value ...]

  loopmoe study cpu                         LoopMoE against its vanilla twin, on two cores
  loopmoe study gpu                         at a hundred million parameters, on one accelerator
  loopmoe study cpu study.seeds=[1,2]       fewer seeds: wider intervals
  loopmoe study cpu steps=1000 study.name=longer
                                            other settings, for all of its runs

NAME is a preset of configs/study: its arms, their settings, the seeds. Every run is a run folder
runs/<study>/<arm>-<seed>. Those that are done are skipped and those that were stopped continue, so
the same command goes on where it was left (Ctrl-C, study.minutes=N). It ends in study.md (means,
95 % intervals, paired tests), study.json, study.png and loop.png in runs/<study>.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Sequence

from loopmoe_train.errors import Refused, RunFailed
from loopmoe_train.files import write_text

if TYPE_CHECKING:
    from loopmoe_train.config.schema import StudyConfig
    from loopmoe_train.study.plan import Planned

_TRAIN = [sys.executable, "-m", "loopmoe_train.cli", "train"]


def run(argv: List[str]) -> int:
    """Plan, train what is not done, compare; returns the exit code."""
    from loopmoe_train.config.compose import compose_study
    from loopmoe_train.data.mixture import ensure_mixture
    from loopmoe_train.launcher.side_by_side import Command, run_side_by_side
    from loopmoe_train.observe.watch import Watch
    from loopmoe_train.study.plan import folder, plan
    from loopmoe_train.train.claim import claim_folder
    from loopmoe_train.train.preflight import check_machine, check_text

    study, settings = compose_study(argv)
    planned = plan(study, settings)
    for one in planned[: len(study.arms)]:
        check_machine(one.run)
    claim_folder(folder(study))
    left = [one for one in planned if not one.is_done()]
    print(
        f"{study.name}: {len(planned)} runs ({len(study.arms)} arms x {len(study.seeds)} seeds), "
        f"{len(planned) - len(left)} done, {study.side_by_side} at a time",
        flush=True,
    )
    text = ensure_mixture(planned[0].run, print)
    for one in planned[: len(study.arms)]:
        check_text(one.run, text)
    commands = [
        Command(one.name, [*_TRAIN, *one.words], one.folder / "logs" / "study.log") for one in left
    ]
    runs = {one.name: (one.folder, one.run.steps) for one in left}
    with Watch(runs, len(planned), len(planned) - len(left)) as watch:
        seconds = None if study.minutes is None else 60 * study.minutes
        codes = run_side_by_side(commands, study.side_by_side, watch.look, seconds)
    _compare(study, planned)
    return _end(study, planned, codes)


def _compare(study: StudyConfig, planned: Sequence[Planned]) -> None:
    """Write and print what the runs that are done have found."""
    from loopmoe_train.observe.jsonl import to_plain
    from loopmoe_train.study.pictures import draw_loop, draw_study
    from loopmoe_train.study.plan import folder
    from loopmoe_train.study.results import collect
    from loopmoe_train.study.table import table

    try:
        results = collect(study, planned)
    except Refused as error:
        print(f"no comparison yet: {error.what}")
        return
    place = folder(study)
    text = table(results)
    write_text(place / "study.json", json.dumps(to_plain(results.record()), indent=1) + "\n")
    write_text(place / "study.md", text)
    draw_study(results, place / "study.png")
    draw_loop(results, place / "loop.png")
    print(f"\n{text}\n{place}: study.md study.json study.png loop.png")


def _end(study: StudyConfig, planned: Sequence[Planned], codes: Dict[str, int]) -> int:
    """Say what is left; the exit code.

    Raises:
        RunFailed: a run ended otherwise than by being done or stopped.
    """
    left = [one for one in planned if not one.is_done()]
    asked = 0 if study.minutes is None else 128 + signal.SIGTERM  # it had not begun to train yet
    failed = [one for one in left if codes.get(one.name, 0) not in (0, asked)]
    if failed:
        log = failed[0].folder / "logs" / "study.log"
        raise RunFailed(
            f"{len(failed)} of {len(planned)} runs failed ({', '.join(f.name for f in failed)}); "
            f"{failed[0].name} said: {_last_line(log)}",
            f"see {log}; the same command starts them again",
        )
    if left:
        print(f"{len(planned) - len(left)} of {len(planned)} runs done; the same command goes on")
    return 0


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
