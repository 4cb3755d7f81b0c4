"""Train the golden model under either engine; give what must be equal. Runs on real ranks."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import timedelta
from typing import Any, Dict, List

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from loopmoe_train.errors import TrainingStopped
from loopmoe_train.model.build import named_weights
from loopmoe_train.parallel import groups
from loopmoe_train.train.run import build
from loopmoe_train.train.step import TrainState, train_step
from tests.parity import worker


def everything(cases: List[Dict[str, Any]], poisoned: List[List[str]]) -> Dict[str, Any]:
    """All in one launch: :func:`train` of ``cases``, and :func:`not_finite` of ``poisoned``."""
    worker.join()
    return {
        "trained": {case["name"]: train(**case) for case in cases},
        "poisoned": [not_finite(words) for words in poisoned],
    }


def train(name: str, overrides: List[str], steps: int, without: str = "") -> Dict[str, Any]:
    """Losses, norms, first gradients, last weights and router biases; or how it was stopped.

    Args:
        without: a part of the bridge to DeepSpeed that is left out.
    """
    with ExitStack() as undo:
        undo.callback(parallel_state.destroy_model_parallel)
        try:
            state = _build(overrides, without, undo)
            gradients = _capture(state)
            results = [train_step(state, False) for _ in range(steps)]
        except Exception as error:
            if not without:
                raise
            return {"stopped": f"{type(error).__name__}: {error}"}
        return dict(
            losses=[result.loss for result in results],
            norms=[result.grad_norm for result in results],
            gradients=gradients,
            weights=_weights(state),
            bias=worker._biases(state),
        )


def not_finite(overrides: List[str]) -> Dict[str, Any]:
    """What a step says of a gradient that is not finite, and which weights moved."""
    with ExitStack() as undo:
        undo.callback(parallel_state.destroy_model_parallel)
        state = _build(overrides, "", undo)
        train_step(state, False)
        before, batches = _weights(state), state.micro_batches

        def poisoned(consumed: int) -> Any:
            for batch in batches(consumed):
                if dist.get_rank() == 1:
                    batch.loss_mask[0, -1] = float("inf")
                yield batch

        state.micro_batches = poisoned
        try:
            train_step(state, False)
            said = ""
        except TrainingStopped as stopped:
            said = stopped.what
        after = _weights(state)
        return {
            "said": said,
            "moved": [name for name in before if not torch.equal(before[name], after[name])],
        }


def _build(overrides: List[str], without: str, undo: ExitStack) -> TrainState:
    run = worker.golden([f"cluster.devices={dist.get_world_size()}", *overrides])
    groups.make_groups(run, timedelta(seconds=120))
    groups.seed_rank(run.seed)
    torch.manual_seed(0)
    if without:
        from unittest.mock import patch

        from loopmoe_train.optim import zero, zero_engine

        target = {
            "mean over tokens": (zero_engine.ZeroChunk, "scale_gradients", lambda *a: None),
            "experts have groups of their own": (zero_engine, "_place", lambda parameter: None),
            "experts are named": (zero, "mark_groups", lambda found: None),
        }[without]
        undo.enter_context(patch.object(*target))
    return build(run, worker.VOCAB, lambda first, count: worker.samples(run, first, count))


def _capture(state: TrainState) -> Dict[str, torch.Tensor]:
    """Whole mean gradients of the first step, of all experts, filled between reduction and clip."""
    found: Dict[str, torch.Tensor] = {}
    if state.run.engine == "megatron":
        captured: Dict[str, torch.Tensor] = worker._capture_gradients(state)
        return captured
    prepare = state.optimizer.prepare_grads

    def and_capture() -> bool:
        done: bool = prepare()
        if not found:
            from deepspeed.utils import safe_get_full_grad

            scale = state.optimizer._zero.loss_scale
            mine = {
                name: safe_get_full_grad(parameter).reshape(_shape(parameter)) / scale
                for name, parameter in named_weights(state.model)
            }
            found.update(_of_all_experts(mine))
        return done

    state.optimizer.prepare_grads = and_capture
    return found


def _shape(parameter: Any) -> Any:
    return getattr(parameter, "ds_shape", parameter.shape)


def _weights(state: TrainState) -> Dict[str, torch.Tensor]:
    if state.run.engine == "megatron":
        return worker.named(state, lambda p: p.data)
    with state.model[0].whole():
        mine = {name: p.data.float().clone() for name, p in named_weights(state.model)}
    return _of_all_experts(mine)


def _of_all_experts(mine: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Experts of all ranks after one another, where each has others; infinite where what should
    be alike is not."""
    everywhere: List[Any] = [None] * dist.get_world_size()
    place = parallel_state.get_expert_model_parallel_rank()
    dist.all_gather_object(everywhere, (place, mine))
    joined = {}
    for name in mine:
        parts: Dict[int, torch.Tensor] = {}
        for place, other in everywhere:
            key = place if ".experts." in name else 0
            alike = key not in parts or torch.equal(parts[key], other[name])
            parts[key] = other[name] if alike else torch.full_like(other[name], float("inf"))
        joined[name] = torch.cat([parts[key] for key in sorted(parts)])
    return joined
