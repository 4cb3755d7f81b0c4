"""What a check found, in a form that tests compare."""

from __future__ import annotations

from typing import Iterable, Union

from loopmoe_train.doctor.check import Check, verdict


def one(found: Union[Check, Iterable[Check]], name: str) -> Check:
    """The worst result under ``name``."""
    listed = [found] if isinstance(found, Check) else list(found)
    ours = [check for check in listed if check.name == name]
    assert ours, f"{name} is not among {[check.name for check in listed]}"
    worst = verdict(ours)
    return next(check for check in ours if check.status == worst)


def assert_passes(found: Union[Check, Iterable[Check]], name: str) -> None:
    check = one(found, name)
    assert check.status == "PASS", check


def assert_finds(
    found: Union[Check, Iterable[Check]], name: str, status: str, reason: str, fix: str
) -> None:
    """``name`` has ``status``, and its reason and fix hold these words."""
    check = one(found, name)
    assert check.status == status, check
    assert reason in check.reason and fix in check.fix, check
