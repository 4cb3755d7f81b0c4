"""metrics.jsonl and routing.jsonl: what is written is what is read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from loopmoe_train.errors import Refused
from loopmoe_train.observe import metrics as names
from loopmoe_train.observe.metrics import (
    gate_key,
    load_stats,
    read_metrics,
    routing_key,
    set_key,
)
from loopmoe_train.observe.routing import FILE_NAME, read_routing
from loopmoe_train.observe.sinks import JsonlSink
from tests.observe.synthetic import make_run


def test_the_names_are_those_of_the_contract() -> None:
    assert " ".join(names.TRAIN_KEYS) == (
        "step tokens loss lr grad_norm tokens_per_s step_s elapsed_s mfu"
    )
    assert " ".join(names.VALID_KEYS) == "step elapsed_s val_loss val_bits_per_byte"
    assert routing_key(3, 2, "max_violation") == "router/3/2/max_violation"
    assert gate_key(3, 2, "gamma_moe_abs") == "gate/3/2/gamma_moe_abs"
    with pytest.raises(ValueError, match="no statistic"):
        routing_key(3, 2, "alpha_mean")


def test_round_trip(tmp_path: Path) -> None:
    run = make_run(tmp_path, steps=40, looped=2, iterations=3, plain=1, probes=4, validations=2)
    metrics = read_metrics(run / "metrics.jsonl")
    assert set(names.TRAIN_KEYS) <= set(metrics.train)
    assert metrics.train["step"].tolist() == list(range(1, 41))
    assert metrics.valid["step"].tolist() == [20, 40]
    assert list(metrics.routing) == [(1, 1), *((n, k) for n in (2, 3) for k in (1, 2, 3))]
    assert list(metrics.gates) == [(n, k) for n in (2, 3) for k in (1, 2, 3)]
    assert metrics.routing[2, 3]["dead"].step.tolist() == [10, 20, 30, 40]
    assert set(metrics.gates[2, 1]) == set(names.GATE_STATS)
    assert metrics.tokens_at(np.array([0, 20])).tolist() == [0, 20 * 2048]
    assert not any("/" in name for name in metrics.train)

    probes = read_routing(run / FILE_NAME)
    assert [probe.step for probe in probes] == [10, 20, 30, 40]
    assert [entry.load.shape for entry in probes[0].layers] == [(1, 16), (3, 16), (3, 16)]
    assert probes[0].layers[1].overlap.shape == (3, 3)
    for entry in probes[-1].layers:
        np.testing.assert_allclose(entry.load.sum(axis=1), 1.0, atol=1e-6)


def test_gaps_and_repeats(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.write({"step": 2, "loss": 9.0, "lr": 1.0})
    sink.write({"step": 1, "loss": math.nan})
    sink.write({"step": 2, "loss": 5.0})
    sink.close()
    with open(sink.path, "a") as file:
        file.write('{"step": 3, "lo')
    metrics = read_metrics(sink.path)
    np.testing.assert_array_equal(metrics.train["loss"], [math.nan, 5.0])
    assert metrics.last("train", "loss") == 5.0
    assert metrics.last("valid", "val_loss") is None
    assert metrics.tokens_at(np.array([1.0])) is None


@pytest.mark.parametrize("bad", ["{", "[1]", '{"loss": 1.0}', '{"step": "x"}'])
def test_a_corrupt_line_is_refused_in_one_line(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 2}}\n')
    with pytest.raises(Refused) as refusal:
        read_metrics(path)
    assert str(path) in str(refusal.value) and "->" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_corrupt_probe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    assert read_routing(path) == []
    layer = '{"layer": 1, "iterations": [1, 2], "load": [[0.5, 0.5]]}'
    path.write_text(f'{{"step": 1, "layers": [{layer}]}}\n')
    with pytest.raises(Refused, match="load has shape"):
        read_routing(path)


def test_load_stats() -> None:
    assert load_stats([2, 2, 2, 2]) == {"max_violation": 0.0, "entropy": 1.0, "dead": 0.0}
    one = load_stats([0, 7, 0, 0])
    assert one["max_violation"] == 3.0 and one["dead"] == 3.0 and abs(one["entropy"]) < 1e-12
    assert load_stats([5])["entropy"] == 1.0
    assert math.isnan(load_stats([0, 0])["entropy"])


def test_importing_is_light() -> None:
    """No torch, and neither matplotlib, rich, wandb nor yaml before they are needed."""
    code = (
        "import sys, loopmoe_train.observe.report, loopmoe_train.observe.progress, "
        "loopmoe_train.cli.report\n"
        "heavy = {'torch', 'matplotlib', 'rich', 'wandb', 'yaml'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr


def test_validation_sets_are_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": step, "val_loss": 1.0, set_key("a b", "bits_per_byte"): 2.0 / step}
        for step in (1, 2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = read_metrics(path)
    assert list(metrics.valid_sets) == ["a b"]
    assert metrics.valid_sets["a b"]["bits_per_byte"].value.tolist() == [2.0, 1.0]
    assert not any("/" in name for name in metrics.valid)
    for name, stat in (("a/b", "loss"), ("", "loss"), ("a", "accuracy")):
        with pytest.raises(ValueError, match="no figure"):
            set_key(name, stat)
