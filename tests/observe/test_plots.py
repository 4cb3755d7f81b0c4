"""Pictures: drawn without a warning for every shape of run; their looks are judged by eye."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopmoe_train.observe.metrics import Metrics, read_metrics
from loopmoe_train.observe.plots import plot_gates, plot_loss, plot_routing
from loopmoe_train.observe.plots.loss import smooth
from loopmoe_train.observe.plots.style import short_name, short_number
from loopmoe_train.observe.routing import FILE_NAME, read_routing
from tests.observe.synthetic import make_run

SHAPES: dict[str, dict[str, Any]] = {
    "one layer, one iteration, 4 experts": {
        "steps": 2, "looped": 1, "iterations": 1, "plain": 0, "experts": 4, "probes": 1,
        "validations": 1,
    },
    "four layers, eight iterations, 256 experts, long": {
        "steps": 600, "looped": 4, "iterations": 8, "experts": 256, "probes": 26,
        "validations": 26,
    },
    "vanilla": {"looped": 0, "plain": 4},
    "nothing but training": {"probes": 0, "validations": 0},
    "many looped layers": {
        "steps": 4, "looped": 9, "iterations": 2, "plain": 0, "experts": 4, "probes": 1,
    },
}  # fmt: skip


def size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 4000
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_without_a_warning(shape: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, **SHAPES[shape])
    metrics, routing = read_metrics(run / "metrics.jsonl"), read_routing(run / FILE_NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_loss({"a $run_1$": metrics}, run / "loss.png", gzip_bits=2.3)
        plot_routing(metrics, routing, run / "routing.png")
        plot_gates(metrics, run / "gates.png")
    for name in ("loss", "routing", "gates"):
        width, height = size(run / f"{name}.png")
        assert 1000 <= width <= 1600 and 250 <= height <= 2600
    assert not list(run.glob("*.part"))


def test_comparison_of_many_runs(tmp_path: Path) -> None:
    metrics = read_metrics(make_run(tmp_path) / "metrics.jsonl")
    runs = {f"experiment/{'long' * 12}{n}": metrics for n in range(9)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_loss({**runs, "empty": Metrics()}, tmp_path / "loss.png")
    size(tmp_path / "loss.png")


def test_holes_are_drawn_around(tmp_path: Path) -> None:
    nan = float("nan")
    step = np.arange(1.0, 5.0)
    holes = Metrics(
        train={"step": step, "loss": np.array([nan, 2, nan, 1]), "lr": np.full(4, nan)},
        valid={"step": step, "val_bits_per_byte": np.full(4, nan)},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_loss({"x": holes}, tmp_path / "loss.png")
        plot_loss({"x": Metrics()}, tmp_path / "empty.png")
    size(tmp_path / "loss.png")


def test_smooth() -> None:
    line = np.arange(50.0)
    np.testing.assert_allclose(smooth(line, 11), line)  # a straight line stays one to its ends
    noisy = np.tile([0.0, 2.0], 50)
    assert np.ptp(smooth(noisy, 11)[10:-10]) < 0.3
    holes = np.array([1.0, np.nan, 1.0])
    np.testing.assert_array_equal(smooth(holes, 2), [1.0, 1.0, 1.0])
    np.testing.assert_array_equal(smooth(line, 1), line)


def test_short_texts() -> None:
    assert [short_number(x) for x in (0, 950, 1500, 999_999, 2e6, 3.5e9, 1e12)] == [
        "0", "950", "1.5k", "1M", "2M", "3.5B", "1T",
    ]  # fmt: skip
    assert short_name("a" * 44) == "a" * 44
    assert len(short_name("a" * 99)) <= 44
