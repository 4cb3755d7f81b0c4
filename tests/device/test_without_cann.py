"""torch_npu installed, CANN missing: as in a torch image on a laptop, or before set_env.sh.

The real wheel is on the path. torch loads such backends by itself when it is imported, and ends in
a traceback if they cannot be loaded. Half a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.stand_in_npu.build import WHEEL
from tests.launcher.tiny_run import losses, make_place, settings

BIN = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(
    not (WHEEL / "torch_npu").is_dir(), reason="make .venv/.installed-dev brings torch_npu's wheel"
)


def start(place: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(WHEEL), "OMP_NUM_THREADS": "1", **variables}
    for name in ("TORCH_DEVICE_BACKEND_AUTOLOAD", "ASCEND_HOME_PATH", "LOOPMOE_DEVICE"):
        if name not in variables:
            env.pop(name, None)
    return subprocess.run(
        words, cwd=place, env=env, text=True, capture_output=True, timeout=200, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("without"))


def test_the_environment_is_the_one_meant(place: Path) -> None:
    """Were CANN here, or autoloading off, the others would prove nothing."""
    done = start(place, sys.executable, "-c", "import torch")
    assert done.returncode and "Failed to load the backend extension: torch_npu" in done.stderr
    done = start(place, sys.executable, "-c", "import loopmoe_train, torch; print(torch.ones(1))")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("home", ["", "/no/such/folder"])
def test_training_on_an_npu_is_refused_in_one_line(place: Path, home: str) -> None:
    words = settings(place, "cluster=ascend_a2", "cluster.devices=1", "parallel=data", "name=npu")
    done = start(place, str(BIN / "loopmoe"), "train", *words, ASCEND_HOME_PATH=home)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == ""
    assert "set_env.sh" in line and ("libhccl.so" in line or home in line)
    assert not (place / "runs/npu").exists()


def test_the_processor_trains(place: Path) -> None:
    one = ["cluster.devices=1", "parallel=data", "steps=3", "name=cpu"]
    done = start(place, str(BIN / "loopmoe"), "train", *settings(place, *one))
    assert done.returncode == 0, done.stderr
    # torchrun imports torch before anything of ours: there the user has to say it
    one[-1] = "name=bare"
    done = start(
        place, str(BIN / "torchrun"), "--nproc-per-node", "1", "-m", "loopmoe_train.train",
        *settings(place, *one), TORCH_DEVICE_BACKEND_AUTOLOAD="0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert losses(place / "runs/bare") == losses(place / "runs/cpu")


def test_a_plan_is_made(place: Path) -> None:
    done = start(place, str(BIN / "loopmoe"), "plan")
    assert done.returncode == 0 and "loopmoe_tiny on 2 x cpu" in done.stdout, done.stderr
