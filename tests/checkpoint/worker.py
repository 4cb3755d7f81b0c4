"""Save the golden run in one layout and go on in another. Runs on the ranks of one launch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Dict, List

import torch.distributed as dist
from megatron.core import parallel_state

from loopmoe_train.checkpoint.load import load
from loopmoe_train.checkpoint.manifest import step_folder
from loopmoe_train.checkpoint.save import Saver
from loopmoe_train.checkpoint.state import Trained, capture
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.model.build import layer_names
from loopmoe_train.parallel import groups
from loopmoe_train.train.run import build
from loopmoe_train.train.step import TrainState, train_step
from tests.parity import worker

LONG = timedelta(seconds=120)


def train_and_save(cases: List[Dict[str, Any]], root: str, steps: int) -> Dict[str, List[float]]:
    """Train each case, save it under its name, and go on: losses of ``2 * steps`` steps."""
    worker.join()
    losses = {}
    for case in cases:
        state = _build(case["overrides"])
        losses[case["name"]] = [train_step(state, False).loss for _ in range(steps)]
        saver = Saver(Path(root) / case["name"], keep=0, timeout_s=60)
        shards, common = capture(_trained(state), _position(state))
        saver.start(state.step, shards, common, {"case": "golden"}, {"ranks": case["name"]})
        losses[case["name"]] += [train_step(state, False).loss for _ in range(steps)]
        saver.finish()
        dist.barrier()
        parallel_state.destroy_model_parallel()
    return losses


def load_and_train(cases: List[Dict[str, Any]], root: str, steps: int) -> Dict[str, Any]:
    """Restore ``saved`` of each case, and train: losses, weights and samples consumed."""
    worker.join()
    results = {}
    for case in cases:
        state = _build(case["overrides"])
        folder = step_folder(Path(root) / case["saved"], steps)
        layout = {"ranks": case["name"]}
        position = load(folder, _trained(state), {"case": "golden"}, layout)
        state.step, state.consumed = position["step"], position["consumed"]
        results[case["name"]] = dict(
            consumed=state.consumed,
            losses=[train_step(state, False).loss for _ in range(steps)],
            # Of ZeRO's weights a rank may have none; tests/optim/test_zero.py looks at them.
            weights={}
            if state.run.engine == "deepspeed"
            else worker.named(state, lambda p: p.data),
        )
        parallel_state.destroy_model_parallel()
    return results


def _build(overrides: List[str]) -> TrainState:
    run: RunConfig = worker.golden([f"cluster.devices={dist.get_world_size()}", *overrides])
    groups.make_groups(run, LONG)
    groups.seed_rank(run.seed)
    return build(run, worker.VOCAB, lambda first, count: worker.samples(run, first, count))


def _trained(state: TrainState) -> Trained:
    return Trained(state.model, state.optimizer, state.scheduler, layer_names(state.run))


def _position(state: TrainState) -> Dict[str, int]:
    return {"step": state.step, "consumed": state.consumed}
