"""From a study to its runs: composed, checked to be comparable, compared with what is there."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from loopmoe_train.config.run_file import load, run_dir
from loopmoe_train.config.schema import RunConfig, StudyConfig
from loopmoe_train.errors import Refused
from loopmoe_train.observe.metrics import read_metrics
from loopmoe_train.train.preflight import anchor

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_OURS = ("name", "seed", "runs_dir")  # a run has them from its arm, its seed and the study

# What may differ between a run that is there and one that is asked for: no figure depends on it.
_FREE = (
    "name", "runs_dir", "observe.", "launcher.", "checkpoint.", "memory.", "data.path",
    "data.workers",
)  # fmt: skip


@dataclass
class Planned:
    """One run of the study.

    Attributes:
        words: its command line after ``loopmoe train``.
    """

    arm: str
    seed: int
    words: List[str]
    run: RunConfig

    @property
    def name(self) -> str:
        """``<arm>-<seed>``."""
        return self.run.name

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return run_dir(self.run)

    def validated(self) -> int:
        """Step of its last validation; 0 if there was none (its checkpoint may be gone since)."""
        metrics = self.folder / "metrics.jsonl"
        if not metrics.is_file() or not metrics.stat().st_size:
            return 0
        steps = read_metrics(metrics).valid.get("step")
        return int(steps[-1]) if steps is not None and len(steps) else 0

    def is_done(self) -> bool:
        """Whether it was validated after its last step."""
        return self.validated() >= self.run.steps


def folder(study: StudyConfig) -> Path:
    """Where the study is: its runs, its table, its pictures."""
    return Path(study.runs_dir) / study.name


def plan(study: StudyConfig, settings: Sequence[str]) -> List[Planned]:
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
            runs.append(Planned(arm, seed, words, run))
    first = _flat(asdict(runs[0].run))
    for one in runs:
        for key, value in _flat(asdict(one.run)).items():
            if not key.startswith(("model.", *_OURS)) and value != first[key]:
                raise Refused(
                    f"arm {one.arm} has {key}={value} but {runs[0].arm} has {first[key]}: arms may "
                    "differ in model. alone, or it is not the model that is compared",
                    "give it to all: study.settings, or on the command line",
                )
        _check_continues(one)
    _check_starts(runs)
    return runs


def plan_sweep(combinations: Sequence[Tuple[str, List[str]]]) -> List[Planned]:
    """The runs of a sweep, each in a folder of its own below ``<runs_dir>/<name>``.

    Args:
        combinations: (its name in the sweep, overrides).

    Raises:
        Refused: a run that cannot be, or that is there already with other settings; two of them
            would have one folder.
    """
    from loopmoe_train.config.compose import compose

    runs: List[Planned] = []
    for name, words in combinations:
        whole = compose(words)
        own = [f"runs_dir={run_dir(whole)}", f"name={name}"]
        run = compose([*words, *own])
        anchor(run)
        runs.append(Planned(name, run.seed, [*words, *own], run))
        _check_continues(runs[-1])
    _check_starts(runs)
    if len({one.name for one in runs}) < len(runs) or len({o.folder.parent for o in runs}) > 1:
        raise Refused(
            "the runs of this sweep cannot be told apart by their settings, or lie in several "
            "folders",
            "give name= and runs_dir= one value each, and every other setting different ones",
        )
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


def _check_starts(runs: Sequence[Planned]) -> None:
    if any(one.run.launcher.dry_run for one in runs):
        raise Refused(
            "launcher.dry_run=true: several runs are not shown", "use it with one `loopmoe train`"
        )


def _check_continues(planned: Planned) -> None:
    file = planned.folder / "run.yaml"
    if not file.is_file():
        return
    there, asked = _flat(asdict(load(file))), _flat(asdict(planned.run))
    for key, value in asked.items():
        if not key.startswith(_FREE) and there.get(key) != value:
            raise Refused(
                f"{planned.folder} is there with {key}={there.get(key)}, and {value} is asked for",
                "set it back, choose another name, or delete the folder",
            )


def _flat(tree: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
