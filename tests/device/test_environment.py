"""The environment table: what ranks get, what is refused, and that its names are real ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.device.environment import for_ranks, problems, table
from loopmoe_train.device.environment_table import KNOWN, SETTINGS
from loopmoe_train.errors import Refused
from loopmoe_train.train.preflight import check_environment

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / ".torch-npu/torch_npu/lib/libtorch_npu.so"


def run_of(*words):
    return compose([*words, "cluster.devices=2"])


def names_of(found, status):
    return [problem.name for problem in found if problem.status == status]


def test_ranks_of_an_ascend_cluster():
    run = run_of("cluster=ascend_a2", "launcher.timeout_minutes=10")
    given = for_ranks(run, {})
    assert given["HCCL_CONNECT_TIMEOUT"] == given["HCCL_EXEC_TIMEOUT"] == "600"
    assert given["HCCL_EVENT_TIMEOUT"] == "660"
    assert given["HCCL_BUFFSIZE"] == "200"  # half of cluster.communicator_mib
    assert given["TASK_QUEUE_ENABLE"] == "2" and given["LOOPMOE_DEVICE"] == "npu"
    assert "HCCL_DETERMINISTIC" not in given and "STREAMS_PER_DEVICE" not in given
    assert problems(given | {"ASCEND_HOME_PATH": "/"}, "npu", run) == []


def test_determinism_and_generation_decide():
    a3 = for_ranks(run_of("cluster=ascend_a3", "cluster.deterministic=true"), {})
    assert a3["HCCL_DETERMINISTIC"] == "true" and a3["STREAMS_PER_DEVICE"] == "32"
    gpu = for_ranks(run_of("cluster=h100", "cluster.deterministic=true"), {})
    assert gpu["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not any(name.startswith("HCCL") for name in gpu)
    cpu = for_ranks(run_of(), {"HCCL_BUFFSIZE": "7"})
    assert not any(name.startswith(("HCCL", "CUDA")) for name in cpu)


def test_the_user_wins_but_for_what_the_run_decides():
    run = run_of("cluster=ascend_a2", "launcher.threads_per_rank=3")
    said = {"HCCL_EXEC_TIMEOUT": "1000", "OMP_NUM_THREADS": "9", "HCCL_IF_BASE_PORT": "50000"}
    given = for_ranks(run, said | {"ASCEND_LAUNCH_BLOCKING": "1"})
    assert given["HCCL_EXEC_TIMEOUT"] == "1000" and given["HCCL_EVENT_TIMEOUT"] == "1060"
    assert given["OMP_NUM_THREADS"] == "3"  # launcher.threads_per_rank
    assert given["HCCL_IF_BASE_PORT"] == "50000"  # for ranks on other machines
    assert given["TASK_QUEUE_ENABLE"] == "0"


FAILS = [
    ({"HCCL_BUFFSIZE": "big"}, "HCCL_BUFFSIZE"),
    ({"HCCL_CONNECT_TIMEOUT": "60"}, "HCCL_CONNECT_TIMEOUT"),
    ({"HCCL_EXEC_TIMEOUT": "-5"}, "HCCL_EXEC_TIMEOUT"),
    ({"HCCL_DETERMINISTIC": "yes"}, "HCCL_DETERMINISTIC"),
    ({"HCCL_ALGO": "ring"}, "HCCL_ALGO"),
    ({"HCCL_ALGO": "alltoall=level0:NA;level1"}, "HCCL_ALGO"),
    ({"HCCL_IF_BASE_PORT": "70000"}, "HCCL_IF_BASE_PORT"),
    ({"TASK_QUEUE_ENABLE": "3"}, "TASK_QUEUE_ENABLE"),
    ({"CPU_AFFINITY_CONF": "on"}, "CPU_AFFINITY_CONF"),
    ({"PYTORCH_NPU_ALLOC_CONF": "expandable_segments"}, "PYTORCH_NPU_ALLOC_CONF"),
    (
        {"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:64"},
        "PYTORCH_NPU_ALLOC_CONF",
    ),
    ({"INF_NAN_MODE_ENABLE": "0"}, "INF_NAN_MODE_ENABLE"),
    ({"INF_NAN_MODE_FORCE_DISABLE": "1"}, "INF_NAN_MODE_FORCE_DISABLE"),
    ({"ASCEND_HOME_PATH": "/no/such/folder"}, "ASCEND_HOME_PATH"),
]
WARNS = [
    ({"ASCEND_LAUNCH_BLOCKING": "1", "TASK_QUEUE_ENABLE": "2"}, "TASK_QUEUE_ENABLE"),
    ({"HCCL_EXEC_TIMEOUT": "600", "HCCL_EVENT_TIMEOUT": "600"}, "HCCL_EVENT_TIMEOUT"),
    ({"HCCL_EXEC_TIMEOUT": "0", "HCCL_EVENT_TIMEOUT": "600"}, "HCCL_EVENT_TIMEOUT"),
    ({"HCCL_CONECT_TIMEOUT": "600"}, "HCCL_CONECT_TIMEOUT"),
    ({"HCLL_BUFFSIZE": "600"}, "HCLL_BUFFSIZE"),
    ({"TASK_QUEUE_ENABLED": "2"}, "TASK_QUEUE_ENABLED"),
    ({"HCCL_OP_EXPANSION_MODE": "AIV"}, "HCCL_OP_EXPANSION_MODE"),
    ({"HCCL_WHITELIST_DISABLE": "0"}, "HCCL_WHITELIST_DISABLE"),
    ({"TORCH_HCCL_ASYNC_ERROR_HANDLING": "0"}, "TORCH_HCCL_ASYNC_ERROR_HANDLING"),
    ({"ASCEND_HOME_PATH": ""}, "ASCEND_HOME_PATH"),
]
FINE = [
    {"HCCL_ALGO": "level0:NA;level1:H-D_R"},
    {"HCCL_ALGO": "alltoall=level0:NA;level1:pipeline/allreduce=level0:fullmesh"},
    {"CPU_AFFINITY_CONF": "1,npu0:0-7,npu1:8-15"},
    {"PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:64,garbage_collection_threshold:0.6"},
    {"HCCL_RDMA_TC": "132", "HCCL_RDMA_SL": "4", "HCCL_OP_RETRY_PARAMS": "MaxCnt:3"},
    {"HCCL_EXEC_TIMEOUT": "1836", "HCCL_EVENT_TIMEOUT": "1868"},
]


@pytest.mark.parametrize(
    ("env", "name", "status"),
    [(*case, "FAIL") for case in FAILS] + [(*case, "WARN") for case in WARNS],
)
def test_what_is_wrong_is_found_alone(env, name, status):
    found = problems({"ASCEND_HOME_PATH": "/", **env}, "npu")
    assert names_of(found, status) == [name]
    assert len(found) == 1 and found[0].fix and name in found[0].what


@pytest.mark.parametrize("env", FINE)
def test_what_is_right_passes(env):
    assert problems({"ASCEND_HOME_PATH": "/", **env}, "npu") == []


def test_other_devices_have_other_rules():
    assert problems({"HCCL_BUFFSIZE": "big", "INF_NAN_MODE_ENABLE": "0"}, "cpu") == []
    assert names_of(problems({"CUDA_DEVICE_MAX_CONNECTIONS": "no"}, "cuda"), "FAIL")


def test_against_a_run():
    npu, home = ["cluster=ascend_a2"], {"ASCEND_HOME_PATH": "/"}
    run = run_of(*npu, "cluster.deterministic=true")
    found = problems(home | {"HCCL_DETERMINISTIC": "false"}, "npu", run)
    assert names_of(found, "FAIL") == ["HCCL_DETERMINISTIC"]
    found = problems(home | {"HCCL_EXEC_TIMEOUT": "299"}, "npu", run_of(*npu))
    assert names_of(found, "WARN") == ["HCCL_EXEC_TIMEOUT"]
    big = run_of(*npu, "model=loopmoe_9b", "sequence_length=65536", "global_batch_size=32")
    assert names_of(problems(home, "npu", big), "WARN") == ["HCCL_BUFFSIZE"]
    found = problems(home | {"HCCL_BUFFSIZE": "400"}, "npu", run_of(*npu))
    assert "communicator_mib=800" in found[0].fix and len(found) == 1
    gpu = run_of("cluster=h100", "cluster.deterministic=true")
    found = problems({"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, "cuda", gpu)
    assert names_of(found, "FAIL") == ["CUBLAS_WORKSPACE_CONFIG"]


def test_a_launch_is_refused(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAM", "lo")
    doubts = check_environment(run_of(), here=True)
    assert len(doubts) == 1 and doubts[0].fix == "did you mean GLOO_SOCKET_IFNAME?"
    monkeypatch.setenv("TASK_QUEUE_ENABLE", "7")
    check_environment(run_of(), here=True)  # nothing to the cpu
    with pytest.raises(Refused, match="TASK_QUEUE_ENABLE=7 is malformed"):
        check_environment(run_of("cluster=ascend_a2"), here=True)


def test_names_are_those_of_the_library():
    """A misspelt name would be set for nothing: torch_npu 2.13's own library holds its names."""
    if not LIBRARY.exists():
        pytest.skip("make .venv/.installed-dev brings torch_npu's wheel")
    text = LIBRARY.read_bytes()
    theirs = [setting.name for setting in SETTINGS if setting.reader == "torch_npu"]
    assert len(theirs) > 15
    assert [name for name in theirs if f"\0{name}\0".encode() not in text] == []
    assert b"\0HCCL_CONECT_TIMEOUT\0" not in text
    assert not KNOWN & {setting.name for setting in SETTINGS} - {"NCCL_ALGO"}


def test_the_page_shows_the_table():
    page = (ROOT / "docs/ascend.md").read_text()
    assert table() in page, "python -m loopmoe_train.device.environment prints what it should show"


def test_it_needs_no_torch():
    code = "import sys, loopmoe_train.device.environment; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
