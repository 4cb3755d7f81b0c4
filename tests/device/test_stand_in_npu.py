"""The npu's side of the whole trainer, against a recording stand-in for torch_npu.

It is a second torch device whose tensors cannot be mixed with the processor's, with a backend
"hccl", and every call is compared with the wheel of torch_npu 2.13. docs/ascend.md says what that
proves and what it does not. Two minutes when nothing is compiled yet.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loopmoe_train.observe.trace import found_profiles
from tests.device.stand_in_npu import build
from tests.launcher.tiny_run import losses, make_place, settings

LOOPMOE = str(Path(sys.executable).with_name("loopmoe"))
ROOT = build.ROOT
pytestmark = pytest.mark.timeout(600)  # it may have to compile


def start(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    common = ["cluster.devices=2", "parallel=expert", "steps=4", "launcher.heartbeat_seconds=60",
              "cluster.deterministic=true"]  # fmt: skip
    return subprocess.run(
        [LOOPMOE, "train", *settings(place, *common, *words)], cwd=place, text=True, timeout=280,
        env=build.variables(place / "record"), capture_output=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the cpu, and the same one on two stand-ins."""
    place = make_place(tmp_path_factory.mktemp("npu"))
    (place / "record").mkdir()
    build.library()
    # HCCL sums no doubles, so the report's figures are sums of floats there
    for name, cluster in (("cpu", "cpu"), ("npu", "ascend_a2")):
        done = start(place, f"name={name}", f"cluster={cluster}", "profile.steps=3-4")
        assert done.returncode == 0, done.stderr
        assert f"{name}, rank 0: profile of steps 3 to 4" in done.stdout
    return place


def record_of(place: Path, rank: str) -> list[list[Any]]:
    (file,) = (place / "record").glob(f"rank-{rank}-*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_losses_are_those_of_the_cpu(place: Path) -> None:
    cpu, npu = losses(place / "runs/cpu"), losses(place / "runs/npu")
    assert list(npu) == [1, 2, 3, 4]
    for step, loss in cpu.items():
        assert npu[step] == pytest.approx(loss, rel=2e-6)
    manifest = next((place / "runs/npu/checkpoints").glob("step-4/manifest.json"))
    assert manifest.is_file()


def test_a_rank_has_its_environment_when_torch_npu_is_loaded(place: Path) -> None:
    kind, _, _, found = record_of(place, "1")[0]
    assert kind == "environment" and found == {
        "HCCL_BUFFSIZE": "200",
        "HCCL_CONNECT_TIMEOUT": "300",
        "HCCL_DETERMINISTIC": "true",
        "HCCL_EVENT_TIMEOUT": "360",
        "HCCL_EXEC_TIMEOUT": "300",
        "TASK_QUEUE_ENABLE": "2",
        "CPU_AFFINITY_CONF": "1",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
    }


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_sets_its_device_first(place: Path, rank: int) -> None:
    calls = record_of(place, str(rank))
    at = {name: [n for n, call in enumerate(calls) if call[1] == name] for name in
          ("is_available", "device_count", "set_device")}  # fmt: skip
    assert calls[at["set_device"][0]] == ["device", "set_device", [rank], {}]
    assert at["is_available"][0] < at["device_count"][0] < at["set_device"][0]
    before = [call[0] for call in calls[1 : at["set_device"][0]]]
    assert set(before) == {"device"}  # no memory, stream, generator or collective before


def test_what_is_recorded(place: Path) -> None:
    calls = record_of(place, "0")
    kinds = {call[0] for call in calls}
    assert kinds == {
        "environment", "device", "random", "stream", "memory", "collective", "operator", "profiler"
    }  # fmt: skip
    names = [call[1] for call in calls]
    # the exchange of tokens: sizes are copied on a stream of their own
    copied = names.index("Stream.wait_stream")
    assert names.index("Stream") < copied < names.index("alltoall_base")
    assert calls[copied][2][0].startswith("stream ") and calls[copied][2][1] == "stream 0"
    operators = [call for call in calls if call[0] == "operator"]
    assert {call[1] for call in operators} == {"npu_moe_token_permute", "npu_moe_token_unpermute"}
    assert all(one[2] == "npu" for call in operators for one in call[2])
    seeds = [call for call in calls if call[1] == "manual_seed"]
    assert seeds[0][2] == [1234]
    profiled = [call[1] for call in calls if call[0] == "profiler"]
    assert profiled == ["profile", "start", "stop", "export_chrome_trace"]


def test_both_ranks_call_the_same_collectives(place: Path) -> None:
    """In one order and with the same types; sizes differ, as tokens of experts do."""

    def collectives(rank: str) -> list[Any]:
        found = []
        for kind, name, arguments, _ in record_of(place, rank):
            if kind == "collective":
                found.append((name, sorted(set(_types(arguments)))))
        return found

    first, second = collectives("0"), collectives("1")
    assert first == second and len(first) > 50
    names = {name for name, _ in first}
    assert {"alltoall_base", "allreduce", "reduce_scatter_tensor_coalesced"} <= names
    assert all("cpu" not in kinds for _, kinds in first)


def _types(value: Any) -> list[str]:
    """Types and devices of the tensors of a recorded call."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[1], str):
        return value[1:]
    return [one for part in value for one in _types(part)] if isinstance(value, list) else []


def test_profiles_of_both(place: Path) -> None:
    for name in ("cpu", "npu"):
        assert found_profiles(place / "runs" / name)[0].steps == [3, 4]
        assert "Profile of rank 0" in (place / "runs" / name / "report.html").read_text()


def script(place: Path, name: str) -> list[str]:
    env = build.variables(place) | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "LOOPMOE_DEVICE": "npu"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(build.HERE / name)], cwd=ROOT, env=env, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_stand_in_refuses_what_torch_npu_refuses(tmp_path: Path) -> None:
    *refused, last = script(tmp_path, "refusals.py")
    assert last == f"of {len(refused)}" and not any(":" in name for name in refused), refused


def test_vendor_operators_fit_the_wheel(tmp_path: Path) -> None:
    assert script(tmp_path, "vendor.py") == ["equal"]


def test_every_vendor_operator_is_known() -> None:
    """Whatever loopmoe_kernels calls by name is one that the stand-in has, with its schema."""
    called = set()
    for path in (ROOT / "kernels").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and name == "vendor_op" and node.args:
                called.add(ast.literal_eval(node.args[0]))
    text = (build.HERE / "torch_npu/operators.py").read_text()
    assert called and all(f'"{name}": ' in text for name in called), called
