"""Collectives on tiers, against forms that can be written down by hand."""

from __future__ import annotations

import pytest

from loopmoe_train.config.schema import ClusterConfig, EfficiencyConfig, LinkConfig
from loopmoe_train.sim import collectives
from loopmoe_train.sim.collectives import Group
from loopmoe_train.sim.machine import Machine, machine_of

SIZE = 1e9


def _machine(*links: LinkConfig) -> Machine:
    return machine_of(
        ClusterConfig(
            name="made up",
            devices=64,
            peak_tflops_bf16=100,
            peak_tflops_fp32=50,
            memory_gib=64,
            memory_gbytes_per_s=1000,
            links=list(links),
            efficiency=EfficiencyConfig(link=1.0),
        )  # fmt: skip
    )


SWITCH = LinkConfig("switch", 8, 100, 0)
MESH = LinkConfig("mesh", 8, 70, 0, mesh=True)
OUTSIDE = LinkConfig("outside", 0, 10, 0)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_ring_inside_a_node(size: int) -> None:
    seconds = collectives.gather(_machine(SWITCH, OUTSIDE), Group(size), SIZE)
    assert seconds == pytest.approx((size - 1) / size * SIZE / 100e9)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_mesh_gives_a_small_group_few_wires(size: int) -> None:
    # a device has 7 wires of 10 GB/s, and uses those to its group
    seconds = collectives.gather(_machine(MESH, OUTSIDE), Group(size), SIZE)
    assert seconds == pytest.approx(SIZE / size / 10e9)


def test_members_of_a_node_share_its_ports() -> None:
    machine = _machine(SWITCH, OUTSIDE)
    whole = collectives.gather(machine, Group(16), SIZE)
    assert whole == pytest.approx(15 / 16 * SIZE / min(100e9, 8 * 10e9))
    # ranks that stand 8 apart have a port each, and nothing in common
    assert collectives.gather(machine, Group(2, 8), SIZE) == pytest.approx(SIZE / 2 / 10e9)
    assert collectives.gather(machine, Group(4, 4), SIZE) == pytest.approx(
        3 / 4 * SIZE / (2 * 10e9)
    )


def test_all_reduce_is_two_of_them() -> None:
    machine = _machine(SWITCH, OUTSIDE)
    assert collectives.all_reduce(machine, Group(8), SIZE) == 2 * collectives.gather(
        machine, Group(8), SIZE
    )
    assert collectives.gather(machine, Group(1), SIZE) == 0


def test_all_to_all_sends_most_outside() -> None:
    machine = _machine(SWITCH, OUTSIDE)
    assert collectives.all_to_all(machine, Group(8), SIZE) == pytest.approx(7 / 8 * SIZE / 100e9)
    assert collectives.all_to_all(machine, Group(32), SIZE) == pytest.approx(24 / 32 * SIZE / 10e9)


@pytest.mark.parametrize(
    ("nodes", "distinct"), [(2, 1.99), (4, 3.60), (8, 5.25), (16, 6.45), (32, 7.18)]
)
def test_nodes_of_eight_experts(nodes: int, distinct: float) -> None:
    assert collectives.distinct_nodes(nodes, 8) == pytest.approx(distinct, abs=0.006)


def test_two_levels_halve_what_crosses() -> None:
    """Pangu Ultra MoE's groups of 4 nodes x 8: six copies of a token cross, or three."""
    machine = _machine(LinkConfig("fast", 8, 1e6, 0), OUTSIDE)
    tokens, token, group = 2048, 15360, Group(32)
    flat = collectives.all_to_all(machine, group, tokens * 8 * token)
    two = collectives.hierarchical(machine, group, tokens, token, 8)
    assert flat / two == pytest.approx(2, rel=1e-3)
    assert two == pytest.approx(3 * tokens * token / 10e9, rel=1e-3)
    once = collectives.deduplicated(machine, group, tokens, token, 8)
    assert once < two
    beside = collectives.chunked(machine, group, tokens, token, 8)
    inside = collectives.all_to_all(machine, Group(8), tokens * 8 * token)
    assert once == pytest.approx(beside + inside)


def test_inside_a_node_all_exchanges_are_one() -> None:
    machine = _machine(SWITCH, OUTSIDE)
    flat = collectives.all_to_all(machine, Group(8), 2048 * 8 * 15360)
    assert collectives.hierarchical(machine, Group(8), 2048, 15360, 8) == flat
    assert collectives.deduplicated(machine, Group(8), 2048, 15360, 8) == flat
    assert collectives.chunked(machine, Group(8), 2048, 15360, 8) == flat


def test_latency_counts() -> None:
    quick, slow = (_machine(LinkConfig("switch", 0, 100, latency)) for latency in (0.0, 10.0))
    assert collectives.gather(slow, Group(8), 1.0) > collectives.gather(quick, Group(8), 1.0) + 1e-5
    assert collectives.point_to_point(slow, 1, 0.0) == pytest.approx(1e-5)
