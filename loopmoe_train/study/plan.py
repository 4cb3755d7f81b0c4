"""From a study to its runs: composed, checked to be comparable, compared with what is there."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence

from loopmoe_train.config.rules import get, paths
from loopmoe_train.config.schema import StudyConfig
from loopmoe_train.errors import Refused
from loopmoe_train.train.planned import Planned, check_several
from loopmoe_train.train.preflight import anchor

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OURS = ("name", "seed", "runs_dir")  # a run has them from its arm, its seed and the study


@dataclass
class ArmRun(Planned):
    """One run of the study, called ``<arm>-<seed>``."""

    arm: str
    seed: int


def folder(study: StudyConfig) -> Path:
    """Where the study is: its runs, its table, its pictures."""
    return Path(study.runs_dir) / study.name


def plan(study: StudyConfig, settings: Sequence[str]) -> List[ArmRun]:
    """All runs, seed by seed, so that a study which is stopped early holds whole pairs.

    Args:
        settings: overrides for every run; what an arm sets comes after them.

    Raises:
        Refused: no study, a run that cannot be, arms that differ in more than the model, or runs
            that are there already with other settings.
    """
    from loopmoe_train.config.compose import compose

    _check(study, settings)
    runs = []
    for seed in study.seeds:
        for arm, makes in study.arms.items():
            own = [f"name={arm}-{seed}", f"seed={seed}", f"runs_dir={folder(study)}"]
            words = [*study.settings, *settings, *makes, *own]
            try:
                run = compose(words)
            except Refused as error:
                raise Refused(f"arm {arm}: {error.what}", error.fix) from error
            anchor(run)
            runs.append(ArmRun(words, run, arm, seed))
    for one in runs:
        for key in paths(one.run):
            here, there = get(one.run, key), get(runs[0].run, key)
            if not key.startswith(("model.", *_OURS)) and here != there:
                raise Refused(
                    f"arm {one.arm} has {key}={here} but {runs[0].arm} has {there}: arms may "
                    "differ in model. alone, or it is not the model that is compared",
                    "give it to all: study.settings, or on the command line",
                )
    check_several(runs)
    return runs


def _check(study: StudyConfig, settings: Sequence[str]) -> None:
    for name in (study.name, *study.arms):
        if not _NAME.fullmatch(name):
            raise Refused(f"{name!r}: not a name for a folder", "use letters, digits, . _ -")
    if study.reference not in study.arms:
        raise Refused(
            f"study.reference={study.reference}: no arm of that name",
            f"use one of {', '.join(study.arms) or '(there is none: fill study.arms)'}",
        )
    if len(study.arms) < 2:
        raise Refused("study.arms has one arm", "give another to compare it with")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise Refused(f"study.seeds={study.seeds}", "give different ones, e.g. study.seeds=[1,2,3]")
    if study.side_by_side < 1:
        raise Refused(f"study.side_by_side={study.side_by_side}", "use 1 or more")
    if study.minutes is not None and not (study.minutes > 0 and math.isfinite(study.minutes)):
        raise Refused(f"study.minutes={study.minutes}", "use a number above 0, or null")
    for word in settings:
        key = word.partition("=")[0]
        if key in _OURS:
            raise Refused(
                f"{word}: a study names, seeds and places its runs itself",
                "use study.name=, study.seeds=[...], study.runs_dir=",
            )
