"""`loopmoe train` as a user runs it: two real processes on a small corpus of real text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.train.small_run import LOOPMOE, loopmoe, records, train


def test_the_run_folder_is_complete(run: Path) -> None:
    names = (
        "run.yaml metrics.jsonl routing.jsonl loss.png routing.png gates.png report.html "
        "sample.txt summary.json checkpoints/step-3/manifest.json checkpoints/step-6/manifest.json"
    )
    for name in names.split():
        assert (run / name).stat().st_size > 0, name
    assert not [p for p in run.rglob("*") if p.name.endswith((".tmp", ".part", ".partial"))]
    train_keys = "step tokens loss lr grad_norm tokens_per_s step_s elapsed_s mfu bits_per_byte"
    lines = records(run, "loss")
    assert sorted(lines) == [1, 2, 3, 4, 5, 6]
    assert set(train_keys.split()) <= set(lines[4])
    assert lines[6]["tokens"] == 6 * 8 * 32
    for layer, iteration in ((1, 1), (1, 2), (2, 1)):
        for stat in ("max_violation", "entropy", "dead"):
            assert f"router/{layer}/{iteration}/{stat}" in lines[6]
    validations = records(run, "val_loss")
    assert sorted(validations) == [3, 6] and "val_bits_per_byte" in validations[6]
    assert "gate/1/2/alpha_mean" in validations[6]
    assert "mfu" in (run / "run.yaml").read_text()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "done" and summary["first_step_s"] > 0


def test_it_learns(run: Path) -> None:
    lines = records(run, "loss")
    assert lines[6]["loss"] < lines[1]["loss"] - 0.01


def test_evaluate_finds_the_last_validation_again(place: Path, run: Path) -> None:
    logs = sorted(path.name for path in (run / "logs").iterdir())
    done = loopmoe(place, LOOPMOE, "evaluate", "runs/first", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    row = json.loads((place / "out.json").read_text())["runs/first"]
    assert row["step"] == 6
    assert row["loss"] == pytest.approx(records(run, "val_loss")[6]["val_loss"], abs=1e-12)
    assert "bits/byte" in done.stdout
    # Its logs lie apart: the run may be training meanwhile.
    assert sorted(path.name for path in (run / "logs").iterdir()) == sorted([*logs, "evaluate"])
    assert (run / "logs" / "evaluate" / "attempt-0.json").exists()


TASK = """\
task: next_piece
dataset_path: json
dataset_kwargs: {{data_files: {folder}/next_piece.jsonl}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def test_evaluate_at_other_numbers_of_iterations(place: Path, run: Path) -> None:
    """Smoke's loop runs 3 times: that number is the evaluation itself, the others are others."""
    pytest.importorskip("lm_eval")
    tasks = place / "tasks"
    tasks.mkdir()
    (tasks / "next_piece.yaml").write_text(TASK.format(folder=tasks))
    questions = [{"question": "import", "choices": [" os", "%%"], "answer": 0}] * 5
    (tasks / "next_piece.jsonl").write_text("\n".join(map(json.dumps, questions)) + "\n")
    words = ["--tasks", "next_piece", "--task-folder", str(tasks), "--limit", "3"]
    done = loopmoe(place, LOOPMOE, "evaluate", "runs/first", "loop.iterations=3,4", *words)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "evaluation.json").read_text())
    rows = {row["iterations"]: row for row in result["by_iterations"]}
    assert list(rows) == [3, 4]
    assert rows[3]["loss"] == result["loss"] and rows[3]["agreement"] == 1.0
    assert rows[4]["loss"] != result["loss"] and 0 < rows[4]["agreement"] <= 1
    assert "same token" in done.stdout
    assert result["tasks"] == rows[3]["tasks"]
    assert result["tasks"]["next_piece"]["acc,none"] in (0.0, 1.0)  # thrice the same question
    assert "next_piece acc " in done.stdout


@pytest.mark.parity
def test_a_moved_run_can_be_reported_and_evaluated(place: Path, run: Path) -> None:
    shutil.copytree(run, place / "elsewhere" / "moved")
    done = loopmoe(place, LOOPMOE, "report", "elsewhere/moved", "runs/first", "--out", "both")
    assert done.returncode == 0, done.stderr
    assert (place / "both" / "report.html").stat().st_size > 10_000
    # from another folder too, though the data was named by a relative path
    done = loopmoe(place / "elsewhere", LOOPMOE, "evaluate", "moved")
    assert done.returncode == 0, done.stderr
    assert (place / "elsewhere" / "moved" / "evaluation.json").exists()


def test_bytes_between_nodes_are_told(place: Path, run: Path) -> None:
    """Of steps alone: two visits of a layer with experts (and one without loop), both ways,
    forward and backward, one other node."""
    done = train(
        place, "name=nodes", "cluster.devices_per_node=1", "model.moe.dispatcher=hierarchical",
        "parallel.expert_parallel_size=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = records(place / "runs" / "nodes", "loss")
    visits = sum(key.startswith("router/") and key.endswith("/dead") for key in found[1])
    hidden = yaml.safe_load((run / "run.yaml").read_text())["model"]
    tokens = 8 * 32 / 2  # of a rank in a step
    wanted = visits * tokens * hidden["hidden_size"] * 4 * 4 / 2**20
    for line in found.values():  # also of the steps behind a validation
        assert line["exchange/cross_node_mib"] == pytest.approx(wanted)
    assert "exchange/cross_node_mib" not in records(run, "loss")[1]
    plain = records(run, "loss")
    for step, line in found.items():  # the same losses as with the flat exchange
        assert line["loss"] == pytest.approx(plain[step]["loss"], rel=1e-3)
