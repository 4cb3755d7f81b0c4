"""Sinks: nothing recorded is lost or invented, and wandb cannot break a run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopmoe_train.errors import RunFailed
from loopmoe_train.observe.sinks import JsonlSink, MultiSink, WandbSink


def lines(path: Path) -> list[Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not strict JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_each_record_is_on_disk_at_once(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "deep" / "metrics.jsonl")
    sink.write({"step": 1, "loss": 2.5})
    assert lines(sink.path) == [{"step": 1, "loss": 2.5}]
    sink.close()
    sink.close()


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "m.jsonl")
    sink.write({"step": 1, "loss": math.nan, "x": [math.inf, 1], "y": {"z": -math.inf}})
    sink.write({"step": np.int64(2), "loss": np.float32("nan"), "load": np.ones((1, 2))})
    sink.close()
    assert lines(sink.path) == [
        {"step": 1, "loss": None, "x": [None, 1], "y": {"z": None}},
        {"step": 2, "loss": None, "load": [[1, 1]]},
    ]


def test_a_torn_last_line_goes_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    sink = JsonlSink(path)
    sink.write({"step": 2})
    sink.close()
    assert sink.dropped == 1
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_a_complete_last_line_without_newline_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}')
    sink = JsonlSink(path)
    sink.write({"step": 2})
    sink.close()
    assert lines(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(("keep", "steps"), [(None, [1, 2, 2, 3]), (2, [1, 2, 2]), (-1, [])])
def test_resume_drops_later_steps(tmp_path: Path, keep: int | None, steps: list[int]) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f'{{"step": {n}}}\n' for n in (1, 2, 2, 3)) + '{"step": 4')
    JsonlSink(path, keep_until_step=keep).close()
    assert [record["step"] for record in lines(path)] == steps
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_resume_survives_garbage_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\xff\xfe\0\n{"step": 2}\n')
    JsonlSink(path, keep_until_step=5).close()
    assert [record["step"] for record in lines(path)] == [1, 2]


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed) as failure:
        JsonlSink(tmp_path / "file" / "metrics.jsonl")
    assert "metrics.jsonl" in str(failure.value) and "\n" not in str(failure.value)


class FakeRun:
    """Stands for a wandb run; ``fail`` names the call that raises."""

    def __init__(self, fail: str) -> None:
        self.fail = fail
        self.logged: list[Any] = []

    def define_metric(self, *_args: Any, **_options: Any) -> None:
        pass

    def log(self, record: Any) -> None:
        if self.fail == "log":
            raise RuntimeError("first line\nsecond line with key-canary-1234567890")
        self.logged.append(record)

    def finish(self, exit_code: int) -> None:
        if self.fail == "finish":
            raise RuntimeError("no")
        self.exit_code = exit_code


def fake_wandb(monkeypatch: pytest.MonkeyPatch, fail: str) -> tuple[FakeRun, list[dict[str, Any]]]:
    run, calls = FakeRun(fail), []

    class Settings:
        model_fields = {"silent": None, "x_disable_meta": None}

        def __init__(self, **options: Any) -> None:
            self.options = options

    def init(**options: Any) -> FakeRun:
        if fail == "init":
            raise OSError("no network")
        calls.append(options)
        return run

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, Settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return run, calls


@pytest.mark.parametrize("fail", ["init", "log", "finish"])
def test_a_failing_wandb_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key-canary-1234567890")
    fake_wandb(monkeypatch, fail)
    warnings: list[str] = []
    sink = WandbSink("offline", "p", "n", tmp_path, {}, warn=warnings.append)
    for step in range(3):
        sink.write({"step": step, "loss": 1.0})
    sink.close()
    sink.close()
    assert len(warnings) == 1
    assert fail in warnings[0].replace("start", "init")
    assert "\n" not in warnings[0] and "canary" not in warnings[0]


def test_a_missing_wandb_costs_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    warnings: list[str] = []
    WandbSink("offline", "p", "n", tmp_path, {}, warn=warnings.append).write({"step": 1})
    assert len(warnings) == 1


def test_a_resumed_run_keeps_its_wandb_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = fake_wandb(monkeypatch, "")
    for mode in ("offline", "online"):
        sent = {} if mode == "online" else None
        sink = WandbSink(mode, "p", "n", tmp_path, {"a": {"b": 1}}, sent)
        sink.write({"step": 1, "loss": math.nan})
        sink.close("diverged")
    assert calls[0]["id"] == calls[1]["id"] == (tmp_path / "wandb_id").read_text().strip()
    assert [call["resume"] for call in calls] == [None, "allow"]
    assert calls[0]["settings"].options == {"silent": True, "x_disable_meta": True}
    assert run.logged[0] == {"step": 1, "loss": None} and run.exit_code == 1


def test_a_run_from_the_start_is_a_new_wandb_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, calls = fake_wandb(monkeypatch, "")
    for _ in range(2):
        WandbSink("offline", "p", "n", tmp_path, {}).close()
    assert calls[0]["id"] != calls[1]["id"] == (tmp_path / "wandb_id").read_text().strip()


def test_repeated_steps_are_not_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = fake_wandb(monkeypatch, "")
    WandbSink("online", "p", "n", tmp_path, {}).close()
    run.logged.clear()
    # Stopped after the training line of step 4 and before its validation.
    sink = WandbSink("online", "p", "n", tmp_path, {}, {"loss": 4, "val_loss": 2})
    for step in (3, 4, 5):
        sink.write({"step": step, "loss": 1.0})
    sink.write({"step": 4, "val_loss": 2.0})
    assert run.logged == [{"step": 5, "loss": 1.0}, {"step": 4, "val_loss": 2.0}]
    # wandb was off so far: nothing was sent, whatever metrics.jsonl holds.
    run.logged.clear()
    WandbSink("online", "p", "n", tmp_path / "other", {}, {"loss": 4}).write({"step": 3, "loss": 1})
    assert run.logged == [{"step": 3, "loss": 1}]


def test_off_does_not_import_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    sink = WandbSink("off", "p", "n", tmp_path, {}, warn=pytest.fail)
    sink.write({"step": 1})
    sink.close()
    assert os.listdir(tmp_path) == []


REAL = """
import sys
from loopmoe_train.observe.sinks import WandbSink
for start, sent in ((0, None), (3, {})):
    sink = WandbSink("offline", "p", "n", sys.argv[1], {"seed": 1}, sent, warn=sys.exit)
    for step in range(start, start + 3):
        sink.write({"step": step, "loss": 1.0})
    sink.close()
"""


@pytest.mark.timeout(120)
def test_real_wandb_offline_leaves_no_secret(tmp_path: Path) -> None:
    """Measured: 2 to 4 s for two runs."""
    pytest.importorskip("wandb")
    canary = "0123456789abcdef0123456789abcdefcanary00"
    environment = {**os.environ, "WANDB_API_KEY": canary, "MY_SECRET": "other-canary-77"}
    environment["WANDB_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path), "--argument-canary"],
        env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".wandb"]) == 2
    for path in files:
        for secret in (canary, "other-canary-77", "argument-canary"):
            assert secret.encode() not in path.read_bytes(), path


def test_multi_sink_closes_all_even_if_one_fails(tmp_path: Path) -> None:
    class Broken:
        def write(self, record: dict[str, Any]) -> None:
            pass

        def close(self, status: str = "done") -> None:
            raise RuntimeError("broken")

    good = JsonlSink(tmp_path / "m.jsonl")
    sink = MultiSink([Broken(), good])
    sink.write({"step": 1})
    with pytest.raises(RuntimeError, match="broken"):
        sink.close()
    assert good._file.closed and lines(good.path) == [{"step": 1}]
