"""Steps: what a schedule makes of equal stages, and what memory they need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopmoe_train.sim import efficiency, memory, step
from loopmoe_train.sim.machine import Machine, machine_of, named
from loopmoe_train.sim.shape import Attention, Ffn, Layer, Shape
from loopmoe_train.sim.stage import Stages
from loopmoe_train.sim.step import estimate
from loopmoe_train.sim.workload import Memory, Overlap, Workload, even_slots
from loopmoe_train.spec.grid import Grid
from loopmoe_train.spec.schedule import in_flight, table

H, HEADS, S = 1024, 16, 2048
GPT = Layer(Attention(HEADS, HEADS, 64, 64, fused=False), Ffn(4 * H, gated=False))
LLAMA = Layer(Attention(HEADS, 4, 64, 64, rope_dim=64), Ffn(2816))
MOE = Layer(Attention(HEADS, 4, 64, 64, rope_dim=64), Ffn(512, experts=16, top_k=4, shared=512))


@pytest.fixture(scope="module")
def machine() -> Machine:
    return machine_of(named("h100"))


def _work(
    layer: Layer, pipeline: int = 1, chunks: int = 1, layers: int = 8, micro: int = 8,
    vocab: int = 64, **changes: Any,
) -> Workload:  # fmt: skip
    shape = Shape("made up", H, vocab, (layer,) * layers, tuple(range(layers)))
    grid = changes.pop("grid", Grid.of(pipeline, pipeline=pipeline))
    values: dict[str, Any] = {"overlap": Overlap(), "fused_loss": True, "fused_gradient": True}
    return Workload(
        shape, grid, even_slots(layers, pipeline * chunks), S, 1, micro * grid.data,
        **(values | changes),
    )  # fmt: skip


@pytest.mark.parametrize(("pipeline", "chunks", "micro"), [(2, 1, 8), (4, 1, 16), (4, 2, 64)])
def test_bubble_of_equal_stages(machine: Machine, pipeline: int, chunks: int, micro: int) -> None:
    """(P - 1) / (m V) over the ideal time (arXiv 2104.04473)."""
    found = estimate(_work(LLAMA, pipeline, chunks, micro=micro, layers=48), machine)
    ideal = sum(found.parts[name] for name in ("arithmetic", "recompute", "tensor parallel"))
    wanted = (pipeline - 1) / (micro * chunks)
    # transfers, embedding and head are not in the formula
    assert found.parts["bubble"] / ideal == pytest.approx(wanted, abs=0.25 * wanted + 0.02)


@pytest.mark.parametrize(("pipeline", "chunks"), [(2, 1), (4, 1), (2, 2), (4, 3)])
def test_a_long_schedule_is_continued(machine: Machine, pipeline: int, chunks: int) -> None:
    work = _work(LLAMA, pipeline, chunks, layers=12, micro=16 * pipeline)
    stages = Stages(work, machine)
    passes, transfer = stages.passes(), stages.network.to_next_stage()
    whole = step.timeline(work, machine).makespan
    short, _, _ = step._pipeline(work, passes, transfer)
    assert short == pytest.approx(whole, rel=1e-9)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    pipeline=st.sampled_from([1, 2, 4]), chunks=st.sampled_from([1, 2]),
    micro=st.sampled_from([4, 8, 12]), tensor=st.sampled_from([1, 2, 8]),
    data=st.sampled_from([1, 4]), expert=st.sampled_from([1, 2, 4]), full=st.booleans(),
    gradients=st.booleans(),
)  # fmt: skip
def test_the_parts_are_the_whole_and_the_bound_is_one(
    machine: Machine, pipeline: int, chunks: int, micro: int, tensor: int, data: int,
    expert: int, full: bool, gradients: bool,
) -> None:  # fmt: skip
    world = pipeline * tensor * data
    if (world // pipeline) % expert:
        return
    work = _work(
        MOE, pipeline, chunks if pipeline > 1 else 1, micro=micro,
        grid=Grid.of(world, tensor=tensor, pipeline=pipeline, expert=expert),
        memory=Memory(8 if full else None), overlap=Overlap(gradients=gradients),
    )  # fmt: skip
    found = estimate(work, machine)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert all(value > -1e-9 for name, value in found.parts.items() if name != "bubble")
    stages = Stages(work, machine)
    assert step.lower_bound(stages, stages.passes()) <= found.seconds * (1 + 1e-9)
    assert memory.peak(stages) == pytest.approx(found.peak)
    assert memory.fits(stages, found.peak) and not memory.fits(stages, found.peak * 0.999)


def test_kept_for_backward_is_the_published_formula(machine: Machine) -> None:
    """s b h (34 + 5 a s / h) bytes a layer, with dropout and stored scores (arXiv 2205.05198)."""
    work = _work(GPT, layers=1, dropout=True)
    kept = memory.layer_bytes(Stages(work, machine), 0, False)
    assert kept == pytest.approx(S * H * (34 + 5 * HEADS * S / H), rel=0.02)


def test_recomputing_all_keeps_the_inputs(machine: Machine) -> None:
    stages = Stages(_work(LLAMA, memory=Memory(8)), machine)
    assert memory.layer_bytes(stages, 0, True) == S * H * 2
    machine = replace(machine, host_launch=0.0)
    kept = Stages(_work(LLAMA), machine)
    again, once = estimate(stages.workload, machine), estimate(kept.workload, machine)
    assert again.peak < once.peak and again.seconds > once.seconds
    assert again.parts["recompute"] == pytest.approx(again.parts["arithmetic"] / 3, rel=0.15)


@pytest.mark.parametrize(("pipeline", "chunks", "micro"), [(4, 1, 8), (4, 2, 8), (2, 4, 8)])
def test_passes_in_flight(machine: Machine, pipeline: int, chunks: int, micro: int) -> None:
    stages = Stages(_work(LLAMA, pipeline, chunks, layers=8, micro=micro), machine)
    one = memory.layer_bytes(stages, 0, False) * (8 // (pipeline * chunks))
    wanted = in_flight(table(pipeline, micro, chunks)[0]) * one
    assert memory.held(stages)[0].activations == pytest.approx(wanted)


def test_a_loop_keeps_activations_of_every_visit_and_weights_once(machine: Machine) -> None:
    untied = _work(LLAMA, layers=8)
    loop = replace(
        untied,
        shape=replace(untied.shape, layers=(LLAMA,) * 2, order=(0, 1) * 4),
    )
    tied, free = (memory.held(Stages(one, machine))[0] for one in (loop, untied))
    assert tied.activations == free.activations
    layers = 8 * LLAMA.dense_parameters(H)
    assert free.weights - tied.weights == pytest.approx(2 * layers * 6 / 8)
    assert estimate(loop, machine).parts["arithmetic"] == pytest.approx(
        estimate(untied, machine).parts["arithmetic"]
    )


def test_states_are_spread(machine: Machine) -> None:
    grid = Grid.of(8, expert=4)
    whole = memory.held(Stages(_work(MOE, grid=grid, sharding="none"), machine))[0]
    spread = memory.held(Stages(_work(MOE, grid=grid, sharding="optimizer"), machine))[0]
    stages = Stages(_work(MOE, grid=grid), machine)
    own = stages.weights(0)
    assert whole.states == pytest.approx(12 * own.total)
    # dense over 8 data-parallel ranks, experts over the 2 that hold the same ones
    assert spread.states == pytest.approx(12 * (own.dense / 8 + own.experts / 2))
    swapped = _work(MOE, grid=grid, memory=Memory(swap=frozenset({"optimizer"})))
    assert memory.held(Stages(swapped, machine))[0].states == 0
    assert estimate(swapped, machine).seconds > estimate(_work(MOE, grid=grid), machine).seconds


def test_what_hides_the_exchange(machine: Machine) -> None:
    grid = Grid.of(16, expert=16)

    def exchange(**changes: Any) -> float:
        return estimate(_work(MOE, grid=grid, **changes), machine).parts["expert exchange"]

    flat = exchange()
    assert 0 < exchange(exchange="hierarchical") < flat
    hidden = exchange(overlap=Overlap(experts=0.95))
    assert 0.05 * flat * (1 - 1e-9) <= hidden < flat
    assert exchange(imbalance=1.5) == pytest.approx(1.5 * flat, rel=0.05)  # but for latency


def test_what_a_device_keeps_for_itself(machine: Machine) -> None:
    alone = _work(MOE)
    spread = _work(MOE, grid=Grid.of(8, tensor=2, expert=4))
    assert memory.communicators(alone) == 0
    # tensor, data, expert, expert data, and all ranks
    assert memory.communicators(spread) == 5
    own = replace(machine, reserved=1e9, communicator=1e8, fragmentation=0.0)
    assert memory.beside(spread, own) == pytest.approx(1.5e9)
    free = own.memory - 1.5e9
    assert memory.room(spread, own) == pytest.approx(free / (1 + memory.MARGIN))
    torn = replace(own, fragmentation=0.1)
    assert memory.room(spread, torn) == pytest.approx(memory.room(spread, own) / 1.1)


def test_a_slow_vector_unit_bounds_norms_and_activations(machine: Machine) -> None:
    slow = replace(machine, vector=machine.bandwidth / 4)
    for layout, intensity in (("norm", 1.0), ("activation", 2.0)):
        plain = efficiency.vector(machine, 1e9, layout)[0]
        assert efficiency.vector(slow, 1e9, layout)[0] == pytest.approx(4 * intensity * plain)
    work = _work(MOE, graphs=True)  # else the host is slower still
    assert estimate(work, slow).seconds > estimate(work, machine).seconds
