"""A run of a few steps on a few files: what launcher and chaos tests start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Dict, List

# Dropout and accumulation on: what is easily forgotten when a run is continued.
STEPS = 6
SETTINGS = [
    "experiment=smoke", "tokenizer.vocab_size=420", "data.valid_percent=10", "data.workers=1",
    "sequence_length=32", "micro_batch_size=2", "global_batch_size=8", f"steps={STEPS}",
    "eval_interval=0", "eval_batches=1", "optim.warmup_steps=2", "model.hidden_dropout=0.1",
    "observe.sample_tokens=1", "checkpoint.interval=2", "cluster.peak_tflops_fp32=0.1",
]  # fmt: skip


def make_place(folder: Path) -> Path:
    """Put a corpus into ``folder``: a few modules of the standard library."""
    source = Path(json.__file__).parents[1]
    (folder / "texts").mkdir()
    for path in [*sorted((source / "json").glob("*.py")), *sorted((source / "email").glob("*.py"))]:
        shutil.copy(path, folder / "texts" / f"{path.parent.name}-{path.name}")
    return folder


def settings(place: Path, *words: str) -> List[str]:
    """Overrides of a tiny run in ``place``."""
    return [f"data.source={place}/texts", f"data.path={place}/data", f"runs_dir={place}/runs",
            *SETTINGS, *words]  # fmt: skip


def losses(run: Path) -> Dict[int, float]:
    """Loss by step."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def attempts(run: Path, logs: str = "logs") -> List[Dict[str, object]]:
    """The reports of all attempts, in order."""
    files = sorted(run.glob(f"{logs}/attempt-*.json"), key=lambda p: int(p.stem.split("-")[1]))
    return [json.loads(path.read_text()) for path in files]
