"""run.yaml gives back the very configuration, and refuses anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopmoe_train.config import run_file
from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused


def test_round_trip(tmp_path: Path) -> None:
    run = compose(["data.source=/tmp/some dir", "optim.decay_steps=7", "model=vanilla_tiny",
                   f"runs_dir={tmp_path.parent}", f"name={tmp_path.name}"])  # fmt: skip
    run_file.save(run, tmp_path / "run.yaml")
    assert run_file.load(tmp_path / "run.yaml") == run
    assert run.data.source == ["/tmp/some dir"]
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_a_moved_run_is_where_its_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_file.save(compose([]), tmp_path / "moved" / "run.yaml")
    found = run_file.load(tmp_path / "moved" / "run.yaml")
    assert run_file.run_dir(found) == tmp_path / "moved"
    monkeypatch.chdir(tmp_path / "moved")
    assert run_file.run_dir(run_file.load(Path("run.yaml"))) == tmp_path / "moved"


@pytest.mark.parametrize(
    "text", ["", "a: [", "steps: many", "unknown: 1", "- 1", "!!python/name:os"]
)
def test_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(Refused) as caught:
        run_file.load(tmp_path / "run.yaml")
    assert "run.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        run_file.load(tmp_path / "run.yaml")
