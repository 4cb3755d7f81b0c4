"""The experts' exchange over nodes: bytes that cross, against their formula, and time.

Rank part; the verb (cli/bench.py) starts it. The ranks of the job stand for nodes of two sizes;
what a step of one layer sends is counted by the dispatchers themselves, forward and backward. Of
more nodes than there are ranks the rows are counted in a routing that is drawn alike, not sent.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from typing import Any, Callable, Dict, List

import torch
import torch.distributed as dist
from torch import Tensor

from loopmoe_train.config.run_file import run_dir
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.device.accelerator import accel, select
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.moe.dispatch import dispatcher_of, levels, traffic
from loopmoe_train.parallel import groups
from loopmoe_train.parallel.reduce import sum_over_ranks
from loopmoe_train.train.__main__ import leave, main

KINDS = ("alltoall", "hierarchical", "deduplicated")
MORE_NODES = 8


def measure(run: RunConfig) -> None:
    """Exchange with every dispatcher and let rank 0 write ``bench.json`` into the run folder."""
    select(run.cluster.device)
    groups.join(run)
    world, rank = dist.get_world_size(), dist.get_rank()
    moe, hidden = run.model.moe, run.model.hidden_size
    tokens = run.sequence_length * run.micro_batch_size
    routing = _routing(rank, tokens, moe.num_experts, moe.top_k)
    rows: List[Dict[str, Any]] = []
    for per_node in (world // 2, 1):
        levels.make(per_node, True)
        nodes = world // per_node
        calls = {kind: _exchange(run, kind, routing) for kind in KINDS}
        counted = {kind: _counted(call) for kind, call in calls.items()}
        seconds = _timed(calls, run.steps)
        for kind in KINDS:
            times = seconds[kind]
            rows.append(
                _expected(run, kind, routing, nodes, rank // per_node)
                | dict(counted=counted[kind], seconds=statistics.median(times), low=min(times),
                       high=max(times))
            )  # fmt: skip
        if rank == 0:
            print(f"{nodes} nodes of {per_node}: done", flush=True)
    for kind in KINDS:
        rows.append(_expected(run, kind, routing, MORE_NODES, rank % MORE_NODES))
    table = {
        "model": run.model.name, "tokens": tokens, "top_k": moe.top_k, "hidden": hidden,
        "ranks": world, "rows": rows,
    }  # fmt: skip
    if rank == 0:
        (run_dir(run) / "bench.json").write_text(json.dumps(table, indent=1))
    groups.leave()


def _counted(call: Callable[[], None]) -> float:
    """Bytes that leave a node in one call, of one rank (the mean), as the dispatcher counts."""
    traffic.take()
    call()
    return _mean(traffic.take())


def _timed(calls: Dict[str, Callable[[], None]], rounds: int) -> Dict[str, List[float]]:
    seconds: Dict[str, List[float]] = {kind: [] for kind in calls}
    for _ in range(rounds):
        for kind, call in calls.items():
            dist.barrier()
            started = time.perf_counter()
            call()
            accel.synchronize()
            seconds[kind].append(time.perf_counter() - started)
    return seconds


def _expected(run: RunConfig, kind: str, routing: Tensor, nodes: int, node: int) -> Dict[str, Any]:
    """Bytes that a routing makes leave a node (mean over the ranks), and that the formula does."""
    moe, tokens = run.model.moe, routing.shape[0]
    # there and back, forward and backward
    row = 4 * run.model.hidden_size * (2 if run.precision == "bf16" else 4)
    formula = row * tokens * copies(kind, nodes, moe.num_experts, moe.top_k)
    sent = row * _mean(leaving(kind, routing, nodes, node))
    return dict(nodes=nodes, kind=kind, sent=sent, formula=formula)


def _mean(value: float) -> float:
    """Over all ranks."""
    return sum_over_ranks(torch.tensor([float(value)]))[0] / dist.get_world_size()


def copies(kind: str, nodes: int, experts: int, top_k: int) -> float:
    """Rows that leave a node for one of its tokens, one way, if all choices of experts are alike.

    The all-gather sends every token to every node, whatever it chose.
    """
    if kind == "hierarchical":
        return nodes - 1
    if kind == "deduplicated":
        elsewhere = experts - experts // nodes
        return (nodes - 1) * (1 - math.comb(elsewhere, top_k) / math.comb(experts, top_k))
    return top_k * (1 - 1 / nodes)


def leaving(kind: str, routing: Tensor, nodes: int, node: int) -> int:
    """Rows of one rank that leave its node, one way, in a routing [T, E]."""
    away = [other for other in range(nodes) if other != node]
    chosen_TN = routing.unflatten(1, (nodes, -1))[:, away]
    if kind == "hierarchical":
        return routing.shape[0] * len(away)
    return int(chosen_TN.any(-1).sum() if kind == "deduplicated" else chosen_TN.sum())


def _routing(rank: int, tokens: int, experts: int, top_k: int) -> Tensor:
    """[T, E] bool, every expert as likely."""
    generator = torch.Generator().manual_seed(rank)
    picks = torch.rand(tokens, experts, generator=generator).topk(top_k).indices
    return torch.zeros(tokens, experts, dtype=torch.bool).scatter_(1, picks, True)


def _exchange(run: RunConfig, kind: str, routing: Tensor) -> Callable[[], None]:
    """A call that sends tokens to their experts, which do nothing, and back, both ways."""
    config, device = transformer_config(run), accel.current_device()
    own = run.model.moe.num_experts // run.parallel.expert_parallel_size
    first = own * dist.get_rank()
    config.loopmoe.moe.dispatcher = kind
    dispatcher = dispatcher_of(config, own, list(range(first, first + own)))
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    x = torch.randn(routing.shape[0], 1, run.model.hidden_size, dtype=dtype, device=device)
    x.requires_grad_()
    routing = routing.to(device)
    probs = routing.float().requires_grad_()
    upstream = torch.randn_like(x)

    def call() -> None:
        x.grad = probs.grad = None
        sent = dispatcher.token_dispatch(*dispatcher.dispatch_preprocess(x, routing, probs))
        rows, _, weights = dispatcher.dispatch_postprocess(*sent)
        made = dispatcher.combine_preprocess(rows * weights.unsqueeze(-1).to(rows.dtype))
        dispatcher.combine_postprocess(dispatcher.token_combine(made)).backward(upstream)

    return call


if __name__ == "__main__":
    import sys

    leave(main(sys.argv[1:], measure))
