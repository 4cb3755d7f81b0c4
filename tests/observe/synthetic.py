"""Run folders made up for tests: the shapes of real runs without training one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loopmoe_train.observe.metrics import gate_key, load_stats, routing_key
from loopmoe_train.observe.routing import FILE_NAME, LayerRouting, RoutingProbe, write_probe
from loopmoe_train.observe.sinks import JsonlSink


def make_run(
    folder: Path,
    steps: int = 60,
    looped: int = 2,
    iterations: int = 4,
    plain: int = 1,
    experts: int = 16,
    probes: int = 4,
    validations: int = 4,
    level: float = 3.0,
    seed: int = 0,
) -> Path:
    """Write metrics.jsonl and routing.jsonl of a run with plain MoE layers, then looped ones."""
    rng = np.random.default_rng(seed)
    layers = [(n + 1, 1) for n in range(plain)]
    layers += [(plain + n + 1, iterations) for n in range(looped)]
    metrics = JsonlSink(folder / "metrics.jsonl")
    routing = JsonlSink(folder / FILE_NAME)
    probe_at = {steps * (i + 1) // probes for i in range(probes)} if probes else set()
    valid_at = {steps * (i + 1) // validations for i in range(validations)} if validations else ()
    for step in range(1, steps + 1):
        done = step / steps
        loss = level + 5 * np.exp(-6 * done) + 0.1 * rng.standard_normal()
        record: dict[str, Any] = {
            "step": step, "tokens": step * 2048, "loss": loss,
            "lr": 3e-3 * min(step / 20, 1) * (0.55 + 0.45 * np.cos(np.pi * done)),
            "grad_norm": 1.0, "tokens_per_s": 9000 + 300 * rng.standard_normal(),
            "step_s": 0.23, "elapsed_s": 0.23 * step, "mfu": 0.31,
        }  # fmt: skip
        if step in probe_at:
            probe = _probe(rng, step, done, layers, experts)
            write_probe(routing, probe)
            record |= _visit_records(rng, probe, done)
        metrics.write(record)
        if step in valid_at:
            metrics.write(
                {"step": step, "elapsed_s": 0.23 * step, "val_loss": loss + 0.1,
                 "val_bits_per_byte": 0.62 * loss}
            )  # fmt: skip
    metrics.close()
    routing.close()
    return folder


def _probe(
    rng: np.random.Generator, step: int, done: float, layers: list[tuple[int, int]], experts: int
) -> RoutingProbe:
    entries = []
    for layer, count in layers:
        load = rng.dirichlet(np.full(experts, 1 + 20 * done), size=count)
        if experts > 8 and layer == 1:
            load[0, 3] = 0.0
            load[0] /= load[0].sum()
        gap = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        overlap = 0.9 ** (gap * 3) if count > 1 else np.ones((1, 1))
        entries.append(LayerRouting(layer, list(range(1, count + 1)), load, overlap))
    return RoutingProbe(step, entries)


def _visit_records(rng: np.random.Generator, probe: RoutingProbe, done: float) -> dict[str, float]:
    record: dict[str, float] = {}
    for entry in probe.layers:
        count = len(entry.iterations)
        for k, load in zip(entry.iterations, entry.load, strict=True):
            for stat, value in load_stats(load).items():
                record[routing_key(entry.layer, k, stat)] = value
            if count == 1:
                continue
            at = k / count
            gates = {
                "alpha_mean": done * (0.6 + at * at + 0.1 * entry.layer),
                "alpha_abs": done * (0.7 + at * at + 0.1 * entry.layer),
                "alpha_token_std": done * 0.3 * at,
                "gamma_attn_mean": done * (at - 0.4),
                "gamma_attn_abs": done * (abs(at - 0.4) + 0.1),
                "gamma_moe_mean": done * (0.3 * at - 0.35),
                "gamma_moe_abs": done * 0.3,
                "beta_attn_abs": 0.003 * done * rng.random(),
                "beta_moe_abs": 0.002 * done * rng.random(),
            }
            record |= {gate_key(entry.layer, k, stat): v for stat, v in gates.items()}
    return record
