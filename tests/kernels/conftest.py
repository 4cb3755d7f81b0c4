"""Kernels are checked on every device that this machine has."""

import pytest
import torch

from tests.kernels.native import run_triton

__all__ = ["run_triton"]


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> str:
    return request.param
