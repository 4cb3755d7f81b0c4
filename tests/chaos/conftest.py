"""Chaos runs only when asked for (make chaos), and ends with a table."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

ROWS: List[Dict[str, Any]] = []


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    if "chaos" in config.getoption("-m"):
        return
    left_out = [item for item in items if item.get_closest_marker("chaos")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not ROWS:
        return
    line = "{fault:14}{seed:>5}  {outcome:42}{detection:>12}{restart:>12}"
    head = dict(fault="fault", seed="seed", outcome="outcome", detection="detected s",
                restart="next step s")  # fmt: skip
    terminalreporter.write_line("\n" + line.format(**head))
    for row in ROWS:
        terminalreporter.write_line(line.format(**row))
    good = sum(row["outcome"] != "FAILED" for row in ROWS)
    terminalreporter.write_line(f"{good} of {len(ROWS)} recovered or refused")


@pytest.fixture(scope="session")
def rows() -> List[Dict[str, Any]]:
    """Lines of the table, filled by the tests."""
    return ROWS
