"""What the words of a bash script expand to; nothing is ever run.

What would grow without end is refused.
"""

from __future__ import annotations

import ast
import re
from typing import Dict, List, Mapping, Optional, Union

from loopmoe_train.errors import Refused
from loopmoe_train.sim.scripts.bash.words import DEEP, behind

Value = Union[str, List[str]]  # of a variable: text, or the elements of an array

_PARAMETER = re.compile(r"([A-Za-z_]\w*|\d+|[@*#?$!-])(?:\[([^\]]*)\])?(.*)", re.ASCII | re.DOTALL)
_SHORT = re.compile(r"[A-Za-z_]\w*|[\d@*#?$!-]", re.ASCII)
_BUDGET = 10_000_000  # characters that all expansions of a script may make together
_WHOLE = 2**63  # integers of bash are below
_EXPRESSION = 300  # characters of arithmetic
_ARITHMETIC = re.compile(r"(?:[\s()+*/%-]|\d+(?!\w)|[A-Za-z_]\w*(?!\w))+", re.ASCII)


class Expander:
    """Expands words with the variables of a script.

    It knows ``$A``, ``${A}``, ``${A[0]}``, ``${A[@]}``, ``${#A}``, ``${#A[@]}``, ``${A:-word}``
    and its kin with ``=``, ``+`` and ``?``, and ``$((...))``. All else makes nothing: commands
    and processes above all. Parameters of the script are none unless they are given.
    """

    def __init__(self, variables: Mapping[str, Value]) -> None:
        self.variables: Dict[str, Value] = dict(variables)
        self._budget = _BUDGET

    def words(self, source: str, split: bool = True) -> List[str]:
        """The words that a word of the script becomes.

        Args:
            split: unquoted expansions are cut at blanks.

        Raises:
            Refused: it grows too long or is too deep.
        """
        fields = _Fields()
        self._expand(source, fields, split, False, 0)
        return fields.done()

    def text(self, source: str) -> str:
        """What an assignment of this word assigns."""
        return " ".join(self.words(source, split=False))

    def value(self, name: str, index: Optional[str] = None) -> List[str]:
        """Elements of a variable; of a text it is the only one. Without ``index`` the first."""
        if name == "#":
            return [str(sum(key.isdigit() for key in self.variables))]
        if name in "?":
            return ["0"]
        if name in "@*":
            given = sorted((key for key in self.variables if key.isdigit()), key=int)
            return [self._one(key) for key in given]
        held = self.variables.get(name, [])
        elements = [held] if isinstance(held, str) else held
        if index in ("@", "*"):
            return list(elements)
        place = self.arithmetic(index) if index else 0
        return elements[place : place + 1] if place is not None and place >= 0 else []

    def _one(self, name: str) -> str:
        return "".join(self.value(name))

    # -- one word --------------------------------------------------------------------------
    def _expand(self, source: str, out: _Fields, split: bool, quoted: bool, deep: int) -> None:
        at = 0
        while at < len(source):
            char, end = source[at], behind(source, at, quoted, deep)
            inner = source[at + 1 : end - 1]
            if char == "\\":
                if source[at + 1 : end] != "\n":
                    literal = not quoted or source[at + 1 : end] in '$`"\\'
                    out.add(self.paid(source[at + 1 : end] if literal else source[at:end]))
            elif not quoted and (char == "'" or source.startswith("$'", at)):
                out.begin()
                out.add(self.paid(inner if char == "'" else inner[1:]))
            elif char == '"':
                out.begin(not re.fullmatch(r"\$(@|\{\w+\[@\]\})", inner))
                self._expand(inner, out, split, True, deep + 1)
            elif char == "$":
                end = self._dollar(source, at, end, out, split, quoted, deep)
            elif char != "`":
                out.add(self.paid(char))
            at = end

    def paid(self, text: str, more: int = 0) -> str:
        self._budget -= len(text) + more
        if self._budget < 0:
            raise Refused("its variables grow without end", "write them simpler")
        return text

    def _dollar(
        self, source: str, at: int, end: int, out: _Fields, split: bool, quoted: bool, deep: int
    ) -> int:
        """Expand the ``$`` construct at ``at``; where it has ended."""
        if source.startswith("$((", at) and source.endswith("))", at, end):
            result = self.arithmetic(source[at + 3 : end - 2], deep)
            self._put([] if result is None else [str(result)], False, out, split, quoted)
        elif source.startswith("${", at):
            self._braces(source[at + 2 : end - 1], out, split, quoted, deep)
        elif not source.startswith("$(", at):
            found = _SHORT.match(source, at + 1)
            if found is not None:
                self._put(self.value(found[0]), found[0] == "@", out, split, quoted)
                return found.end()
            if not source.startswith('$"', at):
                out.add("$")
            return at + 1
        return end

    def _put(
        self, elements: List[str], every: bool, out: _Fields, split: bool, quoted: bool
    ) -> None:
        """Add elements to the words; ``every``: inside quotes they stay apart."""
        if quoted and every:
            for place, element in enumerate(elements):
                if place:
                    out.end()
                out.begin()
                out.add(self.paid(element))
        elif quoted or not split:
            out.add(self.paid(" ".join(elements)))
        else:
            out.split(self.paid(" ".join(elements)))

    def _braces(self, inner: str, out: _Fields, split: bool, quoted: bool, deep: int) -> None:
        """Expand ``${inner}``."""
        counted = inner.startswith("#") and len(inner) > 1
        found = _PARAMETER.fullmatch(inner[1:] if counted else inner)
        if found is None:
            return
        name, index, rest = found.groups()
        elements, every = self.value(name, index), "@" in (name, index)
        if counted:
            many = index in ("@", "*")
            elements = [str(len(elements) if many else len("".join(elements)))]
            rest = ""
        colon = rest.startswith(":")
        kind, word = rest[colon : colon + 1], rest[colon + 1 :]
        if rest and (not kind or kind not in "-=+?"):
            return
        is_set = any(elements) if colon else bool(elements) or name in self.variables
        if not rest or (is_set and kind != "+"):
            self._put(elements, every, out, split, quoted)
        elif kind == "=" and index is None:
            self.variables[name] = self.text(word)
            self._put(self.value(name), False, out, split, quoted)
        elif kind == "-" or (is_set and kind == "+"):
            self._expand(word, out, split, quoted, deep + 1)

    # -- arithmetic ------------------------------------------------------------------------
    def arithmetic(self, source: str, deep: int = 0) -> Optional[int]:
        """The value of an integer expression; None: it has none."""
        if deep >= DEEP:
            return None
        fields = _Fields()
        self._expand(source, fields, False, True, deep + 1)
        text = self.paid(" ".join(fields.done()).strip(), _EXPRESSION)
        if len(text) > _EXPRESSION or not _ARITHMETIC.fullmatch(text):
            return None
        try:
            return self._integer(ast.parse(text, mode="eval").body, deep)
        except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
            return None

    def _integer(self, node: ast.AST, deep: int) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            result = node.value
        elif isinstance(node, ast.Name):
            found = self.arithmetic(self._one(node.id) or "0", deep + 1)
            if found is None:
                raise ValueError(node.id)
            result = found
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            result = self._integer(node.operand, deep)
            result = -result if isinstance(node.op, ast.USub) else result
        elif isinstance(node, ast.BinOp):
            left, right = self._integer(node.left, deep), self._integer(node.right, deep)
            result = _binary(node.op, left, right)
        else:
            raise ValueError("not of integers")
        if abs(result) >= _WHOLE:
            raise OverflowError(result)
        return result


def _binary(kind: ast.operator, left: int, right: int) -> int:
    """As bash has it: division goes towards zero.

    Raises:
        ValueError: not one of + - * / % **.
        ArithmeticError: there is no such integer of 64 bits.
    """
    if isinstance(kind, ast.Add):
        return left + right
    if isinstance(kind, ast.Sub):
        return left - right
    if isinstance(kind, ast.Mult):
        return left * right
    if isinstance(kind, ast.Pow):
        if right < 0 or (abs(left) > 1 and right > 63):
            raise OverflowError
        return int(left ** min(right, 64 + right % 2))  # of -1, 0 and 1 only parity counts
    quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    if isinstance(kind, ast.Div):
        return quotient
    if isinstance(kind, ast.Mod):
        return left - right * quotient
    raise ValueError("not arithmetic of bash")


class _Fields:
    """Words in the making: text is added to the last one until it ends."""

    def __init__(self) -> None:
        self._found: List[str] = []
        self._parts: Optional[List[str]] = None

    def begin(self, really: bool = True) -> None:
        """A word is here even if nothing is added to it, as of empty quotes."""
        if really and self._parts is None:
            self._parts = []

    def add(self, text: str) -> None:
        if text:
            self.begin()
            assert self._parts is not None
            self._parts.append(text)

    def end(self) -> None:
        if self._parts is not None:
            self._found.append("".join(self._parts))
        self._parts = None

    def split(self, text: str) -> None:
        """Add text that is cut at blanks."""
        for piece in re.findall(r"[ \t\n]+|[^ \t\n]+", text):
            if piece[0] in " \t\n":
                self.end()
            else:
                self.add(piece)

    def done(self) -> List[str]:
        self.end()
        return self._found
