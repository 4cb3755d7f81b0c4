"""`loopmoe doctor` as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import psutil
import pytest

from loopmoe_train.cli import main
from loopmoe_train.doctor.check import parse
from tests.doctor.found import assert_finds, assert_passes
from tests.doctor.test_versions import plant

LOOPMOE = str(Path(sys.executable).with_name("loopmoe"))
ROOT = Path(__file__).parents[2]
WHEEL = ROOT / ".torch-npu"  # torch_npu's real wheel, which `make` puts there


def doctor(place: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LOOPMOE, "doctor", *words, f"runs_dir={place}/runs", f"data.path={place}/data"],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, cwd=place,
        env={**os.environ, **variables},
    )  # fmt: skip


def checks(text: str) -> List[Any]:
    content: Dict[str, Any] = json.loads(text)
    found = parse(content)
    assert content["verdict"] in ("PASS", "WARN", "FAIL")
    return found


def test_quick_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from loopmoe_train.cli import main\n"
        "code = main(['doctor', '--quick'])\n"
        "print('code', code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "code 0 False", done.stderr
    assert "verdict: " in done.stdout and "PASS  versions/matrix" in done.stdout


def test_what_is_wrong_decides_the_exit_code(tmp_path: Path) -> None:
    sound = doctor(tmp_path, "--quick", "--json")
    assert sound.returncode == 0, sound.stdout
    assert_passes(checks(sound.stdout), "run/config")
    plant(tmp_path / "site", {"megatron-core": "0.15.0"})
    site = str(tmp_path / "site")
    bad = doctor(tmp_path, "--quick", "--json", "steps=3", "optim.lr=-1", PYTHONPATH=site)
    assert bad.returncode == 1
    found = checks(bad.stdout)
    assert_finds(found, "versions/matrix", "FAIL", "megatron-core 0.15.0", "pip install")
    assert_finds(found, "run/config", "FAIL", "optim.lr=-1", "change the setting")
    misspelt = doctor(tmp_path, "--quick", "--json", HCCL_CONECT_TIMEOUT="600")
    assert misspelt.returncode == 0
    assert_finds(
        checks(misspelt.stdout), "environment/variables", "WARN", "HCCL_CONECT", "HCCL_CONN"
    )


def test_json_in_a_file(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--quick", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0 and "verdict: " in done.stdout
    assert_passes(checks((tmp_path / "found.json").read_text()), "host/clock")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--quik", "unrecognized arguments: --quik"),
        ("learning_rate=1", "did you mean optim.lr"),
        ("--quick --cluster", "several examinations"),
        ("--json /nowhere/found.json", "--json /nowhere/found.json"),
        ("--postmortem /nowhere", "/nowhere: no run folder"),
        ("--postmortem runs/x steps=3", "takes a run folder and no settings"),
        ("--cluster optim.lr=-1", "optim.lr=-1"),
    ],
)
def test_a_command_line_that_is_refused(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words.split()]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("loopmoe doctor: ") and said in line


def test_this_machine(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", "cluster.efficiency.table=null", "cluster.links=[]")
    found = checks(done.stdout)
    assert done.returncode == 0, [check for check in found if check.fix]
    for name in ("device/present", "device/ops", "device/determinism", "run/checkpoint"):
        assert_passes(found, name)


def test_an_npu_that_is_not_there(tmp_path: Path) -> None:
    words = ("cluster=ascend_a2", "micro_batch_size=1")
    done = doctor(tmp_path, "--quick", "--json", *words)
    assert done.returncode == 1
    found = checks(done.stdout)
    assert_finds(found, "driver/devices", "FAIL", "0 of 8 NPUs", "--device /dev/davinci0")
    assert_finds(found, "cann/libraries", "FAIL", "libascendcl.so", "CANN")
    assert_finds(found, "versions/matrix", "FAIL", "torch_npu is not installed", "pip install")


@pytest.mark.skipif(not (WHEEL / "torch_npu").is_dir(), reason=f"no torch_npu in {WHEEL.name}")
def test_torch_npu_without_cann(tmp_path: Path) -> None:
    """The real wheel on the path, and no CANN."""
    done = doctor(tmp_path, "--quick", "--json", PYTHONPATH=str(WHEEL))
    assert done.returncode == 0, done.stderr
    found = checks(done.stdout)
    assert_finds(found, "cann/libraries", "WARN", "libhccl.so", "TORCH_DEVICE_BACKEND_AUTOLOAD=0")
    words = ("cluster=ascend_a2", "micro_batch_size=1", "cluster.devices=1")
    npu = doctor(tmp_path, "--json", *words, PYTHONPATH=str(WHEEL))
    assert npu.returncode == 1
    found = checks(npu.stdout)
    assert_finds(found, "device/present", "FAIL", "torch_npu cannot be loaded", "set_env.sh")
    assert_finds(found, "versions/matrix", "FAIL", "no CANN was found", "set_env.sh")


def test_ranks_of_this_machine(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--cluster", "--json", "cluster.devices=2")
    assert done.returncode == 0, done.stderr
    found = checks(done.stdout)
    assert "world 2, data 2" in [c.reason for c in found if c.name == "cluster/groups"][0]
    assert {"cluster/links", "cluster/ranks", "host/shm"} <= {check.name for check in found}


def test_a_rank_that_is_killed_under_the_launcher(tmp_path: Path) -> None:
    words = ["--cluster", "--json", "cluster.devices=2", f"runs_dir={tmp_path}/runs"]
    front = subprocess.Popen(
        [LOOPMOE, "doctor", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    ranks: List[psutil.Process] = []
    while len(ranks) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        ranks = [p for p in psutil.Process(front.pid).children() if _rank(p) is not None]
    next(p for p in ranks if _rank(p) == "1").kill()
    out, _ = front.communicate(timeout=120)
    assert front.returncode == 1
    assert_finds(
        checks(out), "cluster/meeting", "FAIL", "rank 1 was ended by SIGKILL", "rank-1.log"
    )


def _rank(process: psutil.Process) -> Any:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


@pytest.mark.parametrize("starter", ["torchrun", "mpirun"])
@pytest.mark.parity
def test_ranks_that_others_start(starter: str, tmp_path: Path) -> None:
    """As on several machines: without our launcher."""
    target = tmp_path / "found.json"
    start = [str(Path(sys.executable).with_name(starter))]
    if starter == "torchrun":
        start += ["--standalone", "--nproc-per-node", "2"]
    else:
        start += ["-np", "2", "--oversubscribe", "--allow-run-as-root", sys.executable]
    words = ["-m", "loopmoe_train.doctor", "--json", str(target), f"runs_dir={tmp_path}/runs"]
    done = subprocess.run([*start, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_passes(checks(target.read_text()), "cluster/groups")
    assert "verdict: " in done.stdout
