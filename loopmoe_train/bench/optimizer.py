"""AdamW on the host: DeepSpeed's and torch's, one step of the same weights in turn.

Rank part; the verb (cli/bench.py) starts it through the launcher. Sides are called by turns in
every round, each after a buffer larger than the caches was read, so that its operands come from
memory as they do after a backward pass.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any, Callable, Dict, List

import torch
from torch import Tensor

from loopmoe_train.bench.kernels import Clock
from loopmoe_train.bench.optimizer_show import OURS, OURS_DEEPSPEED
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.files import write_text
from loopmoe_train.optim.host import HostAdamW, TorchUpdate
from loopmoe_train.train.__main__ import leave, main

OPTIONS = "options.json"  # beside run.yaml, from the verb
NUMBERS: Dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
# (tensors, elements of each): many small ones as norms and routers are, then larger and larger.
SIZES = ((256, 1031), (64, 65_537), (8, 1_048_583), (1, 16_777_259))
QUICK = ((8, 1031), (2, 65_537))

Step = Callable[[], Any]


def measure(run: RunConfig) -> None:
    """Time the sides and write ``bench.json`` into the run folder."""
    select("cpu")
    quick = json.loads((run_dir(run) / OPTIONS).read_text())["quick"]
    clock = Clock(2**20 if quick else 2**27)
    rows: List[Dict[str, Any]] = []
    for tensors, size in QUICK if quick else SIZES:
        print(f"{tensors} x {size:,}", flush=True)
        seconds = clock.rounds(sides(tensors, size), run.steps + 1)  # the first makes the states
        speeds = {
            name: [tensors * size / one for one in times[1:]] for name, times in seconds.items()
        }
        rows.append(dict(tensors=tensors, elements=size, elements_per_s=speeds))
    table = dict(
        hardware=accel.hardware,
        threads=torch.get_num_threads(),
        software={**accel.software(), **_deepspeed_version()},
        rounds=run.steps,
        rows=rows,
    )
    write_text(run_dir(run) / "bench.json", json.dumps(table, indent=1))


def sides(tensors: int, size: int) -> Dict[str, Step]:
    """A step of every implementation that is installed, each over weights of its own (fp32)."""
    found: Dict[str, Step] = {
        "torch, one by one (core's on a host)": _peer(tensors, size, torch.optim.AdamW),
        "torch foreach": _peer(tensors, size, torch.optim.AdamW, foreach=True),
        "torch fused": _peer(tensors, size, torch.optim.AdamW, fused=True),
        OURS: _host(tensors, size, TorchUpdate()),
    }
    if _deepspeed_version():
        from loopmoe_train.optim.deepspeed_adam import DeepSpeedUpdate

        found[OURS_DEEPSPEED] = _host(tensors, size, DeepSpeedUpdate())
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        found["DeepSpeedCPUAdam"] = _peer(tensors, size, DeepSpeedCPUAdam, adamw_mode=True)
    return found


def _deepspeed_version() -> Dict[str, str]:
    if importlib.util.find_spec("deepspeed") is None:
        return {}
    from importlib.metadata import version

    return {"deepspeed": version("deepspeed")}


def _weights(tensors: int, size: int) -> List[Tensor]:
    generator = torch.Generator().manual_seed(tensors + size)
    return [torch.randn(size, generator=generator) for _ in range(tensors)]


def _peer(tensors: int, size: int, kind: Any, **options: Any) -> Step:
    weights = [torch.nn.Parameter(weight) for weight in _weights(tensors, size)]
    for weight, gradient in zip(weights, _weights(tensors, size)):
        weight.grad = gradient
    step: Step = kind(weights, **NUMBERS, **options).step
    return step


def _host(tensors: int, size: int, update: Any) -> Step:
    weights = _weights(tensors, size)
    for weight, gradient in zip(weights, _weights(tensors, size)):
        weight.decoupled_grad = gradient  # type: ignore[attr-defined]
    return HostAdamW([dict(params=weights)], update, **NUMBERS).step


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
