"""The loop pipeline against other ways to place a looped model: idle time and memory.

First by replay of the schedules (:func:`grid`), needs no torch; then as a measurement on ranks
that only wait (bench/pipeline_waits.py), and of a real model (bench/pipeline_model.py).

One unit is one *pass*: one micro-batch once through one unique body layer, 1 forward and 2
backward. The loop body has P layers, as many as there are stages, and runs K times:

* ``loop``: one layer a stage, iteration k is chunk k; interleaved 1F1B (spec.schedule).
* ``untied``: P * K layers with weights of their own, K neighbouring ones a stage; 1F1B. The
  same passes per micro-batch, K times the parameters.
* ``whole``: the body and all its iterations on one stage, as weights that live in one place
  ask for without a loop pipeline; 1F1B. Every other stage has one layer outside the loop, in
  front of it, which the other two do not have: the last stage then holds the body, where it
  keeps the fewest micro-batches. P * K passes on one stage stand against 1 on the others.

Memory is the most passes that one stage keeps for backward at once; equal chunks are assumed,
transfers take no time.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List

from loopmoe_train.spec.replay import Timeline, replay
from loopmoe_train.spec.schedule import Table, peak, table

SIDES = ("loop", "untied", "whole")
STAGES, ITERATIONS, MOST = (2, 4, 8, 16), (2, 4, 8), 128
BACKWARD = 2.0  # of a forward


def comparison(stages: int, iterations: int, micro_batches: int) -> Dict[str, Dict[str, float]]:
    """Of every side: ``bubble_share``, ``peak_passes`` of the fullest stage, ``makespan``.

    Raises:
        ValueError: the loop pipeline needs micro-batches in groups of at least ``stages``.
    """
    loop = table(stages, micro_batches, iterations)
    plain = table(stages, micro_batches)
    last = stages - 1
    passes = {
        "untied": [float(iterations)] * stages,
        "whole": [float(stages * iterations) if s == last else 1.0 for s in range(stages)],
    }
    sides = {"loop": _figures(loop, _run(loop, [1.0] * stages), [1.0] * stages)}
    for side, each in passes.items():
        sides[side] = _figures(plain, _run(plain, each), each)
    return sides


def _run(schedule: Table, passes: List[float]) -> Timeline:
    """Replay with so many passes in every chunk of each stage."""
    return replay(schedule, lambda s, _c, kind: passes[s] * (1.0 if kind == "F" else BACKWARD))


def _figures(schedule: Table, run: Timeline, passes: List[float]) -> Dict[str, float]:
    kept = [each * peak(actions, None) for each, actions in zip(passes, schedule)]
    return {
        "bubble_share": run.bubble_share,
        "peak_passes": max(kept),
        "makespan": run.makespan,
    }


def grid(
    stages: Iterable[int] = STAGES, iterations: Iterable[int] = ITERATIONS, most: int = MOST
) -> List[Dict[str, Any]]:
    """:func:`comparison` for every size; micro-batches P, 2P, 4P ... up to ``most``."""
    rows = []
    for p in stages:
        for k in iterations:
            m = p
            while m <= most:
                rows.append(dict(stages=p, iterations=k, micro_batches=m, **comparison(p, k, m)))
                m *= 2
    return rows


def show(report: Dict[str, Any]) -> None:
    """Print the tables and the headline of ``{"grid": ..., "waits": ...}``."""
    print("\nBy replay. Bubble share; most passes that a stage keeps; makespan against loop")
    print(f"{'P':>3}{'K':>3}{'m':>5}" + "".join(f"  {side:^24}" for side in SIDES))
    for row in report["grid"]:
        cells = ""
        for side in SIDES:
            here = row[side]
            ratio = here["makespan"] / row["loop"]["makespan"]
            cells += f"  {here['bubble_share']:7.1%}{here['peak_passes']:8.0f}{ratio:8.2f}x"
        print(f"{row['stages']:>3}{row['iterations']:>3}{row['micro_batches']:>5}{cells}")
    print("\nMeasured: core's schedules on ranks that wait for every pass; medians of steps")
    print(f"{'P':>3}{'K':>3}{'m':>5}  {'side':8}{'step':>10}{'predicted':>11}"
          f"{'step / predicted':>26}{'bubble':>9}{'predicted':>11}")  # fmt: skip
    for row in report["waits"]:
        low, high = row["over_predicted_low"], row["over_predicted_high"]
        over = f"{row['over_predicted']:.3f} ({low:.3f} to {high:.3f})"
        print(f"{row['stages']:>3}{row['iterations']:>3}{row['micro_batches']:>5}  {row['side']:8}"
              f"{row['step_s']:8.3f} s{row['predicted_step_s']:9.3f} s{over:>26}"
              f"{row['bubble_share']:9.1%}{row['predicted_bubble_share']:11.1%}")  # fmt: skip
    _show_model(report["model"])
    print(f"headline: {' '.join(f'{name}={value:.3f}' for name, value in headline(report))}")


def _show_model(rows: List[Dict[str, Any]]) -> None:
    print("\nA real model on two stages; MiB of stages 0 and 1, medians of blocks of steps")
    print(f"{'':10}{'weights':>14}{'gradients':>14}{'optimizer':>14}{'activations':>16}"
          f"{'step':>10}{'loop / it':>22}{'bubble':>9}{'predicted':>11}")  # fmt: skip
    for row in rows:
        cells = ""
        for kind, width in (("weights", 14), ("gradients", 14), ("optimizer", 14),
                            ("activations", 16)):  # fmt: skip
            words = " ".join(f"{size:.1f}" for size in row[f"{kind}_mib"])
            cells += f"{words:>{width}}"
        ratio = (f"{row['loop_over_it']:.3f} ({row['loop_over_it_low']:.2f} to "
                 f"{row['loop_over_it_high']:.2f})")  # fmt: skip
        print(f"{row['name']:10}{cells}{row['step_s']:8.3f} s{ratio:>22}"
              f"{row['bubble_share']:9.1%}{row['predicted_bubble_share']:11.1%}")  # fmt: skip


def headline(report: Dict[str, Any]) -> List[Any]:
    """Names and values: the largest pipeline measured, and its replay."""
    stages = max(row["stages"] for row in report["waits"])
    measured = {row["side"]: row for row in report["waits"] if row["stages"] == stages}
    loop, untied = measured["loop"], measured["untied"]
    sides = {row["name"]: row for row in report["model"]}
    weights = {name: max(row["weights_mib"]) for name, row in sides.items()}
    return [
        ("loop_bubble", loop["bubble_share"]),
        ("loop_bubble_predicted", loop["predicted_bubble_share"]),
        ("untied_bubble", untied["bubble_share"]),
        ("untied_bubble_predicted", untied["predicted_bubble_share"]),
        ("untied_over_loop_step", untied["step_s"] / loop["step_s"]),
        ("worst_over_predicted", max(row["over_predicted"] for row in report["waits"])),
        ("loop_bubble_model", sides["loop"]["bubble_share"]),
        ("loop_over_untied_model", sides["untied"]["loop_over_it"]),
        ("weights_untied_over_loop", weights["untied"] / weights["loop"]),
    ]  # fmt: skip
