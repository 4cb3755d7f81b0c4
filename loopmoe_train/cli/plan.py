"""``loopmoe plan``: the best layout, what a model costs, its looped equal, its pipeline."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from loopmoe_train.cli.arguments import Parser
from loopmoe_train.cli.drawing import draw
from loopmoe_train.cli.numbers import short
from loopmoe_train.config.schema import ModelConfig, RunConfig
from loopmoe_train.errors import Refused
from loopmoe_train.files import write_text
from loopmoe_train.sim.techniques import TECHNIQUES
from loopmoe_train.spec.balance import Layout, Multiples, Setting, balance
from loopmoe_train.spec.capacity import (
    UniqueExperts,
    independent,
    measured,
    overlapping,
    unique_experts,
)
from loopmoe_train.spec.summary import summarize

OWN_HELP = True  # argparse prints it

_DESCRIPTION = """\
The fastest layouts of a run on a cluster, simulated: nothing is started and no device is needed.

  loopmoe plan model=loopmoe_9b cluster=ascend_a2 cluster.devices=64 sequence_length=4096 \\
      global_batch_size=256 precision=bf16
  loopmoe plan --explain ... parallel.tensor_parallel_size=8 ...
                                                            one layout, part by part
  loopmoe plan --script pretrain_model.sh cluster=ascend_a2 the same of a launch script

Settings of the layout (parallel.*, micro_batch_size, memory.*) that are given are kept.

Parameters and FLOPs of models, the looped model that equals a vanilla one, and the pipeline:

  loopmoe plan --model-only model=loopmoe_3b,vanilla_3b     a table, one column a model
  loopmoe plan --balance 2/2/2x4 model=vanilla_3b           2 prefix layers, 2 looped 4 times,
                                                            2 suffix: a preset on stdout
  loopmoe plan --draw schedule.png model=loopmoe_3b parallel.pipeline_parallel_size=2 ...
                                                            which layers stand on which stage,
                                                            and one step as a timeline

The text that --balance prints is a preset with its residuals as comments. Ranks, expert width
and number of experts are chosen so that parameters N, FLOPs per token F and the ratio rho of
attention to FFN weights equal those of the vanilla model (arXiv 2606.04438).
"""

# The model is looked at alone: no layout restricts it, and no quickstart's short sequences.
_ALONE = ["parallel=data", "sequence_length=4096"]

_PARTS = {
    "attention_projections": "attention projections",
    "attention_scores": "attention scores",
    "experts": "experts",
    "shared_and_dense": "shared experts, dense FFN",
    "router": "router",
    "iter_adaln": "IterAdaLN",
    "head": "head",
    "mtp": "multi-token prediction",
}


def run(argv: List[str]) -> int:
    """Print the table or the balanced preset; returns the exit code."""
    given = _parser().parse_intermixed_args(argv)
    drawn = given.draw and not given.explain and not given.script
    if sum(map(bool, (given.balance, given.model_only, drawn, given.explain, given.script,
                    given.shapes))) > 1:  # fmt: skip
        raise Refused(
            "--model-only, --balance, --draw, --explain, --script and --shapes are several reports",
            "ask for one of them",
        )
    if given.script and given.draw:
        raise Refused("--draw is not for --script", "draw a run: --explain ... --draw FILE.png")
    if given.pareto and (given.script or given.explain or given.shapes or drawn):
        raise Refused("--pareto is for the search alone", "leave the other report out")
    if given.top < 1:
        raise Refused(f"--top {given.top}: must be at least 1", "e.g. --top 10")
    if given.trace is not None and given.draw is None:
        raise Refused("--trace is for --draw", "add --draw FILE.png")
    from loopmoe_train.cli import explain, layouts
    from loopmoe_train.cli.auto import searched, with_dispatcher

    techniques = [name for word in given.techniques for name in word.split(",") if name]
    unique, assumption = _unique(given)
    if given.balance is not None:
        report, text = _balance(given, argv, unique, assumption)
    elif given.model_only:
        report = _models(_compose_each(given.settings), unique, assumption)
        text = "\n".join(_table(report))
    elif given.shapes:
        report, text = layouts.shapes(searched(given.settings), given.top)
    elif given.script is not None:
        report, text = explain.of_script(given.script, given.settings, techniques)
    elif given.explain:
        report, text = explain.explain(
            with_dispatcher(given.settings), techniques, given.draw, given.trace
        )
    elif given.draw is not None:
        report, text = draw(given.settings, given.draw, given.trace)
    else:
        report, text = layouts.report(searched(given.settings), given.top, techniques, given.pareto)
    if given.json is not None:
        try:
            write_text(Path(given.json), json.dumps(report, indent=1) + "\n")
        except OSError as error:
            raise Refused(f"--json {given.json}: {error.strerror}", "name another file") from error
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has read enough; Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="loopmoe plan",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("settings", metavar="setting=value", nargs="*", help="Hydra overrides, as for train")
    add("--model-only", action="store_true", help="print what the models cost")
    add("--balance", metavar="LAYOUT", help="PREFIX/BODY/SUFFIXxITERATIONS, e.g. 2/2/2x4")
    add("--draw", metavar="FILE.png", help="draw one step of the pipeline that the settings make")
    add("--trace", metavar="FILE.json", help="with --draw: the same for ui.perfetto.dev")
    add("--json", metavar="FILE", help="write the figures there too")
    layout = parser.add_argument_group("of layouts").add_argument
    layout("--top", type=int, default=10, metavar="N", help="so many layouts (default %(default)s)")
    layout("--pareto", metavar="FILE.png", help="draw time against memory of the layouts")
    layout("--explain", action="store_true", help="time and memory of the layout that is given")
    layout("--shapes", action="store_true",
           help="other shapes with the model's parameters and FLOPs, by their speed")  # fmt: skip
    layout("--script", metavar="FILE", help="that of a Megatron or MindSpeed launch script")
    layout("--with", dest="techniques", action="append", default=[], metavar="NAME,...",
           help="techniques to simulate beyond what the trainer has: "
           + "; ".join(f"{name}: {words}" for name, words in TECHNIQUES.items()))  # fmt: skip
    overlap = parser.add_argument_group(
        "distinct experts of a token over the iterations (default: independent routing)"
    ).add_mutually_exclusive_group()
    overlap.add_argument("--jaccard", type=float, metavar="J",
                         help="mean overlap of two iterations' expert sets, 0..1; "
                         "0.6 gives the paper's models")  # fmt: skip
    overlap.add_argument("--unique-experts", type=float, metavar="N", help="a measured mean count")
    more = parser.add_argument_group("with --balance").add_argument
    more("--count-iter-adaln", action="store_true", help="IterAdaLN's FLOPs belong to F")
    sizes = Multiples()
    more("--rank-multiple", type=int, default=sizes.rank, metavar="N", help="default %(default)s")
    more("--width-multiple", type=int, default=sizes.width, metavar="N", help="default %(default)s")
    more("--expert-multiple", type=int, default=sizes.experts, metavar="N",
         help="default %(default)s; the expert-parallel size, say")  # fmt: skip
    return parser


def _unique(given: argparse.Namespace) -> Tuple[UniqueExperts, str]:
    """How many experts the iterations reach, and in words."""
    if given.jaccard is not None:
        return overlapping(given.jaccard), f"Jaccard overlap {given.jaccard:g}"
    if given.unique_experts is not None:
        return measured(given.unique_experts), f"{given.unique_experts:g} measured"
    return independent, "independent routing"


# -- the table ---------------------------------------------------------------------------------
def _compose_each(settings: Sequence[str]) -> List[RunConfig]:
    """One run for every model named, all with the other settings."""
    from loopmoe_train.config.compose import compose

    names = [word for word in settings if word.startswith("model=")]
    others = [word for word in settings if not word.startswith("model=")]
    models = [f"model={name}" for word in names for name in word[6:].split(",")]
    return [compose([*_ALONE, *model, *others]) for model in [[m] for m in models] or [[]]]


def _vocabulary(config: RunConfig) -> int:
    return config.model.vocab_size or config.tokenizer.vocab_size


def _models(configs: Sequence[RunConfig], unique: UniqueExperts, assumption: str) -> Dict[str, Any]:
    return {
        "sequence_length": configs[0].sequence_length,
        "unique_experts_from": assumption,
        "models": [
            summarize(config.model, _vocabulary(config), config.sequence_length, unique)
            for config in configs
        ],
    }


def _table(report: Dict[str, Any]) -> Iterator[str]:
    """Lines: one row a figure, one column a model."""
    models = report["models"]
    rows: List[Tuple[str, List[str]]] = [("", [model["name"] for model in models])]

    def row(label: str, cells: List[str]) -> None:
        rows.append((label, cells))

    def counts(label: str, key: str) -> None:
        row(label, [short(model["parameters"][key]) for model in models])

    row("layers (visits)", [f"{m['unique_layers']} ({m['depth']})" for m in models])
    counts("parameters", "total")
    counts("active, every use", "active")
    counts("active, weights once", "physical_active")
    counts("input embedding in each", "lookup")
    if any(model["parameters"]["mtp"] for model in models):
        counts("MTP, apart", "mtp")
        counts("MTP active, apart", "mtp_active")
    for direction in ("forward", "backward"):
        flops = [model["flops_per_token"][direction] for model in models]
        row(f"FLOPs per token, {direction}", [short(each["total"]) for each in flops])
        for part, label in _PARTS.items():
            if any(each[part] for each in flops):
                row(f"  {label}", [short(each[part]) for each in flops])
    row("rho = A_attn / A_ffn", [f"{m['attention_ffn_ratio']:.4f}" for m in models])
    row("distinct experts", [f"{m['unique_experts']:.1f} of {m['num_experts']}" for m in models])

    first = max(len(label) for label, _ in rows)
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(models))]
    for label, cells in rows:
        yield f"{label:<{first}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, widths))
    yield ""
    yield (
        f"FLOPs at sequence_length={report['sequence_length']}, causal. rho counts weights once; "
        f"distinct experts of a token in one looped layer: {report['unique_experts_from']}."
    )


# -- balancing ---------------------------------------------------------------------------------
def _balance(
    given: argparse.Namespace, argv: Sequence[str], unique: UniqueExperts, assumption: str
) -> Tuple[Dict[str, Any], str]:
    """The figures, and the preset with the residuals as comments."""
    import yaml

    configs = _compose_each(given.settings)
    if len(configs) > 1:
        raise Refused("--balance takes one vanilla model", "name one, e.g. model=vanilla_3b")
    reference, vocabulary = configs[0].model, _vocabulary(configs[0])
    layout = Layout.parse(given.balance)
    multiples = Multiples(given.rank_multiple, given.width_multiple, given.expert_multiple)
    setting = Setting(vocabulary, configs[0].sequence_length, unique, given.count_iter_adaln)
    looped = balance(reference, layout, setting, multiples)
    target, reached = setting.point(reference), setting.point(looped)
    other = Setting(vocabulary, setting.sequence_length, unique, not given.count_iter_adaln)
    report: Dict[str, Any] = {
        "unique_experts_from": assumption,
        "unique_experts": unique_experts(looped, unique),
        "reference": {"name": reference.name, **asdict(target)},
        "reached": {"name": looped.name, **asdict(reached)},
        "residuals": dict(zip(("parameters", "flops", "ratio"), reached.residuals(target))),
        "model": asdict(looped),
    }
    rows = [("", reference.name, looped.name, "")]
    for label, key, show in (("N, parameters", "parameters", short),
                             ("F, forward FLOPs per token", "flops", short),
                             ("rho, attention / FFN", "ratio", "{:.4f}".format)):  # fmt: skip
        rows.append((label, show(getattr(target, key)), show(getattr(reached, key)),
                     f"{100 * report['residuals'][key]:+.2f} %"))  # fmt: skip
        if key == "flops":
            a, b = other.point(reference).flops, other.point(looped).flops
            how = "without" if given.count_iter_adaln else "with"
            rows.append((f"  {how} IterAdaLN", show(a), show(b), f"{100 * (b / a - 1):+.2f} %"))
    for label, one, two in _sizes(reference, looped):
        rows.append((label, one, two, ""))
    rows.append(("distinct experts in a layer", f"{reference.moe.top_k}",
                 f"{report['unique_experts']:.1f}", f"({assumption})"))  # fmt: skip
    w = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"# {looped.name}: made by `loopmoe plan {shlex.join(argv)}`", "#"]
    lines += [f"# {a:<{w[0]}}  {b:>{w[1]}}  {c:>{w[2]}}  {d}".rstrip() for a, b, c, d in rows]
    return report, "\n".join(lines) + "\n" + yaml.safe_dump(
        asdict(looped), sort_keys=False
    ).rstrip()


def _sizes(reference: ModelConfig, looped: ModelConfig) -> Iterator[Tuple[str, str, str]]:
    def pair(label: str, one: Optional[int], two: Optional[int]) -> Tuple[str, str, str]:
        return label, str(one), str(two)

    a, b = reference, looped
    yield pair("query rank", a.attention.q_lora_rank, b.attention.q_lora_rank)
    yield pair("key/value rank", a.attention.kv_lora_rank, b.attention.kv_lora_rank)
    yield pair("expert width", a.moe.expert_hidden_size, b.moe.expert_hidden_size)
    yield pair("routed experts", a.moe.num_experts, b.moe.num_experts)
