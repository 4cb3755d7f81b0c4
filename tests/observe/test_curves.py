"""wandb and TensorBoard show what metrics.jsonl holds, over a run that stops and goes on."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopmoe_train.observe.jsonl import last_steps, scalars
from loopmoe_train.observe.tensorboard import TensorBoardSink

Curves = dict[str, list[tuple[int, float]]]  # name to (step, value) in the order written

# As the recorder does it: a run with a checkpoint at step 4 is stopped after step 6 and goes on
# to 9. What it repeats it repeats exactly.
RUN = """
import math, sys
from pathlib import Path
from loopmoe_train.observe.jsonl import last_steps
from loopmoe_train.observe.sinks import JsonlSink, MultiSink, WandbSink
from loopmoe_train.observe.tensorboard import TensorBoardSink
folder = Path(sys.argv[1])
for first, last in ((1, 6), (5, 9)):
    keep = first - 1 if first > 1 else -1
    sent = last_steps(folder / "metrics.jsonl") if first > 1 else None
    sinks = MultiSink([
        JsonlSink(folder / "metrics.jsonl", keep_until_step=keep),
        TensorBoardSink(folder / "tensorboard", keep + 1, warn=sys.exit),
        WandbSink("offline", "p", "n", folder, {}, sent, warn=sys.exit),
    ])
    for step in range(first, last + 1):
        nan = math.nan if step == 2 else 1.0
        sinks.write({"step": step, "loss": 3 / step, "tokens": step * 2048, "mfu": nan,
                     "router/1/2/dead": step % 3})
        if step % 3 == 0 and not (step == 6 and first == 1):
            sinks.write({"step": step, "val_loss": 2 / step})
    sinks.close()
"""


def steps(curve: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in curve]


def jsonl_curves(path: Path) -> Curves:
    curves: Curves = defaultdict(list)
    for line in path.read_text().splitlines():
        record = json.loads(line)
        for name, value in scalars(record).items():
            curves[name].append((record["step"], value))
    return curves


def tensorboard_curves(folder: Path) -> Curves:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    curves: Curves = defaultdict(list)
    for name in accumulator.Tags()["scalars"]:
        for event in accumulator.Scalars(name):
            curves[name].append((event.step, event.value))
    return curves


def wandb_records(folder: Path) -> Iterator[Any]:
    """The offline files' records: LevelDB's log format after seven bytes of wandb's own.

    Blocks of 32 KiB; in each, pieces of checksum (4 bytes), length (2), kind (1: whole, 2: first,
    3: middle, 4: last) and data; a rest shorter than a piece's head is padding.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        content, data = path.read_bytes(), b""
        assert content[:4] == b":W&B"
        position = 7
        while position + 7 <= len(content):
            if -position % 32768 < 7:
                position += -position % 32768
                continue
            length, kind = struct.unpack_from("<HB", content, position + 4)
            data += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):
                record = Record()
                record.ParseFromString(data)
                yield record
                data = b""


def wandb_curves(folder: Path) -> Curves:
    curves: Curves = defaultdict(list)
    for record in wandb_records(folder):
        items = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        row = {name: value for name, value in items.items() if not name.startswith("_")}
        for name, value in scalars(row).items():
            curves[name].append((row["step"], value))
    return curves


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curves")
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "WANDB_CACHE_DIR": str(path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    return path


def test_the_run_is_what_it_should_be(folder: Path) -> None:
    curves = jsonl_curves(folder / "metrics.jsonl")
    assert steps(curves["loss"]) == list(range(1, 10))
    assert steps(curves["val_loss"]) == [3, 6, 9]
    assert steps(curves["mfu"]) == [1, *range(3, 10)]


@pytest.mark.timeout(120)
def test_wandb_shows_the_same(folder: Path) -> None:
    pytest.importorskip("wandb")
    assert wandb_curves(folder) == jsonl_curves(folder / "metrics.jsonl")
    ids = {record.run.run_id for record in wandb_records(folder) if record.run.run_id}
    assert ids == {(folder / "wandb_id").read_text().strip()}


def test_tensorboard_shows_the_same(folder: Path) -> None:
    wanted = jsonl_curves(folder / "metrics.jsonl")
    single = {name: [(s, float(np.float32(v))) for s, v in c] for name, c in wanted.items()}
    assert tensorboard_curves(folder / "tensorboard") == single


def test_last_steps_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_steps(path) == {}
    path.write_text(
        '{"step": 1, "a": 1}\n{"step": 4, "a": null, "b": 2}\n{"step": 3, "a": 2}\n{"step": 5, "a'
    )
    assert last_steps(path) == {"a": 3, "b": 4}


def test_a_run_that_starts_again_shows_nothing_of_before(tmp_path: Path) -> None:
    for steps in ((1, 2, 3), (1,)):
        sink = TensorBoardSink(tmp_path, warn=pytest.fail)
        for step in steps:
            sink.write({"step": step, "loss": float(step + len(steps))})
        sink.close()
        sink.close()
    assert tensorboard_curves(tmp_path) == {"loss": [(1, 2.0)]}


def test_a_number_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    sink = TensorBoardSink(tmp_path, warn=pytest.fail)
    sink.write({"step": 7, "loss": 0.5, "note": "text", "flag": True, "bad": math.inf})
    assert tensorboard_curves(tmp_path) == {"loss": [(7, 0.5)]}
    sink.close()


def test_a_failing_tensorboard_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", "canary-1234567890")
    (tmp_path / "canary-1234567890").write_text("in the way")
    warnings: list[str] = []
    sink = TensorBoardSink(tmp_path / "canary-1234567890", warn=warnings.append)
    sink.write({"step": 1, "loss": 1.0})
    sink.close()
    assert len(warnings) == 1 and "\n" not in warnings[0]
    assert "***" in warnings[0] and "canary" not in warnings[0]


def test_a_missing_tensorboard_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    warnings: list[str] = []
    TensorBoardSink(tmp_path, warn=warnings.append).write({"step": 1, "loss": 1.0})
    assert len(warnings) == 1
