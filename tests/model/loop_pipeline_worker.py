"""What the parity grid cannot see of the loop pipeline. Runs on the ranks of one launch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict, List
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker

from loopmoe_train.model import residual
from loopmoe_train.model.build import layers, named_weights
from loopmoe_train.model.iterations import running
from loopmoe_train.parallel import groups
from loopmoe_train.parallel.reduce import of_all_stages
from loopmoe_train.train.run import build
from loopmoe_train.train.step import TrainState, train_step
from tests.parity import worker

LOOP = ["parallel.expert_parallel_size=1"]
DROPOUT = ["model.hidden_dropout=0.2"]
FULL, OVERLAP = ["memory=full"], ["parallel.overlap_grad_reduce=true", "micro_batch_size=1"]


def look() -> Dict[str, Any]:
    """Everything, on one rank (no pipeline) or two (two stages)."""
    worker.join()
    kept = _state(DROPOUT)
    found: Dict[str, Any] = {"kept": _losses(kept), "masks": _masks(kept)}
    found["recomputed"] = _losses(_state([*DROPOUT, *FULL]))
    plain = _state([])
    train_step(plain, False)
    found["weights"] = of_all_stages(sum(p.numel() for _, p in named_weights(plain.model)))
    found["tracker"] = _tracker(plain)
    if dist.get_world_size() == 2:
        found["fewer"] = _fewer_iterations(_state(OVERLAP))
    return found


def _state(settings: List[str]) -> TrainState:
    parallel_state.destroy_model_parallel()
    ranks = dist.get_world_size()
    stages = [f"cluster.devices={ranks}", f"parallel.pipeline_parallel_size={ranks}"]
    run = worker.golden([*stages, *LOOP, *settings])
    groups.make_groups(run, worker.timedelta(seconds=120))
    groups.seed_rank(run.seed)
    return build(run, worker.VOCAB, lambda first, count: worker.samples(run, first, count))


def _losses(state: TrainState) -> List[float]:
    return [train_step(state, False).loss for _ in range(2)]


def _masks(state: TrainState) -> List[List[float]]:
    """Per looped layer of this stage a number for every mask that dropout drew in a step."""
    sums: Dict[int, List[float]] = {}
    running_layer: List[Any] = []

    def noted(x: torch.Tensor, p: float, training: bool) -> torch.Tensor:
        mask = torch.nn.functional.dropout(torch.ones_like(x), p, training)
        visit = running_layer[-1].visit
        if visit.looped:
            code = torch.rand(mask.numel(), generator=torch.Generator().manual_seed(0))
            sums.setdefault(visit.layer, []).append(float(torch.dot(mask.flatten(), code)))
        return x * mask

    handles = [
        layer.register_forward_pre_hook(lambda module, _: running_layer.append(module))
        for layer in layers(state.model)
    ]
    with patch.object(residual, "F", SimpleNamespace(dropout=noted)):
        train_step(state, False)
    for handle in handles:
        handle.remove()
    return list(sums.values())


def _tracker(state: TrainState) -> Dict[str, List[float]]:
    """Core's balance losses by visit, of all stages."""
    found = {}
    for name, entry in get_moe_layer_wise_logging_tracker().items():
        stages = of_all_stages(entry["values"].tolist())
        found[name] = [sum(values) for values in zip(*stages)]
    return found


def _fewer_iterations(state: TrainState) -> str:
    """What core says to a step with fewer uses of a weight than in the first one."""
    train_step(state, False)
    try:
        with running(state.model, 2):
            # train_step asks for all iterations again: leave that to the line above.
            with patch("loopmoe_train.train.step.running", _as_it_is):
                train_step(state, False)
    except AssertionError as error:
        return str(error)
    return ""


class _as_it_is:
    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...
