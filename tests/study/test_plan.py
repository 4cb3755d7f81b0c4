"""The runs of a study: what they are, what is done, and what is refused."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import List

import pytest

from loopmoe_train.config.compose import compose_study, expand
from loopmoe_train.config.run_file import save
from loopmoe_train.errors import Refused
from loopmoe_train.spec.arithmetic import forward_flops_per_token, parameters
from loopmoe_train.study.plan import ArmRun, plan
from loopmoe_train.train.planned import plan_sweep
from tests.observe.synthetic import make_run


def planned(*words: str) -> List[ArmRun]:
    return plan(*compose_study(words))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_arms_of_a_preset_are_as_large_and_as_costly(name: str) -> None:
    runs = {one.arm: one.run for one in planned(name)}
    assert list(runs) == ["vanilla", "loop", "iter_adaln", "balanced"]

    def size(arm: str) -> List[float]:
        run = runs[arm]
        vocabulary = run.tokenizer.vocab_size
        flops = forward_flops_per_token(run.model, vocabulary, run.sequence_length)
        return [parameters(run.model, vocabulary)["total"], sum(flops.values())]

    # IterAdaLN costs FLOPs; balancing pays for them.
    for arm, more in (("loop", 1.015), ("iter_adaln", 1.06), ("balanced", 1.015)):
        ours, wanted = size(arm), size("vanilla")
        assert ours[0] == pytest.approx(wanted[0], rel=0.01)
        assert wanted[1] * 0.985 < ours[1] < wanted[1] * more


def test_runs_of_a_seed_differ_in_the_model_alone() -> None:
    runs = planned("cpu", "study.seeds=[3,4]", "steps=50")
    assert [one.name for one in runs] == [
        f"{arm}-{seed}" for seed in (3, 4) for arm in ("vanilla", "loop", "iter_adaln", "balanced")
    ]
    first, *others = ({**asdict(o.run), "model": 0, "name": 0} for o in runs if o.seed == 3)
    assert all(other == first for other in others) and first["steps"] == 50
    assert runs[0].folder == Path("runs/study-cpu/vanilla-3")


def test_a_run_is_done_after_its_last_validation() -> None:
    one = planned("smoke", "steps=60")[0]
    assert not one.is_done()
    make_run(one.folder, steps=60, validations=2)
    assert one.is_done() and one.validated() == 60
    longer = planned("smoke", "steps=80")[0]
    assert not longer.is_done()


REFUSED = [
    (["nope"], "study=nope: there is no such preset -> use one of cpu, gpu"),
    (["smoke", "study.seed=[1]"], "the study's seed: there is no such setting"),
    (["smoke", "study.seeds=[]"], "study.seeds=[]"),
    (["smoke", "study.seeds=[1,1]"], "study.seeds=[1, 1]"),
    (["smoke", "study.seeds=x"], "seeds"),
    (["smoke", "study.reference=none_such"], "no arm of that name -> use one of vanilla, loop"),
    (["smoke", "study.side_by_side=0"], "study.side_by_side=0"),
    (["smoke", "study.minutes=-1"], "study.minutes=-1"),
    (["smoke", "study.name=a/b"], "'a/b': not a name"),
    (["smoke", "seed=3"], "seed=3: a study names, seeds and places its runs itself"),
    (["smoke", "name=x"], "name=x"),
    (["smoke", "stepz=3"], "arm vanilla: stepz: there is no such setting"),
    (["smoke", "study.arms.loop=['steps=30']"], "loop has steps=30 but vanilla has 20"),
    (["smoke", "study.arms.loop=['optim.lr=1e-3']"], "arms may differ in model. alone"),
    (["smoke", "study.arms.loop=['precision=bf16']"], "arm loop has precision=bf16"),
    (["smoke", "launcher.dry_run=true"], "several runs are not shown"),
    ([], "name one study"),
    (["smoke", "gpu"], "name one study"),
    (["my-study"], "study=my-study: there is no such preset -> use one of"),
    (["smoke", "--compar"], "'--compar': not a setting"),
]


@pytest.mark.parametrize("words, said", REFUSED)
def test_refused_before_anything_is_started(words: List[str], said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)):
        planned(*words)
    assert not Path("runs").exists()


def test_runs_of_other_settings_are_not_mixed_in() -> None:
    one = planned("smoke", "optim.lr=1e-3")[1]
    one.folder.mkdir(parents=True)
    save(one.run, one.folder / "run.yaml")
    planned("smoke", "optim.lr=1e-3", "observe.log_interval=5")
    with pytest.raises(Refused, match=r"loop-1 is there with optim.lr=0.001, and 0.004 is"):
        planned("smoke")


def test_the_runs_of_a_sweep() -> None:
    runs = plan_sweep(expand(["model=loopmoe_tiny,vanilla_tiny", "steps=50", "name=both"]))
    assert [str(one.folder) for one in runs] == [
        "runs/both/model-loopmoe_tiny", "runs/both/model-vanilla_tiny"
    ]  # fmt: skip
    assert [one.run.model.name for one in runs] == ["loopmoe_tiny", "vanilla_tiny"]
    for words in (["name=a,b"], ["seed=1,1"], ["data.path='a b','a-b'"]):
        with pytest.raises(Refused, match="cannot be told apart"):
            plan_sweep(expand(words))
