"""`loopmoe train` as a user runs it: two real processes on a small corpus of real text."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import psutil
import pytest

LOOPMOE = str(Path(sys.executable).with_name("loopmoe"))

# Dropout and accumulation on: what is easily forgotten when a run is continued.
SMALL = [
    "experiment=smoke", "tokenizer.vocab_size=420", "data.valid_percent=10", "data.workers=1",
    "sequence_length=32", "micro_batch_size=2", "global_batch_size=8", "steps=6",
    "eval_interval=3", "eval_batches=0", "optim.warmup_steps=2", "model.hidden_dropout=0.1",
    "model.attention_dropout=0.1", "observe.sample_tokens=12", "checkpoint.interval=3",
]  # fmt: skip


NO_DROPOUT = ["model.hidden_dropout=0", "model.attention_dropout=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus: a few modules of the standard library."""
    folder = tmp_path_factory.mktemp("place")
    source = Path(json.__file__).parents[1]
    (folder / "texts").mkdir()
    for path in [*sorted((source / "json").glob("*.py")), *sorted((source / "email").glob("*.py"))]:
        shutil.copy(path, folder / "texts" / f"{path.parent.name}-{path.name}")
    return folder


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


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished run of six steps."""
    done = train(place, "name=first")
    assert done.returncode == 0, done.stderr
    assert "report: runs/first/report.html" in done.stdout
    assert "gzip -9 bits/byte" in done.stdout
    return place / "runs" / "first"


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


def test_evaluate_at_other_numbers_of_iterations(place: Path, run: Path) -> None:
    """Smoke's loop runs 3 times: that number is the evaluation itself, the others are others."""
    done = loopmoe(place, LOOPMOE, "evaluate", "runs/first", "loop.iterations=3,4")
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "evaluation.json").read_text())
    rows = {row["iterations"]: row for row in result["by_iterations"]}
    assert list(rows) == [3, 4]
    assert rows[3]["loss"] == result["loss"] and rows[3]["agreement"] == 1.0
    assert rows[4]["loss"] != result["loss"] and 0 < rows[4]["agreement"] <= 1
    assert "same token" in done.stdout


def _continued(place: Path, run: Path, name: str) -> Path:
    """A copy of the run that has got as far as step 3."""
    copy = place / "runs" / name
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step-6")
    return copy


def test_a_continued_run_is_bitwise_the_same(place: Path, run: Path) -> None:
    copy = _continued(place, run, "second")
    shutil.copytree(place / "data", place / "moved")
    # Places, words and workers are not the run.
    done = train(place, "name=second", f"runs_dir={place}/runs", f"data.path={place}/moved",
                 "data.workers=2", "model.name=second")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "continues from" in done.stdout
    first, second = records(run, "loss"), records(copy, "loss")
    assert sorted(second) == [1, 2, 3, 4, 5, 6]
    for step in (4, 5, 6):
        for key in ("loss", "grad_norm", "lr", "tokens"):
            assert second[step][key] == first[step][key], (step, key)
    assert records(copy, "val_loss")[6]["val_loss"] == records(run, "val_loss")[6]["val_loss"]
    assert second[6]["elapsed_s"] > first[3]["elapsed_s"]


def _damage(checkpoint: Path) -> None:
    file = checkpoint / "rank-1.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(place: Path, run: Path) -> None:
    copy = place / "runs" / "damaged"
    shutil.copytree(run, copy)
    _damage(copy / "checkpoints" / "step-6")
    done = train(place, "name=damaged", "steps=7", "optim.lr=1e-3", "optim.min_lr=1e-3")
    assert done.returncode == 0, done.stderr
    assert "step-6/rank-1.safetensors: damaged, tensor" in done.stdout
    assert "continues from runs/damaged/checkpoints/step-3" in done.stdout
    lines = records(copy, "loss")
    assert sorted(lines) == [1, 2, 3, 4, 5, 6, 7]
    # The schedule is the one asked for now, not the one in the checkpoint.
    assert lines[7]["lr"] == pytest.approx(1e-3) and lines[3]["lr"] > 1.1e-3
    # Of the two that are kept, none is the damaged one.
    kept = {path.name for path in (copy / "checkpoints").glob("step-*")}
    assert kept == {"step-6", "step-6.retired", "step-7"}


def test_a_run_that_goes_back_gives_up_what_came_after(place: Path, run: Path) -> None:
    copy = place / "runs" / "back"
    shutil.copytree(run, copy)
    step_3 = copy / "checkpoints" / "step-3"
    words = ("name=back", "steps=5", "optim.lr=1e-3", "checkpoint.interval=0")
    done = train(place, *words, f"checkpoint.resume={step_3}")
    assert done.returncode == 0, done.stderr
    assert "step-6 is kept as runs/back/checkpoints/step-6.retired" in done.stdout
    assert sorted(records(copy, "loss")) == [1, 2, 3, 4, 5]
    assert (step_3 / "manifest.json").exists()  # step-6 is not one of the two that are kept
    again = train(place, *words[:1], "steps=6", *words[2:])
    assert again.returncode == 0, again.stderr
    assert "continues from runs/back/checkpoints/step-5" in again.stdout


def test_no_whole_checkpoint_is_refused_by_name(place: Path, run: Path) -> None:
    copy = _continued(place, run, "ruined")
    _damage(copy / "checkpoints" / "step-3")
    done = train(place, "name=ruined")
    assert done.returncode == 2
    assert "rank-1.safetensors: damaged, tensor" in _one_line(done)


@pytest.mark.parity  # the command; tests/checkpoint/test_reshard.py has every pair of layouts
def test_a_run_continues_on_another_layout(place: Path, run: Path) -> None:
    copy = _continued(place, run, "alone")
    done = train(place, "name=alone", "parallel=data", "cluster.devices=1", *NO_DROPOUT)
    assert done.returncode == 2 and "hidden_dropout" in _one_line(done)  # not the same model
    done = train(place, "name=alone", "parallel=data", "cluster.devices=1")
    assert done.returncode == 0, done.stderr
    found, wanted = records(copy, "loss"), records(run, "loss")
    for step in (4, 5, 6):
        assert found[step]["tokens"] == wanted[step]["tokens"]
        # other dropout masks, the same samples
        assert found[step]["loss"] == pytest.approx(wanted[step]["loss"], rel=2e-2)


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def _ranks(launcher: int) -> List[psutil.Process]:
    children = psutil.Process(launcher).children(recursive=True)
    return [p for p in children if "loopmoe_train.train" in p.cmdline()]


def _interrupted(
    place: Path, act: Callable[[subprocess.Popen[str]], None], *words: str
) -> subprocess.CompletedProcess[str]:
    """Start a run that would last, act on it after its second step, and wait for its end."""
    name = next(word for word in words if word.startswith("name=")).removeprefix("name=")
    process = subprocess.Popen(
        command(place, "steps=5000", "checkpoint.interval=0", "eval_interval=0",
                "launcher.max_restarts=0", *words),
        cwd=place, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    metrics = place / "runs" / name / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        ranks = _ranks(process.pid)
        act(process)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    gone, alive = psutil.wait_procs(ranks, timeout=10)
    assert len(gone) == 2 and not alive, "a rank was left behind"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(place: Path, run: Path, number: int) -> None:
    name = f"stopped-{signal.Signals(number).name}"
    done = _interrupted(place, lambda process: process.send_signal(number), f"name={name}")
    assert done.returncode == 0, done.stderr
    folder = place / "runs" / name
    last = max(records(folder, "loss"))
    assert f"stopped by {signal.Signals(number).name} after step {last}" in done.stdout
    assert (folder / "checkpoints" / f"step-{last}" / "manifest.json").exists()
    assert json.loads((folder / "summary.json").read_text())["status"] == "stopped"
    if number == signal.SIGTERM:
        again = train(place, f"name={name}", f"steps={last + 2}", "checkpoint.interval=0")
        assert again.returncode == 0, again.stderr
        assert max(records(folder, "loss")) == last + 2


def test_a_run_folder_is_used_by_one_process_at_a_time(place: Path, run: Path) -> None:
    before = (run / "run.yaml").read_bytes()
    bare = [sys.executable, "-m", "loopmoe_train.train"]
    settings = [*command(place, "name=first", "steps=9", "cluster.devices=1", "parallel=data")[2:]]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline()
        for start in (
            [LOOPMOE, "train", *settings],
            [*bare, *settings],
            [*bare, f"{run}/run.yaml"],
        ):
            done = loopmoe(place, *start)
            assert done.returncode == 2, (done.stdout, done.stderr)
            assert f"runs/first is in use by process {holder.pid} or its ranks ->" in _one_line(
                done
            )
    finally:
        holder.kill()
        holder.wait()
    assert (run / "run.yaml").read_bytes() == before
    done = train(place, "name=first")  # the kernel has freed it
    assert "already trained for 6 steps" in _one_line(done)


def test_ranks_that_outlive_the_front_door_keep_the_run_folder(place: Path, run: Path) -> None:
    def orphan(process: subprocess.Popen[str]) -> None:
        ranks = _ranks(process.pid)
        for rank in ranks:
            rank.suspend()
        process.kill()
        process.wait()
        done = train(place, "name=orphaned", "steps=9")
        for rank in ranks:
            rank.resume()
        assert done.returncode == 2
        assert f"in use by process {process.pid} or its ranks" in _one_line(done)

    _interrupted(place, orphan, "name=orphaned")


HOLD = """
import sys
from pathlib import Path
from loopmoe_train.config.run_file import load
from loopmoe_train.train.preflight import claim
claim(load(Path(sys.argv[1]) / "run.yaml"))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_rank_ends_the_run_in_one_line(place: Path, run: Path) -> None:
    def kill_second(process: subprocess.Popen[str]) -> None:
        victim = next(p for p in _ranks(process.pid) if p.environ()["RANK"] == "1")
        victim.kill()

    done = _interrupted(place, kill_second, "name=killed")
    assert done.returncode == 4
    assert "rank 1 was ended by SIGKILL" in _one_line(done)


def test_a_stopped_rank_is_noticed_from_outside(place: Path, run: Path) -> None:
    def stop_second(process: subprocess.Popen[str]) -> None:
        victim = next(p for p in _ranks(process.pid) if p.environ()["RANK"] == "1")
        victim.suspend()

    done = _interrupted(place, stop_second, "name=silent")
    assert done.returncode == 4
    assert "rank 1 was stopped by SIGSTOP" in _one_line(done)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(place: Path, run: Path) -> None:
    done = train(place, "name=diverged", "optim.lr=1e30", "checkpoint.interval=0", "steps=9")
    assert done.returncode == 3
    line = _one_line(done)
    assert "the gradient is not finite" in line and "the weights were not touched" in line
    folder = place / "runs" / "diverged"
    reached = max(records(folder, "loss"))
    assert (folder / "checkpoints" / f"step-{reached}" / "manifest.json").exists()
    assert f"step {reached + 1}:" in line
    assert json.loads((folder / "summary.json").read_text())["status"].startswith("step")


def test_after_a_bad_step_the_run_continues_as_if_it_had_not_been(place: Path, run: Path) -> None:
    """The last sound state is saved, bitwise: random states and router biases are put back."""
    words = ("name=bad", "checkpoint.interval=0")
    fault = "nan@rank1@step5@step"
    bad = loopmoe(place, *command(place, *words), LOOPMOE_FAULT=fault)
    assert bad.returncode == 3 and "continues from step 4, which is saved" in _one_line(bad)
    assert train(place, *words).returncode == 0
    whole, resumed = records(run, "loss"), records(place / "runs" / "bad", "loss")
    assert {n: r["loss"] for n, r in resumed.items()} == {n: r["loss"] for n, r in whole.items()}


def test_a_moved_run_can_be_reported_and_evaluated(place: Path, run: Path) -> None:
    shutil.copytree(run, place / "elsewhere" / "moved")
    done = loopmoe(place, LOOPMOE, "report", "elsewhere/moved", "runs/first", "--out", "both")
    assert done.returncode == 0, done.stderr
    assert (place / "both" / "report.html").stat().st_size > 10_000
    # from another folder too, though the data was named by a relative path
    done = loopmoe(place / "elsewhere", LOOPMOE, "evaluate", "moved")
    assert done.returncode == 0, done.stderr
    assert (place / "elsewhere" / "moved" / "evaluation.json").exists()


REFUSED = {
    "modle=loopmoe_tiny": "did you mean model",
    "model=loopmoe_tinny": "loopmoe_tiny",
    "optim.learning_rate=1": "optim.lr",
    "steps=many": "steps",
    "model.moe.top_k=99": "top_k=99 is more than",
    "parallel.expert_parallel_size=3": "expert_parallel_size=3 does not divide",
    "global_batch_size=6": "not a multiple",
    "model.moe.expert_hidden_size=62": "multiple of 4",
    "cluster=h100 cluster.devices=2": "no CUDA device",
    "experiment=nope": "bench_train",
    "--steps": "write steps=VALUE",
    "data.source=/nowhere": "holds another dataset",
    "data.source=/nowhere data.path=new": "does not exist",
    "sequence_length=4000000": "lower sequence_length",
    "tokenizer.vocab_size=430": "holds another dataset",
    "model.vocab_size=100": "below the tokenizer's",
    "checkpoint.resume=/nowhere": "not a whole checkpoint",
    "name=../up": "must be one folder name",
    "runs_dir=texts/json-decoder.py": "cannot be used as a run folder",
    "name=first": "already trained for 6 steps",
    "name=first optim=muon steps=9": "optimizer was 'adamw' when it was saved, is 'muon' now",
    "name=first checkpoint.resume=none": "a new run would mix",
    "name=first checkpoint.resume=runs/second/checkpoints/step-3 steps=9": "would mix",
    "name=first seed=2 steps=9": "seed was 1234 when it was saved, is 2 now",
    "name=first data.eod_mask_loss=true steps=9": "eod_mask_loss was False when it was saved",
    "checkpoint.resume=runs/first/checkpoints/step-3 data.reset_attention_mask=true": (
        "reset_attention_mask was False when it was saved, is True now"
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_line_before_anything_starts(place: Path, run: Path, words: str) -> None:
    named = any(word.startswith("name=") for word in words.split())
    before = set(place.rglob("*"))
    name = f"refused-{list(REFUSED).index(words)}"
    done = train(place, *([] if named else [f"name={name}"]), *words.split())
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert REFUSED[words] in _one_line(done)
    new = {str(path.relative_to(place)) for path in set(place.rglob("*")) - before}
    assert new <= {f"runs/{name}", f"runs/{name}/.lock", "new", "new/.lock"}, new
