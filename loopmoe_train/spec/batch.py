"""The global batch: its size as a function of the samples consumed, so that a resume needs no
state, and the micro-batches that it makes."""

from __future__ import annotations

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.spec.grid import grid_of


def global_batch(run: RunConfig, consumed: int) -> int:
    """Samples of the optimizer step that begins after ``consumed`` samples.

    It grows from ``batch_ramp_from`` in stages of that size, evenly spread over the first
    ``batch_ramp_samples`` samples, and is ``global_batch_size`` from then on.
    """
    first = run.batch_ramp_from
    if first is None or consumed >= run.batch_ramp_samples:
        return run.global_batch_size
    stages = run.global_batch_size // first
    return first * (1 + consumed * (stages - 1) // run.batch_ramp_samples)


def micro_batches(run: RunConfig, samples: int) -> int:
    """Micro-batches per data-parallel rank of a global batch (gradient accumulation)."""
    return samples // (run.micro_batch_size * grid_of(run).data)


def total_samples(run: RunConfig) -> int:
    """Samples consumed by all ``run.steps`` steps."""
    consumed = step = 0
    while step < run.steps and global_batch(run, consumed) != run.global_batch_size:
        consumed += global_batch(run, consumed)
        step += 1
    return consumed + (run.steps - step) * run.global_batch_size
