"""Every layout trains like one process: losses, gradients, router biases and weights by name.

Exit codes prove nothing here: what goes wrong off megatron-core's main path goes wrong silently.
The default suite runs the layouts of two ranks; `make parity` adds four ranks and repetitions.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List

import pytest
import torch

from tests.dist import ranks

STEPS = 4
LOSS, GRADIENT = 1e-6, 1e-5  # relative
# Adam's first steps divide each gradient by its own size: rounding of a small one is not small.
WEIGHT = 1e-4

SHARDED, WHOLE = "distributed_optimizer=true", "distributed_optimizer=false"
OVERLAP = ["parallel.overlap_grad_reduce=true"]
GATHER = [*OVERLAP, "parallel.overlap_param_gather=true"]


def _layout(expert_parallel: int, optimizer: str, *more: str) -> List[str]:
    return [f"parallel.expert_parallel_size={expert_parallel}", f"parallel.{optimizer}", *more]


ON_TWO = {
    "DP2": _layout(1, WHOLE),
    "DP2 sharded": _layout(1, SHARDED),
    "DP2 sharded overlapped": _layout(1, SHARDED, *GATHER),
    "EP2": _layout(2, WHOLE),
    "EP2 sharded": _layout(2, SHARDED),
    "EP2 sharded overlapped": _layout(2, SHARDED, *GATHER),
    "EP2 overlapped": _layout(2, WHOLE, *OVERLAP),
    "EP2 allgather": _layout(2, SHARDED, "model.moe.dispatcher=allgather"),
    "EP2 recomputed": _layout(2, SHARDED, "memory=full"),
    "EP2 partly recomputed": _layout(2, SHARDED, "memory=selective"),
    "EP2 one sequence at a time": _layout(2, SHARDED, "micro_batch_size=1"),
}
ON_FOUR = {
    "DP4 sharded overlapped": _layout(1, SHARDED, *GATHER),
    "DP2 x EP2 sharded": _layout(2, SHARDED),
    "DP2 x EP2 sharded overlapped": _layout(2, SHARDED, *GATHER),
    "DP2 x EP2 whole": _layout(2, WHOLE),
    "EP4 sharded": _layout(4, SHARDED, "micro_batch_size=1"),
    "EP4 sharded overlapped recomputed": _layout(4, SHARDED, *GATHER, "memory=full"),
}
# Models that differ from the golden one; each is compared with itself on one process.
VARIANTS = {
    "golden": [],
    "vanilla": ["model=vanilla_tiny", "model.hidden_size=40", "model.moe.num_experts=8",
                "model.moe.aux_loss=sequence"],
    "unclipped, no expert bias": ["optim.clip_grad=0", "model.moe.expert_bias_update_rate=0"],
    "gqa, softmax, scalar gate, one MLP_iter": [
        "model.attention.kind=gqa", "model.attention.num_query_groups=1",
        "model.attention.head_dim=14", "model.moe.score_function=softmax",
        "model.moe.expert_bias_update_rate=0", "model.loop.gate=scalar",
        "model.loop.bottleneck=13", "model.loop.share_iteration_mlp=true"],
    "tied embeddings, plain norms": ["model.tie_embeddings=true", "model.sandwich_norm=false"],
    "drops tokens, limited groups, depth-scaled": [
        "model.moe.capacity_factor=0.75", "model.moe.group_routing=limited",
        "model.moe.num_groups=4", "model.moe.topk_groups=3", "model.init=tiny",
        "model.embedding_init_std=0.5", "model.depth_scaled_gains=[0.3,0.4]"],
    "drawn iterations, injected state, cut gradients": [
        "model.loop.min_iterations=1", "model.loop.state_injection=true",
        "model.loop.backprop_iterations=1"],
    "two tokens ahead": ["model.mtp_layers=2", "model.mtp_loss_coeff=0.3", "memory=full"],
    "pads to capacity, balanced groups": [
        "model.moe.capacity_factor=1.0", "model.moe.pad_to_capacity=true", "model.moe.top_k=2",
        "model.moe.group_routing=balanced", "model.moe.num_groups=2"],
}  # fmt: skip
# Balance losses over more than a rank's tokens: what one process and two ranks are given.
_BY_GROUP = ["model.moe.aux_loss=expert_parallel"]
_BY_BATCH = ["model.moe.aux_loss=global_batch", "model.moe.balance_over=visit"]
BALANCE = {
    # The tokens of one pass over the group are those of one larger micro-batch.
    "of the expert-parallel group": (
        [*_BY_GROUP, "micro_batch_size=4"], [*_BY_GROUP, "micro_batch_size=2"]),
    "of the global batch": (_BY_BATCH, [*_BY_BATCH, "micro_batch_size=1", "memory=full"]),
}  # fmt: skip
MUON = {
    "DP2 muon": _layout(1, SHARDED, "optim=muon"),
    "DP2 muon overlapped": _layout(1, SHARDED, "optim=muon", *OVERLAP),
    "EP2 muon": _layout(2, SHARDED, "optim=muon"),
}
MUON_ON_FOUR = {
    "DP4 muon": _layout(1, SHARDED, "optim=muon"),
    "DP2 x EP2 muon": _layout(2, SHARDED, "optim=muon"),
    "EP4 muon": _layout(4, SHARDED, "optim=muon", "micro_batch_size=1"),
}
WIDER = ["model.moe.expert_hidden_size=32"]  # bf16 needs a multiple of 8
SAFEGUARDS = (
    "loss per token",
    "experts reduce among their own",
    "one start for all layouts",
    "bias moves with all ranks",
)


def _case(name: str, *overrides: str, without: str = "") -> Dict[str, Any]:
    return dict(name=name, overrides=list(overrides), steps=STEPS, without=without)


def train(cases: List[Dict[str, Any]], processes: int) -> Dict[str, Any]:
    seconds = 120 + 10 * len(cases)
    return ranks.run("tests.parity.worker:run_cases", processes, cases, timeout_s=seconds)[0]


@pytest.fixture(scope="module")
def trained() -> Dict[int, Dict[str, Any]]:
    """All cases of the default suite: one launch with one process beside one with two."""
    one = [_case(name, "parallel=data", *more) for name, more in VARIANTS.items()]
    one += [_case("golden, wider experts", "parallel=data", *WIDER)]
    one += [_case("muon", "parallel=data", "optim=muon")]
    one += [_case(name, "parallel=data", *alone) for name, (alone, _) in BALANCE.items()]
    two = [_case(name, *layout) for name, layout in ON_TWO.items()]
    two += [
        _case(name, *_layout(2, SHARDED, *more))
        for name, more in VARIANTS.items()
        if name != "golden"
    ]
    two += [_case(f"without {name}", *_layout(2, WHOLE), without=name) for name in SAFEGUARDS]
    two += [_case(name, *layout) for name, layout in MUON.items()]
    two += [_case(name, *_layout(2, SHARDED, *pair)) for name, (_, pair) in BALANCE.items()]
    two += [_case("muon alone", *MUON["DP2 muon"], without="owners share their weights")]
    with ThreadPoolExecutor(2) as pool:
        alone, pair = pool.submit(train, one, 1), pool.submit(train, two, 2)
        return {1: alone.result(), 2: pair.result()}


def differences(found: Dict[str, Any], wanted: Dict[str, Any]) -> List[str]:
    """What differs by more than the tolerances; empty when the two runs are the same."""
    wrong = []
    for step, (a, b) in enumerate(zip(found["losses"], wanted["losses"], strict=True), start=1):
        if not abs(a - b) <= LOSS * abs(b):
            wrong.append(f"loss of step {step}: {a} instead of {b}")
    for kind, tolerance in (("gradients", GRADIENT), ("weights", WEIGHT), ("bias", LOSS)):
        assert found[kind].keys() == wanted[kind].keys()
        for name, reference in wanted[kind].items():
            error = (found[kind][name] - reference).norm()
            # The body's attention starts with a gradient of exactly zero: so must every layout.
            if not error <= tolerance * reference.norm():
                relative = float(error / reference.norm())
                wrong.append(f"{kind} {name}: relative error {relative:.1e}")
    return wrong


@pytest.mark.parametrize("layout", ON_TWO)
def test_layout(trained: Dict[int, Any], layout: str) -> None:
    assert not differences(trained[2][layout], trained[1]["golden"])


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "golden"])
def test_variant(trained: Dict[int, Any], variant: str) -> None:
    assert not differences(trained[2][variant], trained[1][variant])


@pytest.mark.parametrize("safeguard", SAFEGUARDS)
def test_without_a_safeguard_it_shows(trained: Dict[int, Any], safeguard: str) -> None:
    assert differences(trained[2][f"without {safeguard}"], trained[1]["golden"])


@pytest.mark.parametrize("scope", BALANCE)
def test_balance(trained: Dict[int, Any], scope: str) -> None:
    assert not differences(trained[2][scope], trained[1][scope])
    # The loss does something: the run goes another way than the golden one.
    assert trained[1][scope]["losses"][-1] != trained[1]["golden"]["losses"][-1]


@pytest.mark.parametrize("layout", MUON)
def test_muon(trained: Dict[int, Any], layout: str) -> None:
    found, wanted = trained[2][layout], trained[1]["muon"]
    assert not differences(found, wanted)
    # An orthogonalised step forgets the scale of the gradient: a wrong norm would not show above.
    assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-5)


def test_muon_without_the_exchange_shows(trained: Dict[int, Any]) -> None:
    assert differences(trained[2]["muon alone"], trained[1]["muon"])


def test_the_golden_run_moves_everything(trained: Dict[int, Any]) -> None:
    """Nothing above passes because nothing happened: each weight moved, each expert learned."""
    golden = trained[1]["golden"]
    assert golden["losses"][-1] < golden["losses"][0] - 0.05
    still = {name for name, grad in golden["gradients"].items() if not grad.any()}
    assert all(".layers.1." in name or ".layers.2." in name for name in still)
    for name, grad in golden["gradients"].items():
        if ".experts." in name:
            assert grad.flatten(1).any(1).all(), f"{name}: an expert without a token"
    for bias in golden["bias"].values():
        assert bias.any()


@pytest.mark.parity
@pytest.mark.timeout(3600)
def test_four_ranks_and_repetitions() -> None:
    """The whole grid; what is a race shows in some runs only."""
    alone = [_case("golden", "parallel=data"), _case("muon", "parallel=data", "optim=muon")]
    golden, muon = train(alone, 1).values()
    wrong: List[str] = []
    for processes, layouts, repeats in ((2, ON_TWO, 8), (4, ON_FOUR, 4)):
        cases = [
            _case(f"{name}, run {index + 1}", *layout)
            for index in range(repeats)
            for name, layout in layouts.items()
        ]
        for name, result in train(cases, processes).items():
            wrong += [f"{name}: {text}" for text in differences(result, golden)]
    for name, result in train(
        [_case(name, *layout) for name, layout in MUON_ON_FOUR.items()], 4
    ).items():
        wrong += [f"{name}: {text}" for text in differences(result, muon)]
    assert not wrong, "\n".join(wrong[:20])


def test_bf16_follows_fp32(trained: Dict[int, Any]) -> None:
    """Rounded, but no other run: the losses of mixed precision stay near those of fp32."""
    half = train([_case("bf16", "parallel.expert_parallel_size=2", "precision=bf16", *WIDER)], 2)[
        "bf16"
    ]
    wanted = torch.tensor(trained[1]["golden, wider experts"]["losses"])
    torch.testing.assert_close(torch.tensor(half["losses"]), wanted, rtol=5e-3, atol=0)
