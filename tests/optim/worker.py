"""Train the golden model with Muon, take its state apart as a checkpoint would, put it together
in another layout and train on."""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import (
    dict_list_map_inplace,
    merge,
    nested_values,
)
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    apply_factory_merges,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess, save_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_base

from loopmoe_train.device.accelerator import select
from loopmoe_train.model.build import bare, layer_names, unique_name
from loopmoe_train.parallel import groups
from loopmoe_train.train.run import build
from loopmoe_train.train.step import TrainState, train_step
from tests.parity.worker import VOCAB, golden, samples

METADATA = {"non_homogeneous_layers": True, "chained_optim_avoid_prefix": True}
BEFORE, AFTER = 2, 2  # steps

# key and offset -> (shape of the whole tensor, this part)
Shards = Dict[Tuple[str, Tuple[int, ...]], Tuple[Tuple[int, ...], torch.Tensor]]


def run_cases(cases: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Run every case in turn.

    Args:
        cases: ``{"name", "overrides"}`` and ``"saved"``: what another case returned, or None
            to train from the start.

    Returns:
        By name: ``losses`` of the steps done, and ``saved``: the state after step BEFORE.
    """
    select("cpu")
    dist.init_process_group(
        "gloo",
        init_method=os.environ["LOOPMOE_RENDEZVOUS"],
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=120),
    )
    results = {}
    for case in cases:
        run = golden([f"cluster.devices={dist.get_world_size()}", *case["overrides"]])
        groups.make_groups(run, timedelta(seconds=120))
        groups.seed_rank(run.seed)
        state = build(run, VOCAB, lambda first, count, run=run: samples(run, first, count))  # type: ignore[misc]
        results[case["name"]] = _train(state, case.get("saved"))
        parallel_state.destroy_model_parallel()
    return results


def _train(state: TrainState, saved: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    losses = []
    if saved is None:
        losses = [train_step(state, False).loss for _ in range(BEFORE)]
        saved = _save(state)
    else:
        _load(state, saved)
    losses += [train_step(state, False).loss for _ in range(AFTER)]
    return dict(losses=losses, saved=saved)


def _described(state: TrainState, is_loading: bool) -> Dict[str, Any]:
    model = bare(state.model[0])
    weights = model.sharded_state_dict(metadata=METADATA)
    ep = parallel_state.get_expert_model_parallel_rank()
    eps = parallel_state.get_expert_model_parallel_world_size()
    replica = parallel_state.get_expert_data_parallel_rank()
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            weights[name] = ShardedTensor.from_rank_offsets(
                name, parameter, (0, ep, eps), replica_id=(0, 0, replica)
            )
    weights = {k: part for k, part in weights.items() if not isinstance(part, ShardedObject)}
    for part in weights.values():
        part.key = unique_name(part.key, layer_names(state.run))
    optimizer = state.optimizer.sharded_state_dict(weights, is_loading, metadata=METADATA)
    return {"model": weights, "optimizer": optimizer}


def _save(state: TrainState) -> Dict[str, Any]:
    sharded, common = save_preprocess(_described(state, False), validate_access_integrity=True)
    mine: Shards = {}
    for part in nested_values(sharded):
        if is_main_replica(part.replica_id):
            place = (part.key, tuple(part.global_offset))
            mine[place] = (tuple(part.global_shape), part.data.detach().clone())
    everywhere: List[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    joined: Shards = {}
    for one in everywhere:
        assert not joined.keys() & one.keys(), "two ranks save the same"
        joined |= one
    common["scheduler"] = state.scheduler.state_dict()
    return dict(shards=joined, common=common)


def _load(state: TrainState, saved: Dict[str, Any]) -> None:
    described, local, factories = load_preprocess(_described(state, True))
    wanted, _ = extract_sharded_base(described)
    whole = _join(saved["shards"])
    dict_list_map_inplace(lambda part: whole[part.key][part.global_slice()].clone(), wanted)
    loaded = copy.deepcopy(saved["common"])
    merge(loaded, local)
    merge(loaded, apply_factory_merges(wanted, factories))
    bare(state.model[0]).load_state_dict(loaded["model"], strict=False)
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.scheduler.load_state_dict(loaded["scheduler"])
    state.step, state.consumed = BEFORE, BEFORE * state.run.global_batch_size


def _join(shards: Shards) -> Dict[str, torch.Tensor]:
    whole: Dict[str, torch.Tensor] = {}
    for (key, offset), (shape, part) in shards.items():
        full = whole.setdefault(key, torch.full(shape, float("nan"), dtype=part.dtype))
        full[tuple(slice(o, o + n) for o, n in zip(offset, part.shape))] = part
    assert not any(value.isnan().any() for value in whole.values()), "a hole"
    return whole
