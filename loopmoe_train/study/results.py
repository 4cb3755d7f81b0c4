"""What the runs of a study found, at the last validation that all arms have reached."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from loopmoe_train.config.schema import ModelConfig, StudyConfig
from loopmoe_train.errors import Refused
from loopmoe_train.observe.metrics import Series
from loopmoe_train.observe.report import common_gzip
from loopmoe_train.observe.rundata import RunData, load_runs
from loopmoe_train.spec.capacity import UniqueExperts, independent, overlapping, unique_experts
from loopmoe_train.spec.summary import summarize
from loopmoe_train.study.plan import ArmRun
from loopmoe_train.study.statistics import Mean, Paired, holm, mean, paired


@dataclass
class Arm:
    """One arm over its seeds.

    Attributes:
        seeds: those that got that far, in order; the lists below go with them.
        bits: validation bits per byte there, one a seed.
        steps, tokens: at the validations [V].
        curves: [seeds, V] validation bits per byte.
        parameters, flops: of the model; forward FLOPs per token.
        jaccard: overlap of two iterations' expert sets, mean over seeds, layers and pairs of
            iterations at the last probe; None if nothing is looped.
        ratio, unique_experts: rho and distinct experts per token, with that overlap.
        tokens_per_s: median over seeds of the runs' medians, side by side as they ran.
        runs: read back.
    """

    name: str
    seeds: List[int]
    bits: List[float]
    steps: List[int]
    tokens: List[int]
    curves: np.ndarray
    parameters: int
    flops: float
    jaccard: Optional[float]
    ratio: float
    unique_experts: float
    tokens_per_s: float
    runs: List[RunData]

    def spread(self) -> Mean:
        """Of the bits per byte."""
        return mean(self.bits)


@dataclass
class Results:
    """Arms in the order of the study.

    Attributes:
        step: at which they are compared: the last one (``steps``), if a run of each arm is done.
        against_reference: arm -> its runs against the reference's of the same seeds.
        against_previous: likewise against the arm named before it.
        adjusted_p: Holm's, over ``against_reference``.
        missing: names of the runs that are not done.
        validated_tokens: at most so many are predicted at a validation; None: the whole split.
        gzip_bits: what gzip -9 needs per byte of that text, if all runs say the same.
    """

    study: StudyConfig
    step: int
    steps: int
    arms: List[Arm]
    against_reference: Dict[str, Paired]
    against_previous: Dict[str, Paired]
    adjusted_p: Dict[str, float]
    missing: List[str]
    validated_tokens: Optional[int]
    gzip_bits: Optional[float]

    def arm(self, name: str) -> Arm:
        """By its name."""
        return next(arm for arm in self.arms if arm.name == name)

    def record(self) -> Dict[str, Any]:
        """All figures, for study.json."""
        return {
            "study": asdict(self.study),
            "step": self.step,
            "steps": self.steps,
            "missing": self.missing,
            "validated_tokens": self.validated_tokens,
            "gzip9_bits_per_byte": self.gzip_bits,
            "arms": {
                arm.name: {
                    **{k: v for k, v in vars(arm).items() if k not in ("name", "runs", "curves")},
                    "curves": arm.curves.tolist(),
                    "spread": asdict(arm.spread()),
                }
                for arm in self.arms
            },
            "against_reference": {
                name: {**asdict(pair), "p_holm": self.adjusted_p[name]}
                for name, pair in self.against_reference.items()
            },
            "against_previous": {
                name: asdict(pair) for name, pair in self.against_previous.items()
            },
        }


def collect(study: StudyConfig, planned: Sequence[ArmRun]) -> Results:
    """Read the runs and compare the arms.

    Raises:
        Refused: an arm has no validated run yet, two arms have no seed in common, or the runs
            were trained on different texts.
    """
    reached = {one.name: one.validated() for one in planned}
    furthest = {
        arm: max(reached[one.name] for one in planned if one.arm == arm) for arm in study.arms
    }
    step = min(furthest.values())
    if not step:
        waiting = ", ".join(arm for arm, found in furthest.items() if not found)
        raise Refused(f"no run of {waiting} was validated yet", "let the study run on")
    arms = [
        _arm(name, step, [p for p in planned if p.arm == name and reached[p.name] >= step])
        for name in study.arms
    ]
    reference = next(arm for arm in arms if arm.name == study.reference)
    others = [arm for arm in arms if arm is not reference]
    against = {arm.name: _compare(arm, reference, len(others)) for arm in others}
    run, all_runs = planned[0].run, [run for arm in arms for run in arm.runs]
    _check_same_text(all_runs)
    return Results(
        study=study,
        step=step,
        steps=run.steps,
        arms=arms,
        against_reference=against,
        against_previous={b.name: _compare(b, a) for a, b in zip(arms, arms[1:])},
        adjusted_p=holm({name: pair.p for name, pair in against.items()}),
        validated_tokens=run.eval_batches * run.global_batch_size * run.sequence_length or None,
        gzip_bits=common_gzip(all_runs),
        missing=[one.name for one in planned if reached[one.name] < one.run.steps],
    )


def gap(ours: Arm, theirs: Arm) -> np.ndarray:
    """[common seeds, V]: difference of the two arms' validation curves, seed by seed."""
    both = [seed for seed in ours.seeds if seed in theirs.seeds]
    rows = [[arm.seeds.index(seed) for seed in both] for arm in (ours, theirs)]
    return np.asarray(ours.curves[rows[0]] - theirs.curves[rows[1]])


def _compare(ours: Arm, theirs: Arm, comparisons: int = 1) -> Paired:
    both = [seed for seed in ours.seeds if seed in theirs.seeds]
    if not both:
        raise Refused(f"{ours.name} and {theirs.name} have no common seed yet", "let it run on")
    first, second = ([arm.bits[arm.seeds.index(s)] for s in both] for arm in (ours, theirs))
    return paired(first, second, comparisons)


def _check_same_text(runs: Sequence[RunData]) -> None:
    known = [run for run in runs if run.summary.get("dataset") is not None]
    for run in known:
        if run.summary["dataset"] != known[0].summary["dataset"]:
            raise Refused(
                f"{run.folder} and {known[0].folder} were trained on different texts",
                "delete one of them, or choose another study.name=",
            )


def _arm(name: str, step: int, planned: Sequence[ArmRun]) -> Arm:
    runs = [_until(run, step) for run in load_runs([one.folder for one in planned])]
    valid = [run.metrics.valid for run in runs]
    steps = valid[0]["step"][valid[0]["step"] <= step]
    tokens = runs[0].metrics.tokens_at(steps)
    curves = np.stack([one["val_bits_per_byte"][one["step"] <= step] for one in valid])
    model, length = planned[0].run.model, planned[0].run.sequence_length
    vocabulary = model.vocab_size or planned[0].run.tokenizer.vocab_size
    jaccard = _jaccard(runs)
    figures = summarize(model, vocabulary, length, _unique(model, jaccard))
    return Arm(
        name=name,
        seeds=[one.seed for one in planned],
        bits=curves[:, -1].tolist(),
        steps=steps.astype(int).tolist(),
        tokens=[] if tokens is None else tokens.astype(int).tolist(),
        curves=curves,
        parameters=figures["parameters"]["total"],
        flops=figures["flops_per_token"]["forward"]["total"],
        jaccard=jaccard,
        ratio=figures["attention_ffn_ratio"],
        unique_experts=figures["unique_experts"],
        tokens_per_s=float(np.median([run.tokens_per_s or np.nan for run in runs])),
        runs=runs,
    )


def _until(run: RunData, step: int) -> RunData:
    """Without the probes after ``step``."""
    gates = {
        visit: {
            name: Series(series.step[series.step <= step], series.value[series.step <= step])
            for name, series in curves.items()
            if (series.step <= step).any()
        }
        for visit, curves in run.metrics.gates.items()
    }
    probes = [probe for probe in run.routing if probe.step <= step]
    return replace(run, metrics=replace(run.metrics, gates=gates), routing=probes)


def _unique(model: ModelConfig, jaccard: Optional[float]) -> UniqueExperts:
    """How many distinct experts the iterations reach, by the overlap that was measured."""
    if jaccard is None:
        return independent
    unique = overlapping(jaccard)
    try:
        unique_experts(model, unique)
    except Refused:  # no more overlap than by chance
        return independent
    return unique


def _jaccard(runs: Sequence[RunData]) -> Optional[float]:
    """Mean overlap of two different iterations at the last probe."""
    found = []
    for run in runs:
        for layer in run.routing[-1].layers if run.routing else []:
            if layer.overlap is not None and len(layer.overlap) > 1:
                apart = ~np.eye(len(layer.overlap), dtype=bool)
                found.append(float(layer.overlap[apart].mean()))
    return float(np.mean(found)) if found else None
