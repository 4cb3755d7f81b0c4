"""`loopmoe plan` on layouts, and `train parallel=auto`, as commands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from loopmoe_train.cli import auto, main
from loopmoe_train.cli.auto import resolve
from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused

RUN = ["model=loopmoe_3b", "cluster=ascend_a2", "cluster.devices=16", "sequence_length=4096",
       "global_batch_size=32", "precision=bf16"]  # fmt: skip
SCRIPT = """\
GPUS_PER_NODE=8; NNODES=2
TP=4
ARGS=(
    --num-layers 32 --hidden-size 4096 --num-attention-heads 32
    --ffn-hidden-size 11008 --swiglu --untie-embeddings-and-output-weights
    --seq-length 4096 --micro-batch-size 1 --global-batch-size $((16 * 4))
    --tensor-model-parallel-size $TP --sequence-parallel --bf16
)
torchrun --nproc_per_node $GPUS_PER_NODE --nnodes $NNODES pretrain_gpt.py "${ARGS[@]}"
"""


def test_the_best_layouts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "plan.json", tmp_path / "layouts.png"
    words = ["plan", *RUN, "--top", "3", "--json", str(out), "--pareto", str(picture)]
    assert main(words) == 0
    text, report = capsys.readouterr().out, json.loads(out.read_text())
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert len(report["layouts"]) == 3 and report["devices"] == 16
    seconds = [layout["step_s"] for layout in report["layouts"]]
    assert seconds == sorted(seconds)
    assert re.search(r"^2 .* \+\d+%$", text, re.MULTILINE)  # why it is slower
    assert "Dropped" in text
    # what it says to run is a run, and its explanation says the same time
    command = re.search(r"run the first: loopmoe train (.*)", text)
    assert command is not None
    told = shlex.split(command[1])
    assert len({word.partition("=")[0] for word in told}) == len(told)
    assert main(["plan", "--explain", *told, "--json", str(out)]) == 0
    explained = json.loads(out.read_text())
    assert explained["step_s"] == pytest.approx(seconds[0])
    assert explained["fits"] and sum(explained["parts_s"].values()) == pytest.approx(seconds[0])
    assert "MFU" in capsys.readouterr().out


def test_a_step_is_drawn_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, trace = tmp_path / "step.png", tmp_path / "step.json"
    layout = ["parallel.pipeline_parallel_size=2", "micro_batch_size=1"]
    words = ["plan", "--explain", *RUN, *layout, "--draw", str(picture), "--trace", str(trace)]
    assert main(words) == 0
    assert picture.read_bytes()[:4] == b"\x89PNG"
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {event["name"][0] for event in events} >= {"F", "B"} or len(events) > 8
    assert "stage" in capsys.readouterr().out


def test_a_launch_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "pretrain.sh"
    script.write_text(SCRIPT)
    assert main(["plan", "--script", str(script), "cluster=ascend_a2", "vocab-size=32000"]) == 0
    text = capsys.readouterr().out
    assert "pretrain.sh on 16 x ascend_a2: TP 4" in text and "DP 4" in text
    assert main(["plan", "--script", str(script), "cluster=ascend_a2"]) == 2
    assert "vocab-size=32000" in capsys.readouterr().err


def test_other_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shapes.json"
    layout = ["parallel.pipeline_parallel_size=1", "parallel.tensor_parallel_size=1",
              "parallel.context_parallel_size=1", "micro_batch_size=1"]  # fmt: skip
    assert main(["plan", "--shapes", *RUN, *layout, "--json", str(out)]) == 0
    shapes = json.loads(out.read_text())["shapes"]
    assert sum(shape["reference"] for shape in shapes) == 1 and len(shapes) > 5
    for shape in shapes:
        assert abs(shape["parameters"] - 1) <= 0.03 and abs(shape["flops"] - 1) <= 0.03
    seconds = [shape["step_s"] for shape in shapes]
    assert seconds == sorted(seconds)
    assert "itself is number" in capsys.readouterr().out


def test_auto_takes_the_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    words, choice = resolve([*RUN, "parallel=auto", "parallel.expert_parallel_size=4"])
    assert choice is not None and "parallel=auto" not in words
    assert "parallel.expert_parallel_size=4" in words
    assert "chosen:" in capsys.readouterr().err
    assert main(["plan", *RUN, "--top", "1", "parallel.expert_parallel_size=4"]) == 0
    assert f"{choice.step_s:.3g} s" in capsys.readouterr().out
    assert resolve(["steps=3"]) == (["steps=3"], None)


def test_times_are_scaled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, found = tmp_path / "plan.json", []
    scale = ["cluster.efficiency.scale=1.5", "cluster.efficiency.software=torch_npu 2.13.0"]
    for words in (["--top", "2"], ["--explain", "micro_batch_size=1"]):
        for more in ([], scale):
            assert main(["plan", *RUN, *words, *more, "--json", str(out)]) == 0
            report = json.loads(out.read_text())
            found.append([one["step_s"] for one in report.get("layouts", [report])])
        text = capsys.readouterr().out
        assert "scaled by 1.5" in text and "Figures are of torch_npu 2.13.0" in text
    plain, scaled, one, other = found
    assert [b / a for a, b in zip(plain + one, scaled + other)] == pytest.approx([1.5] * 3)
    assert sum(report["parts_s"].values()) == pytest.approx(report["step_s"])


def test_a_scale_is_offered_when_a_run_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"step": n, "loss": 1.0, "step_s": 3.0, "elapsed_s": 3.0 * n} for n in range(1, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    auto.compare(auto.Choice([], 2.0, 1.0, 1.2), tmp_path)
    assert "cluster.efficiency.scale=1.80" in capsys.readouterr().out


def test_a_table_of_other_software_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=loopmoe_tiny", "parallel=auto"]
    resolve(words)
    assert "measured with" not in capsys.readouterr().err
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9+cpu")
    resolve(words)
    assert re.search(r"measured with torch \S+, here is 9.9.9\+cpu", capsys.readouterr().err)


NODES = ["model=qwen3_30b_a3b", "cluster=ascend_a2", "cluster.devices=64", "sequence_length=4096",
         "global_batch_size=256", "precision=bf16", "parallel.expert_parallel_size=32",
         "micro_batch_size=1"]  # fmt: skip


def test_the_exchange_is_chosen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words, choice = resolve([*NODES, "model.moe.dispatcher=auto"])
    assert choice is None and words[:-1] == NODES
    text = capsys.readouterr().err
    seconds = {kind: float(one) for kind, one in re.findall(r"(\w+) ([0-9.]+) s a step", text)}
    assert set(seconds) == {"alltoall", "allgather", "hierarchical", "deduplicated"}
    best = min(seconds, key=lambda kind: seconds[kind])
    assert words[-1] == f"model.moe.dispatcher={best}" != "model.moe.dispatcher=alltoall"
    # in one node there is no second level
    words, _ = resolve([*NODES, "model.moe.dispatcher=auto", "parallel.expert_parallel_size=8"])
    assert "hierarchical" not in capsys.readouterr().err
    # the search takes it too, and says what to run
    assert main(["plan", *NODES, "model.moe.dispatcher=auto", "--top", "1"]) == 0
    assert f"model.moe.dispatcher={best}" in capsys.readouterr().out
    # but a run that nobody resolved is refused
    out = tmp_path / "plan.json"
    assert main(["plan", "--explain", *NODES, "model.moe.dispatcher=auto", "--json", str(out)]) == 0
    assert json.loads(out.read_text())["step_s"] == pytest.approx(seconds[best], rel=1e-3)
    with pytest.raises(Refused, match="dispatcher=auto: use one of alltoall"):
        compose([*NODES, "model.moe.dispatcher=auto"])


def test_auto_refuses_what_cannot_fit() -> None:
    with pytest.raises(Refused, match="718b on 16 x ascend_a2: it fits in no layout"):
        resolve([*RUN, "model=pangu_ultra_moe_718b", "parallel=auto"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pareto", "a.jpg", *RUN], "not a .png"),
        (["--with", "magic", *RUN], "magic: an unknown technique"),
        (["--explain", "--shapes", *RUN], "several reports"),
        (["--script", "nowhere.sh"], "nowhere.sh"),
        ([*RUN, "model=deepseek_v3_671b"], "it fits in no layout"),
        ([*RUN, "cluster=ascend_a9"], "there is no such preset"),
        ([*RUN, "cluster.memory_gib=null"], "cluster.memory_gib is not known"),
        ([*RUN, "global_batch_size=0"], "must be at least 1"),
        ([*RUN, "--top", "0"], "--top 0"),
        ([*RUN, "cluster.fragmentation=1.5"], "is a share, from 0 to 1"),
        ([*RUN, "cluster.communicator_mib=-1"], "must not be negative"),
        ([*RUN, "cluster.efficiency.scale=40"], "must be from 0.1 to 10"),
    ],
)
def test_plans_that_cannot_be(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
