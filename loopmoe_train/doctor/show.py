"""Results as a person reads them."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections import Counter
from typing import IO, Dict, Iterator, Sequence

from loopmoe_train.doctor.check import FAIL, PASS, WARN, Check, verdict

_COLOURS: Dict[str, str] = {PASS: "32", WARN: "33", FAIL: "31"}
_NARROWEST, _WIDEST = 60, 120


def show(checks: Sequence[Check], stream: IO[str]) -> None:
    """One line a check, the fix below what is wrong, the verdict last."""
    coloured = stream.isatty() and "NO_COLOR" not in os.environ
    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((100, 24)).columns))
    for line in lines(checks, width if stream.isatty() else 10_000, coloured):
        print(line, file=stream)


def lines(checks: Sequence[Check], width: int, coloured: bool) -> Iterator[str]:
    """As :func:`show`, wrapped to ``width`` columns. A fix is never wrapped: it is to be copied."""
    column = max((len(check.name) for check in checks), default=0)

    def status(word: str) -> str:
        return f"\x1b[{_COLOURS[word]}m{word}\x1b[0m" if coloured else word

    indent = " " * (len(PASS) + 2)
    for check in checks:
        head = f"{check.name:<{column}}  "
        room = max(20, width - len(indent) - len(head))
        first, *rest = textwrap.wrap(check.reason, room, break_long_words=False) or [""]
        yield f"{status(check.status)}  {head}{first}"
        for line in rest:
            yield f"{indent}{' ' * len(head)}{line}"
        if check.fix:
            yield f"{indent}{' ' * len(head)}-> {check.fix}"
    counts = Counter(check.status for check in checks)
    summary = ", ".join(
        f"{counts[word]} {said}" for word, said in ((FAIL, "failed"), (WARN, "warned"),
                                                    (PASS, "passed")) if counts[word]
    )  # fmt: skip
    yield f"verdict: {status(verdict(checks))} ({summary or 'nothing was looked at'})"
