"""run.yaml gives back the very configuration, and refuses anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from loopmoe_train.config import run_file
from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused


def test_round_trip(tmp_path: Path) -> None:
    run = compose(["data.source=/tmp/some dir", "optim.decay_steps=7", "model=vanilla_tiny"])
    run_file.save(run, tmp_path / "run.yaml")
    assert run_file.load(tmp_path / "run.yaml") == run
    assert run.data.source == ["/tmp/some dir"]
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


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
