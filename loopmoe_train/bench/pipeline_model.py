"""A real model on two pipeline stages: step time, idle time and memory of the loop pipeline.

Rank part; the verb (cli/bench.py) starts it through the launcher. Three sides train in one
launch, blocks of steps interleaved (see bench/pipeline.py for the same by replay):

* ``loop``: the run's looped model, its body spread over the stages.
* ``untied``: as many layers as the loop has visits, each with weights of its own; 1F1B.
* ``whole``: the looped model with its body and all iterations on the last stage; 1F1B.

Without IterAdaLN, which layers that are not looped do not have: all sides compute the same.
"""

from __future__ import annotations

import json
import statistics
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func, schedules
from megatron.core.utils import get_model_config
from torch import Tensor

from loopmoe_train.bench.train import VOCAB, synthetic
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.parallel import groups
from loopmoe_train.parallel.reduce import of_all_stages
from loopmoe_train.spec.batch import micro_batches
from loopmoe_train.spec.placement import placement_of
from loopmoe_train.spec.replay import replay
from loopmoe_train.spec.schedule import table
from loopmoe_train.train.__main__ import leave, main
from loopmoe_train.train.run import build
from loopmoe_train.train.step import TrainState, train_step

SIDES = ("loop", "untied", "whole")
STEPS_PER_BLOCK = 2


def run_of(side: str, run: RunConfig) -> RunConfig:
    """The run that a side trains."""
    model = run.model
    plain = replace(model, loop=replace(model.loop, conditioning="none"))
    if side == "untied":
        once = replace(plain.loop, iterations=1)
        layers = model.loop.iterations * model.body_layers
        return replace(run, model=replace(plain, loop=once, body_layers=layers))
    if side == "whole":
        after = model.loop.iterations * model.body_layers + model.suffix_layers
        layout = [model.prefix_layers, after]
        return replace(run, model=plain, parallel=replace(run.parallel, pipeline_layout=layout))
    return replace(run, model=plain)


@dataclass
class _Side:
    """One side: its run, state, and its schedule's number of chunks."""

    run: RunConfig
    chunks: int
    state: TrainState

    @classmethod
    def build(cls, run: RunConfig) -> _Side:
        chunks = placement_of(run).chunks
        _use_chunks(chunks)
        state = build(run, VOCAB, lambda first, count: synthetic(run, first, count))
        return cls(run, chunks, state)

    def step(self) -> float:
        """One step; returns the seconds that its schedule took."""
        _use_chunks(self.chunks)
        schedule, took = get_forward_backward_func(), [0.0]

        def timed(**given: Any) -> Any:
            # Not what follows the schedule: the reduction over ranks, then the optimizer.
            finish, ended = config.finalize_model_grads_func, []

            def finalize(*args: Any, **kwargs: Any) -> None:
                ended.append(time.perf_counter())
                finish(*args, **kwargs)

            config.finalize_model_grads_func = finalize
            began = time.perf_counter()
            outputs = schedule(**given)
            took[0] = ended[0] - began
            config.finalize_model_grads_func = finish
            return outputs

        config = get_model_config(self.state.model[0])
        self.state.forward_backward = timed
        train_step(self.state, False)
        return took[0]


def _use_chunks(chunks: int) -> None:
    """Core keeps the number of chunks by process."""
    size = chunks if chunks > 1 else None
    parallel_state.set_virtual_pipeline_model_parallel_world_size(size)


def measure(run: RunConfig) -> None:
    """Time all sides and let rank 0 write ``bench.json`` into the run folder."""
    select(run.cluster.device)
    groups.join(run)
    sides = {name: _Side.build(run_of(name, run)) for name in SIDES}
    rows = {name: dict(name=name, **_memory(side)) for name, side in sides.items()}
    seconds: Dict[str, List[float]] = {name: [] for name in SIDES}
    idle: Dict[str, List[float]] = {name: [] for name in SIDES}
    for block in range(run.steps):
        for name in [*SIDES[block % 3 :], *SIDES[: block % 3]]:
            taken, waited = _timed(sides[name].step)
            seconds[name].append(taken)
            idle[name].append(waited)
        if dist.get_rank() == 0:
            done = "  ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items())
            print(f"block {block + 1}/{run.steps}: {done}", flush=True)
    for name, row in rows.items():
        loop_over = [a / b for a, b in zip(seconds["loop"], seconds[name])]
        row |= dict(
            step_s=statistics.median(seconds[name]),
            low=min(seconds[name]),
            high=max(seconds[name]),
            bubble_share=statistics.median(idle[name]),
            predicted_bubble_share=_predicted(sides[name].run),
            loop_over_it=statistics.median(loop_over),
            loop_over_it_low=min(loop_over),
            loop_over_it_high=max(loop_over),
        )
    if dist.get_rank() == 0:
        (run_dir(run) / "bench.json").write_text(json.dumps(list(rows.values()), indent=1))
    groups.leave()


def _predicted(run: RunConfig) -> float:
    placement = placement_of(run)
    schedule = table(placement.stages, micro_batches(run, run.global_batch_size), placement.chunks)
    return replay(schedule, placement.duration).bubble_share


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a step, and the share of its schedule in which the stages ran neither forward nor
    backward of a micro-batch (mean over stages)."""
    busy = [0.0]

    def counted(original: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                accel.synchronize()
                busy[0] += time.perf_counter() - began

        return run

    with (
        patch.object(schedules, "forward_step", counted(schedules.forward_step)),
        patch.object(schedules, "backward_step", counted(schedules.backward_step)),
    ):
        dist.barrier()
        began = time.perf_counter()
        scheduled = sum(step() for _ in range(STEPS_PER_BLOCK))
        dist.barrier()
        taken = time.perf_counter() - began
    shares = of_all_stages(1 - busy[0] / scheduled)
    return taken / STEPS_PER_BLOCK, statistics.fmean(shares)


def _memory(side: _Side) -> Dict[str, Any]:
    """MiB of every stage: weights, gradients, states of the optimizer, and the most that autograd
    keeps at a time in a step."""
    side.step()  # the optimizer makes its states
    with _kept() as most:
        side.step()
    parameters = {p for chunk in side.state.model for p in chunk.parameters()}
    states = [
        tensor
        for part in side.state.optimizer.chained_optimizers
        for state in part.optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, Tensor)
    ]
    mine = dict(
        weights=sum(p.numel() * p.element_size() for p in parameters),
        gradients=sum(p.main_grad.numel() * p.main_grad.element_size() for p in parameters),
        optimizer=sum(t.numel() * t.element_size() for t in states),
        activations=most["bytes"],
    )
    stages = of_all_stages(mine)
    return {f"{kind}_mib": [stage[kind] / 2**20 for stage in stages] for kind in mine}


class _Held:
    """What autograd keeps in place of a tensor; goes when the graph goes."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def _kept() -> Iterator[Dict[str, int]]:
    """The most bytes of activations that graphs hold at a time in here, each storage once."""
    holders: Dict[int, int] = {}
    now, most = [0], {"bytes": 0}

    def gone(place: int, size: int) -> None:
        holders[place] -= 1
        if not holders[place]:
            del holders[place]
            now[0] -= size

    def keep(tensor: Any) -> Any:
        if isinstance(tensor, torch.nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in holders:
            holders[place] = 0
            now[0] += size
            most["bytes"] = max(most["bytes"], now[0])
        holders[place] += 1
        held = _Held(tensor)
        weakref.finalize(held, gone, place, size)
        return held

    def give(held: Any) -> Tensor:
        return held.tensor if isinstance(held, _Held) else held

    with torch.autograd.graph.saved_tensors_hooks(keep, give):
        yield most


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
