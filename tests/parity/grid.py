"""The parity grid: every layout trains like one process. A row is one line.

    python -m tests.parity.grid [--rows WORDS] [--repeat N] [--json FILE]

runs it, prints the largest relative error of every row, and fails if one is wrong.
`test_layouts.py` asserts the rows marked ``DEFAULT`` once, `make parity` runs all of them,
repeatedly: what is a race shows in some runs only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence

from tests.dist import ranks

STEPS = 4
LAUNCH = 16  # cases
# Relative. Adam's first steps divide each gradient by its own size: rounding of a small one is
# not small, hence the last.
LOSS, GRADIENT, WEIGHT = 1e-6, 1e-5, 1e-4

# Models that differ from the golden one of worker.py; each is compared with itself.
MODELS: Dict[str, List[str]] = {
    "golden": [],
    "vanilla": ["model=vanilla_tiny", "model.loop.iterations=1"],
    "vanilla, 8 layers": ["model.loop.iterations=1", "model.body_layers=6"],
    "unclipped, no expert bias": ["optim.clip_grad=0", "model.moe.expert_bias_update_rate=0"],
    "gqa, softmax, scalar gate, one MLP_iter": [
        "model.attention.kind=gqa", "model.attention.num_query_groups=1",
        "model.attention.head_dim=14", "model.moe.score_function=softmax",
        "model.moe.expert_bias_update_rate=0", "model.loop.gate=scalar",
        "model.loop.bottleneck=13", "model.loop.share_iteration_mlp=true"],
    "gqa of two groups": [
        "model.attention.kind=gqa", "model.attention.num_heads=4",
        "model.attention.num_query_groups=2", "model.attention.head_dim=14",
        "model.attention.qk_norm=true"],
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
    "wider experts": ["model.moe.expert_hidden_size=32"],
    "2 iterations": ["model.loop.iterations=2"],
    "4 iterations, whole queries": [
        "model.loop.iterations=4", "model.attention.q_lora_rank=null"],
    "body of 4": ["model.body_layers=4", "model.loop.iterations=2", "model.prefix_layers=2",
                  "model.suffix_layers=2"],
    "body of 5, 3 iterations": ["model.body_layers=5", "model.prefix_layers=2"],
    "4 heads": ["model.attention.num_heads=4"],
    "loads of the batch, per visit": [
        "model.moe.aux_loss=global_batch", "model.moe.balance_over=visit"],
    "muon": ["optim=muon"],
    "muon, tied embeddings": ["optim=muon", "model.tie_embeddings=true"],
    "packed documents": ["data.reset_attention_mask=true"],
    "packed documents, two tokens ahead": [
        "data.reset_attention_mask=true", "model.mtp_layers=2"],
    "loss of the micro-batch": ["model.moe.aux_loss=micro_batch"],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A layout and the model that it trains; ``default``: part of the default suite."""

    name: str
    ranks: int
    settings: Sequence[str]
    model: str = "golden"
    default: bool = False


DEFAULT = True
_SHORT = {
    "tp": "tensor_parallel_size", "cp": "context_parallel_size", "pp": "pipeline_parallel_size",
    "vpp": "virtual_pipeline_size", "ep": "expert_parallel_size",
    "etp": "expert_tensor_parallel_size",
}  # fmt: skip
WHOLE = ["parallel.distributed_optimizer=false"]
OVERLAP = ["parallel.overlap_grad_reduce=true"]
GATHER = [*OVERLAP, "parallel.overlap_param_gather=true"]
ALLGATHER = ["model.moe.dispatcher=allgather"]
FULL, SOME = ["memory=full"], ["memory=selective"]
ONE = ["micro_batch_size=1"]
BESIDE = ["model.moe.overlap_shared_experts=true"]
ULYSSES = ["parallel.context_parallel=ulysses"]


def nodes(of: int, dispatcher: str) -> List[str]:
    """Experts that span nodes of so many ranks."""
    return [f"cluster.devices_per_node={of}", f"model.moe.dispatcher={dispatcher}"]


def on(sizes: str, *more: Sequence[str]) -> List[str]:
    """``"tp2 ep2"`` as settings, and more of them."""
    found = {"ep": "1"}
    for word in sizes.split():
        axis = word.rstrip("0123456789")
        found[axis] = word[len(axis) :]
    return [f"parallel.{_SHORT[a]}={size}" for a, size in found.items()] + [
        setting for group in more for setting in group
    ]


ROWS = [
    # data and experts
    Row("DP2", 2, on("", WHOLE), default=DEFAULT),
    Row("DP2 sharded", 2, on("")),
    Row("DP2 sharded overlapped", 2, on("", GATHER), default=DEFAULT),
    Row("EP2", 2, on("ep2", WHOLE)),
    Row("EP2 sharded", 2, on("ep2")),
    Row("EP2 sharded overlapped", 2, on("ep2", GATHER), default=DEFAULT),
    Row("EP2 overlapped", 2, on("ep2", WHOLE, OVERLAP)),
    Row("EP2 allgather", 2, on("ep2", ALLGATHER), default=DEFAULT),
    Row("EP2 recomputed", 2, on("ep2", FULL)),
    Row("EP2 partly recomputed", 2, on("ep2", SOME), default=DEFAULT),
    Row("EP2 one sequence at a time", 2, on("ep2", ONE), default=DEFAULT),
    *[
        Row(f"EP2, {name}", 2, on("ep2"), name, DEFAULT)
        for name in (
            "vanilla", "unclipped, no expert bias", "gqa, softmax, scalar gate, one MLP_iter",
            "tied embeddings, plain norms", "drops tokens, limited groups, depth-scaled",
            "drawn iterations, injected state, cut gradients", "two tokens ahead",
            "pads to capacity, balanced groups")
    ],  # fmt: skip
    Row("DP4 sharded overlapped", 4, on("", GATHER)),
    Row("DP2 x EP2 sharded", 4, on("ep2")),
    Row("DP2 x EP2 sharded overlapped", 4, on("ep2", GATHER)),
    Row("DP2 x EP2 whole", 4, on("ep2", WHOLE)),
    Row("EP4 sharded", 4, on("ep4", ONE)),
    Row("EP4 sharded overlapped recomputed", 4, on("ep4", GATHER, FULL)),
    # experts over nodes
    Row("EP2 shared experts beside", 2, on("ep2", BESIDE), default=DEFAULT),
    Row("EP2 hierarchical", 2, on("ep2", nodes(1, "hierarchical"), GATHER), default=DEFAULT),
    Row("EP2 deduplicated", 2, on("ep2", nodes(1, "deduplicated"), BESIDE), default=DEFAULT),
    Row("EP2 deduplicated recomputed", 2, on("ep2", nodes(1, "deduplicated"), FULL, BESIDE)),
    *[
        Row(f"EP2 {kind}, {name}", 2, on("ep2", nodes(1, kind)), name)
        for kind in ("hierarchical", "deduplicated")
        for name in (
            "drops tokens, limited groups, depth-scaled", "pads to capacity, balanced groups",
            "two tokens ahead")
    ],  # fmt: skip
    Row("EP4 hierarchical", 4, on("ep4", nodes(2, "hierarchical"), ONE)),
    Row("EP4 deduplicated", 4, on("ep4", nodes(2, "deduplicated"), ONE, GATHER)),
    Row("EP4 deduplicated, partly recomputed", 4, on("ep4", nodes(2, "deduplicated"), ONE, SOME)),
    Row("TP2 x DP2, EP4 hierarchical", 4, on("tp2 ep4", nodes(2, "hierarchical"), BESIDE, FULL)),
    Row("TP2 x CP2, EP4 deduplicated", 4, on("tp2 cp2 ep4", nodes(2, "deduplicated"))),
    Row("PP2 x EP2 hierarchical", 4, on("pp2 ep2", nodes(1, "hierarchical"), ONE)),
    Row("PP2 x EP2 deduplicated", 4, on("pp2 ep2", nodes(1, "deduplicated"), ONE, GATHER)),
    # Muon: whole matrices over their owners
    Row("DP2 muon", 2, on(""), "muon", DEFAULT),
    Row("DP2 muon overlapped", 2, on("", OVERLAP), "muon"),
    Row("EP2 muon", 2, on("ep2"), "muon", DEFAULT),
    Row("DP4 muon", 4, on(""), "muon"),
    Row("DP2 x EP2 muon", 4, on("ep2"), "muon"),
    Row("EP4 muon", 4, on("ep4", ONE), "muon"),
    Row("PP2 muon", 2, on("pp2"), "muon", DEFAULT),
    Row("PP2 muon, tied embeddings", 2, on("pp2"), "muon, tied embeddings"),
    Row("PP2 x DP2 muon", 4, on("pp2"), "muon"),
    # tensor, with sequence parallelism
    Row("TP2", 2, on("tp2"), default=DEFAULT),
    Row("TP2 whole", 2, on("tp2", WHOLE)),
    Row("TP2 EP2, experts over tensor ranks", 2, on("tp2 ep2"), default=DEFAULT),
    Row("TP2 EP2 allgather", 2, on("tp2 ep2", ALLGATHER)),
    Row("TP2 ETP2", 2, on("tp2 etp2"), "wider experts", DEFAULT),
    Row("TP2 ETP2 allgather", 2, on("tp2 etp2", ALLGATHER), "wider experts"),
    Row("TP2 recomputed", 2, on("tp2 ep2", FULL)),
    Row("TP2 partly recomputed", 2, on("tp2 ep2", SOME)),
    Row("TP2, gqa of two groups", 2, on("tp2"), "gqa of two groups"),
    Row("TP2, whole queries", 2, on("tp2"), "4 iterations, whole queries"),
    Row("TP2, tied embeddings", 2, on("tp2"), "tied embeddings, plain norms"),
    Row("TP2, two tokens ahead", 2, on("tp2 ep2"), "two tokens ahead"),
    Row("TP2, loads of the batch", 2, on("tp2 ep2"), "loads of the batch, per visit"),
    Row("TP2, drawn iterations", 2, on("tp2"), "drawn iterations, injected state, cut gradients"),
    Row("TP2 x DP2", 4, on("tp2", GATHER)),
    Row("TP2 x DP2, EP2 over tensor ranks", 4, on("tp2 ep2", GATHER)),
    Row("TP2 x DP2, EP4 over both", 4, on("tp2 ep4")),
    Row("TP2 x DP2, ETP2 x EP2", 4, on("tp2 etp2 ep2"), "wider experts"),
    Row("DP4, ETP2 x EP2", 4, on("etp2 ep2"), "wider experts"),
    Row("TP4", 4, on("tp4"), "4 heads"),
    # context: latents gathered, or heads exchanged
    Row("CP2", 2, on("cp2"), default=DEFAULT),
    Row("CP2 whole", 2, on("cp2", WHOLE)),
    Row("CP2 x EP2 overlapped", 2, on("cp2 ep2", GATHER), default=DEFAULT),
    Row("CP2 partly recomputed", 2, on("cp2", SOME), default=DEFAULT),
    Row("CP2 ulysses", 2, on("cp2", ULYSSES), default=DEFAULT),
    Row("CP2 ulysses x EP2 recomputed", 2, on("cp2 ep2", ULYSSES, FULL)),
    Row("CP2, packed documents", 2, on("cp2"), "packed documents", DEFAULT),
    Row("CP2 ulysses, packed, two tokens ahead", 2, on("cp2", ULYSSES),
        "packed documents, two tokens ahead", DEFAULT),
    Row("CP2, gqa of two groups", 2, on("cp2"), "gqa of two groups"),
    Row("CP2 ulysses, gqa of two groups", 2, on("cp2", ULYSSES), "gqa of two groups"),
    Row("CP2, loss of the micro-batch", 2, on("cp2"), "loss of the micro-batch"),
    Row("CP2, loads of the batch", 2, on("cp2 ep2"), "loads of the batch, per visit"),
    Row("CP2, tied embeddings", 2, on("cp2"), "tied embeddings, plain norms"),
    Row("CP2 muon", 2, on("cp2"), "muon"),
    Row("CP4", 4, on("cp4")),
    Row("CP4 x EP2 overlapped recomputed", 4, on("cp4 ep2", GATHER, FULL)),
    Row("CP2 x DP2", 4, on("cp2")),
    Row("CP2 x DP2, EP2", 4, on("cp2 ep2", GATHER)),
    Row("CP2 ulysses, EP4 over context and data", 4, on("cp2 ep4", ULYSSES)),
    Row("TP2 x CP2", 4, on("tp2 cp2")),
    Row("TP2 x CP2, EP4 over both", 4, on("tp2 cp2 ep4", GATHER)),
    Row("TP2 x CP2 ulysses", 4, on("tp2 cp2", ULYSSES), "4 heads"),
    Row("TP2 x CP2, packed documents", 4, on("tp2 cp2 ep2"), "packed documents"),
    Row("TP2 x CP2, ETP2 x EP2", 4, on("tp2 cp2 etp2 ep2"), "wider experts"),
    Row("PP2 x CP2 loop", 4, on("pp2 cp2")),
    Row("PP2 x CP2 loop, EP2 overlapped", 4, on("pp2 cp2 ep2", GATHER, ONE)),
    Row("PP2 x CP2 loop, packed, two tokens ahead", 4, on("pp2 cp2"),
        "packed documents, two tokens ahead"),
    # the loop as a virtual pipeline
    Row("PP2 loop", 2, on("pp2"), default=DEFAULT),
    Row("PP2 loop whole", 2, on("pp2", WHOLE)),
    Row("PP2 loop overlapped", 2, on("pp2", GATHER, ONE), default=DEFAULT),
    Row("PP2 loop, sends waited for", 2, on("pp2", ["parallel.overlap_p2p_comm=false"]),
        default=DEFAULT),
    Row("PP2 loop recomputed", 2, on("pp2", FULL), default=DEFAULT),
    Row("PP2 loop partly recomputed", 2, on("pp2", SOME)),
    Row("PP2 loop, 2 iterations", 2, on("pp2"), "2 iterations"),
    Row("PP2 loop, 4 iterations", 2, on("pp2", ONE), "4 iterations, whole queries", DEFAULT),
    Row("PP2 loop, uneven body", 2, on("pp2"), "body of 5, 3 iterations", DEFAULT),
    Row("PP2 loop, 2 chunks an iteration", 2, on("pp2 vpp2"), "body of 5, 3 iterations"),
    Row("PP2 loop, slots by hand", 2,
        on("pp2", ["parallel.pipeline_layout=[1,1,1,1,1,1,1,1]"])),
    Row("PP2, whole loop on one stage", 2, on("pp2", ["parallel.pipeline_layout=[1,7]"])),
    Row("PP2 loop, two tokens ahead", 2, on("pp2"), "two tokens ahead", DEFAULT),
    Row("PP2 loop, tied embeddings", 2, on("pp2"), "tied embeddings, plain norms", DEFAULT),
    Row("PP2 loop, loads of the batch", 2, on("pp2"), "loads of the batch, per visit", DEFAULT),
    Row("PP2 loop, packed documents", 2, on("pp2"), "packed documents"),
    Row("PP2 loop, unclipped", 2, on("pp2"), "unclipped, no expert bias"),
    Row("PP2 x DP2 loop", 4, on("pp2", GATHER, ONE)),
    Row("PP2 x EP2 loop", 4, on("pp2 ep2")),
    Row("PP2 x EP2 loop overlapped", 4, on("pp2 ep2", GATHER, ONE)),
    Row("PP2 x EP2 loop, two tokens ahead", 4, on("pp2 ep2", ONE), "two tokens ahead"),
    Row("PP2 x TP2 loop", 4, on("pp2 tp2")),
    Row("PP2 x TP2 EP2 loop", 4, on("pp2 tp2 ep2", ALLGATHER, ONE)),
    Row("PP2 x TP2 ETP2 loop", 4, on("pp2 tp2 etp2"), "wider experts"),
    Row("PP4 loop, 2 iterations", 4, on("pp4", ONE), "body of 4"),
    Row("PP4 loop, 3 iterations, uneven", 4, on("pp4"), "body of 5, 3 iterations"),
    Row("PP4 loop, sends waited for", 4, on("pp4", ONE, ["parallel.overlap_p2p_comm=false"]),
        "body of 4"),
    Row("PP4 loop overlapped recomputed", 4, on("pp4", GATHER, FULL), "body of 4"),
    # the pipeline of a model that is not looped
    Row("PP2, vanilla", 2, on("pp2"), "vanilla", DEFAULT),
    Row("PP2 VPP2, vanilla", 2, on("pp2 vpp2"), "vanilla, 8 layers", DEFAULT),
    Row("PP2 VPP3, vanilla", 2, on("pp2 vpp3", ONE), "vanilla, 8 layers"),
    Row("PP2, vanilla, uneven by hand", 2,
        on("pp2", ["parallel.pipeline_layout=[5,3]"]), "vanilla, 8 layers"),
    Row("PP4, vanilla", 4, on("pp4"), "vanilla, 8 layers"),
    Row("PP2 x EP2, vanilla, VPP2", 4, on("pp2 vpp2 ep2"), "vanilla, 8 layers"),
]  # fmt: skip


def case(name: str, settings: Sequence[str], without: str = "") -> Dict[str, Any]:
    """One training of worker.py."""
    return dict(name=name, overrides=list(settings), steps=STEPS, without=without)


def train(cases: List[Dict[str, Any]], processes: int) -> Dict[str, Any]:
    """What :func:`tests.parity.worker.run_cases` gives for every case.

    A launch does some of them: gloo keeps the threads of every group that a process has made,
    and a thousand of them make the later cases three times slower.
    """
    found: Dict[str, Any] = {}
    for first in range(0, len(cases), LAUNCH):
        some = cases[first : first + LAUNCH]
        seconds = 120 + 30 * len(some)
        found |= ranks.run("tests.parity.worker:run_cases", processes, some, timeout_s=seconds)[0]
    return found


def alone(models: Sequence[str]) -> Dict[str, Any]:
    """Each model trained by one process."""
    return train([case(name, ["parallel=data", *MODELS[name]]) for name in models], 1)


def settings_of(row: Row) -> List[str]:
    """All settings of a row."""
    return [*MODELS[row.model], *row.settings]


@dataclass(frozen=True)
class Errors:
    """Largest relative errors of one training against another, and what exceeds its limit."""

    loss: float
    gradient: float
    weight: float
    bias: float
    wrong: List[str]


def compare(found: Dict[str, Any], wanted: Dict[str, Any]) -> Errors:
    """Losses of every step, and every gradient, weight and router bias by name."""
    wrong, largest = [], dict(loss=0.0, gradients=0.0, weights=0.0, bias=0.0)

    def look(kind: str, name: str, error: float, size: float, limit: float) -> None:
        relative = error / size if size else (0.0 if error == 0 else float("inf"))
        largest[kind] = max(largest[kind], relative)
        if not relative <= limit:
            wrong.append(f"{kind} {name}: relative error {relative:.1e}")

    for step, (a, b) in enumerate(zip(found["losses"], wanted["losses"], strict=True), start=1):
        look("loss", f"of step {step}", abs(a - b), abs(b), LOSS)
    for step, (a, b) in enumerate(zip(found["norms"], wanted["norms"], strict=True), start=1):
        # A clipped or orthogonalised step forgets the scale of the gradient.
        look("gradients", f"norm of step {step}", abs(a - b), abs(b), GRADIENT)
    for kind, limit in (("gradients", GRADIENT), ("weights", WEIGHT), ("bias", LOSS)):
        assert found[kind].keys() == wanted[kind].keys()
        for name, reference in wanted[kind].items():
            # The body's attention starts with a gradient of exactly zero: so must every layout.
            error = (found[kind][name] - reference).norm()
            look(kind, name, float(error), float(reference.norm()), limit)
    return Errors(*(largest[k] for k in ("loss", "gradients", "weights", "bias")), wrong)


def differences(found: Dict[str, Any], wanted: Dict[str, Any]) -> List[str]:
    """What differs by more than the limits; empty when the two trainings are the same."""
    return compare(found, wanted).wrong


def run(rows: Sequence[Row], repeat: int) -> Dict[str, List[Errors]]:
    """Every row ``repeat`` times, a launch of each number of ranks; prints as it goes."""
    print(f"{len(rows)} rows, {repeat} times", flush=True)
    reference = alone(sorted({row.model for row in rows}))
    found: Dict[str, List[Errors]] = {row.name: [] for row in rows}
    print(f"{'':44}{'ranks':>6}{'loss':>10}{'gradient':>10}{'weight':>10}", flush=True)
    for processes in sorted({row.ranks for row in rows}):
        mine = [row for row in rows if row.ranks == processes]
        for _ in range(repeat):
            results = train([case(row.name, settings_of(row)) for row in mine], processes)
            for row in mine:
                found[row.name].append(compare(results[row.name], reference[row.model]))
        for row in mine:
            worst = [max(getattr(e, kind) for e in found[row.name])
                     for kind in ("loss", "gradient", "weight")]  # fmt: skip
            bad = sum(bool(errors.wrong) for errors in found[row.name])
            print(f"{row.name:44}{processes:6}" + "".join(f"{error:10.1e}" for error in worst)
                  + (f"   WRONG in {bad} of {repeat}" if bad else ""), flush=True)  # fmt: skip
    return found


def main(argv: Sequence[str]) -> int:
    """The command; 1 if a row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="", help="only rows whose names hold this")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    started = time.perf_counter()
    rows = [row for row in ROWS if given.rows in row.name]
    found = run(rows, given.repeat)
    seconds = time.perf_counter() - started
    wrong = {name: each[0].wrong or [text for e in each for text in e.wrong]
             for name, each in found.items() if any(e.wrong for e in each)}  # fmt: skip
    for name, texts in wrong.items():
        print(f"{name}: {'; '.join(texts[:4])}")
    if given.json:
        table = {name: [vars(errors) for errors in each] for name, each in found.items()}
        given.json.write_text(json.dumps({"seconds": seconds, "rows": table}, indent=1) + "\n")
    worst = max(errors.gradient for each in found.values() for errors in each)
    print(f"headline: rows={len(rows)} repeats={given.repeat} wrong={len(wrong)} "
          f"gradient_error={worst:.1e} wall_s={seconds:.0f}")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
