"""One run folder read back: its metrics, configuration, summary and headline numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loopmoe_train.errors import Refused
from loopmoe_train.observe.metrics import Metrics, read_metrics
from loopmoe_train.observe.progress import format_seconds
from loopmoe_train.observe.routing import FILE_NAME as ROUTING_FILE
from loopmoe_train.observe.routing import RoutingProbe, read_routing


@dataclass
class RunData:
    """What a run folder holds.

    Attributes:
        name: label that is unique among the runs loaded together.
        config: run.yaml with dotted keys ("model.loop.iterations"); {} without the file.
        summary: summary.json; {} without the file.
        sample: text of sample.txt, or None.
    """

    folder: Path
    name: str
    metrics: Metrics
    routing: list[RoutingProbe]
    config: dict[str, Any]
    summary: dict[str, Any]
    sample: str | None

    @property
    def gzip_bits(self) -> float | None:
        """Bits per byte that gzip -9 needs for the validation text, if it was measured."""
        return self._summary_number("gzip9_bits_per_byte")

    @property
    def bits_per_byte(self) -> float | None:
        """Newest validation result: from the metrics, else from the summary."""
        last = self.metrics.last("valid", "val_bits_per_byte")
        return last if last is not None else self._summary_number("val_bits_per_byte")

    @property
    def tokens_per_s(self) -> float | None:
        """Median over the training records."""
        speed = self.metrics.train.get("tokens_per_s", np.empty(0))
        speed = speed[np.isfinite(speed)]
        return float(np.median(speed)) if speed.size else self._summary_number("tokens_per_s")

    def _summary_number(self, key: str) -> float | None:
        value = self.summary.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        return float(value) if np.isfinite(value) else None

    def headline(self) -> list[tuple[str, str]]:
        """(name, value with its unit) of the numbers that sum up the run; all in words."""
        last, number = self.metrics.last, self._summary_number
        tokens = last("train", "tokens") or number("tokens")
        wall = number("wall_s") or last("train", "elapsed_s")
        memory, first_step = number("peak_memory_gib"), number("first_step_s")
        mfu = last("train", "mfu")
        total, active = number("parameters"), number("active_parameters")
        steps = last("train", "step")
        rows = [
            ("validation bits/byte", _or("no validation yet", self.bits_per_byte, "{:.4f}")),
            ("gzip -9 bits/byte", _or("not measured", self.gzip_bits, "{:.4f}")),
            ("against gzip -9", self._against_gzip()),
            ("training loss (last)", _or("none recorded", last("train", "loss"), "{:.4f}")),
            ("steps", _or("none recorded", steps, "{:,.0f}")),
            ("tokens", _or("not recorded", tokens, "{:,.0f}")),
            ("tokens/s (median)", _or("not recorded", self.tokens_per_s, "{:,.0f}")),
            ("MFU (last)", _or("not recorded", mfu, "{:.1%}")),
            ("wall time", format_seconds(wall) if wall is not None else "not recorded"),
            ("first step", _or("not recorded", first_step, "{:.1f} s")),
            ("peak memory", _or("not recorded", memory, "{:.2f} GiB (fullest rank)")),
            ("parameters", _or("not recorded", total, "{:,.0f}")),
            ("active parameters", _or("not recorded", active, "{:,.0f}")),
            ("status", str(self.summary.get("status") or "no summary.json: unfinished?")),
        ]
        return rows

    def set_bits(self) -> dict[str, float]:
        """Newest bits per byte of each validation set; {} where there is one set only."""
        last = {}
        for name, curves in self.metrics.valid_sets.items():
            values = curves["bits_per_byte"].value if "bits_per_byte" in curves else np.empty(0)
            values = values[np.isfinite(values)]
            if values.size:
                last[name] = float(values[-1])
        return last

    def _against_gzip(self) -> str:
        ours, yardstick = self.bits_per_byte, self.gzip_bits
        if ours is None or not yardstick:
            return "not known"
        gain = 1 - ours / yardstick
        return f"{abs(gain):.1%} {'smaller' if gain >= 0 else 'larger'}"


def load_runs(folders: Sequence[Path]) -> list[RunData]:
    """Read run folders, each once, in the order given.

    Raises:
        Refused: if a folder or its metrics.jsonl is missing or empty, or a file is corrupt.
    """
    unique = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    names = [folder.name for folder in unique]
    return [
        _load(folder, name if names.count(name) == 1 else f"{folder.parent.name}/{name}")
        for folder, name in zip(unique, names, strict=True)
    ]


def _load(folder: Path, name: str) -> RunData:
    if not folder.is_dir():
        raise Refused(
            f"there is no run folder {folder}", "give the path of a run, such as runs/quickstart"
        )
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise Refused(
            f"{folder} has no metrics.jsonl, so it is not a run that has started",
            "give the folder of a run, such as runs/quickstart, or train first",
        )
    metrics = read_metrics(path)
    if not metrics.train and not metrics.valid:
        raise Refused(
            f"{path} holds no record yet", "wait for the first training step and try again"
        )
    sample = folder / "sample.txt"
    return RunData(
        folder=folder,
        name=name,
        metrics=metrics,
        routing=read_routing(folder / ROUTING_FILE),
        config=_read_config(folder / "run.yaml"),
        summary=_read_summary(folder / "summary.json"),
        sample=_read(sample) if sample.is_file() else None,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise Refused(
            f"cannot read {path}: {error.strerror or error}", "check its permissions"
        ) from error


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(_read(path))
    except ValueError as error:
        raise _corrupt(path, f"not JSON ({error})") from error
    if not isinstance(summary, dict):
        raise _corrupt(path, "not an object")
    return summary


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    import yaml

    try:
        config = yaml.safe_load(_read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _corrupt(path, f"not YAML ({error})") from error
    if not isinstance(config, dict):
        raise _corrupt(path, "not a mapping")
    return dict(_flatten(config, ""))


def _flatten(config: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _corrupt(path: Path, why: str) -> Refused:
    return Refused(
        f"{path} is corrupt: {why}", "restore it, or move it away: the report does without it"
    )


def _or(missing: str, value: float | None, form: str) -> str:
    return missing if value is None else form.format(value)
