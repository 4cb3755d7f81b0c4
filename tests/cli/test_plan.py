"""`loopmoe plan`: columns, figures as JSON, a preset that can be used as it is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from loopmoe_train.cli import main
from loopmoe_train.config.compose import compose
from loopmoe_train.spec.arithmetic import forward_flops_per_token, parameters


def test_one_column_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    words = ["plan", "--model-only", "model=loopmoe_3b,vanilla_3b", "model=deepseek_v3_671b"]
    assert main([*words, "sequence_length=2048", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ["loopmoe_3b", "vanilla_3b", "deepseek_v3_671b"]
    assert lines[0].split() == names
    assert "671.0B" in next(line for line in lines if line.startswith("parameters"))
    assert "22.5 of 136" in next(line for line in lines if line.startswith("distinct experts"))
    assert "sequence_length=2048" in lines[-1]
    models = json.loads(out.read_text())["models"]
    assert [model["name"] for model in models] == names
    for figures in models:
        model = compose([f"model={figures['name']}"]).model
        vocab = figures["vocab_size"]
        assert figures["parameters"] == parameters(model, vocab)
        forward = figures["flops_per_token"]["forward"]
        total = forward.pop("total")
        assert forward == forward_flops_per_token(model, vocab, 2048)
        assert total == pytest.approx(sum(forward.values()))
        assert figures["flops_per_token"]["backward"]["total"] == pytest.approx(2 * total)


def test_without_a_name_it_is_the_quickstarts_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--model-only", "model.body_layers=2"]) == 0
    out = capsys.readouterr().out
    assert out.split()[0] == "loopmoe_tiny" and "4 (8)" in out


def test_a_balanced_preset_is_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed can be stored as a preset: it says the same as the figures."""
    out = tmp_path / "figures.json"
    words = "plan --balance 2/2/2x4 model=vanilla_3b model.loop.gate=scalar --jaccard 0.6"
    assert main([*words.split(), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    report = json.loads(out.read_text())
    preset = yaml.safe_load(text)
    assert preset == report["model"] and preset["loop"]["gate"] == "scalar"
    assert preset["moe"]["num_experts"] == 152
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert words.removeprefix("plan ") in comments[0]
    for key, row in (("parameters", "# N, "), ("flops", "# F, "), ("ratio", "# rho, ")):
        line = next(line for line in comments if line.startswith(row))
        assert line.endswith(f"{100 * report['residuals'][key]:+.2f} %")
    # As a preset it composes: every value fits the schema.
    values = {f"model.{k}": v for k, v in preset.items() if not isinstance(v, dict)}
    values |= {
        f"model.{group}.{key}": value
        for group in ("loop", "attention", "moe")
        for key, value in preset[group].items()
    }
    flat = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
    assert asdict(compose(flat).model) == preset


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from loopmoe_train.cli import main\n"
        "code = main(['plan', '--model-only', 'model=pangu_ultra_moe_718b'])\n"
        "print(code, [m for m in ('torch', 'numpy', 'megatron.core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    code = (
        "import sys; from loopmoe_train.cli import main; sys.exit(main(['plan', '--model-only']))"
    )
    command = f'{sys.executable} -c "{code}" | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


PIPELINE = ["model=loopmoe_small", "parallel=pipeline", "cluster.devices=4", "global_batch_size=64"]


def test_draw_shows_where_everything_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, trace, out = (tmp_path / name for name in ("a.png", "a.json", "b.json"))
    words = ["plan", "--draw", str(picture), "--trace", str(trace), "--json", str(out), *PIPELINE]
    assert main(words) == 0
    text = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert report["stages"] == 2 and report["micro_batches"] == 8
    assert sum(report["pipeline_layout"]) == 2 + 4 * 2 + 2
    assert f"bubble share {report['bubble_share']:.1%}" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("chunk")]
    assert len(rows) == report["chunks"]
    words_of_slots = [word for row in rows for word in row[2:]]
    assert words_of_slots == ["L0", "L1", "L2.1", "L3.1", "L2.2", "L3.2", "L2.3", "L3.3", "L2.4",
                              "L3.4", "L4", "L5"]  # fmt: skip
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert len(events) == 2 * report["micro_batches"] * report["chunks"] * report["stages"]
    # As printed, the layout can be set by hand and is the same.
    layout = f"parallel.pipeline_layout=[{','.join(map(str, report['pipeline_layout']))}]"
    assert layout in text
    assert main(["plan", "--draw", str(picture), "--json", str(out), *PIPELINE, layout]) == 0
    assert json.loads(out.read_text()) == report


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--draw", "a.jpg", *PIPELINE], "not a .png"),
        (["--draw", "nowhere/a.png", *PIPELINE], "nowhere/a.png: No such file"),
        (["--trace", "a.json"], "--trace is for --draw"),
        (["--draw", "a.png", "--model-only"], "several reports"),
        (["--draw", "a.png", "parallel=pipeline"], "less than 2 stages"),
    ],
)
def test_drawings_that_cannot_be(
    words: list, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
