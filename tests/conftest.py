"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from typing import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A default process group of one rank and core's groups for it, in this process."""
    from loopmoe_train.config.compose import compose
    from loopmoe_train.device.accelerator import select
    from loopmoe_train.parallel import groups

    variables = {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOOPMOE_RENDEZVOUS": f"file://{tmp_path_factory.mktemp('rank')}/rendezvous",
    }
    os.environ.update(variables)
    select("cpu")
    groups.join(compose(["cluster.devices=1", "parallel=data"]))
    for name in variables:
        del os.environ[name]
    yield
    groups.leave()
