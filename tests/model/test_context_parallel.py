"""Attention over the tokens of several ranks is attention: output and all gradients."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Dict

import pytest
import torch
from megatron.core import utils
from megatron.core.transformer.enums import AttnMaskType

from loopmoe_train.data.batches import Batch, context_slice
from loopmoe_train.model.attention import ScaledDotProductAttention
from tests.dist import ranks
from tests.model.context_worker import KINDS, Case

TOLERANCE = 1e-5
MLA, GQA, BOTH = "mla", "gqa", ("mla_up_proj", "core_attn")
SCHEMES = ("gather", "ulysses")

ON_TWO = {
    f"{scheme}, {kind}, {'packed' if packed else 'causal'}": Case(kind, scheme, 2, packed=packed)
    for scheme in SCHEMES
    for kind in KINDS
    for packed in (False, True)
}
for scheme in SCHEMES:
    ON_TWO[f"{scheme}, {MLA}, more than a block"] = Case(MLA, scheme, 2, chunk=37)
    ON_TWO[f"{scheme}, {MLA}, recomputed"] = Case(MLA, scheme, 2, recompute=BOTH)
    ON_TWO[f"{scheme}, {GQA}, recomputed"] = Case(GQA, scheme, 2, recompute=BOTH[1:], packed=True)
ON_FOUR: Dict[str, Case] = {}
for scheme in SCHEMES:
    for kind in (MLA, GQA):
        four, pairs = Case(kind, scheme, 4), Case(kind, scheme, 2, tensor=2)
        whole = replace(pairs, sequence_parallel=True, packed=True)
        ON_FOUR[f"{scheme}, {kind}, CP4"] = four
        ON_FOUR[f"{scheme}, {kind}, CP4 packed"] = replace(four, packed=True)
        ON_FOUR[f"{scheme}, {kind}, TP2 x CP2"] = pairs
        ON_FOUR[f"{scheme}, {kind}, TP2 x CP2 sequence parallel"] = whole
    ON_FOUR[f"{scheme}, {MLA}, TP2 x CP2 sequence parallel, recomputed"] = Case(
        MLA, scheme, 2, tensor=2, sequence_parallel=True, recompute=BOTH
    )
    ON_FOUR[f"{scheme}, whole query, TP2 x CP2 sequence parallel"] = Case(
        "mla, whole query", scheme, 2, tensor=2, sequence_parallel=True
    )
WITHOUT = {
    f"{scheme} without {safeguard}": Case(MLA, scheme, 2, without=safeguard)
    for scheme in SCHEMES
    for safeguard in ("zig-zag", "sum of gradients", "positions")
    if (scheme, safeguard) != ("ulysses", "sum of gradients")  # it gathers nothing
}


def _run(cases: Dict[str, Case], processes: int) -> Dict[str, float]:
    found: Dict[str, float] = ranks.run("tests.model.context_worker:run_cases", processes, cases)[0]
    return found


@pytest.fixture(scope="module")
def two() -> Dict[str, float]:
    return _run({**ON_TWO, **WITHOUT}, 2)


@pytest.fixture(scope="module")
def four() -> Dict[str, float]:
    return _run(ON_FOUR, 4)


@pytest.mark.parametrize("case", ON_TWO)
def test_two_ranks(two: Dict[str, float], case: str) -> None:
    assert two[case] <= TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("case", ON_FOUR)
def test_four_ranks(four: Dict[str, float], case: str) -> None:
    assert four[case] <= TOLERANCE


@pytest.mark.parametrize("case", WITHOUT)
def test_without_a_safeguard_it_shows(two: Dict[str, float], case: str) -> None:
    assert not two[case] <= 1e-2


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_slices_are_those_of_core(size: int) -> None:
    class Group:
        def __init__(self, rank: int) -> None:
            self.rank, self.size = lambda: rank, lambda: size

    length = 24
    tokens = torch.randint(0, 99, (3, length))
    batch = Batch(tokens, tokens + 1, torch.rand(3, length), tokens + 2, torch.ones(3, 1, 24, 24))
    fields = ("tokens", "labels", "loss_mask", "position_ids")
    for rank in range(size):
        mine = context_slice(batch, rank, size)
        core = {name: getattr(batch, name) for name in fields}
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(utils, "get_pg_size", lambda group: group.size())
            patched.setattr(utils, "get_pg_rank", lambda group: group.rank())
            core = utils.get_batch_on_this_cp_rank(core, cp_group=Group(rank))
        for name in fields:
            assert torch.equal(getattr(mine, name), core[name])
        assert mine.attention_mask is batch.attention_mask


def test_too_few_heads_for_ulysses_are_refused() -> None:
    config = SimpleNamespace(context_parallel_size=4, context_kind="ulysses", attention_dropout=0.0)
    groups = SimpleNamespace(cp=SimpleNamespace(size=lambda: 4, rank=lambda: 0))
    core = ScaledDotProductAttention(config, 1, AttnMaskType.causal, "self", pg_collection=groups)
    query, key = torch.zeros(6, 1, 8, 4), torch.zeros(6, 1, 2, 4)
    with pytest.raises(ValueError, match="8 heads in 2 groups per rank, context size 4"):
        core(query, key, key, None)


def test_a_sequence_that_cannot_be_cut_is_refused() -> None:
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match="two chunks of 6 tokens"):
        context_slice(Batch(tokens, tokens, tokens, tokens, None), 0, 2)
