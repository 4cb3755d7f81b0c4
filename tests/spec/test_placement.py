"""Visits on slots: every visit once and in order, a layer on one stage, by cost."""

from __future__ import annotations

import itertools
from typing import List

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.spec.placement import Placement, placement_of, split
from loopmoe_train.spec.replay import replay
from loopmoe_train.spec.schedule import table
from loopmoe_train.spec.visits import visits


def place(stages: int, *settings: str, micro_batches: int = 16) -> Placement:
    run = compose(
        ["parallel=data", f"cluster.devices={stages}", "micro_batch_size=1",
         f"parallel.pipeline_parallel_size={stages}", f"global_batch_size={micro_batches}",
         "model.prefix_layers=2", "model.suffix_layers=2", *settings]
    )  # fmt: skip
    placement = placement_of(run)
    in_order = [visit for slot in placement.slots for visit in slot]
    assert in_order == visits(run.model)
    assert all(placement.slots)
    stage_of = {}
    for index, slot in enumerate(placement.slots):
        for visit in slot:
            assert stage_of.setdefault(visit.layer, index % stages) == index % stages
    return placement


def makespan(placement: Placement, micro_batches: int = 16) -> float:
    schedule = table(placement.stages, micro_batches, placement.chunks)
    return replay(schedule, placement.duration).makespan


SIZES = [
    (stages, body, iterations)
    for stages in (2, 3, 4)
    for body in (stages, stages + 1, 2 * stages + 1)
    for iterations in (2, 3, 4)
]


@pytest.mark.parametrize(("stages", "body", "iterations"), SIZES)
def test_iterations_follow_one_another_round_the_stages(
    stages: int, body: int, iterations: int
) -> None:
    found = place(
        stages, f"model.body_layers={body}", f"model.loop.iterations={iterations}",
        micro_batches=4 * stages,
    )  # fmt: skip
    assert iterations <= found.chunks <= iterations + 2
    looped = [slot for slot in found.slots if any(visit.looped for visit in slot)]
    assert len(looped) == stages * iterations
    # With as many layers everywhere, stages differ by one at most but for what stands outside.
    counts = [len({v.layer for v in slot if v.looped}) for slot in looped[:stages]]
    assert sum(counts) == body


def test_two_chunks_an_iteration() -> None:
    found = place(2, "model.body_layers=4", "parallel.virtual_pipeline_size=2",
                  "model.loop.iterations=3")  # fmt: skip
    assert found.chunks >= 6


def test_a_heavy_loss_takes_layers_from_its_stage() -> None:
    """By cost, not by count: with a large vocabulary the last stage gets fewer body layers."""
    usual = ["model.body_layers=8", "model.loop.iterations=2"]
    light = place(2, *usual, "model.vocab_size=512")
    heavy = place(2, *usual, "model.vocab_size=60000")

    def layers_of_last_stage(placement: Placement) -> int:
        return len({v.layer for chunk in range(placement.chunks) for v in placement.at(1, chunk)})

    assert layers_of_last_stage(heavy) < layers_of_last_stage(light)
    by_count = light.layout()
    again = place(2, *usual, "model.vocab_size=60000",
                  f"parallel.pipeline_layout=[{','.join(map(str, by_count))}]")  # fmt: skip
    assert makespan(heavy) < makespan(again)


def test_it_is_the_fastest_of_what_was_tried() -> None:
    """Prefix and suffix in slots of their own, or joined to the body's: what replays faster."""
    usual = ["model.body_layers=2", "model.loop.iterations=4"]
    found = place(2, *usual)
    for other in ([3, 1, 1, 1, 1, 1, 1, 3], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
                  [3, 1, 1, 1, 1, 1, 1, 1, 1, 1], [2, 1, 1, 1, 1, 1, 1, 1, 1, 2]):  # fmt: skip
        by_hand = place(2, *usual, f"parallel.pipeline_layout=[{','.join(map(str, other))}]")
        assert makespan(found) <= makespan(by_hand) + 1e-9


def test_a_vanilla_model_is_cut_evenly() -> None:
    found = place(4, "model.loop.iterations=1", "model.body_layers=8", "model.vocab_size=64")
    assert found.chunks == 1 and found.layout() == [3, 3, 3, 3]
    found = place(2, "model.loop.iterations=1", "model.body_layers=8", "model.vocab_size=64",
                  "parallel.virtual_pipeline_size=3")  # fmt: skip
    assert found.chunks == 3 and found.layout() == [2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 6])
def test_split_has_the_least_maximum(parts: int) -> None:
    costs = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    found = split(costs, parts)
    assert sum(found) == len(costs) and len(found) == parts and min(found) >= 1

    def worst(lengths: List[int]) -> float:
        ends = list(itertools.accumulate(lengths))
        return max(sum(costs[end - n : end]) for n, end in zip(lengths, ends))

    every = [
        [b - a for a, b in zip((0, *cut), (*cut, len(costs)))]
        for cut in itertools.combinations(range(1, len(costs)), parts - 1)
    ]
    assert worst(found) == min(map(worst, every))
