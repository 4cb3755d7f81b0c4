"""A mixture trained for real: two ranks on two corpora, a third one only measured."""

from __future__ import annotations

import asyncio
import email
import json
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any, Dict

import pytest
import torch

from loopmoe_train.cli import main
from loopmoe_train.config import run_file

# Four launches: too long for every day.
pytestmark = pytest.mark.parity

LOOPMOE = str(Path(sys.executable).with_name("loopmoe"))
PACKAGES = {"mail": email, "loops": asyncio, "checks": unittest}
DATA = ["tokenizer.vocab_size=420", "data.valid_percent=10", "data.workers=1"]
RUN = [
    "experiment=smoke", "data.mixture=[{path:d/mail,weight:3},{path:d/loops,weight:1}]",
    "data.validation=[d/checks]", "sequence_length=32", "micro_batch_size=2",
    "global_batch_size=4", "steps=4", "eval_interval=2", "eval_batches=3", "optim.warmup_steps=1",
    "model.hidden_dropout=0.1", "checkpoint.interval=2", "observe.sample_tokens=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora, packed differently and tokenised alike."""
    folder = tmp_path_factory.mktemp("mixed")
    import gzip

    for name, package in PACKAGES.items():
        paths = sorted(Path(package.__file__).parent.glob("*.py"))[1:9]
        lines = [json.dumps({"text": path.read_text()[:9000]}) for path in paths]
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
        given = [] if name == "mail" else [f"tokenizer.path={folder}/d/mail/tokenizer.model"]
        words = [f"data.source={folder}/{name}.jsonl.gz", f"data.path={folder}/d/{name}"]
        assert main(["data", *words, *DATA, *given]) == 0
    return folder


def loopmoe(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LOOPMOE, *words], cwd=place, capture_output=True, text=True, timeout=200, check=False,
        stdin=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip


def records(folder: Path, key: str) -> Dict[int, Dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if key in line}


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished run of four steps."""
    done = loopmoe(place, "train", *RUN, "name=first")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("data: mail: 75 % of the samples, 0.") for line in lines), lines
    assert any(line.startswith("data: loops: 25 % of the samples, 0.") for line in lines)
    told = [line for line in lines if "validation loss" in line]
    assert len(told) == 2 and all(f"{name} " in told[1] for name in PACKAGES)
    assert "validation bits/byte: checks" in done.stdout
    return place / "runs" / "first"


def test_every_validation_set_is_recorded_and_shown(run: Path) -> None:
    last = records(run, "val_loss")[4]
    for name in PACKAGES:
        assert last[f"val/{name}/loss"] > 0 and last[f"val/{name}/bits_per_byte"] > 0
    trained = sorted(last[f"val/{name}/loss"] for name in ("mail", "loops"))
    assert trained[0] < last["val_loss"] < trained[1]
    page = (run / "report.html").read_text()
    assert "Bits per byte of each validation set" in page and ">checks<" in page


def test_the_samples_are_those_of_the_mixture(
    run: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loopmoe_train.train.text import open_text

    monkeypatch.chdir(place)
    text = open_text(run_file.load(run / "run.yaml"))
    first = text.train.batch(0, 16).tokens
    owners = {}
    for member in text.mixture.members:
        stream = " ".join(map(str, member.info.reader("train")._tokens.tolist()))
        # a window may cross documents: its longest piece tells where it is from
        owners[member.name] = [_pieces_are_in(row, stream) for row in first]
    assert sum(owners["mail"]) == 12 and sum(owners["loops"]) == 4
    assert [(one.name, one.in_whole) for one in text.valid if one.name == "checks"] == [
        ("checks", False)
    ]
    assert list(text.mixture.identity.values()) in (["3/4", "1/4"], ["1/4", "3/4"])


def _pieces_are_in(row: torch.Tensor, stream: str) -> bool:
    pieces = " ".join(map(str, row.tolist())).split(" 1 ")
    return all(piece in stream for piece in pieces)


def test_a_continued_mixture_has_the_same_losses(place: Path, run: Path) -> None:
    copy = place / "runs" / "second"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-4")
    done = loopmoe(place, "train", *RUN, "name=second")
    assert done.returncode == 0, done.stderr
    assert "continues from" in done.stdout
    for step in (3, 4):
        for key in ("loss", "grad_norm", "lr"):
            assert records(copy, "loss")[step][key] == records(run, "loss")[step][key], (step, key)
    again, before = records(copy, "val_loss")[4], records(run, "val_loss")[4]
    for key in [key for key in before if key.startswith(("val_", "val/"))]:
        assert again[key] == before[key], key


def test_evaluate_measures_every_set_whole(place: Path, run: Path) -> None:
    done = loopmoe(place, "evaluate", "runs/first")
    assert done.returncode == 0, done.stderr
    found = json.loads((run / "evaluation.json").read_text())
    assert set(found["sets"]) == set(PACKAGES)
    trained = [found["sets"]["mail"], found["sets"]["loops"]]
    assert found["tokens"] == sum(one["tokens"] for one in trained)
    nats = sum(one["loss"] * one["tokens"] for one in trained)
    assert found["loss"] == pytest.approx(nats / found["tokens"], rel=1e-12)
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    assert [row for row in rows if row in PACKAGES] == list(found["sets"])


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, (done.stdout, done.stderr)
    (line,) = done.stderr.strip().splitlines()
    return line


def test_other_weights_are_another_run(place: Path, run: Path) -> None:
    other = "data.mixture=[{path:d/mail,weight:1},{path:d/loops,weight:1}]"
    for own in (["name=first", "steps=9"],
                ["name=third", "checkpoint.resume=runs/first/checkpoints/step-2"]):  # fmt: skip
        line = _one_line(loopmoe(place, "train", *RUN, other, *own))
        assert "dataset." in line and "was '3/4' when it was saved, is '1/2' now" in line
