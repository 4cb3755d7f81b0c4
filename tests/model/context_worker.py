"""One attention layer on the ranks of one launch, against the same layer on one rank.

Runs on the ranks of one launch (tests.dist.ranks). The reference is computed by every rank
alone, in the same process.
"""

from __future__ import annotations

import dataclasses
import zlib
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, Iterator, Optional, Tuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.common.embeddings import RotaryEmbedding
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer.spec_utils import build_module
from torch import Tensor

from loopmoe_train.config.compose import compose
from loopmoe_train.data.batches import Batch, _hidden, context_slice
from loopmoe_train.model import context
from loopmoe_train.model.core_config import transformer_config
from loopmoe_train.model.layer_specs import _attention
from tests.parity.worker import join

BATCH = 2
MLA = ["model.attention.kv_lora_rank=18", "model.attention.qk_head_dim=10",
       "model.attention.qk_rope_head_dim=6", "model.attention.v_head_dim=14"]  # fmt: skip
KINDS = {
    "mla": [*MLA, "model.attention.q_lora_rank=20"],
    "mla, whole query": [*MLA, "model.attention.q_lora_rank=null"],
    "gqa": ["model.attention.kind=gqa", "model.attention.num_query_groups=4",
            "model.attention.num_heads=8", "model.attention.head_dim=10"],
}  # fmt: skip


@dataclass
class Case:
    """One layer in one layout.

    Attributes:
        chunk: tokens per chunk; the sequence has 2 * context of them.
        without: what to leave out, so that a test can see it missed.
    """

    kind: str
    scheme: str
    context: int
    tensor: int = 1
    sequence_parallel: bool = False
    packed: bool = False
    recompute: Tuple[str, ...] = ()
    chunk: int = 3
    without: str = ""


def run_cases(cases: Dict[str, Case]) -> Dict[str, float]:
    """Largest difference of each case, relative to the largest number of the tensor."""
    join()
    with _groups(1, 1):
        wanted = {name: _train(_alone(case), _length(case)) for name, case in cases.items()}
    found: Dict[str, Dict[str, Tensor]] = {}
    for layout in sorted({(case.tensor, case.context) for case in cases.values()}):
        with _groups(*layout):
            for name, case in cases.items():
                if (case.tensor, case.context) == layout:
                    with _without(case.without):
                        found[name] = _train(case, _length(case))
    return {name: _difference(case, found[name], wanted[name]) for name, case in cases.items()}


@contextmanager
def _groups(tensor: int, context_size: int) -> Iterator[None]:
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor, context_parallel_size=context_size
    )
    model_parallel_cuda_manual_seed(1, force_reset_rng=True)
    yield
    parallel_state.destroy_model_parallel()


def _length(case: Case) -> int:
    return 2 * case.context * case.chunk


def _alone(case: Case) -> Case:
    return dataclasses.replace(case, context=1, tensor=1, sequence_parallel=False, recompute=())


def _difference(case: Case, found: Dict[str, Tensor], wanted: Dict[str, Tensor]) -> float:
    mine = {
        name: _mine(x, case) if name in ("output", "input") else x for name, x in wanted.items()
    }
    assert found.keys() == mine.keys()
    worst = [float((found[name] - x).abs().max() / x.abs().max()) for name, x in mine.items()]
    everywhere = torch.tensor(max(worst))
    dist.all_reduce(everywhere, op=dist.ReduceOp.MAX)
    return float(everywhere)


@contextmanager
def _without(safeguard: str) -> Iterator[None]:
    with ExitStack() as undo:
        if safeguard == "zig-zag":
            in_line = lambda rank, size: [2 * rank, 2 * rank + 1]  # noqa: E731
            undo.enter_context(patch.object(context, "chunks_of", in_line))
        elif safeguard == "sum of gradients":
            gather = context.gather_from_sequence_parallel_region
            own = partial(gather, tensor_parallel_output_grad=False)
            undo.enter_context(patch.object(context, "gather_from_sequence_parallel_region", own))
        elif safeguard == "positions":
            forward = RotaryEmbedding.forward

            def first_rows(self: Any, length: int, packed_seq: bool = False) -> Tensor:
                rows = length if packed_seq else length // self.cp_group.size()
                return forward(self, length, packed_seq=True)[:rows]

            undo.enter_context(patch.object(RotaryEmbedding, "forward", first_rows))
        else:
            assert not safeguard, safeguard
        yield


def _train(case: Case, length: int) -> Dict[str, Tensor]:
    """Output, and gradients of the input and of every parameter (full, summed over ranks)."""
    layer, config = _layer(case)
    hidden = _drawn("hidden", (length, BATCH, config.hidden_size))
    x = _mine(hidden, case).clone().requires_grad_()
    rotary = None
    if config.multi_latent_attention is False:
        table = RotaryEmbedding(
            config.kv_channels, 1.0, cp_group=parallel_state.get_context_parallel_group()
        )
        rotary = table(length)
    output, _ = layer(x, _mask(length) if case.packed else None, rotary_pos_emb=rotary)
    (output * _mine(_drawn("weight of the loss", tuple(hidden.shape)), case)).sum().backward()
    found = {"output": output.detach(), "input": x.grad}
    return found | {name: _full_gradient(p, case) for name, p in layer.named_parameters()}


def _layer(case: Case) -> Tuple[Any, Any]:
    run = compose(["model=loopmoe_tiny", "model.hidden_size=40", *KINDS[case.kind]])
    config = dataclasses.replace(
        transformer_config(run),
        tensor_model_parallel_size=case.tensor,
        sequence_parallel=case.sequence_parallel,
        context_parallel_size=case.context,
        context_kind=case.scheme,
        perform_initialization=True,  # marks what is sharded over tensor-parallel ranks, and how
        recompute_granularity="selective" if case.recompute else None,
        recompute_modules=list(case.recompute),
    )
    layer = build_module(_attention(run.model.attention), config=config, layer_number=1)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            dim = _sharded_dim(parameter, case)
            shape = [n * (case.tensor if i == dim else 1) for i, n in enumerate(parameter.shape)]
            full = _drawn(name, tuple(shape)) / shape[-1] ** 0.5
            rank = parallel_state.get_tensor_model_parallel_rank()
            parameter.copy_(full if dim is None else full.chunk(case.tensor, dim)[rank])
    return layer.train(), config


def _sharded_dim(parameter: Tensor, case: Case) -> Optional[int]:
    sharded = case.tensor > 1 and getattr(parameter, "tensor_model_parallel", False)
    return parameter.partition_dim if sharded else None


def _full_gradient(parameter: Any, case: Case) -> Tensor:
    gradient = parameter.grad.clone()
    dist.all_reduce(gradient, group=parallel_state.get_context_parallel_group())
    group = parallel_state.get_tensor_model_parallel_group()
    if getattr(parameter, "sequence_parallel", False):
        dist.all_reduce(gradient, group=group)
    dim = _sharded_dim(parameter, case)
    if dim is None:
        return gradient
    shards = [torch.empty_like(gradient) for _ in range(case.tensor)]
    dist.all_gather(shards, gradient.contiguous(), group=group)
    return torch.cat(shards, dim)


def _drawn(name: str, shape: Tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator)


def _mine(x: Tensor, case: Case) -> Tensor:
    """The part [s / ranks, b, h] of this rank; the groups of the case may be gone already."""
    rank = dist.get_rank()
    tensor_rank, context_rank = rank % case.tensor, rank // case.tensor % case.context
    rows = x.transpose(0, 1)
    part = context_slice(Batch(rows, rows, rows, rows, None), context_rank, case.context)
    part = part.tokens.transpose(0, 1)
    return part.chunk(case.tensor)[tensor_rank] if case.sequence_parallel else part


def _mask(length: int) -> Tensor:
    """bool [b, 1, s, s] of documents that begin elsewhere in each row."""
    begins = torch.zeros(BATCH, length, dtype=torch.int64)
    begins[0, [1, length // 2 + 1]] = 1
    begins[1, [length // 3, length - 1]] = 1
    return _hidden(begins.cumsum(1))
