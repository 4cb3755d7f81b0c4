"""What a command finds out about its machine and folder before it starts ranks there."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopmoe_train.cli import main
from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused
from loopmoe_train.train.preflight import check_environment, check_machine

ROOT = Path(__file__).parents[2]


def test_an_interface_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    run = compose([])
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert check_environment(run, here=True) == []
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,nope")
    with pytest.raises(Refused, match=r"no interface 'nope'; there are .*\blo\b.* -> export"):
        check_environment(run, here=True)
    assert check_environment(run, here=False) == []  # ranks start elsewhere


def test_another_package_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = compose([])
    monkeypatch.chdir(ROOT)  # holds the one that runs
    check_machine(run, 2)
    monkeypatch.chdir(tmp_path)
    check_machine(run, 2)
    (tmp_path / "loopmoe_train").mkdir()
    with pytest.raises(Refused, match="holds another loopmoe_train .* ranks would import that"):
        check_machine(run, 2)


def test_a_dry_run_can_be_piped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["experiment=smoke", "parallel=auto", "launcher=slurm", "launcher.dry_run=true"]
    assert main(["train", *words]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("#!/bin/bash\n") and "parallel=auto: " in told.err
    assert list(tmp_path.iterdir()) == []
