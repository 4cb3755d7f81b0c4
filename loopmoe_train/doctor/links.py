"""Bandwidth of the collectives on every tier of the network; rates of ranks beside one another."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Sequence, Tuple

import torch
import torch.distributed as dist

from loopmoe_train.config.schema import ClusterConfig
from loopmoe_train.device.accelerator import accel
from loopmoe_train.doctor.check import Check, passed, warned

_BYTES = {"cpu": 4 * 2**20}
_OTHERS = 256 * 2**20
_ROUNDS = 7
_SLOW_LINK = 0.5  # of what the cluster file lets expect
# A rank below this share of the median is slow. Devices are alike; processors are shared.
_SLOW_RANK = {"cpu": 0.7}
_SLOW_DEVICE = 0.9


@dataclass(frozen=True)
class Tier:
    """Ranks that meet over one tier of the network: one of every domain of the tier below.

    Attributes:
        name: of ``cluster.links``.
        ranks: groups over the whole job, each of ranks that are ``inner`` apart.
        expected: bytes/s of one device, by the cluster file.
    """

    name: str
    ranks: Tuple[Tuple[int, ...], ...]
    expected: float


def tiers(cluster: ClusterConfig, world: int) -> List[Tier]:
    """Those tiers of ``cluster.links`` over which at least two of ``world`` ranks meet."""
    found, inner = [], 1
    for link in cluster.links:
        outer = min(link.devices or world, world)
        groups: Dict[Tuple[int, int], List[int]] = {}
        for rank in range(world):
            groups.setdefault((rank % inner, rank // outer), []).append(rank)
        several = tuple(tuple(ranks) for ranks in groups.values() if len(ranks) > 1)
        if several:
            share = (outer // inner - 1) / max(1, link.devices - 1) if link.mesh else 1.0
            rate = 1e9 * link.gbytes_per_s * min(1.0, share) * cluster.efficiency.link
            found.append(Tier(link.name, several, rate))
        inner = outer
    return found


def measure(group: dist.ProcessGroup, members: int) -> Tuple[float, float]:
    """Bytes/s of one rank, each way: in an all-reduce and in an all-to-all, all at once.

    An all-reduce moves 2 (p - 1) / p of its data over a link, an all-to-all (p - 1) / p.
    """
    size = _BYTES.get(accel.device_type, _OTHERS)
    count = size // 4 // members * members
    data = torch.ones(count, dtype=torch.float32, device=accel.current_device())
    out = torch.empty_like(data)
    share = (members - 1) / members
    reduce_s = _median_s(lambda: dist.all_reduce(data, group=group), group)
    exchange_s = _median_s(lambda: dist.all_to_all_single(out, data, group=group), group)
    return 2 * share * 4 * count / reduce_s, share * 4 * count / exchange_s


def _median_s(call: Callable[[], object], group: dist.ProcessGroup) -> float:
    call()
    accel.synchronize()
    seconds = []
    for _ in range(_ROUNDS):
        dist.barrier(group=group)
        started = time.perf_counter()
        call()
        accel.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def judged(
    tier: Tier, rates: Dict[int, Tuple[float, float]], hosts: Sequence[str], cluster: str
) -> Check:
    """Rates of a tier by rank against the cluster file; the slowest group is named."""
    by_group = {
        group: tuple(min(rates[rank][kind] for rank in group) for kind in (0, 1))
        for group in tier.ranks
    }
    slowest = min(by_group, key=lambda group: by_group[group])
    reduce, exchange = by_group[slowest]
    what = (
        f"{tier.name}: all-reduce {reduce / 1e9:.3g}, all-to-all {exchange / 1e9:.3g} GB/s of a "
        f"rank in groups of {len(slowest)}; cluster={cluster} lets expect {tier.expected / 1e9:.3g}"
    )
    if min(reduce, exchange) >= _SLOW_LINK * tier.expected:
        return passed("cluster/links", what)
    where = ", ".join(sorted({hosts[rank] for rank in slowest}))
    return warned(
        "cluster/links",
        f"{what}; slowest: ranks {list(slowest)[:16]} on {where}",
        "look at the links of those hosts (hccn_tool -i 0 -link -g; ibstat), and at the interface "
        "that GLOO_, HCCL_ or NCCL_SOCKET_IFNAME names; or set cluster.links to what is there",
    )


def slow_ranks(rates: Sequence[float], hosts: Sequence[str], device: str) -> List[Check]:
    """Ranks whose device is slower than the others'."""
    middle = statistics.median(rates)
    limit = _SLOW_RANK.get(device, _SLOW_DEVICE) * middle
    slow = [rank for rank, rate in enumerate(rates) if rate < limit]
    spread = f"{min(rates) / 1e12:.4g} to {max(rates) / 1e12:.4g} TFLOP/s"
    if not slow:
        return [passed("cluster/ranks", f"{len(rates)} ranks alike: {spread}")]
    return [
        warned(
            "cluster/ranks",
            f"rank {rank} on {hosts[rank]} is slow: {rates[rank] / 1e12:.4g} TFLOP/s, the median "
            f"is {middle / 1e12:.4g}",
            f"look on {hosts[rank]} for what else runs there, heat and power limits: npu-smi info, "
            "nvidia-smi, top",
        )
        for rank in slow
    ]
