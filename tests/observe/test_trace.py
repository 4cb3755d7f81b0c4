"""Shares in traces whose truth is known: of a GPU, an NPU and the processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest

from loopmoe_train.observe.trace import read_profile, summarize


def event(name: str, begin: float, end: float, cat: str = "", pid: int = 1, tid: int = 1
          ) -> Dict[str, Any]:  # fmt: skip
    return dict(ph="X", name=name, ts=begin, dur=end - begin, cat=cat, pid=pid, tid=tid)


def steps() -> List[Dict[str, Any]]:
    """Two of 100 us, with 50 us between them that belong to no step."""
    return [event("train step 3", 0, 100, "user_annotation"),
            event("train step 4", 150, 250, "user_annotation")]  # fmt: skip


def test_of_a_gpu() -> None:
    found = summarize([
        *steps(),
        # torch repeats the ranges on the device's rows
        event("train step 3", 5, 400, "gpu_user_annotation", pid=0),
        event("aten::mm", 0, 90, "cpu_op"),
        event("gemm", 10, 40, "kernel", pid=0, tid=7),
        event("ncclDevKernel_AllReduce", 30, 60, "kernel", pid=0, tid=8),
        event("Memcpy HtoD", 160, 170, "gpu_memcpy", pid=0, tid=7),
        event("gemm", 110, 140, "kernel", pid=0, tid=7),  # between the steps
    ])  # fmt: skip
    assert (found.steps, found.where, found.step_ms) == ([3, 4], "device", 0.1)
    assert found.idle_share == pytest.approx(1 - (50 + 10) / 200)
    assert found.collective_share == pytest.approx(30 / 200)
    assert found.exposed_share == pytest.approx(20 / 200)
    assert {one.name: one.calls for one in found.operators} == {
        "gemm": 1, "ncclDevKernel_AllReduce": 1, "Memcpy HtoD": 1
    }  # fmt: skip


def test_of_an_npu() -> None:
    """Rows as torch_npu writes them: work on the hardware, and its own account of the time."""
    name = dict(ph="M", name="process_name", pid=9, args={"name": "Ascend Hardware"})
    found = summarize([
        *steps(), name,
        event("aclnnMatmul", 0, 90, "cpu_op"),
        event("MatMulV2", 20, 50, pid=9), event("hcom_allReduce_", 50, 90, pid=9, tid=2),
        event("Communication", 50, 90, pid=12), event("Free", 90, 100, pid=12, tid=2),
        event("Free", 150, 250, pid=12, tid=2), event("Computing", 20, 50, pid=12, tid=3),
    ])  # fmt: skip
    assert found.where == "device"
    assert found.idle_share == pytest.approx(110 / 200)
    assert found.collective_share == pytest.approx(40 / 200)
    assert found.exposed_share == pytest.approx(40 / 200)
    assert found.operators[0].name == "hcom_allReduce_"


def test_of_the_processor() -> None:
    """An operator's time does not hold that of those it calls; a thread of gloo counts too."""
    found = summarize([
        *steps(),
        event("linear", 0, 60, "cpu_op"), event("mm", 10, 40, "cpu_op"),
        event("add", 150, 170, "cpu_op"),
        event("gloo:all_reduce", 160, 200, "user_annotation", tid=5),
    ])  # fmt: skip
    assert found.where == "host"
    assert found.idle_share == pytest.approx(1 - (60 + 50) / 200)
    assert found.collective_share == found.exposed_share == pytest.approx(40 / 200)
    own = {one.name: one.ms for one in found.operators}
    assert own == pytest.approx({"linear": 0.03, "mm": 0.03, "add": 0.02, "gloo:all_reduce": 0.04})
    first, second = found.lines()
    assert "steps 3 to 4: 0.1 ms a step, outside operators (Python) 45 %" in first
    assert second.startswith("longest: gloo:all_reduce 20 %")


def test_what_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no step"):
        summarize([event("mm", 0, 1, "cpu_op")])
    torn = tmp_path / "torn.json"
    torn.write_text(json.dumps({"traceEvents": steps()})[:-20])
    with pytest.raises(ValueError):
        read_profile(torn)
