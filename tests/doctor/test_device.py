"""The device: wrong and unsteady kernels planted in the registry, rates that are not reached."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any, Callable, List

import pytest
import torch

from loopmoe_kernels import registry
from loopmoe_train.config.compose import compose
from loopmoe_train.doctor import device, ops, rates
from tests.doctor.found import assert_finds, assert_passes

CPU = torch.device("cpu")
KERNELS = {"adaln_norm", "causal_attention", "combine", "dispatch_index", "expert_major_index",
           "permute", "rms_norm", "router_topk", "weighted_swiglu"}  # fmt: skip


def some(op: str) -> List[ops.Call]:
    return [call for call in ops.calls() if call.op == op and call.case != "no token"]


def plant(monkeypatch: pytest.MonkeyPatch, op: str, kernel: Callable[..., Any]) -> None:
    registry.pick(op, CPU)
    monkeypatch.setitem(registry._loaded, (op, registry.name_of(op, CPU)), kernel)


def test_every_op_is_examined_on_all_its_cases() -> None:
    calls = list(ops.calls())
    assert {call.op for call in calls} == KERNELS
    assert_passes(device.parity(calls, CPU), "device/ops")
    assert_passes(device.repeated(calls, CPU), "device/determinism")


def test_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.pick("weighted_swiglu", CPU)
    plant(monkeypatch, "weighted_swiglu", lambda x, p: right(x, p) * 1.001)
    found = device.parity(some("weighted_swiglu"), CPU)
    off = "weighted_swiglu (one row): value 0 is off by 1.0e-03"
    assert_finds(found, "device/ops", "FAIL", off, "cluster.kernels=eager")


def test_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.pick("adaln_norm", CPU)

    def wrong(hidden: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, eps: float) -> Any:
        return right(hidden, gamma, beta.detach() + (beta - beta.detach()) * 2, eps)

    plant(monkeypatch, "adaln_norm", wrong)
    assert_finds(device.parity(some("adaln_norm"), CPU), "device/ops", "FAIL", "gradient 2 is off",
                 "versions/matrix")  # fmt: skip


def test_a_wrong_index(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.pick("dispatch_index", CPU)

    def wrong(experts: torch.Tensor, count: int) -> Any:
        slots, counts = right(experts, count)
        return slots.flip(0), counts

    plant(monkeypatch, "dispatch_index", wrong)
    found = device.parity(some("dispatch_index"), CPU)
    assert_finds(found, "device/ops", "FAIL", "wrong entries", "cluster.kernels=eager")


def test_a_kernel_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> Any:
        raise RuntimeError("ub overflow, requires 3072000 bits")

    plant(monkeypatch, "router_topk", raises)
    found = device.parity(some("router_topk"), CPU)
    assert_finds(found, "device/ops", "FAIL", "RuntimeError: ub overflow", "cluster.kernels=eager")


def test_an_unsteady_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = registry.pick("combine", CPU)

    def unsteady(y: torch.Tensor, *rest: Any) -> torch.Tensor:
        return right(y, *rest) + 1e-7 * torch.rand(1, dtype=torch.float32).to(y.dtype)

    plant(monkeypatch, "combine", unsteady)
    found = device.repeated(some("combine"), CPU)
    assert_finds(found, "device/determinism", "WARN", "combine", "HCCL_DETERMINISTIC=true")


def test_rates_against_the_cluster_file() -> None:
    run = compose(
        ["cluster=ascend_a2", "cluster.devices=8", "precision=bf16", "micro_batch_size=1"]
    )
    assert_passes(device.matmul(run, 280e12), "device/matmul")
    slow = device.matmul(run, 90e12)
    assert_finds(slow, "device/matmul", "WARN", "90 TFLOP/s, 34% of the 266", "loopmoe bench ops")
    assert_passes(device.bandwidth(run, 1000e9), "device/bandwidth")
    low = device.bandwidth(run, 200e9)
    assert_finds(low, "device/bandwidth", "WARN", "200 GB/s, 20%", "loopmoe bench ops")


def test_measured_rates_are_those_of_real_calls() -> None:
    torch.set_num_threads(1)
    rate, copied = rates.matmul("fp32"), rates.bandwidth()
    assert 1e9 < rate < 1e12 and 1e8 < copied < 1e12


def test_too_little_free_memory() -> None:
    run = compose(["cluster=cpu"])
    assert_passes(device.memory(run, 4 * 2.0**30), "device/memory")
    low = device.memory(run, 0.1 * 2**30)
    assert_finds(low, "device/memory", "FAIL", "0.1 GiB free for a rank", "loopmoe plan")


def test_operators_that_were_given_back_to_the_processor() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.warn(
            "CAUTION: The operator 'aten::unique_dim' is not currently supported on the NPU "
            "backend and will fall back to run on the CPU.",
            stacklevel=1,
        )
        warnings.warn("something else", stacklevel=1)
    messages = [str(one.message) for one in told]
    found = device.fallback(messages, "npu")
    finds = ("aten::unique_dim", "TORCH_NPU_FALLBACK_CPU_DISABLE=1")
    assert_finds(found, "device/fallback", "WARN", *finds)
    assert_passes(device.fallback(messages[1:], "npu"), "device/fallback")


def test_a_device_that_is_not_there() -> None:
    """In a process of its own: here megatron.core may have been imported for the processor."""
    code = (
        "from loopmoe_train.config.compose import compose\n"
        "from loopmoe_train.doctor import device\n"
        "run = compose(['cluster=ascend_a2', 'cluster.devices=8', 'micro_batch_size=1'])\n"
        "print(*device.device(run, True, 1), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (said,) = done.stdout.splitlines()
    assert "'device/present', status='FAIL'" in said and "torch_npu" in said
