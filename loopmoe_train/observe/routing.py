"""routing.jsonl: which experts the tokens went to, one object per probe.

    {"step": 100, "layers": [{"layer": 1, "iterations": [1, 2], "load": [[E], [E]],
                              "overlap": [[1.0, 0.4], [0.4, 1.0]]}]}

A layer that is not looped has one iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loopmoe_train.errors import Refused
from loopmoe_train.observe.jsonl import read_jsonl
from loopmoe_train.observe.sinks import JsonlSink

FILE_NAME = "routing.jsonl"


@dataclass
class LayerRouting:
    """One MoE layer at one probe, K iterations (1 if it is not looped), E experts.

    Attributes:
        load: [K, E] share of the token slots per expert; each row sums to 1.
        overlap: [K, K] mean over tokens of the Jaccard overlap of the expert sets that two
            iterations chose; None if it was not measured.
    """

    layer: int
    iterations: list[int]
    load: np.ndarray
    overlap: np.ndarray | None = None


@dataclass
class RoutingProbe:
    """All MoE layers at one step."""

    step: int
    layers: list[LayerRouting]


def write_probe(sink: JsonlSink, probe: RoutingProbe) -> None:
    """Append a probe; the sink is a JsonlSink on ``run_dir/routing.jsonl``."""
    layers = []
    for entry in probe.layers:
        layer: dict[str, Any] = {"layer": entry.layer, "iterations": entry.iterations}
        layer["load"] = np.round(entry.load, 8)
        if entry.overlap is not None:
            layer["overlap"] = np.round(entry.overlap, 6)
        layers.append(layer)
    sink.write({"step": probe.step, "layers": layers})


def read_routing(path: Path | str) -> list[RoutingProbe]:
    """Read all probes, by step (the last of a repeated step counts); [] without a file.

    Raises:
        Refused: if the file is corrupt before its last line.
    """
    path = Path(path)
    if not path.exists():
        return []
    probes: dict[int, RoutingProbe] = {}
    for record in read_jsonl(path):
        try:
            probe = RoutingProbe(int(record["step"]), [_layer(x) for x in record["layers"]])
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(
                f"{path} holds a probe that cannot be read ({type(error).__name__}: {error})",
                "delete that line, or the file: the report then does without it",
            ) from error
        probes[probe.step] = probe
    return [probes[step] for step in sorted(probes)]


def _layer(entry: dict[str, Any]) -> LayerRouting:
    iterations = [int(iteration) for iteration in entry["iterations"]]
    load = np.array(entry["load"], dtype=np.float64)
    if load.ndim != 2 or load.shape[0] != len(iterations) or load.shape[1] == 0:
        raise ValueError(f"load has shape {load.shape} for {len(iterations)} iterations")
    overlap = None
    if entry.get("overlap") is not None:
        overlap = np.array(entry["overlap"], dtype=np.float64)
        if overlap.shape != (len(iterations), len(iterations)):
            raise ValueError(f"overlap has shape {overlap.shape}")
    return LayerRouting(int(entry["layer"]), iterations, load, overlap)
