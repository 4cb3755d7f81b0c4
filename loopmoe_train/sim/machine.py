"""A cluster as the simulator sees it: rates of one device, its memory, and tiers of links."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from typing import Dict, Optional, Tuple

from loopmoe_train.config.schema import ClusterConfig, EfficiencyConfig, LinkConfig
from loopmoe_train.errors import Refused
from loopmoe_train.sim.table import Table, load

GIB = 2.0**30
# Words that name hardware, in the order in which they are looked for -> preset.
HARDWARE = (
    ("gb300", "gb300"), ("gb200", "gb200"), ("b300", "b300"), ("b200", "b200"), ("h200", "h200"),
    ("h100", "h100"), ("h800", "h100"), ("a100", "a100"), ("a3", "ascend_a3"),
    ("910c", "ascend_a3"),
    ("ascend", "ascend_a2"), ("atlas", "ascend_a2"), ("910b", "ascend_a2"),
)  # fmt: skip
BYTES = {"fp32": 4, "bf16": 2, "fp8": 2, "fp4": 2}  # of an activation


@dataclass(frozen=True)
class Link:
    """One tier of the network; seconds and bytes per second."""

    name: str
    devices: int  # that it joins; 0: all
    rate: float  # of one device, each way, as reached
    latency: float
    mesh: bool

    def rate_of(self, members: int) -> float:
        """Rate of one device in a group of ``members`` that this tier joins."""
        if self.mesh and self.devices > 1:
            return self.rate * min(1.0, (members - 1) / (self.devices - 1))
        return self.rate


@dataclass(frozen=True)
class Machine:
    """One device and its links, in FLOP/s, bytes, bytes/s and seconds.

    Attributes:
        matmul: rate that a large product reaches, by the precisions that it has.
        attention, attention_backward: rate of fused attention.
        grouped: share of a plain product's rate that grouped ones reach.
        grouped_loop: a grouped product is launched expert by expert.
        memory: bytes of a device.
        bandwidth: of its memory, as reached.
        reserved: of the memory, for the runtime.
        communicator: of the memory, for the buffers of one communicator.
        fragmentation: what the allocator holds beyond what it handed out, as a share.
        vector: rate of operators that are no products; infinite: memory alone bounds them.
        scale: measured over predicted step time.
        software: what these figures are of.
        host: bandwidth to the host's memory.
        launch: between two operators on the device.
        host_launch: that the host needs to start an operator.
        table: measured rates, which count before all of these; None: there are none.
    """

    name: str
    matmul: Dict[str, float]
    peak: Dict[str, float]
    grouped: float
    attention: float
    attention_backward: float
    cores: int
    memory: float
    bandwidth: float
    host: float
    grouped_loop: bool
    launch: float
    host_launch: float
    links: Tuple[Link, ...]
    node: int
    reserved: float
    communicator: float = 0.0
    fragmentation: float = 0.0
    vector: float = math.inf
    scale: float = 1.0
    software: str = ""
    table: Optional[Table] = None


def named(preset: str) -> ClusterConfig:
    """A preset of ``configs/cluster``, without Hydra.

    Raises:
        Refused: there is none of that name.
    """
    import yaml

    folder = resources.files("loopmoe_configs") / "cluster"
    file = folder / f"{preset}.yaml"
    if not file.is_file():
        known = sorted(one.name[:-5] for one in folder.iterdir() if one.name.endswith(".yaml"))
        raise Refused(f"cluster={preset}: there is no such preset", f"use {', '.join(known)}")
    values = yaml.safe_load(file.read_text())
    links = [LinkConfig(**one) for one in values.pop("links", [])]
    reached = EfficiencyConfig(**values.pop("efficiency", {}))
    return ClusterConfig(**values, links=links, efficiency=reached)


def machine_of(cluster: ClusterConfig) -> Machine:
    """The figures of a cluster preset.

    What the preset leaves open is taken from its table of measured rates, if it names one.

    Raises:
        Refused: the preset lacks one that is needed, or its table cannot be read.
    """
    reached = cluster.efficiency
    table = load(reached.table) if reached.table is not None else None
    measured = _measured(table) if table is not None else {}

    def needed(name: str) -> float:
        value: Optional[float] = getattr(cluster, name)
        if value is None:
            value = measured.get(name)
        if value is None:
            raise Refused(
                f"cluster.{name} is not known of cluster={cluster.name}",
                f"set cluster.{name}=..., or run `loopmoe bench ops` on the machine",
            )
        return value

    bf16, fp32 = needed("peak_tflops_bf16"), needed("peak_tflops_fp32")
    found = {
        "fp32": fp32, "bf16": bf16, "fp8": cluster.peak_tflops_fp8, "fp4": cluster.peak_tflops_fp4
    }  # fmt: skip
    peak = {kind: rate for kind, rate in found.items() if rate is not None}
    share = {
        "fp32": reached.matmul, "bf16": reached.matmul, "fp8": reached.matmul_fp8,
        "fp4": reached.matmul_fp4,
    }  # fmt: skip
    if not cluster.links:
        raise Refused(
            f"cluster={cluster.name} has no cluster.links",
            "describe them as configs/cluster/ascend_a2.yaml does",
        )
    return Machine(
        name=cluster.name,
        matmul={kind: 1e12 * peak[kind] * share[kind] for kind in peak},
        peak={kind: 1e12 * value for kind, value in peak.items()},
        grouped=reached.grouped,
        attention=1e12 * bf16 * reached.attention,
        attention_backward=1e12 * bf16 * reached.attention_backward,
        cores=cluster.cores,
        memory=GIB * needed("memory_gib"),
        bandwidth=1e9 * needed("memory_gbytes_per_s") * reached.memory,
        host=1e9 * cluster.host_gbytes_per_s * reached.link,
        grouped_loop=reached.grouped_loop,
        launch=1e-6 * reached.launch_us,
        host_launch=1e-6 * reached.host_us,
        links=tuple(
            Link(
                one.name, one.devices, 1e9 * one.gbytes_per_s * reached.link,
                1e-6 * one.latency_us, one.mesh,
            )
            for one in cluster.links
        ),
        node=cluster.devices_per_node,
        reserved=GIB * cluster.reserved_gib,
        communicator=2.0**20 * cluster.communicator_mib,
        fragmentation=cluster.fragmentation,
        vector=1e12 * (cluster.peak_tflops_vector or math.inf),
        scale=reached.scale,
        software=reached.software or "",
        table=table,
    )  # fmt: skip


def _measured(table: Table) -> Dict[str, float]:
    """Fields of a preset that a table knows.

    A precision in which nothing was measured counts as fast as the one that was.
    """
    found = {}
    peak, copy = table.best("matmul"), table.largest("vector/copy")
    if peak is not None:
        found = {"peak_tflops_bf16": peak / 1e12, "peak_tflops_fp32": peak / 1e12}
    if copy is not None:
        found["memory_gbytes_per_s"] = copy / 1e9
    return found
