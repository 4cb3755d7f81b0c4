"""Something about a machine, its software or its settings that will hurt a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        name: what it is about: a variable, a package, a file.
        status: "WARN": it may hurt; "FAIL": it will.
        what: the sentence that says what is wrong and where.
        fix: what to do, as a command where there is one.
    """

    name: str
    status: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.what} -> {self.fix}"
