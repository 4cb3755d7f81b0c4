"""Training speed against megatron-core's own GPTModel: interleaved pairs in one launch.

Rank part; the verb (cli/bench.py) starts it through the launcher. Both sides train the same
vanilla MoE with multi-head attention from the same weights on the same data, ranks and
optimizer; the first losses must agree. Blocks of steps alternate, so that a change of the
machine's speed meets both alike.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any, Callable, Dict, List

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from loopmoe_train.bench.core_model import build_core
from loopmoe_train.bench.profile import shares
from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Batch
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.model.build import bare
from loopmoe_train.parallel import groups
from loopmoe_train.spec.batch import micro_batches
from loopmoe_train.train.__main__ import leave, main
from loopmoe_train.train.run import build
from loopmoe_train.train.step import forward_step, train_step

VOCAB = 4096
STEPS_PER_BLOCK = 3
SIDES = ("ours", "core", "core_given")


def synthetic(run: RunConfig, first: int, count: int) -> Batch:
    """Random tokens, a function of the sample number."""
    generator = torch.Generator().manual_seed(first)
    tokens = torch.randint(0, VOCAB, (count, run.sequence_length + 1), generator=generator)
    positions = torch.arange(run.sequence_length).expand(count, -1)
    mask = torch.ones(count, run.sequence_length)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask, positions, None)


def core_step(run: RunConfig, model: List[Any], optimizer: Any) -> float:
    """One step as megatron's own training loop makes it; returns the mean loss per token."""
    ranks = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    for chunk in model:
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    batches = (
        synthetic(run, (index * ranks + rank) * run.micro_batch_size, run.micro_batch_size)
        .to(accel.current_device())
        for index in range(micro_batches(run, run.global_batch_size))
    )  # fmt: skip
    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=batches,
        model=model,
        num_microbatches=micro_batches(run, run.global_batch_size),
        seq_length=run.sequence_length,
        micro_batch_size=run.micro_batch_size,
        forward_only=False,
    )
    optimizer.step()
    loss = torch.stack([output["sum"] for output in outputs]).sum()
    dist.all_reduce(loss)
    return float(loss) / (run.global_batch_size * run.sequence_length)


def measure(run: RunConfig) -> None:
    """Time all sides and let rank 0 write ``bench.json`` into the run folder."""
    select(run.cluster.device)
    groups.join(run)
    state = build(run, VOCAB, lambda first, count: synthetic(run, first, count))
    sides: Dict[str, Callable[[], float]] = {"ours": lambda: train_step(state, False).loss}
    for side in SIDES[1:]:
        model, optimizer = build_core(run, VOCAB, bare(state.model[0]), side == "core_given")
        sides[side] = lambda m=model, o=optimizer: core_step(run, m, o)  # type: ignore[misc]
    _same_job({name: step() for name, step in sides.items()}, run.precision)
    seconds: Dict[str, List[float]] = {side: [] for side in sides}
    for block in range(run.steps):
        # Every order of the sides comes up: none is always first after a pause.
        order = list(sides)[block % 3 :] + list(sides)[: block % 3]
        for side in order:
            seconds[side].append(time_block(sides[side]))
        if dist.get_rank() == 0:
            done = {side: f"{_speed(run, times[-1]):,.0f}" for side, times in seconds.items()}
            print(f"pair {block + 1}/{run.steps}: tokens/s {done}", flush=True)
    where = shares(sides["ours"])
    if dist.get_rank() == 0:
        table = json.dumps({**_table(run, seconds, state.model), "where": where}, indent=1)
        (run_dir(run) / "bench.json").write_text(table)
    groups.leave()


def _same_job(losses: Dict[str, float], precision: str) -> None:
    """Refuse to compare sides that do not compute the same.

    Raises:
        RuntimeError: the first losses differ by more than rounding.
    """
    rounding = {"fp32": 1e-5, "bf16": 1e-3}[precision]
    if max(losses.values()) - min(losses.values()) > rounding * losses["ours"]:
        raise RuntimeError(f"the sides do not compute the same: first losses {losses}")


def time_block(step: Callable[[], Any]) -> float:
    """Seconds per step over a block, all ranks in it."""
    dist.barrier()
    accel.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS_PER_BLOCK):
        step()
    accel.synchronize()
    dist.barrier()
    return (time.perf_counter() - started) / STEPS_PER_BLOCK


def _speed(run: RunConfig, seconds: float) -> float:
    return run.global_batch_size * run.sequence_length / seconds


def _table(run: RunConfig, seconds: Dict[str, List[float]], model: List[Any]) -> Dict[str, Any]:
    """Speeds, and ratios as medians over the pairs."""
    experts = sum(p.numel() for n, p in model[0].named_parameters() if ".experts." in n)
    rest = sum(p.numel() for p in model[0].parameters()) - experts
    table: Dict[str, Any] = {
        "parameters": rest + experts * run.parallel.expert_parallel_size,
        "pairs": run.steps,
        "sides": {},
    }
    for side, times in seconds.items():
        speeds = sorted(_speed(run, s) for s in times)
        ratios = [peer / ours for ours, peer in zip(seconds["ours"], times)]
        table["sides"][side] = dict(
            tokens_per_s=statistics.median(speeds),
            low=speeds[0],
            high=speeds[-1],
            ours_over_it=statistics.median(ratios),
            ratio_low=min(ratios),
            ratio_high=max(ratios),
        )
    return table


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
