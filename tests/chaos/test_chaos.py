"""Break training runs in many ways: each recovers bitwise or is refused, none goes on wrong.

`make chaos` runs every fault with every seed; the seed chooses rank, step and moment, and the
seed of the training. What counts is what a user sees: exit codes, one line, recorded losses.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import pytest

from loopmoe_train.errors import LoopMoEError
from loopmoe_train.launcher.supervise import launch
from loopmoe_train.train.preflight import prepare
from tests.launcher.tiny_run import STEPS, attempts, losses, make_place, settings

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

SEEDS = range(int(os.environ.get("CHAOS_SEEDS", "5")))


class End(NamedTuple):
    """How a launch ended."""

    code: int
    line: str


class Place:
    """Runs of this session: one folder, one dataset, one undisturbed run per seed."""

    def __init__(self, folder: Path) -> None:
        self.folder = make_place(folder)
        self.undisturbed: Dict[int, Dict[int, float]] = {}

    def start(self, name: str, seed: int, *words: str, fault: Optional[str] = None) -> End:
        """Compose and launch, as `loopmoe train` does before the report."""
        os.environ.pop("LOOPMOE_FAULT", None)
        if fault is not None:
            os.environ["LOOPMOE_FAULT"] = fault
        try:
            overrides = settings(self.folder, f"name={name}", f"seed={seed}", *words)
            run, _ = prepare(overrides, lambda line: None)
            launch(run)
            return End(0, "")
        except LoopMoEError as error:
            return End(error.exit_code, str(error))
        finally:
            os.environ.pop("LOOPMOE_FAULT", None)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def reference(self, seed: int) -> Dict[int, float]:
        """Losses of the undisturbed run with this seed."""
        if seed not in self.undisturbed:
            name = f"undisturbed-{seed}"
            end = self.start(name, seed)
            assert end.code == 0, end
            self.undisturbed[seed] = losses(self.run(name))
            assert sorted(self.undisturbed[seed]) == list(range(1, STEPS + 1))
        return self.undisturbed[seed]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("chaos"))


Case = Callable[[Place, str, int, random.Random], str]


def _restarted(where: Callable[[random.Random], str], *words: str) -> Case:
    """The supervisor itself brings the run to its end."""

    def case(place: Place, name: str, seed: int, rng: random.Random) -> str:
        end = place.start(name, seed, *words, fault=where(rng))
        assert end.code == 0, end
        reports = attempts(place.run(name))
        if len(reports) == 1:  # a timed fault may come after the last word
            return "ended before the fault"
        assert reports[0]["outcome"] == "restarted" and reports[0]["rank"] is not None
        return "recovered"

    return case


def _at(kind: str, steps: List[int], phase: str = "step", after: float = 0.0) -> Any:
    def where(rng: random.Random) -> str:
        spec = f"{kind}@rank{rng.randrange(2)}@step{rng.choice(steps)}@{phase}"
        return spec + (f"@after{rng.uniform(0.001, after):.3f}" if after else "")

    return where


def _resumed(kind: str, steps: List[int], code: int, says: str) -> Case:
    """The run ends by itself with ``code``; the same command continues it."""

    def case(place: Place, name: str, seed: int, rng: random.Random) -> str:
        end = place.start(name, seed, fault=_at(kind, steps)(rng))
        assert end.code == code and says in end.line, end
        assert len(attempts(place.run(name))) == 1, "it was started again"
        again = place.start(name, seed)
        assert again.code == 0, again
        return f"ended with {code}, resumed"

    return case


def _damaged(damage: Callable[[Path, random.Random], None]) -> Case:
    """A file of the newest checkpoint is damaged between two starts."""

    def case(place: Place, name: str, seed: int, rng: random.Random) -> str:
        spec = _at("kill", [5, 6])(rng)
        end = place.start(name, seed, "launcher.max_restarts=0", fault=spec)
        assert end.code == 4 and "SIGKILL" in end.line, end
        # The kill may fall into the save of step 4, which then does not count.
        whole = [p.parent for p in place.run(name).glob("checkpoints/step-*/manifest.json")]
        newest = max(whole, key=lambda p: int(p.name[5:]))
        files = [p for p in newest.rglob("*") if p.is_file() and p.name != "manifest.json"]
        victim = rng.choice(sorted(files))
        damage(victim, rng)
        again = place.start(name, seed)
        if again.code == 0:
            return "recovered from the checkpoint before"
        assert again.code == 2 and victim.name in again.line, again
        if len(whole) > 1:  # what the line says to do: continue from the older one
            third = place.start(name, seed, f"checkpoint.resume={newest.with_name('step-2')}")
            assert third.code == 0, third
            return "refused by name, then resumed older"
        shutil.rmtree(place.run(name))
        third = place.start(name, seed)
        assert third.code == 0, third
        return "refused by name, then started afresh"

    return case


def _flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def _truncate(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def _crash_loop(place: Place, name: str, seed: int, rng: random.Random) -> str:
    end = place.start(name, seed, fault=_at("kill", [3, 4, 5, 6])(rng) + "@always")
    assert end.code == 4 and "suspect data or step" in end.line, end
    assert len(attempts(place.run(name))) == 2
    again = place.start(name, seed)
    assert again.code == 0, again
    return "stopped, then resumed"


ANY = list(range(1, STEPS + 1))
FAULTS: Dict[str, Case] = {
    "kill": _restarted(_at("kill", ANY, after=0.2)),
    "stop": _restarted(_at("stop", ANY, after=0.2)),
    "hang": _restarted(_at("hang", ANY[2:]), "launcher.hang_seconds=15"),
    "exit": _restarted(_at("exit", ANY)),
    "raise": _restarted(_at("raise", ANY[1:])),
    "kill in save": _restarted(_at("kill", [2, 4, 6], "save", after=0.1)),
    "disk full": _restarted(_at("full", [2, 4], "save")),
    "flipped bit": _damaged(_flip),
    "truncated": _damaged(_truncate),
    "nan": _resumed("nan", ANY[1:], 3, "the gradient is not finite"),
    "sigterm": _resumed("sigterm", ANY[:-1], 0, ""),
    "crash loop": _crash_loop,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_recovers_bitwise_or_is_refused(
    place: Place, rows: List[Dict[str, Any]], fault: str, seed: int
) -> None:
    row = dict(fault=fault, seed=seed, outcome="FAILED", detection="-", restart="-")
    rows.append(row)
    name = f"{fault.replace(' ', '-')}-{seed}"
    expected = place.reference(seed)
    outcome = FAULTS[fault](place, name, seed, random.Random(f"{fault}-{seed}"))
    assert losses(place.run(name)) == expected, "another loss than undisturbed"
    first = attempts(place.run(name))[0]
    for column, key in (("detection", "detection_s"), ("restart", "fault_to_next_step_s")):
        if first.get(key) is not None:
            row[column] = f"{first[key]:.2f}"
    row["outcome"] = outcome
