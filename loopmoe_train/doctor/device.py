"""The device of this process: present, right, repeatable, fast, with memory. Never run on an NPU by
us: what it tells there are torch_npu's own words."""

from __future__ import annotations

import re
import warnings
from typing import Any, Callable, Iterator, List, Sequence

import torch

from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.doctor import ops, rates
from loopmoe_train.doctor.check import Check, failed, look, passed, warned
from loopmoe_train.doctor.training import simulated_bytes
from loopmoe_train.errors import Refused
from loopmoe_train.sim.machine import GIB, machine_of

_SLOW = 0.6  # of what the cluster file lets expect
_SHOWN = 3
_FELL_BACK = re.compile(r"fall(?:s|ing)? ?back|fallback", re.IGNORECASE)


def device(run: RunConfig, simulated: bool, ranks: int) -> List[Check]:
    """All checks of this process's device.

    Args:
        simulated: the run can be, so that its memory is known.
        ranks: of the run on this machine.
    """
    there = look("device/present", lambda: [present(run)])
    if there[0].fix:
        return there
    found = operators()
    found += look("device/matmul", lambda: [matmul(run, rates.matmul(run.precision))])
    found += look("device/bandwidth", lambda: [bandwidth(run, rates.bandwidth())])
    if simulated:
        found += look("device/memory", lambda: [memory(run, free_bytes(ranks))])
    return there + found


def operators() -> List[Check]:
    """The ops of this package on the current device, and what torch warns of meanwhile."""
    calls = [one for one in ops.calls() if one.device in ("", accel.device_type)]
    here = accel.torch_device(accel.current_device())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = look("device/ops", lambda: parity(calls, here))
        found += look("device/determinism", lambda: repeated(calls, here))
    return [*found, fallback([str(one.message) for one in told], accel.device_type)]


def present(run: RunConfig, local_rank: int = 0) -> Check:
    """The device answers with a right sum.

    Raises:
        Refused: it is not there.
    """
    select(run.cluster.device)
    if run.cluster.device == "cpu":
        torch.set_num_threads(run.launcher.threads_per_rank)  # as in training
    accel.set_device(local_rank)
    here = accel.torch_device(local_rank) if accel.device_type != "cpu" else torch.device("cpu")
    total = float(torch.ones(1000, device=here).sum())
    software = ", ".join(f"{name} {version}" for name, version in accel.software().items())
    what = f"{accel.hardware}; {software}"
    if total != 1000.0:
        return failed("device/present", f"{what}: 1000 ones add up to {total:g}",
                      "take this device out of service and have it examined")  # fmt: skip
    return passed("device/present", what)


def parity(calls: Sequence[ops.Call], kind: torch.device) -> Iterator[Check]:
    """Every op against its definition."""
    wrong: List[str] = []
    for call in calls:
        try:
            wrong += ops.errors(call, kind)
        except Exception as error:  # a kernel may fail in any way
            wrong.append(f"{call.op} ({call.case}): {type(error).__name__}: {error}"[:300])
    names = sorted({call.op for call in calls})
    if not wrong:
        yield passed("device/ops", f"{len(calls)} cases of {', '.join(names)}")
        return
    more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
    yield failed(
        "device/ops",
        "; ".join(" ".join(one.split()) for one in wrong[:_SHOWN]) + more,
        "cluster.kernels=eager takes torch's own operations; if they fail too, the versions do not "
        "fit: see versions/matrix",
    )


def repeated(calls: Sequence[ops.Call], kind: torch.device) -> Iterator[Check]:
    """Every op twice."""
    unstable = sorted({call.op for call in calls if ops.differs_from_itself(call, kind)})
    if unstable:
        yield warned(
            "device/determinism", f"other bits at the second call: {', '.join(unstable)}",
            "export HCCL_DETERMINISTIC=true and use cluster.kernels=eager; losses cannot be "
            "compared to the bit until then",
        )  # fmt: skip
    else:
        yield passed("device/determinism", f"{len(calls)} cases twice, the same bits")


def fallback(messages: Sequence[str], device_type: str) -> Check:
    """Operators of which torch_npu said that the processor computed them."""
    if device_type != "npu":
        return passed("device/fallback", f"{device_type} gives nothing back; this is about NPUs")
    found = [" ".join(m.split())[:160] for m in messages if _FELL_BACK.search(m)]
    if found:
        return warned(
            "device/fallback", f"{len(found)} told: {'; '.join(dict.fromkeys(found))}"[:600],
            "export TORCH_NPU_FALLBACK_CPU_DISABLE=1 makes them errors, which name the place",
        )  # fmt: skip
    return passed("device/fallback", "no operator was given back to the processor")


def matmul(run: RunConfig, rate: float) -> Check:
    """A measured rate [FLOP/s] against the cluster file."""
    expected = _expected(run, lambda machine: machine.matmul[run.precision])
    return _compared("device/matmul", rate, expected, 1e12, "TFLOP/s", run)


def bandwidth(run: RunConfig, rate: float) -> Check:
    """A measured rate [bytes/s] against the cluster file."""
    expected = _expected(run, lambda machine: machine.bandwidth)
    return _compared("device/bandwidth", rate, expected, 1e9, "GB/s", run)


def memory(run: RunConfig, free: float) -> Check:
    """Free bytes of the device against the simulated peak of this run."""
    try:
        need = simulated_bytes(run)
    except Refused as error:
        return warned("device/memory", f"{free / GIB:.1f} GiB free; not simulated: {error.what}",
                      error.fix)  # fmt: skip
    what = f"{free / GIB:.1f} GiB free for a rank, {need / GIB:.2f} GiB simulated"
    if need > free:
        return failed(
            "device/memory", what,
            "end what else uses it (npu-smi info, nvidia-smi, top); or `loopmoe plan`",
        )  # fmt: skip
    return passed("device/memory", what)


def free_bytes(ranks: int) -> float:
    """Of the device; of a processor: what the machine has available for each of its ``ranks``."""
    if accel.device_type == "cpu":
        import psutil

        return psutil.virtual_memory().available / ranks
    return float(accel.mem_get_info()[0])


def _expected(run: RunConfig, of: Callable[[Any], float]) -> float:
    """By the cluster file; 0 where it does not tell."""
    try:
        return of(machine_of(run.cluster))
    except (Refused, KeyError):
        return 0.0


def _compared(
    name: str, rate: float, expected: float, unit: float, word: str, run: RunConfig
) -> Check:
    what = f"{rate / unit:.4g} {word}"
    if not expected:
        return passed(name, f"{what}; cluster={run.cluster.name} lets expect nothing")
    what += f", {rate / expected:.0%} of the {expected / unit:.4g} that cluster={run.cluster.name} "
    what += "lets expect"
    if rate < _SLOW * expected:
        return warned(
            name, what,
            "end what else runs there; if nothing does, describe the machine: loopmoe bench ops "
            "--json FILE, then cluster.efficiency.table=FILE",
        )  # fmt: skip
    return passed(name, what)
