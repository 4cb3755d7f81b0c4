"""A small run of real text as a user starts it, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

LOOPMOE = str(Path(sys.executable).with_name("loopmoe"))

# Dropout and accumulation on: what is easily forgotten when a run is continued.
SMALL = [
    "experiment=smoke", "tokenizer.vocab_size=420", "data.valid_percent=10", "data.workers=1",
    "sequence_length=32", "micro_batch_size=2", "global_batch_size=8", "steps=6",
    "eval_interval=3", "eval_batches=0", "optim.warmup_steps=2", "model.hidden_dropout=0.1",
    "model.attention_dropout=0.1", "observe.sample_tokens=12", "checkpoint.interval=3",
]  # fmt: skip


NO_DROPOUT = ["model.hidden_dropout=0", "model.attention_dropout=0"]


def command(place: Path, *words: str) -> List[str]:
    return [LOOPMOE, "train", f"data.source={place}/texts", "data.path=data", *SMALL, *words]


def loopmoe(place: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=place, capture_output=True, text=True, timeout=150, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, **variables},
    )  # fmt: skip


def train(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return loopmoe(place, *command(place, *words))


def records(folder: Path, key: str) -> Dict[int, Dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if key in line}


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]
