"""One corpus and one finished run for all tests of the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.train.small_run import train


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus: a few modules of the standard library."""
    folder = tmp_path_factory.mktemp("place")
    source = Path(json.__file__).parents[1]
    (folder / "texts").mkdir()
    for path in [*sorted((source / "json").glob("*.py")), *sorted((source / "email").glob("*.py"))]:
        shutil.copy(path, folder / "texts" / f"{path.parent.name}-{path.name}")
    return folder


@pytest.fixture(scope="package")
def run(place: Path) -> Path:
    """A finished run of six steps."""
    done = train(place, "name=first")
    assert done.returncode == 0, done.stderr
    assert "report: runs/first/report.html" in done.stdout
    assert "gzip -9 bits/byte" in done.stdout
    return place / "runs" / "first"
