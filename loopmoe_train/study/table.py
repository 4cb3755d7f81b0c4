"""The results of a study as text (Markdown)."""

from __future__ import annotations

import math
from typing import Iterator, List

from loopmoe_train.study.results import Results
from loopmoe_train.study.statistics import Mean, Paired


def table(results: Results) -> str:
    """Three tables and a sentence for every arm, in Markdown that reads well as plain text."""
    study, arms = results.study, results.arms
    early = "" if results.step == results.steps else f", step {results.step} of {results.steps}"
    parts = [
        f"# {study.name}: {len(arms)} arms, {max(len(arm.seeds) for arm in arms)} seeds, "
        f"{arms[0].tokens[-1] / 1e6:.2f}M tokens a run{early}",
        "",
        *_rows(
            ["arm", "parameters", "FLOPs per token", "rho", "distinct experts", "Jaccard",
             "tokens/s"],
            [
                [
                    arm.name,
                    f"{arm.parameters / 1e6:.3f}M",
                    f"{arm.flops / 1e6:.3f}M",
                    f"{arm.ratio:.3f}",
                    f"{arm.unique_experts:.1f}",
                    "-" if arm.jaccard is None else f"{arm.jaccard:.2f}",
                    f"{arm.tokens_per_s:,.0f}",
                ]
                for arm in arms
            ],
        ),
        "",
        "FLOPs: forward, IterAdaLN counted. rho: attention / FFN weights that a token uses, with "
        "the overlap (Jaccard) of expert sets that was measured.",
        "",
        f"Bits per byte of {_text(results)}; means and 95 % intervals over seeds, each for itself. "
        "Pairs are runs of one seed:",
        "",
        *_rows(
            ["arm", "seeds", "bits per byte", "sd"],
            [
                [arm.name, str(len(arm.seeds)), _interval(arm.spread()), f"{arm.spread().sd:.4f}"]
                for arm in arms
            ],
        ),
        "",
        *_comparisons(results, study.reference),
        "",
        *_steps(results),
        "",
        *(sentence(results, name) for name in results.against_reference),
    ]  # fmt: skip
    if results.missing:
        parts += ["", f"Not done: {', '.join(results.missing)}."]
    return "\n".join(parts) + "\n"


def sentence(results: Results, name: str) -> str:
    """What the comparison of an arm with the reference comes to."""
    pair, p = results.against_reference[name], results.adjusted_p[name]
    reference, low, high = results.study.reference, pair.difference.low, pair.difference.high
    if pair.difference.n == 1:
        return f"- {name}: one pair, {pair.difference.mean:+.4f}; no interval from one seed."
    if p < 0.05:
        word = "better" if pair.difference.mean < 0 else "worse"
        return (
            f"- {name} is {word} than {reference} by {abs(pair.difference.mean):.4f} bits per byte "
            f"({_ordered(low, high)}), p = {p:.2g}."
        )
    return (
        f"- {name} and {reference} are not told apart: {pair.difference.mean:+.4f} "
        f"({low:+.4f} to {high:+.4f}), p = {p:.2g}; a true difference of {pair.detectable:.4f} "
        "would be found 8 times in 10."
    )


def _text(results: Results) -> str:
    tokens, gzip = results.validated_tokens, results.gzip_bits
    text = f"the first {tokens:,} tokens held out" if tokens else "all text held out"
    return text + (f" (gzip -9: {gzip:.3f})" if gzip else "")


def _comparisons(results: Results, reference: str) -> Iterator[str]:
    yield from _rows(
        ["arm", f"minus {reference}", "p", "p (Holm)", "lower in", "detectable"],
        [
            [*_pair(name, pair), f"{results.adjusted_p[name]:.2g}", *_counts(pair)]
            for name, pair in results.against_reference.items()
        ],
    )


def _steps(results: Results) -> Iterator[str]:
    before = [arm.name for arm in results.arms]
    yield from _rows(
        ["step", "difference", "p", "lower in", "detectable"],
        [
            [*_pair(f"{a} -> {b}", results.against_previous[b]),
             *_counts(results.against_previous[b])]
            for a, b in zip(before, before[1:])
        ],
    )  # fmt: skip


def _pair(name: str, pair: Paired) -> List[str]:
    return [name, _interval(pair.difference, "+"), f"{pair.p:.2g}"]


def _counts(pair: Paired) -> List[str]:
    return [f"{pair.below} of {pair.difference.n}", f"{pair.detectable:.4f}"]


def _interval(mean: Mean, sign: str = "") -> str:
    if math.isnan(mean.low):
        return f"{mean.mean:{sign}.4f}"
    return f"{mean.mean:{sign}.4f} ({mean.low:{sign}.4f} to {mean.high:{sign}.4f})"


def _ordered(one: float, other: float) -> str:
    low, high = sorted((abs(one), abs(other)))
    return f"{low:.4f} to {high:.4f}"


def _rows(head: List[str], rows: List[List[str]]) -> Iterator[str]:
    """A Markdown table in columns of one width."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: List[str]) -> str:
        padded = [f"{cells[0]:<{widths[0]}}"]
        padded += [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:])]
        return f"| {' | '.join(padded)} |"

    yield line(head)
    marks = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    yield f"| {' | '.join(marks)} |"
    yield from map(line, rows)
