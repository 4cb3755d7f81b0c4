"""What counts as a secret, and that it is replaced wherever this process writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loopmoe_train.config import run_file
from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused
from loopmoe_train.redact import redact, secrets


@pytest.fixture(autouse=True)
def only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in secrets():
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "apikey"]
)
def test_secret_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "value-of-it")
    assert redact("before value-of-it after value-of-it") == "before *** after ***"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_TOKEN_PATH", "/home/me/token"),
        ("HOME", "/home/me"),
    ],
)
def test_no_secret(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redact(f"it is {value}") == f"it is {value}"


def test_a_secret_within_another_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "12345678")
    monkeypatch.setenv("B_KEY", "12345678-and-more")
    assert redact("x 12345678-and-more y 12345678") == "x *** y ***"


def test_a_process_prints_none() -> None:
    code = (
        "import sys\nfrom loopmoe_train.redact import redact_output\nredact_output()\n"
        "print('out canary-0001')\nassert not sys.stdout.isatty()\n"
        "sys.stderr.write('err canary-0001\\n')\nraise ValueError('canary-0001')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={"X_TOKEN": "canary-0001"}, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.stdout == "out ***\n"
    assert "err ***" in done.stderr and "ValueError: ***" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_run_yaml_refuses_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    run = compose(["observe.sample_prompt=hf_abcdefghij"])
    with pytest.raises(Refused, match=r"\$HF_TOKEN") as refused:
        run_file.save(run, tmp_path / "run.yaml")
    assert "hf_abc" not in str(refused.value) and not list(tmp_path.iterdir())
