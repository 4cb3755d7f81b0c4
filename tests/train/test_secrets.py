"""No secret of the environment ends up in a run folder, also when a run fails with one in hand."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

import pytest

from tests.observe.test_curves import jsonl_curves, steps, tensorboard_curves, wandb_curves
from tests.train.small_run import command, loopmoe, one_line

CANARIES = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefcanary01",
    "HF_TOKEN": "hf_canary02abcdefghijklmnop",
    "AWS_SECRET_ACCESS_KEY": "canary03/wJalrXUtnFEMI+K7MDENG",
    "DB_PASSWORD": "canary04 with spaces",
    "my_secret": "canary05-lower-case",
}

CLOCK = {"elapsed_s", "step_s", "tokens_per_s", "mfu"}

# Every Python process of the run loads this; the ranks then fail at step 5 with a message that
# holds all secrets, as a library that is given a token might.
FAULT = """
import os
if "RANK" in os.environ:
    from loopmoe_train.observe import sinks
    write = sinks.JsonlSink.write
    def fail(self, record):
        if record["step"] == 5:
            print("printed:", os.environ["HF_TOKEN"], flush=True)
            raise RuntimeError("refused: " + " ".join(os.environ[name] for name in NAMES))
        write(self, record)
    sinks.JsonlSink.write = fail
"""


@pytest.mark.timeout(200)
def test_no_secret_in_any_byte(place: Path) -> None:
    (place / "fault").mkdir()
    names = f"NAMES = {list(CANARIES)}"
    (place / "fault" / "sitecustomize.py").write_text(f"{names}\n{FAULT}")
    words = command(place, "name=canary", "observe.wandb=offline", "observe.tensorboard=true",
                    "steps=7", "launcher.max_restarts=0")  # fmt: skip
    environment: Dict[str, str] = {**CANARIES, "WANDB_CACHE_DIR": str(place / "cache")}
    failed = loopmoe(place, *words, PYTHONPATH=str(place / "fault"), **environment)
    assert failed.returncode == 1 and "RuntimeError: refused" in one_line(failed)
    folder = place / "runs" / "canary"
    log = (folder / "logs" / "rank-0.log").read_text()
    assert "Traceback" in log and "RuntimeError: refused: *** *** *** *** ***" in log
    assert "printed: ***" in failed.stdout

    resumed = loopmoe(place, *words, **environment)
    assert resumed.returncode == 0 and "continues from" in resumed.stdout, resumed.stderr
    outputs = "".join(done.stdout + done.stderr for done in (failed, resumed))
    for name, value in CANARIES.items():
        assert value not in outputs, name
        for path in folder.rglob("*"):
            if path.is_file():
                assert value.encode() not in path.read_bytes(), f"{name} in {path}"
    assert {"run.yaml", "report.html", "summary.json"} <= {p.name for p in folder.iterdir()}

    same_curves(folder)


def same_curves(folder: Path) -> None:
    """Step 4 was done twice: what is measured with a clock differs, wandb keeps the first."""
    wanted = jsonl_curves(folder / "metrics.jsonl")
    assert steps(wanted["loss"]) == list(range(1, 8))
    sent, shown = wandb_curves(folder), tensorboard_curves(folder / "tensorboard")
    assert sent.keys() == shown.keys() == wanted.keys()
    for name, curve in wanted.items():
        assert steps(sent[name]) == steps(shown[name]) == steps(curve), name
        assert name in CLOCK or sent[name] == curve, name
        single = [value for _, value in shown[name]]
        assert single == pytest.approx([value for _, value in curve], rel=1e-6), name


def test_a_setting_that_holds_a_secret_is_refused(place: Path) -> None:
    secret = CANARIES["HF_TOKEN"]
    words = command(place, "name=told", f"observe.sample_prompt={secret}")
    done = loopmoe(place, *words, **CANARIES)
    assert done.returncode == 2
    assert "a setting holds the value of $HF_TOKEN" in one_line(done)
    assert secret not in done.stderr
    assert [path.name for path in (place / "runs" / "told").iterdir()] == [".lock"]
