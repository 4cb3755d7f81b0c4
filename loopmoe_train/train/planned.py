"""Several runs that one command trains: what they are, what is done, what cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import List, Sequence, Tuple

from loopmoe_train.config.rules import get, paths
from loopmoe_train.config.run_file import load, run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.observe.metrics import read_metrics
from loopmoe_train.train.preflight import anchor

# What may differ between a run that is there and one that is asked for: no figure depends on it.
_FREE = (
    "name", "runs_dir", "observe.", "launcher.", "checkpoint.", "memory.", "data.path",
    "data.workers",
)  # fmt: skip


@dataclass
class Planned:
    """One of them.

    Attributes:
        words: its command line after ``loopmoe train``.
    """

    words: List[str]
    run: RunConfig

    @property
    def name(self) -> str:
        """Of the run."""
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
        runs.append(Planned([*words, *own], run))
    check_several(runs)
    if len({one.name for one in runs}) < len(runs) or len({o.folder.parent for o in runs}) > 1:
        raise Refused(
            "the runs of this sweep cannot be told apart by their settings, or lie in several "
            "folders",
            "give name= and runs_dir= one value each, and every other setting different ones",
        )
    return runs


def check_several(planned: Sequence[Planned]) -> None:
    """Refuse runs that are there already with other settings, and a dry run of several.

    Raises:
        Refused: the first that is found.
    """
    for one in planned:
        if one.run.launcher.dry_run:
            raise Refused(
                "launcher.dry_run=true: several runs are not shown",
                "use it with one `loopmoe train`",
            )
        file = one.folder / "run.yaml"
        if not file.is_file():
            continue
        there = load(file)
        for key in paths(one.run):
            asked, found = get(one.run, key), get(there, key)
            if not key.startswith(_FREE) and asked != found:
                raise Refused(
                    f"{one.folder} is there with {key}={found}, and {asked} is asked for",
                    "set it back, choose another name, or delete the folder",
                )
