"""Validation, sampled text, probe and routing metrics are the same in every layout."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from tests.dist import ranks
from tests.parity.grid import on

LAYOUTS = {
    "TP2": on("tp2 ep2"),
    "CP2": on("cp2"),
    "CP2 ulysses": on("cp2", ["parallel.context_parallel=ulysses"]),
    "PP2": on("pp2"),
    "PP2, one chunk": on("pp2", ["parallel.pipeline_layout=[1,7]"]),
    "EP2": on("ep2"),
}


@pytest.fixture(scope="module")
def figures() -> Dict[str, Dict[str, Any]]:
    worker = "tests.evaluation.layouts_worker:measure"
    alone = ranks.run(worker, 1, {"one": on("")})[0]
    pair = ranks.run(worker, 2, LAYOUTS)
    for name in LAYOUTS:
        assert pair[0][name]["text"] == pair[1][name]["text"]
    return alone | pair[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_text_and_agreement(figures: Dict[str, Any], layout: str) -> None:
    one, found = figures["one"], figures[layout]
    assert found["tokens"] == one["tokens"] == sum(24 - index * 5 % 11 for index in range(11))
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-6)
    assert found["once"] == pytest.approx(one["once"], rel=1e-6) and one["once"] != one["loss"]
    assert found["greedy"] == one["greedy"]
    assert found["text"] == one["text"] and len(one["text"]) > 12
    if layout != "EP2":  # which has two ranks' windows
        assert found["agreement"] == pytest.approx(one["agreement"], abs=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_the_routers_did(figures: Dict[str, Any], layout: str) -> None:
    one, found = figures["one"], figures[layout]
    assert list(found["trained"]) == list(one["trained"])
    assert found["trained"] == pytest.approx(one["trained"], rel=1e-6)
    if layout != "EP2":
        assert found["load"].keys() == one["load"].keys()
        for layer, load in one["load"].items():
            for mine, theirs in zip(found["load"][layer], load):
                assert mine == pytest.approx(theirs, abs=1e-6)
        for layer, overlap in one["overlap"].items():
            for mine, theirs in zip(found["overlap"][layer], overlap):
                assert mine == pytest.approx(theirs, abs=1e-5)
    assert list(found["gates"]) == list(one["gates"])
    means = {k: v for k, v in one["gates"].items() if not k.endswith("std")}
    if layout in ("TP2", "PP2", "PP2, one chunk"):
        assert {k: found["gates"][k] for k in means} == pytest.approx(means, rel=1e-4, abs=1e-7)
