"""What a check of the machine finds wrong."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        name: of the check.
        status: WARN or FAIL.
        what: the sentence that says what is wrong and where.
        fix: what to do about it.
    """

    name: str
    status: str
    what: str
    fix: str
