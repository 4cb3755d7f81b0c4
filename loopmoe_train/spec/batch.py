"""The global batch size as a function of the samples consumed, so that a resume needs no state."""

from __future__ import annotations

from loopmoe_train.config.schema import RunConfig


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


def total_samples(run: RunConfig) -> int:
    """Samples consumed by all ``run.steps`` steps."""
    consumed = step = 0
    while step < run.steps and global_batch(run, consumed) != run.global_batch_size:
        consumed += global_batch(run, consumed)
        step += 1
    return consumed + (run.steps - step) * run.global_batch_size
