"""A bash script cut into words and operators. What bash itself could not read is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Tuple

from loopmoe_train.errors import Refused

_OPERATORS = (
    "<<<", "<<-", "&>>", ";;&", "<<", "&>", ">>", ">&", "<&", "<>", ">|", ";;", ";&", "&&", "||",
    "|&", "\n", ";", "|", "&", "<", ">", "(", ")",
)  # fmt: skip
REDIRECTIONS = frozenset(("<<<", "<<-", "&>>", "<<", "&>", ">>", ">&", "<&", "<>", ">|", "<", ">"))
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=", re.ASCII)
DEEP = 40  # constructs inside one another


@dataclass(frozen=True)
class Token:
    """A word as it is written, an operator, or the assignment of an array.

    Attributes:
        kind: ``word``, ``operator`` or ``array``; of an array ``text`` is ``NAME=`` or ``NAME+=``.
        items: words of an array.
    """

    kind: str
    text: str
    items: Tuple[Token, ...] = ()


def tokens(text: str) -> List[Token]:
    """A script cut into tokens, without comments, continuations and here-documents.

    Raises:
        Refused: a quote or bracket is never closed, or too many are inside one another.
    """
    lexer = _Lexer(text.replace("\r\n", "\n"))
    try:
        while lexer.at < len(lexer.text):
            lexer.step()
    except Refused as error:
        line = lexer.text.count("\n", 0, lexer.at) + 1
        raise Refused(f"line {line}: {error.what}", error.fix) from None
    return lexer.found


class _Lexer:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0
        self.found: List[Token] = []
        self.documents: List[Tuple[str, bool]] = []  # that begin behind this line

    def step(self) -> None:
        """Past blanks, a comment or one token."""
        text, at = self.text, self.at
        if text[at] in " \t":
            self.at += 1
        elif text.startswith("\\\n", at):
            self.at += 2
        elif text[at] == "#":
            end = text.find("\n", at)
            self.at = end if end >= 0 else len(text)
        elif text.startswith(("<(", ">("), at):
            self.at = behind(text, at)
            self.found.append(Token("word", '""'))
        else:
            operator = next((one for one in _OPERATORS if text.startswith(one, at)), "")
            if operator:
                self._operator(operator)
            else:
                self._word()

    def _operator(self, operator: str) -> None:
        last = self.found[-1] if self.found else None
        if operator in REDIRECTIONS and last and last.kind == "word" and last.text.isdigit():
            if self.text[self.at - 1].isdigit():
                self.found.pop()  # the number of a file, as in 2>&1
        self.found.append(Token("operator", operator))
        self.at += len(operator)
        if operator == "\n":
            for end, tabs in self.documents:
                self._skip_document(end, tabs)
            self.documents = []

    def _word(self) -> None:
        text, begin = self.text, self.at
        at = begin
        while at < len(text) and text[at] not in " \t\n;|&<>()":
            at = behind(text, at)
        word = text[begin:at]
        before = self.found[-1].text if self.found and self.found[-1].kind == "operator" else ""
        if before in ("<<", "<<-"):
            self.documents.append((re.sub(r"[\"'\\]", "", word), before == "<<-"))
        if text.startswith("(", at) and ASSIGNMENT.fullmatch(word):
            self.at = at + 1
            self.found.append(Token("array", word, self._items()))
            return
        self.at = at
        self.found.append(Token("word", word))

    def _items(self) -> Tuple[Token, ...]:
        outer, self.found, inside = self.found, [], 1
        while inside:
            if self.at >= len(self.text):
                raise _never()
            self.step()
            last = self.found[-1] if self.found else None
            if last and last.kind == "operator":
                self.found.pop()
                inside += {"(": 1, ")": -1}.get(last.text, 0)
        items, self.found = self.found, outer
        return tuple(item for item in items if item.kind == "word")

    def _skip_document(self, end: str, tabs: bool) -> None:
        while self.at < len(self.text):
            stop = self.text.find("\n", self.at)
            stop = stop if stop >= 0 else len(self.text)
            line = self.text[self.at : stop]
            self.at = min(stop + 1, len(self.text))
            if (line.lstrip("\t") if tabs else line) == end:
                return


def behind(text: str, at: int, quoted: bool = False, deep: int = 0) -> int:
    """Where the quote, escape, ``$`` or backquote construct that begins at ``at`` has ended.

    Args:
        quoted: it is inside double quotes.

    Raises:
        Refused: it never ends, or too many are inside one another.
    """
    if deep > DEEP:
        raise Refused("too many quotes or brackets inside one another", "write it simpler")
    if text[at] == "\\":
        return min(at + 2, len(text))
    if text[at] == "`":
        return _escaped(text, "`", at + 1)
    if not quoted and text[at] == "'":
        return _escaped(text, "'", at + 1, escapes=False)
    if not quoted and text.startswith("$'", at):
        return _escaped(text, "'", at + 2)
    if text[at] == '"':
        end, at, quoted = '"', at + 1, True
    elif text.startswith("$(", at) or (not quoted and text.startswith(("<(", ">("), at)):
        end, at, quoted = ")", at + 2, False
    elif text.startswith("${", at):
        end, at = "}", at + 2
    else:
        return at + 1
    inside = 0
    while at < len(text):
        if text[at] == end and not inside:
            return at + 1
        if end == ")" and text[at] in "()":
            inside += 1 if text[at] == "(" else -1
        at = behind(text, at, quoted, deep + 1)
    raise _never()


def _escaped(text: str, end: str, at: int, escapes: bool = True) -> int:
    while at < len(text):
        if text[at] == end:
            return at + 1
        at += 2 if escapes and text[at] == "\\" else 1
    raise _never()


def _never() -> Refused:
    return Refused("a quote or bracket is never closed", "close it, as bash needs it")
