"""What IterAdaLN costs: share of FLOPs, of a step's time and of what is kept for backward.

Three models of one size train in one process, blocks of steps interleaved: without conditioning,
with IterAdaLN whose norm is composed of torch's operations, and with the fused one.
"""

from __future__ import annotations

import json
import statistics
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List

import torch
import torch.distributed as dist

from loopmoe_kernels.adaln_norm import reference
from loopmoe_train.bench.train import VOCAB, synthetic, time_block
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.model import iter_adaln
from loopmoe_train.parallel import groups
from loopmoe_train.spec.arithmetic import forward_flops_per_token
from loopmoe_train.train.__main__ import leave, main
from loopmoe_train.train.run import build
from loopmoe_train.train.step import TrainState, train_step

SIDES = ("none", "composed", "fused")


def measure(run: RunConfig) -> None:
    """Time all sides and let rank 0 write ``bench.json`` into the run folder."""
    select(run.cluster.device)
    groups.join(run)
    steps = {side: _step(side, _build(side, run)) for side in SIDES}
    kept, peak = {}, {}
    for side, step in steps.items():
        step()
        accel.reset_peak_memory_stats()
        with _counting() as count:
            step()
        kept[side], peak[side] = count["bytes"], accel.peak_memory_bytes()
    seconds: Dict[str, List[float]] = {side: [] for side in SIDES}
    for block in range(run.steps):
        for side in [*SIDES[block % 3 :], *SIDES[: block % 3]]:
            seconds[side].append(time_block(steps[side]))
        if dist.get_rank() == 0:
            done = "  ".join(f"{side} {times[-1]:.3f} s" for side, times in seconds.items())
            print(f"block {block + 1}/{run.steps}: {done}", flush=True)
    flops = forward_flops_per_token(run.model, VOCAB, run.sequence_length)
    table = {
        "model": run.model.name,
        "blocks": run.steps,
        "flops_share": flops["iter_adaln"] / sum(flops.values()),
        "sides": {
            side: dict(
                step_s=statistics.median(times),
                low=min(times),
                high=max(times),
                kept_bytes=kept[side],
                peak_bytes=peak[side],
            )
            for side, times in seconds.items()
        },
        # Medians over blocks, in each of which the three sides ran one after another.
        "time_share": _median(lambda c, n, _: 1 - n / c, seconds),
        "fused_time_share": _median(lambda _, n, f: 1 - n / f, seconds),
        "fused_saves": _median(lambda c, _, f: 1 - f / c, seconds),
    }
    if dist.get_rank() == 0:
        (run_dir(run) / "bench.json").write_text(json.dumps(table, indent=1))
    groups.leave()


def _build(side: str, run: RunConfig) -> TrainState:
    conditioning = "none" if side == "none" else "iter_adaln"
    model = replace(run.model, loop=replace(run.model.loop, conditioning=conditioning))
    own = replace(run, model=model)
    return build(own, VOCAB, lambda first, count: synthetic(own, first, count))


def _step(side: str, state: TrainState) -> Callable[[], float]:
    norm = reference.adaln_norm if side == "composed" else iter_adaln.adaln_norm

    def step() -> float:
        usual, iter_adaln.adaln_norm = iter_adaln.adaln_norm, norm
        try:
            return train_step(state, False).loss
        finally:
            iter_adaln.adaln_norm = usual

    return step


@contextmanager
def _counting() -> Iterator[Dict[str, int]]:
    """Bytes of all tensors that autograd keeps in here, each storage once."""
    sizes: Dict[int, int] = {}
    count = {"bytes": 0}

    def keep(tensor: Any) -> Any:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield count
    count["bytes"] = sum(sizes.values())


def _median(
    of: Callable[[float, float, float], float], seconds: Dict[str, List[float]]
) -> Dict[str, float]:
    """Median, lowest and highest of a function of (composed, none, fused) over the blocks."""
    values = [of(*x) for x in zip(seconds["composed"], seconds["none"], seconds["fused"])]
    return dict(median=statistics.median(values), low=min(values), high=max(values))


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
