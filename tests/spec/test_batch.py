"""Samples of a whole run, with and without a batch that grows."""

from __future__ import annotations

import pytest

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.spec.batch import global_batch, total_samples


@pytest.mark.parametrize("steps", [1, 3, 40])
@pytest.mark.parametrize(("first", "over"), [(None, 0), (4, 50), (4, 100_000)])
def test_total_is_the_sum_of_the_steps(steps: int, first: int, over: int) -> None:
    run = RunConfig(
        steps=steps, global_batch_size=16, batch_ramp_from=first, batch_ramp_samples=over
    )
    consumed = 0
    for _ in range(steps):
        consumed += global_batch(run, consumed)
    assert total_samples(run) == consumed
