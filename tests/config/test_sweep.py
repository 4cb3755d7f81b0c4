"""Hydra sweeps taken apart."""

from __future__ import annotations

import pytest

from loopmoe_train.config.compose import expand
from loopmoe_train.errors import Refused


def test_every_combination_has_a_name_of_its_own() -> None:
    found = expand(["model=a,b", "steps=5", "optim.lr=1e-3,2e-3", "name=rates"])
    assert [name for name, _ in found] == [
        "model-a_lr-0.001", "model-a_lr-0.002", "model-b_lr-0.001", "model-b_lr-0.002",
    ]  # fmt: skip
    assert found[1][1] == ["model=a", "steps=5", "optim.lr=0.002", "name=rates"]


def test_ranges_and_lists() -> None:
    assert [name for name, _ in expand(["seed=range(1,4)"])] == ["seed-1", "seed-2", "seed-3"]
    ((name, words), _) = expand(["data.source=[/a/x,/b],[/c]", "steps=1"])
    assert words[0] == "data.source=[/a/x,/b]" and "/" not in name
    assert [words for _, words in expand(["data.source=/a,/b"])] == [
        ["data.source=/a"], ["data.source=/b"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words", [["steps=5"], ["steps=1,"], [], ["model=glob(loop*)"], ["steps=interval(1,2)"]]
)
def test_refused(words: list[str]) -> None:
    with pytest.raises(Refused):
        expand(words)
