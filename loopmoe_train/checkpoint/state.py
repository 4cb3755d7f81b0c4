"""What a checkpoint holds, in megatron-core's terms, named by unique layer.

Model and optimizer describe themselves as core's sharded tensors (``sharded_state_dict``, the
distributed optimizer as ``fully_reshardable``), so that any layout can read what another wrote.
Random states belong to a rank and fit the same layout only.
"""

from __future__ import annotations

import io
import pickle
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Tuple

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_inplace, merge, nested_values
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensor,
    apply_factory_merges,
    is_main_replica,
)
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess, save_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import Tensor

from loopmoe_train.checkpoint.forms import in_form_of
from loopmoe_train.checkpoint.tensors import Shard
from loopmoe_train.device.accelerator import accel
from loopmoe_train.model.build import bare, unique_name

_METADATA = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "chained_optim_avoid_prefix": True,
    "non_homogeneous_layers": True,
}
_RANDOM = "random"


@dataclass
class Trained:
    """The objects whose state is kept.

    Attributes:
        prefixes: from ``layer_names``: visits that own weights -> unique layers.
    """

    model: List[Any]
    optimizer: Any
    scheduler: OptimizerParamScheduler
    prefixes: Dict[str, str]


def capture(trained: Trained, position: Dict[str, int]) -> Tuple[List[Shard], bytes]:
    """This rank's shards, copied to the host, and the state that all ranks share, as bytes.

    A collective call: the distributed optimizer gathers what its ranks hold.

    Args:
        position: step and consumed samples.
    """
    for chunk in trained.model:
        if chunk.ddp_config.overlap_param_gather:
            # What the last step updated is gathered by the next forward: too late for us.
            chunk.start_param_sync(force_sync=True)
    with _whole(trained.model):
        described = _described(trained, is_loading=False)
        described["scheduler"] = trained.scheduler.state_dict()
        described["position"] = position
        sharded, common = save_preprocess(described, validate_access_integrity=False)
        shards = [
            Shard(part.key, tuple(part.global_offset), tuple(part.global_shape), _host(part.data))
            for part in nested_values(sharded)
            if isinstance(part, ShardedTensor) and is_main_replica(part.replica_id)
        ]
    shards += [
        Shard(f"{_RANDOM}/{dist.get_rank()}/{name}", (0,) * value.dim(), tuple(value.shape),
              _host(value))
        for name, value in random_states().items()
    ]  # fmt: skip
    buffer = io.BytesIO()
    torch.save(common, buffer)
    return shards, buffer.getvalue()


class Restore:
    """Two steps, so that nothing is touched before every rank has read all it needs."""

    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        with _whole(trained.model):
            described, self._local, self._factories = load_preprocess(
                _described(trained, is_loading=True)
            )
        self._wanted, _ = extract_sharded_base(described)

    def wanted(self) -> List[ShardedTensor]:
        """The parts of global tensors that this rank needs."""
        return [part for part in nested_values(self._wanted) if isinstance(part, ShardedTensor)]

    def apply(
        self, common: bytes, read: Dict[int, Tensor], random: Dict[str, Tensor]
    ) -> Dict[str, int]:
        """Put the state back; returns the position.

        Args:
            common: bytes that :func:`capture` made, verified.
            read: ``id`` of a wanted part -> its tensor.
            random: random states of this rank, {} where the layout is another one.

        Raises:
            RuntimeError: the state does not fit the model.
        """
        state = load_common(common)
        state["optimizer"] = in_form_of(self._trained.optimizer, state["optimizer"])
        dict_list_map_inplace(lambda part: read[id(part)], self._wanted)
        merge(state, self._local)
        merge(state, apply_factory_merges(self._wanted, self._factories))
        trained = self._trained
        self._load_weights(state)
        fresh = {name: trained.optimizer.param_groups[0].get(name) for name in ("max_lr", "min_lr")}
        trained.optimizer.load_state_dict(state["optimizer"])
        for group in trained.optimizer.param_groups:
            # The rates of this run, not of the one that saved: core keeps them per group.
            group.update({name: rate for name, rate in fresh.items() if rate is not None})
        trained.scheduler.load_state_dict(state["scheduler"])
        if random:
            set_random_states(random)
        position: Dict[str, int] = state["position"]
        return position

    def _load_weights(self, state: Dict[str, Any]) -> None:
        with _whole(self._trained.model, changed=True):
            for index, chunk in enumerate(self._trained.model):
                missing, unexpected = bare(chunk).load_state_dict(
                    state.get(f"model{index}", {}),
                    strict=False,  # later iterations own nothing
                )
                # Core leaves non-tensor "_extra_state" entries, which hold nothing here.
                real = [name for name in missing if not name.endswith("_extra_state")]
                if real or unexpected:
                    raise RuntimeError(
                        f"weights do not fit: missing {real}, unexpected {unexpected}"
                    )


def load_common(content: bytes) -> Dict[str, Any]:
    """Open ``common.pt``: plain values and tensors only, it never gets to run code.

    Raises:
        pickle.UnpicklingError: it holds something else.
    """
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise pickle.UnpicklingError("not a dictionary")
    return state


def random_keys(rank: int) -> str:
    """Prefix of the names of one rank's random states."""
    return f"{_RANDOM}/{rank}/"


@contextmanager
def _whole(model: List[Any], changed: bool = False) -> Iterator[None]:
    """Weights that are spread over ranks (ZeRO) are there in full, and written back if changed."""
    with ExitStack() as stack:
        for chunk in model:
            if hasattr(chunk, "whole"):
                stack.enter_context(chunk.whole(changed))
        yield


def _described(trained: Trained, is_loading: bool) -> Dict[str, Any]:
    described: Dict[str, Any] = {}
    weights: Dict[str, Any] = {}
    metadata: Dict[str, Any] = dict(_METADATA)  # core adds the process groups of this layout
    for index, chunk in enumerate(trained.model):
        mine = bare(chunk).sharded_state_dict(metadata=metadata)
        mine = {name: part for name, part in mine.items() if not isinstance(part, ShardedObject)}
        for part in mine.values():
            part.key = unique_name(part.key, trained.prefixes)
        described[f"model{index}"] = mine
        weights |= {f"{index}.{name}": part for name, part in mine.items()}
    described["optimizer"] = trained.optimizer.sharded_state_dict(
        weights, is_loading=is_loading, metadata=metadata
    )
    return described


def _host(tensor: Tensor) -> Tensor:
    """A copy on the host, so that training can go on while it is written."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def random_states() -> Dict[str, Tensor]:
    """The states of this rank's random generators."""
    states = {"host": torch.get_rng_state(), "device": accel.rng_state()}
    for name, state in get_cuda_rng_tracker().get_states().items():
        states[f"tracker/{name}"] = state
    return states


def set_random_states(states: Dict[str, Tensor]) -> None:
    """Put back what :func:`random_states` gave."""
    torch.set_rng_state(states["host"])
    accel.set_rng_state(states["device"])
    tracked = {name[8:]: value for name, value in states.items() if name.startswith("tracker/")}
    get_cuda_rng_tracker().set_states(tracked)
