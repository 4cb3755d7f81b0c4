"""`loopmoe bench pipeline`: its tables by formula, and core's schedules that wait."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loopmoe_train.bench import pipeline
from loopmoe_train.cli import main


@pytest.mark.parametrize("p", [2, 4, 8])
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_the_sides_are_their_formulas(p: int, k: int, groups: int) -> None:
    m = groups * p
    sides = pipeline.comparison(p, k, m)
    assert tuple(sides) == pipeline.SIDES
    bubble = {side: figures["bubble_share"] for side, figures in sides.items()}
    assert bubble["loop"] == pytest.approx((p - 1) / (m * k + p - 1))
    assert bubble["untied"] == pytest.approx((p - 1) / (m + p - 1))
    # the body's stage never waits; the others have one pass where it has P * K
    busy = m * (p * k + p - 1) / (p * (m * p * k + p - 1))
    assert bubble["whole"] == pytest.approx(1 - busy)
    # the same work, in different time
    assert sides["loop"]["makespan"] == pytest.approx(3 * (m * k + p - 1))
    assert sides["untied"]["makespan"] == pytest.approx(3 * k * (m + p - 1))
    # warm-up and one: 2 (P - 1) + (K - 1) P + 1 passes, or P micro-batches of K
    most = 2 * (p - 1) + (k - 1) * p + 1
    assert sides["loop"]["peak_passes"] == min(most, m * k)
    assert sides["untied"]["peak_passes"] == p * k
    assert sides["whole"]["peak_passes"] == p * k


def test_the_grid_needs_no_torch() -> None:
    script = (
        "import sys; from loopmoe_train.bench.pipeline import grid; rows = grid([2, 4], [2], 8)\n"
        "print(len(rows), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["5", "False"]


@pytest.mark.parity
def test_what_waits_takes_as_long_as_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    assert main(["bench", "pipeline", f"runs_dir={tmp_path}", "steps=2", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    for row in report["waits"]:
        # Slower by messages and by what else the machine does; faster only as pauses vary.
        assert 0.97 < row["over_predicted_low"] < 1.25, row
    loop, untied = report["waits"][2:]
    assert loop["predicted_step_s"] < untied["predicted_step_s"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("headline: loop_bubble=")
