"""Train the golden model in one layout after another; give losses and named gradients.

Runs on the ranks of one launch (tests.dist.ranks). Every case makes its own process groups
over the same default group.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import os
import time
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator, List
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import get_model_config

from loopmoe_train.config.compose import compose
from loopmoe_train.config.schema import RunConfig
from loopmoe_train.data.batches import Batch, _hidden
from loopmoe_train.device import fixes
from loopmoe_train.device.accelerator import select
from loopmoe_train.model import build as build_module
from loopmoe_train.model import init
from loopmoe_train.model.build import bare, named_weights, unique_name
from loopmoe_train.model.cuts import Cut, cuts
from loopmoe_train.moe import experts
from loopmoe_train.optim import ownership
from loopmoe_train.parallel import groups
from loopmoe_train.parallel.reduce import of_all_stages
from loopmoe_train.train.run import build
from loopmoe_train.train.step import TrainState, train_step
from tests.parity.wrong import every_chunk_registers, every_visit_counts, last_visit_owns

VOCAB = 96

# Its package has a function of the same name.
finalize = importlib.import_module("megatron.core.distributed.finalize_model_grads")

# Odd sizes on purpose: no dimension equals another by chance.
GOLDEN = [
    "model=loopmoe_tiny",
    "model.embedding_init_std=null",  # as other matrices: sublayers move the loss more
    "sequence_length=24",
    "micro_batch_size=2",
    "global_batch_size=8",
    "steps=40",
    "seed=7",
    "optim.warmup_steps=0",
    "optim.lr=2e-3",
    "optim.min_lr=1e-4",
    # Adam divides a gradient by its size plus this: rounding of a small one must not be magnified.
    "optim.eps=1e-5",
    "model.hidden_size=40",
    "model.prefix_layers=1",
    "model.body_layers=2",
    "model.suffix_layers=1",
    "model.dense_ffn_hidden_size=72",
    "model.loop.iterations=3",
    "model.loop.bottleneck=null",
    "model.attention.num_heads=2",
    "model.attention.q_lora_rank=20",
    "model.attention.kv_lora_rank=18",
    "model.attention.qk_head_dim=10",
    "model.attention.qk_rope_head_dim=6",
    "model.attention.v_head_dim=14",
    "model.moe.num_experts=8",
    "model.moe.top_k=3",
    "model.moe.expert_hidden_size=28",
    "model.moe.num_shared_experts=1",
    "model.moe.z_loss_coeff=1e-3",
    # The losses per micro-batch see other tokens in another layout; the one per sequence does not.
    "model.moe.aux_loss=sequence",
    "model.moe.aux_loss_coeff=1e-2",
    "model.init_std=0.1",
]


def golden(overrides: List[str]) -> RunConfig:
    """The golden run with ``overrides``."""
    return compose(GOLDEN + overrides)


def samples(run: RunConfig, first: int, count: int) -> Batch:
    """Synthetic samples: a pure function of their number; each counts another number of tokens."""
    rows = [
        torch.randint(0, VOCAB, (run.sequence_length + 1,),
                      generator=torch.Generator().manual_seed(1000 + index))
        for index in range(first, first + count)
    ]  # fmt: skip
    tokens = torch.stack(rows)
    mask = torch.ones(count, run.sequence_length)
    for row, index in enumerate(range(first, first + count)):
        mask[row, : index * 5 % 11] = 0
    positions = torch.arange(run.sequence_length).expand(count, -1)
    hidden = None
    if run.data.reset_attention_mask:
        # Two documents per sample: the second begins elsewhere in each.
        begins = torch.tensor([[1 + index * 7 % 19] for index in range(first, first + count)])
        later = torch.arange(run.sequence_length) >= begins
        positions = torch.where(later, positions - begins, positions)
        hidden = _hidden(later)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask, positions, hidden)


_joined = itertools.count()


def join() -> None:
    """Join the default group of this launch, anew if there is one."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    select("cpu")
    dist.init_process_group(
        "gloo",
        init_method=f"{os.environ['LOOPMOE_RENDEZVOUS']}-{next(_joined)}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=120),
    )


def run_cases(cases: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Train every case in turn.

    Args:
        cases: ``{"name", "overrides", "steps"}``, and ``"without"``: a safeguard to leave out.

    Returns:
        By name: losses, norms, and gradients, weights and router biases by unique name.
    """
    results = {}
    for case in cases:
        join()
        run = golden([f"cluster.devices={dist.get_world_size()}", *case["overrides"]])
        groups.make_groups(run, timedelta(seconds=120))
        groups.seed_rank(run.seed)
        with without(case.get("without", "")):
            on_call = case.get("without") in (_ON_CALL, "the first visit owns the weights")
            began = time.perf_counter()
            results[case["name"]] = _train(run, case["steps"], on_call)
            results[case["name"]]["seconds"] = time.perf_counter() - began
    return results


@contextmanager
def without(safeguard: str) -> Iterator[None]:
    """Leave out one of the things that make layouts agree, so that a test can see it missed."""
    with ExitStack() as undo:
        if safeguard == "loss per token":
            original = build_module.transformer_config

            def mean_of_means(run: RunConfig) -> Any:
                return dataclasses.replace(original(run), calculate_per_token_loss=False)

            undo.enter_context(patch.object(build_module, "transformer_config", mean_of_means))
        elif safeguard == "experts reduce among their own":
            fixes.disable_fix("expert-gradients-without-ep")
            undo.callback(fixes.disabled.remove, "expert-gradients-without-ep")
            make = experts.GroupedExperts.__init__

            def like_any_weight(self: Any, *args: Any, **kwargs: Any) -> None:
                make(self, *args, **kwargs)
                self.w1_EDGF.allreduce = self.w2_EFD.allreduce = True

            undo.enter_context(patch.object(experts.GroupedExperts, "__init__", like_any_weight))
        elif safeguard == "one start for all layouts":
            key = init._normal

            def by_rank(like: Any, std: float, name: str) -> Any:
                return key(like, std, f"{name}:{dist.get_rank()}")

            undo.enter_context(patch.object(init, "_normal", by_rank))
        elif safeguard == "bias moves with all ranks":
            undo.enter_context(
                patch.object(finalize, "get_updated_expert_bias", _bias_of_this_rank_alone)
            )
        elif safeguard == "owners share their weights":
            undo.enter_context(patch.object(ownership.Owned, "share", lambda self: None))
        elif safeguard in _WRONG_CHUNKS:
            make_chunks = build_module._chunks

            def wrong(*args: Any) -> Any:
                chunks = make_chunks(*args)
                _WRONG_CHUNKS[safeguard](chunks)
                return chunks

            undo.enter_context(patch.object(build_module, "_chunks", wrong))
        else:
            assert safeguard in ("", _ON_CALL), safeguard
        yield


_ON_CALL = "a reduction that follows backward"
_WRONG_CHUNKS: Dict[str, Callable[[List[Any]], None]] = {
    "the first visit owns the weights": last_visit_owns,
    "a weight belongs to one chunk": every_chunk_registers,
    "one counter for all iterations": every_visit_counts,
}


def _bias_of_this_rank_alone(counts: Any, bias: Any, rate: float) -> Any:
    offset = counts.sum(-1, keepdim=True) / counts.shape[-1] - counts
    return bias + torch.sign(offset) * rate


def _train(run: RunConfig, steps: int, reduce_on_call: bool) -> Dict[str, Any]:
    torch.manual_seed(0)
    state = build(run, VOCAB, lambda first, count: samples(run, first, count))
    if reduce_on_call:
        # Core's schedule then reduces a chunk's gradients some steps after its last backward.
        config = get_model_config(state.model[0])
        config.grad_sync_func = [chunk.start_grad_sync for chunk in state.model]
    gradients = _capture_gradients(state)
    losses, norms = [], []
    for _ in range(steps):
        result = train_step(state, False)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    bias = {
        name: buffer for stage in of_all_stages(_biases(state)) for name, buffer in stage.items()
    }
    weights = {k: v for k, v in named(state, lambda p: p.data).items()}
    return dict(losses=losses, norms=norms, gradients=gradients, bias=bias, weights=weights)


def _biases(state: TrainState) -> Dict[str, torch.Tensor]:
    return {
        unique_name(name, {f"decoder.layers.{i}.": f"decoder.layers.{layer.visit.layer}."
                           for i, layer in enumerate(bare(chunk).decoder.layers)}): buffer.clone()
        for chunk in state.model
        for name, buffer in bare(chunk).named_buffers()
        if name.endswith("expert_bias")
    }  # fmt: skip


def _capture_gradients(state: TrainState) -> Dict[str, torch.Tensor]:
    """Filled in the first step, between reduction and clipping."""
    captured: Dict[str, torch.Tensor] = {}
    prepare = state.optimizer.prepare_grads

    def prepare_and_capture() -> bool:
        if not captured:
            captured.update(named(state, lambda p: p.main_grad))
        return prepare()

    state.optimizer.prepare_grads = prepare_and_capture  # type: ignore[method-assign]
    return captured


def named(state: TrainState, pick: Any) -> Dict[str, torch.Tensor]:
    """Full tensors by unique name, from the shards of the distributed optimizer, the experts of
    all ranks and the cuts of tensor parallelism; infinite where copies differ by a bit."""
    owned = _owned_ranges(state)
    mine = {}
    for chunk in state.model:
        names = {id(parameter): cut for _, parameter, cut in cuts(bare(chunk))}
        for name, parameter in named_weights([chunk]):
            start, end = owned.get(parameter, (0, parameter.numel()))
            flat = pick(parameter).detach().float().reshape(-1)[start:end].clone()
            mine[name] = (start, flat, tuple(parameter.shape), names[id(parameter)])
    everywhere: List[Any] = [None] * dist.get_world_size()
    ep_rank = parallel_state.get_expert_model_parallel_rank()
    dist.all_gather_object(everywhere, (ep_rank, mine))
    joined = {}
    for name in {name: None for _, other in everywhere for name in other}:
        # (expert rank, rank of the cut) -> that part
        parts: Dict[Any, torch.Tensor] = {}
        for ep, other in everywhere:
            if name not in other:
                continue
            start, flat, shape, cut = other[name]
            key = (ep if ".experts." in name else 0, cut.rank)
            part = parts.setdefault(key, torch.full((torch.Size(shape).numel(),), float("nan")))
            there = part[start : start + flat.numel()]
            alike = torch.isnan(there).all() or torch.equal(there, flat)
            part[start : start + flat.numel()] = flat if alike else float("inf")
        whole = []
        for ep in sorted({ep for ep, _ in parts}):
            shards = [parts[ep, rank].reshape(shape) for rank in range(cut.ranks)]
            whole.append(_join(cut, shards))
        joined[name] = torch.cat(whole)
        assert not torch.isnan(joined[name]).any(), f"{name}: shards do not cover it"
    return joined


def _join(cut: Cut, parts: List[torch.Tensor]) -> torch.Tensor:
    """The whole of the parts of all ranks: the way back of Cut.part."""
    size = parts[0].shape[cut.dim] // cut.halves
    apart = [part.unflatten(cut.dim, (cut.halves, size)) for part in parts]
    return torch.cat(apart, cut.dim + 1).flatten(cut.dim, cut.dim + 1)


def _owned_ranges(state: TrainState) -> Dict[Any, Any]:
    """Parameter -> (start, end) of the part that this rank reduces; without sharding, nothing."""
    ranges: Dict[Any, Any] = {}
    if state.run.parallel.distributed_optimizer and state.run.optim.kind == "adamw":
        for _, parameter in named_weights(state.model):
            ranges[parameter] = (0, 0)
        for part in state.optimizer.chained_optimizers:
            for parameter in part.model_param_group_index_map:
                own = part._get_model_param_range_map(parameter)["param"]
                ranges[parameter] = (own.start, own.end)
    return ranges
