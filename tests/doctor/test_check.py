"""Results, their table, and the page that is held equal to the catalogue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loopmoe_train.doctor import catalogue, show
from loopmoe_train.doctor.check import Check, failed, look, parse, passed, report, verdict, warned
from loopmoe_train.errors import Refused

ROOT = Path(__file__).parents[2]
THREE = [
    passed("host/shm", "large"),
    warned("host/threads", "they disturb one another " * 8, "export OMP_NUM_THREADS=2"),
    failed("run/config", "optim.lr=-1: must be above 0", "change the setting that is named"),
]


def test_the_page_lists_every_check() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text()
    assert catalogue.table() in page, "paste what `python -m loopmoe_train.doctor.catalogue` prints"


def test_every_check_is_made_somewhere() -> None:
    sources = "".join(
        path.read_text() for path in (ROOT / "loopmoe_train").glob("doctor/*.py")
        if path.name != "catalogue.py"
    )  # fmt: skip
    sources += (ROOT / "loopmoe_train" / "cli" / "doctor.py").read_text()
    for name in catalogue.CHECKS:
        group, what = name.split("/")
        by_group = re.search(rf'f"{group}/\{{\w+\}}"', sources)
        assert f'"{name}"' in sources or (by_group and f'"{what}"' in sources), name


def test_every_check_has_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests" / "doctor").glob("*.py"))
    for name in catalogue.CHECKS:
        assert f'"{name}"' in tests or f"'{name}'" in tests, name


def test_a_result_is_whole() -> None:
    with pytest.raises(ValueError, match="not a check of the catalogue"):
        passed("host/moon", "full")
    with pytest.raises(ValueError, match="a fix goes with"):
        failed("host/shm", "small", "")
    with pytest.raises(ValueError, match="a fix goes with"):
        Check("host/shm", "PASS", "large", "none")


def test_the_verdict_is_the_worst() -> None:
    assert [verdict(THREE[:n]) for n in range(4)] == ["PASS", "PASS", "WARN", "FAIL"]
    written = report(THREE)
    assert written["verdict"] == "FAIL" and parse(written) == THREE
    assert sorted(written["checks"][0]) == ["fix", "name", "reason", "status"]


def test_what_a_check_raises_is_its_failure() -> None:
    def refuses() -> list[Check]:
        raise Refused("no\nline", "do it")

    def breaks() -> list[Check]:
        raise KeyError("hole")

    assert look("run/data", refuses) == [failed("run/data", "no line", "do it")]
    (broken,) = look("run/data", breaks)
    assert broken.status == "FAIL" and "the check itself failed: KeyError" in broken.reason


def test_the_table() -> None:
    lines = list(show.lines(THREE, 80, coloured=False))
    assert lines[0] == "PASS  host/shm      large"
    assert lines[-1] == "verdict: FAIL (1 failed, 1 warned, 1 passed)"
    assert sum("-> " in line for line in lines) == 2 and max(map(len, lines)) <= 80
    assert "\x1b[31mFAIL\x1b[0m" in "".join(show.lines(THREE, 80, coloured=True))
