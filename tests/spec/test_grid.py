"""The grid of ranks: megatron-core's own groups, and coordinates there and back."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from loopmoe_train.spec.grid import Grid

ROOT = Path(__file__).parents[2]
SIZES = ("tensor", "context", "pipeline", "expert_tensor", "expert")


def layouts() -> List[Tuple[int, Dict[str, int]]]:
    """Every way to cut up to 4 ranks, and some of larger worlds, also odd ones."""

    def cuts(world: int) -> List[Dict[str, int]]:
        parts = [n for n in range(1, world + 1) if world % n == 0]
        return [
            dict(zip(SIZES, (t, c, p, et, e)))
            for t in parts for c in parts for p in parts for et in parts for e in parts
            if world % (t * c * p) == 0 and world % (et * e * p) == 0
        ]  # fmt: skip

    some = random.Random(1)
    chosen = [(world, cut) for world in (1, 2, 3, 4) for cut in cuts(world)]
    for world, count in ((6, 10), (8, 40), (12, 10), (16, 20), (24, 10), (36, 5), (64, 15)):
        chosen += [(world, cut) for cut in some.sample(cuts(world), count)]
    return chosen


def test_the_groups_are_those_of_megatron_core() -> None:
    some = random.Random(2)
    cases: List[Any] = [
        (world, rank, sizes)
        for world, sizes in layouts()
        for rank in sorted({0, world - 1, some.randrange(world), some.randrange(world)})
    ]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.spec.core_groups"],
        input=json.dumps(cases), capture_output=True, text=True, cwd=ROOT, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == len(cases) > 350
    for (world, rank, sizes), answer in zip(cases, answers):
        grid = Grid.of(world, **sizes)
        ours = {axes: grid.group(rank, *axes.split()) for axes in answer}
        assert ours == answer, (world, rank, sizes)


def test_there_and_back() -> None:
    for world, sizes in layouts():
        grid = Grid.of(world, **sizes)
        assert grid.world == world
        for rank in range(world):
            assert grid.rank_at(**grid.coordinate(rank)) == rank
            assert grid.expert_rank_at(**grid.expert_coordinate(rank)) == rank
            assert grid.coordinate(rank)["pipeline"] == grid.expert_coordinate(rank)["pipeline"]


def test_groups_by_hand() -> None:
    grid = Grid.of(16, tensor=2, pipeline=2, expert=4)
    assert (grid.data, grid.expert_data) == (4, 2)
    assert grid.coordinate(13) == {"tensor": 1, "context": 0, "data": 2, "pipeline": 1}
    assert grid.group(13, "tensor") == [12, 13]
    assert grid.group(13, "data") == [9, 11, 13, 15]
    assert grid.group(13, "pipeline") == [5, 13]
    assert grid.group(13, "expert") == [12, 13, 14, 15]
    assert grid.group(13, "expert_data") == [9, 13]
    assert grid.group(13) == [13]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="12 ranks are not a multiple of tensor 8 x context 1 x"):
        Grid.of(12, tensor=8)
    with pytest.raises(ValueError, match="12 ranks .* expert tensor 1 x expert 8 x pipeline 1 = 8"):
        Grid.of(12, expert=8)
    with pytest.raises(ValueError, match="expert=0"):
        Grid.of(4, expert=0)
    with pytest.raises(ValueError, match="attention takes 4 ranks .* experts 2"):
        Grid(tensor=4, context=1, pipeline=1, data=1, expert_tensor=1, expert=2, expert_data=1)
    grid = Grid.of(4, tensor=2)
    for wrong in (4, -1):
        with pytest.raises(ValueError, match="there are 4"):
            grid.coordinate(wrong)
    with pytest.raises(ValueError, match="tensor=2: its size is 2"):
        grid.rank_at(tensor=2)
    with pytest.raises(ValueError, match="expert: not an axis"):
        grid.rank_at(expert=0)
    with pytest.raises(ValueError, match="tensor: not an axis of expert_tensor"):
        grid.group(0, "expert", "tensor")
