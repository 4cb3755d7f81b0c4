"""cluster.deterministic does something: torch refuses operators without a fixed order, core takes
its slower ways. The runs of test_stand_in_npu.py train with it."""

from __future__ import annotations

from typing import Dict, List

import pytest
import torch

from loopmoe_train.config.compose import compose
from loopmoe_train.device.backends import CudaBackend
from tests.dist.ranks import run


def state(wanted: bool) -> Dict[str, bool]:
    """On a rank: what joining a job of this setting leaves."""
    from loopmoe_train.model.core_config import transformer_config
    from loopmoe_train.parallel import groups

    config = compose(
        ["cluster.devices=1", "parallel=data", f"cluster.deterministic={str(wanted).lower()}"]
    )
    groups.join(config)
    refused = False
    try:  # on the processor the order of its writes is open
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))
    except RuntimeError as error:
        refused = "deterministic" in str(error)
    found = dict(
        torch=torch.are_deterministic_algorithms_enabled(),
        refused=refused,
        core=transformer_config(config).deterministic_mode,
    )
    groups.leave()
    return found


def states() -> List[Dict[str, bool]]:
    return [state(True), state(False)]


def test_a_rank_is_deterministic_if_asked() -> None:
    (found,) = run("tests.device.test_deterministic:states", 1)
    assert found == [dict(torch=one, refused=one, core=one) for one in (True, False)]


def test_cublas_gets_a_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that nothing has prepared: torch would refuse its products."""
    import os

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda wanted: None)
    backend = CudaBackend()
    backend.use_deterministic(False)
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    backend.use_deterministic(True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
