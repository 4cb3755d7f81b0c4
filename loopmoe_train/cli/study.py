"""A controlled study: several models, several seeds, the same documents in the same order.

usage: loopmoe study NAME [study.KEY=VALUE ...] [setting=value ...] [--compare]

  loopmoe study cpu                         LoopMoE against its vanilla twin, on two cores
  loopmoe study gpu                         at a hundred million parameters, on one accelerator
  loopmoe study cpu study.seeds=[1,2]       fewer seeds: wider intervals
  loopmoe study cpu steps=1000 study.name=longer
                                            other settings, for all of its runs
  loopmoe study cpu --compare               only compare what is there; nothing is started

NAME is a preset of configs/study: its arms, their settings, the seeds. Every run is a run folder
runs/<study>/<arm>-<seed>. Those that are done are skipped and those that were stopped continue, so
the same command goes on where it was left (Ctrl-C, study.minutes=N). It ends in study.md (means,
95 % intervals, paired tests), study.json, study.png and loop.png in runs/<study>.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, List, Sequence

from loopmoe_train.errors import Refused
from loopmoe_train.files import write_text

if TYPE_CHECKING:
    from loopmoe_train.config.schema import StudyConfig
    from loopmoe_train.study.plan import ArmRun


def run(argv: List[str]) -> int:
    """Plan, train what is not done, compare; returns the exit code."""
    from loopmoe_train.cli.several import say_what_is_left, train_several
    from loopmoe_train.config.compose import compose_study
    from loopmoe_train.study.plan import folder, plan
    from loopmoe_train.train.claim import claim_folder

    words = [word for word in argv if word != "--compare"]
    study, settings = compose_study(words)
    planned = plan(study, settings)
    if len(words) < len(argv):
        _compare(study, planned)
        return 0
    claim_folder(folder(study))
    print(
        f"{study.name}: {len(planned)} runs ({len(study.arms)} arms x {len(study.seeds)} seeds), "
        f"{sum(one.is_done() for one in planned)} done, {study.side_by_side} at a time",
        flush=True,
    )
    codes = train_several(planned, study.side_by_side, study.minutes)
    _compare(study, planned)
    say_what_is_left(planned, codes, study.minutes is not None)
    return 0


def _compare(study: StudyConfig, planned: Sequence[ArmRun]) -> None:
    """Write and print what the runs have found so far."""
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
