"""engine=deepspeed trains as engine=megatron does, and either continues the other."""

from __future__ import annotations

import importlib.util
from typing import Any, Dict, List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused
from tests.dist import ranks

pytestmark = pytest.mark.timeout(900)
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs deepspeed: pip install -e '.[deepspeed]' (make deepspeed)",
)
STEPS = 3
ENGINE = "engine=deepspeed"
CORE = {"DP2": ["parallel=data"], "EP2": ["parallel=expert"]}
ZERO = {
    f"{layout} zero {stage}": [*CORE[layout], ENGINE, f"parallel.zero_stage={stage}"]
    for layout in CORE
    for stage in (1, 2, 3)
}
OFFLOADED = {
    "EP2 zero 2 offloaded": [*ZERO["EP2 zero 2"], "optim.offload=cpu"],
    "EP2 zero 3 by deepspeed": [*ZERO["EP2 zero 3"], "optim.offload=cpu",
                                "optim.offload_update=deepspeed"],
}  # fmt: skip
WITHOUT = {
    "mean over tokens": "DP2 zero 1",
    "experts are named": "EP2 zero 1",
    "experts have groups of their own": "EP2 zero 3",
}


POISONED = ["EP2 zero 1", "EP2 zero 3"]


@pytest.fixture(scope="module")
def outcomes() -> Dict[str, Any]:
    cases: List[Dict[str, Any]] = [
        dict(name=name, overrides=words, steps=STEPS)
        for name, words in {**CORE, **ZERO, **OFFLOADED}.items()
    ]
    cases += [
        dict(name=part, overrides=ZERO[name], steps=1, without=part)
        for part, name in WITHOUT.items()
    ]
    poisoned = [ZERO[name] for name in POISONED]
    done = ranks.run("tests.optim.zero_worker:everything", 2, cases, poisoned, timeout_s=800)
    return {**done[0], "poisoned": [one["poisoned"] for one in done]}


@pytest.fixture
def trained(outcomes: Dict[str, Any]) -> Any:
    return outcomes["trained"]


def _differences(found: Any, wanted: Any) -> List[str]:
    """What is not equal, up to the order of sums."""
    wrong = [] if found["losses"] == pytest.approx(wanted["losses"], rel=1e-6) else ["losses"]
    wrong += [] if found["norms"] == pytest.approx(wanted["norms"], rel=1e-5) else ["norms"]
    for kind, limit in (("gradients", 1e-4), ("weights", 1e-4), ("bias", 1e-7)):
        assert found[kind].keys() == wanted[kind].keys()
        for name, value in wanted[kind].items():
            error = (found[kind][name] - value).norm()
            if not error <= limit * value.norm() + 1e-9:
                wrong.append(f"{kind} of {name}")
    return wrong


@needs_deepspeed
@pytest.mark.parametrize("name", [*ZERO, *OFFLOADED])
def test_it_trains_as_core_does(trained: Any, name: str) -> None:
    assert not _differences(trained[name], trained[name[:3]])


@needs_deepspeed
@pytest.mark.parametrize("part", WITHOUT)
def test_every_part_of_the_bridge_is_needed(trained: Any, part: str) -> None:
    found, wanted = trained[part], trained[WITHOUT[part][:3]]
    if "stopped" not in found:
        first = wanted["losses"][:1] + wanted["norms"][:1]
        assert found["losses"] + found["norms"] != pytest.approx(first, rel=1e-4)


@needs_deepspeed
@pytest.mark.parametrize("place", range(len(POISONED)), ids=POISONED)
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(outcomes: Any, place: int) -> None:
    for rank in outcomes["poisoned"]:
        found = rank[place]
        assert "not finite" in found["said"] and "parameters, first" in found["said"]
        assert not found["moved"]


CONTINUED = [
    ("EP2 zero 1", "EP2 zero 1"), ("EP2 zero 3", "EP2 zero 3"), ("EP2", "EP2 zero 3"),
    ("EP2 zero 3", "EP2"), ("EP2 zero 1", "DP2 zero 2"), ("EP2 zero 3 by deepspeed", "EP2 zero 1"),
    ("EP2 zero 3 by deepspeed", "EP2 zero 3 by deepspeed"),
]  # fmt: skip
LAYOUTS = {**CORE, **ZERO, **OFFLOADED}


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    root = str(tmp_path_factory.mktemp("checkpoints"))
    names = sorted({saved for saved, _ in CONTINUED})
    cases: List[Dict[str, Any]] = [dict(name=name, overrides=LAYOUTS[name]) for name in names]
    saved = ranks.run("tests.checkpoint.worker:train_and_save", 2, cases, root, 2)[0]
    cases = [
        dict(name=f"{saved} -> {name}", saved=saved, overrides=LAYOUTS[name])
        for saved, name in CONTINUED
    ]
    later = ranks.run("tests.checkpoint.worker:load_and_train", 2, cases, root, 2)[0]
    return {"saved": saved, "later": later}


@needs_deepspeed
@pytest.mark.parametrize("pair", CONTINUED, ids=lambda pair: " -> ".join(pair))
def test_either_engine_continues_the_other(continued: Any, pair: Any) -> None:
    straight = continued["saved"][pair[0]][2:]
    found = continued["later"][" -> ".join(pair)]["losses"]
    if pair[0] == pair[1]:
        assert found == straight  # bitwise
    assert found == pytest.approx(straight, rel=1e-6)


@pytest.mark.parametrize(
    "words, said",
    [
        (["parallel=tensor", "parallel.expert_parallel_size=1"], "tensor_parallel_size=2"),
        (["parallel=pipeline"], "pipeline_parallel_size"),
        (["parallel=context"], "context_parallel_size"),
        (["parallel=data", "optim=muon"], "optim.kind=adamw"),
        (["parallel=data", "parallel.overlap_grad_reduce=true"], "overlap_grad_reduce"),
        (["parallel=data", "parallel.distributed_optimizer=false"], "distributed_optimizer=true"),
        (["parallel=data", "parallel.zero_stage=4"], "1, 2, 3"),
    ],
)
def test_what_does_not_go_with_it_is_refused(words: List[str], said: str) -> None:
    with pytest.raises(Refused, match=said):
        compose([ENGINE, *words])


def test_a_stage_of_zero_is_for_deepspeed() -> None:
    with pytest.raises(Refused, match="engine=deepspeed"):
        compose(["parallel.zero_stage=2"])
