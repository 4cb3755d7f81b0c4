"""The front door: instant help, one line for every mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loopmoe_train.cli import VERBS, main


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    heavy = "torch megatron hydra numpy rich matplotlib wandb yaml".split()
    code = (
        "import sys; from loopmoe_train.cli import main; main(['--help'])\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    out = _python(code)
    assert out.splitlines()[-1] == "[]"
    assert all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([verb, "--help"])
    except SystemExit as leaving:  # argparse
        code = int(leaving.code or 0)
    text = capsys.readouterr().out
    assert code == 0 and f"loopmoe {verb}" in text


MISTAKES = {
    "trian": "did you mean `loopmoe train`?",
    "bench kernelz": "there is no such benchmark",
    "bench train --against deepspeed": "unknown peer",
    "bench train --json": "no file named",
    "evaluate": "no run folder was given",
    "evaluate /nowhere": "/nowhere/run.yaml: cannot be read",
    "evaluate steps=3": "not a run folder",
    "report": "the following arguments are required: RUN",
    "report /nowhere": "there is no run folder",
    "data data.source=/nowhere data.path={tmp}/d": "does not exist",
    "data --forse": "write forse=VALUE",
    "tokenizer tokenizer.kind=bpee data.path={tmp}/d": "did you mean bpe?",
    "plan model=loopmoe_9b": "it fits in no layout",
    "plan --model-only model=loopmoe_4b": "did you mean",
    "plan --model-only model.moe.topk=2": "did you mean model.moe.top_k",
    "plan --model-only --jsn f": "unrecognized arguments: --jsn",
    "plan --model-only --json {tmp}": "--json {tmp}",
    "plan --model-only --jaccard 2": "must be from 0 to 1",
    "plan --balance 2/2x4 model=vanilla_3b": "write PREFIX/BODY/SUFFIXxK",
    "plan --balance 2/2/2x4": "loopmoe_tiny is looped already",
    "plan --balance 2/2/2x4 model=mixtral_8x7b": "no MLA ranks",
    "plan --balance 2/2/2x4 model=vanilla_3b,vanilla_9b": "takes one vanilla model",
    "plan --balance 2/2/2x4 model=pangu_ultra_moe_718b": "add prefix layers",
    "plan --balance 2/2/2x90 model=vanilla_3b": "no widths bring 2/2/2x90",
    "plan --balance 2/2/2x4 model=vanilla_3b --rank-multiple 0": "must be at least 1",
    "plan --balance 2/2/2x4 model=vanilla_3b --unique-experts 3": "cannot be",
    "evaluate runs/x loop.iterations=two": "not numbers of iterations",
    "evaluate runs/x loop.iterations=0..2": "nothing below 1",
    "evaluate runs/x --shots 3": "--shots is for --tasks",
    "evaluate runs/x --tasks a --task-folder /nowhere": "no such folder",
    "evaluate runs/x --tasks a --limit 0": "--limit 0: it must be at least 1",
    "evaluate runs/x --task a": "unrecognized arguments: --task a",
    "train -m model=loopmoe_tiny": "no setting has several values",
    "train -m model=loopmoe_tiny,nope": "nope: there is no such preset",
    "study nope": "there is no such preset",
    "plan --model-only --balance 2/2/2x4 model=vanilla_3b": "several reports",
    "train learning_rate=1": "did you mean optim.lr",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_in_one_line(
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def launched(*_: object, **__: object) -> None:
        raise AssertionError("it was not refused")

    # A mistake that becomes legal must fail here, not train.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loopmoe_train.launcher.supervise.launch", launched)
    code = main(words.format(tmp=tmp_path).split())
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert (
        len(lines) == 1
        and MISTAKES[words].format(tmp=tmp_path) in lines[0]
        and lines[0].startswith("loopmoe")
    )


@pytest.mark.parametrize(
    ("damage", "words"), [("", "has no checkpoint"), ("steps: 1", "no whole checkpoint")]
)
def test_a_run_without_a_checkpoint_is_not_evaluated(
    damage: str,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loopmoe_train.config import compose, run_file

    run_file.save(compose.compose([]), tmp_path / "run.yaml")
    if damage:
        (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
        (tmp_path / "checkpoints" / "step-3" / "manifest.json").write_text(damage)
    monkeypatch.setattr("loopmoe_train.launcher.supervise.launch", None)
    assert main(["evaluate", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path) in line and words in line


@pytest.mark.parametrize(
    ("words", "file"), [("evaluate", "run.yaml"), ("data verify", "dataset.json")]
)
def test_a_folder_that_is_there_is_no_setting(
    words: str,
    file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    assert main([*words.split(), "lr=1"]) == 2
    assert f"lr=1/{file}" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from loopmoe_train.cli import report

    def fail(argv: list[str]) -> int:
        raise KeyError("inside")

    monkeypatch.setattr(report, "run", fail)
    assert main(["report"]) == 1
    err = capsys.readouterr().err
    assert "unexpected KeyError: 'inside'" in err and err.count("\n") == 1
    monkeypatch.setenv("LOOPMOE_TRACEBACK", "1")
    with pytest.raises(KeyError):
        main(["report"])
