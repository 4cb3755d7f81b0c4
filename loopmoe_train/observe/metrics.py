"""Names of everything that is measured, and readers of metrics.jsonl and routing.jsonl.

The names are contract: scripts outside rely on them. Layers are numbered as the model
numbers its unique layers; iterations of a looped layer count from 1 (a layer outside the
loop has iteration 1 only).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loopmoe_train.errors import Refused
from loopmoe_train.observe.jsonl import read_jsonl

TRAIN_KEYS = (
    "step",
    "tokens",  # consumed since the start of the run
    "loss",  # nats per token
    "lr",
    "grad_norm",  # before clipping
    "tokens_per_s",
    "step_s",
    "elapsed_s",
    "mfu",
)
TRAIN_OPTIONAL_KEYS = ("aux_loss", "bits_per_byte")
# Hidden states that left their node in the experts' exchanges of a step, forward and backward, in
# MiB of one rank (the mean); only where experts span nodes.
CROSS_NODE_KEY = "exchange/cross_node_mib"
VALID_KEYS = ("step", "elapsed_s", "val_loss", "val_bits_per_byte")

SET_STATS = ("loss", "bits_per_byte")  # of one validation set, where there are several

ROUTING_STATS = (
    "max_violation",  # largest expert load / mean load - 1; 0: even
    "entropy",  # of the expert load over log(number of experts); 1: even, 0: one expert
    "dead",  # number of experts that got no token
    "dropped",  # share of the assignments that exceeded the capacity; only where there is one
)
GATE_STATS = (
    "alpha_mean",
    # with a gate per channel the sign of alpha is free (the output projection's may turn with it),
    # so its mean may vanish while the gate is open
    "alpha_abs",
    "alpha_token_std",  # over tokens
    "gamma_attn_mean",
    "gamma_attn_abs",
    "gamma_moe_mean",
    "gamma_moe_abs",
    "beta_attn_abs",
    "beta_moe_abs",
)

_SET_KEY = re.compile(r"val/([^/]+)/(\w+)")
_VISIT_KEY = re.compile(r"(router|gate)/(\d+)/(\d+)/(\w+)")
Visit = tuple[int, int]  # (layer, iteration)


def routing_key(layer: int, iteration: int, stat: str) -> str:
    """``router/<layer>/<iteration>/<stat>`` with stat of ROUTING_STATS."""
    return _visit_key("router", ROUTING_STATS, layer, iteration, stat)


def gate_key(layer: int, iteration: int, stat: str) -> str:
    """``gate/<layer>/<iteration>/<stat>`` with stat of GATE_STATS."""
    return _visit_key("gate", GATE_STATS, layer, iteration, stat)


def set_key(name: str, stat: str) -> str:
    """``val/<name>/<stat>`` with stat of SET_STATS and the name of a validation set."""
    if stat not in SET_STATS or "/" in name or not name:
        raise ValueError(f"{name!r}/{stat!r} is no figure of a validation set")
    return f"val/{name}/{stat}"


def _visit_key(kind: str, stats: Sequence[str], layer: int, iteration: int, stat: str) -> str:
    if stat not in stats:
        raise ValueError(f"{kind} has no statistic {stat!r}, only {', '.join(stats)}")
    return f"{kind}/{layer}/{iteration}/{stat}"


def load_stats(load: Sequence[float]) -> dict[str, float]:
    """ROUTING_STATS of one layer and iteration, from counts or shares per expert [E]."""
    share = np.asarray(load, dtype=np.float64)
    total = share.sum()
    if not total > 0:  # no token at all: every expert is dead, nothing else is defined
        return {"max_violation": math.nan, "entropy": math.nan, "dead": float(share.size)}
    share = share / total
    used = share[share > 0]
    even = math.log(share.size) if share.size > 1 else 1.0
    return {
        "max_violation": float(share.max() * share.size - 1.0),
        "entropy": float(-(used * np.log(used)).sum() / even) if share.size > 1 else 1.0,
        "dead": float(share.size - used.size),
    }


@dataclass
class Series:
    """One curve: values [n] at steps [n]; a missing value is NaN."""

    step: np.ndarray
    value: np.ndarray


@dataclass
class Metrics:
    """metrics.jsonl as columns.

    Attributes:
        train, valid: column name to values [number of lines], sorted by step; NaN where a
            line lacks the column. Empty if there is no such line.
        valid_sets: validation set to statistic (SET_STATS) to its curve.
        routing, gates: (layer, iteration) to statistic to its curve.
    """

    train: dict[str, np.ndarray] = field(default_factory=dict)
    valid: dict[str, np.ndarray] = field(default_factory=dict)
    valid_sets: dict[str, dict[str, Series]] = field(default_factory=dict)
    routing: dict[Visit, dict[str, Series]] = field(default_factory=dict)
    gates: dict[Visit, dict[str, Series]] = field(default_factory=dict)

    def last(self, section: str, name: str) -> float | None:
        """Newest finite value of a column of ``train`` or ``valid``, or None."""
        column = getattr(self, section).get(name)
        finite = column[np.isfinite(column)] if column is not None else np.empty(0)
        return float(finite[-1]) if finite.size else None

    def tokens_at(self, steps: np.ndarray) -> np.ndarray | None:
        """Tokens consumed at these steps; None if no training line says it."""
        tokens = self.train.get("tokens")
        if tokens is None:
            return None
        known = np.isfinite(tokens)
        if not known.any():
            return None
        # step 0 is before the first token
        at_step = np.concatenate([[0.0], self.train["step"][known]])
        return np.interp(steps, at_step, np.concatenate([[0.0], tokens[known]]))


def read_metrics(path: Path | str) -> Metrics:
    """Read metrics.jsonl; a torn last line is left out, of a repeated step the last counts.

    Raises:
        Refused: if the file is missing or a line before the last is not a record.
    """
    path = Path(path)
    train: dict[float, dict[str, Any]] = {}
    valid: dict[float, dict[str, Any]] = {}
    sets: dict[str, dict[str, dict[float, float]]] = {}
    routing: dict[Visit, dict[str, dict[float, float]]] = {}
    gates: dict[Visit, dict[str, dict[float, float]]] = {}
    for record in read_jsonl(path):
        step = _number(record.get("step"))
        if not math.isfinite(step):
            raise Refused(f"{path} has a record without a step", "restore the file")
        if "loss" in record:
            train[step] = record
        if "val_loss" in record or "val_bits_per_byte" in record:
            valid[step] = record
        for key, value in record.items():
            named = _SET_KEY.fullmatch(key)
            if named:
                curves = sets.setdefault(named[1], {})
                curves.setdefault(named[2], {})[step] = _number(value)
            match = _VISIT_KEY.fullmatch(key)
            if match:
                kind, layer, iteration, stat = match.groups()
                visits = routing if kind == "router" else gates
                curves = visits.setdefault((int(layer), int(iteration)), {})
                curves.setdefault(stat, {})[step] = _number(value)
    return Metrics(
        _columns(train),
        _columns(valid),
        {name: _stats(curves) for name, curves in sets.items()},
        _curves(routing),
        _curves(gates),
    )


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else math.nan


def _columns(records: dict[float, dict[str, Any]]) -> dict[str, np.ndarray]:
    steps = sorted(records)
    names = dict.fromkeys(name for step in steps for name in records[step] if "/" not in name)
    return {name: np.array([_number(records[step].get(name)) for step in steps]) for name in names}


def _curves(visits: dict[Visit, dict[str, dict[float, float]]]) -> dict[Visit, dict[str, Series]]:
    return {visit: _stats(visits[visit]) for visit in sorted(visits)}


def _stats(curves: dict[str, dict[float, float]]) -> dict[str, Series]:
    return {stat: _series(points) for stat, points in curves.items()}


def _series(points: dict[float, float]) -> Series:
    steps = sorted(points)
    return Series(np.array(steps), np.array([points[step] for step in steps]))
