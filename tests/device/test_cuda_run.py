"""The same code on a GPU: run only where there is one. Losses, gradients and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

RUN = [
    "experiment=smoke", "steps=8", "eval_interval=4", "eval_batches=2", "tokenizer.vocab_size=512",
    "parallel=data", "optim.warmup_steps=2", "checkpoint.interval=4", "observe.sample_tokens=4",
]  # fmt: skip
VARIANTS = {
    "loop": [],
    "softmax, gqa": [
        "model.attention.kind=gqa", "model.attention.qk_norm=true",
        "model.moe.score_function=softmax", "model.moe.expert_bias_update_rate=0",
        "model.moe.aux_loss=global_batch",
    ],
    "capacity, mtp": [
        "model.moe.capacity_factor=1.25", "model.moe.pad_to_capacity=true", "model.mtp_layers=1",
        "model.moe.z_loss_coeff=1e-3",
    ],
    "recomputed": ["memory=full"],
    "muon": ["optim=muon", "optim.warmup_steps=2"],
}  # fmt: skip


def train(place: Path, name: str, *words: str) -> Dict[int, Dict[str, Any]]:
    command = [sys.executable, "-m", "loopmoe_train.cli", "train", *RUN, f"name={name}", *words]
    done = subprocess.run(
        command, cwd=place, capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "LOOPMOE_TRACEBACK": "1"},
    )  # fmt: skip
    log = place / "runs" / name / "logs" / "rank-0.log"
    said = log.read_text()[-3000:] if log.is_file() else ""
    assert done.returncode == 0, f"{done.stderr}\n{said}"
    return records(place / "runs" / name / "metrics.jsonl")


def records(path: Path) -> Dict[int, Dict[str, Any]]:
    lines: List[Dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    merged: Dict[int, Dict[str, Any]] = {}
    for line in lines:
        merged.setdefault(line["step"], {}).update(line)
    return merged


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_losses_as_a_processor(place: Path, variant: str) -> None:
    name, words = variant.replace(", ", "-"), VARIANTS[variant]
    ours = train(place, f"{name}-cuda", "cluster=h100", *words)
    wanted = train(place, f"{name}-cpu", "cluster.devices=1", *words)
    assert ours[1]["loss"] == pytest.approx(wanted[1]["loss"], rel=1e-5)
    assert ours[1]["grad_norm"] == pytest.approx(wanted[1]["grad_norm"], rel=1e-3)
    for step in wanted:
        assert ours[step]["loss"] == pytest.approx(wanted[step]["loss"], rel=2e-2)
        if "val_loss" in wanted[step]:
            assert ours[step]["val_loss"] == pytest.approx(wanted[step]["val_loss"], rel=2e-2)


def test_bf16_learns_alike_and_continues(place: Path) -> None:
    words = ["cluster=h100", "precision=bf16"]
    halves = train(place, "bf16", *words, "steps=4")
    assert set(halves) == {1, 2, 3, 4}
    ours = train(place, "bf16", *words)
    wanted = train(place, "fp32", "cluster=h100")
    assert set(ours) == set(range(1, 9))
    assert ours[8]["loss"] == pytest.approx(wanted[8]["loss"], rel=3e-2)
