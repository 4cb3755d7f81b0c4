"""`loopmoe bench train`: all sides start from the same losses, in both precisions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopmoe_train.cli import main


def test_all_sides_do_the_same_job_in_bf16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["precision=bf16", "steps=2", "global_batch_size=8", "sequence_length=32"]
    out = tmp_path / "table.json"
    assert main(["bench", "train", f"runs_dir={tmp_path}", "--json", str(out), *words]) == 0
    where = json.loads(out.read_text())["where"]
    assert sum(where.values()) == pytest.approx(1) and where["matrix products"] > 0.05
    assert capsys.readouterr().out.splitlines()[-1].startswith("headline: ratio=")
