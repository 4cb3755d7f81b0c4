"""One result of the doctor, and the verdict over many."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, Iterable, List, Sequence

from loopmoe_train.device.problem import Problem
from loopmoe_train.doctor.catalogue import CHECKS
from loopmoe_train.errors import LoopMoEError

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
_WORST_FIRST = (FAIL, WARN, PASS)


@dataclass(frozen=True)
class Check:
    """One result.

    Attributes:
        name: group/what, of :data:`loopmoe_train.doctor.catalogue.CHECKS`.
        status: PASS, WARN (it may hurt) or FAIL (it will).
        reason: what was found, in a sentence.
        fix: what to do, as a command where there is one; "" of a PASS.

    Raises:
        ValueError: a name that the catalogue lacks, or a finding without a fix.
    """

    name: str
    status: str
    reason: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.name not in CHECKS or self.status not in _WORST_FIRST:
            raise ValueError(f"{self.name} {self.status}: not a check of the catalogue")
        if (self.status == PASS) == bool(self.fix):
            raise ValueError(f"{self.name}: a fix goes with what is wrong, and with nothing else")


def passed(name: str, reason: str) -> Check:
    """All is well."""
    return Check(name, PASS, reason)


def warned(name: str, reason: str, fix: str) -> Check:
    """It may hurt."""
    return Check(name, WARN, reason, fix)


def failed(name: str, reason: str, fix: str) -> Check:
    """It will hurt."""
    return Check(name, FAIL, reason, fix)


def of_problem(name: str, problem: Problem) -> Check:
    """A finding of ``device/`` under a name of ours."""
    about = "" if problem.name in problem.what else f"{problem.name}: "
    return Check(name, problem.status, about + problem.what, problem.fix)


def look(name: str, check: Callable[[], Iterable[Check]]) -> List[Check]:
    """What ``check`` finds; what it raises is a FAIL of ``name``, so that it hides no other."""
    try:
        return list(check())
    except LoopMoEError as error:
        return [failed(name, _line(error.what), _line(error.fix) or "see `loopmoe doctor --help`")]
    except Exception as error:
        why = f"the check itself failed: {type(error).__name__}: {_line(str(error))[:300]}"
        return [failed(name, why, "set LOOPMOE_TRACEBACK=1 and run the failing command again")]


def verdict(checks: Sequence[Check]) -> str:
    """The worst status; PASS of nothing."""
    found = {check.status for check in checks}
    return next((status for status in _WORST_FIRST if status in found), PASS)


def report(checks: Sequence[Check]) -> Dict[str, Any]:
    """What ``--json`` prints."""
    return {"checks": [asdict(check) for check in checks], "verdict": verdict(checks)}


def parse(content: Dict[str, Any]) -> List[Check]:
    """Checks of a :func:`report`."""
    return [Check(**one) for one in content["checks"]]


def _line(text: str) -> str:
    return " ".join(text.split())
