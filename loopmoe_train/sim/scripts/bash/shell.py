"""Follows a bash script without running anything: its variables and the commands it would start.

Where a script asks what only a run could tell, the answer is fixed: every command succeeds and
prints nothing, no file is there, and nothing ends the script early. A loop's body is followed
once. ``source`` is not followed.
"""

from __future__ import annotations

import operator
import os.path
import re
from fnmatch import fnmatchcase
from typing import Callable, Dict, FrozenSet, List, Mapping, Sequence, Tuple

from loopmoe_train.errors import Refused
from loopmoe_train.sim.scripts.bash.expansion import Expander
from loopmoe_train.sim.scripts.bash.words import ASSIGNMENT, REDIRECTIONS, Token, tokens

_DECLARE = ("export", "local", "readonly", "declare", "typeset")
_LISTS = ("\n", ";", "&", "|", "|&")  # between commands that all run
_STEPS = 20_000  # commands that are followed
_DEEP = 30  # statements inside one another
_TEST = 60  # words of a test
_COMPARE: Dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq, "-ne": operator.ne, "-lt": operator.lt,
    "-le": operator.le, "-gt": operator.gt, "-ge": operator.ge,
}  # fmt: skip


class Shell:
    """A script as far as it has been followed.

    Args:
        variables: of the environment; the script's parameters are "1", "2" and so on.

    Attributes:
        commands: words of every command that would be started, in order.
    """

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.commands: List[Tuple[str, ...]] = []
        self._expander = Expander(variables)
        self._functions: Dict[str, List[Token]] = {}
        self._tokens: List[Token] = []
        self._at = self._steps = self._deep = 0

    @property
    def variables(self) -> Dict[str, str]:
        """Of an array its elements with blanks between."""
        held = self._expander.variables
        return {key: one if isinstance(one, str) else " ".join(one) for key, one in held.items()}

    def follow(self, text: str) -> None:
        """Follow a script, or more of it.

        Raises:
            Refused: bash could not read it, or it goes on without end.
        """
        self._inside(tokens(text))

    def _inside(self, found: List[Token]) -> None:
        outer = self._tokens, self._at
        self._tokens, self._at = found, 0
        self._list(frozenset(), True)
        self._tokens, self._at = outer

    # -- statements ------------------------------------------------------------------------
    def _text(self, kind: str = "") -> str:
        """The next token, if there is one (of that kind)."""
        if self._at >= len(self._tokens):
            return ""
        token = self._tokens[self._at]
        return token.text if kind in ("", token.kind) else ""

    def _list(self, ends: FrozenSet[str], live: bool) -> bool:
        """Commands up to one of the words or operators ``ends``; whether the last succeeds.

        Args:
            live: they are run, not only passed.
        """
        status, joint = True, ";"
        while self._at < len(self._tokens) and self._text() not in ends:
            text = self._text("operator")
            if text in ("&&", "||"):
                joint, self._at = text, self._at + 1
            elif text in _LISTS or text in (")", ";;", ";&", ";;&"):
                joint, self._at = ";", self._at + 1
            else:
                reached = live and (joint == ";" or (joint == "&&") == status)
                result = self._statement(reached)
                status = result if reached else status
                joint = ";"
        return status

    def _statement(self, live: bool) -> bool:
        self._steps, self._deep = self._steps + 1, self._deep + 1
        if self._steps > _STEPS or self._deep > _DEEP:
            raise Refused(
                "it has too many commands, or too many inside one another",
                "name a script that starts one training",
            )
        status = self._any(live)
        self._deep -= 1
        return status

    def _any(self, live: bool) -> bool:
        word, sign = self._text("word"), self._text("operator")
        if word in ("if", "while", "until"):
            return self._if(live, word)
        if word in ("for", "select"):
            return self._for(live)
        if word == "case":
            return self._case(live)
        if word == "[[":
            return self._brackets(live)
        if word == "{" or sign == "(":
            self._at += 1
            status = self._list(frozenset(("}" if word else ")",)), live)
            self._at += 1
            return status
        if word in ("!", "time", "then", "do", "function"):
            self._at += 1
            if word == "function":
                return self._function(live)
            more = self._at < len(self._tokens) and self._text("operator") in ("", "(")
            status = self._statement(live) if more else True
            return not status if word == "!" else status
        return self._simple(live)

    def _if(self, live: bool, word: str) -> bool:
        """Also ``while`` and ``until``: their body is followed once, or never."""
        begin, ends = ("then", ("elif", "else", "fi")) if word == "if" else ("do", ("done",))
        taken = status = False
        while word in ("if", "elif", "while", "until"):
            self._at += 1
            status = self._list(frozenset((begin,)), live and not taken) != (word == "until")
            self._at += 1
            self._list(frozenset(ends), live and status and not taken)
            taken = taken or status
            word = self._text("word")
        if word == "else":
            self._at += 1
            self._list(frozenset(("fi",)), live and not taken)
        self._at += 1
        return True

    def _for(self, live: bool) -> bool:
        self._at += 1
        name, values = self._text("word"), [""]
        self._at += 1 if name else 0
        if self._text("word") == "in":
            self._at += 1
            values = []
            while self._at < len(self._tokens) and not self._text("operator"):
                values += self._expander.words(self._text()) if live else []
                self._at += 1
        self._list(frozenset(("do",)), False)
        self._at += 1
        if live and values and name:
            self._expander.variables[name] = values[0]
        self._list(frozenset(("done",)), live and bool(values))
        self._at += 1
        return True

    def _case(self, live: bool) -> bool:
        self._at += 1
        subject = self._expander.text(self._text()) if live else ""
        while self._at < len(self._tokens) and self._text("word") != "in":
            self._at += 1
        self._at += 1
        taken = False
        while self._at < len(self._tokens) and self._text("word") != "esac":
            chosen = False
            while self._at < len(self._tokens) and self._text("operator") != ")":
                if self._text("word") and live:
                    pattern = self._expander.text(self._text())
                    chosen = chosen or _matches(subject, pattern)
                self._at += 1
                if self._text("word") == "esac":
                    break
            self._at += self._text("operator") == ")"
            self._list(frozenset((";;", ";&", ";;&", "esac")), live and chosen and not taken)
            taken = taken or chosen
            self._at += self._text("word") != "esac"
        self._at += 1
        return True

    def _function(self, live: bool) -> bool:
        """A definition; ``()`` may be missing. The body is kept for its calls."""
        name = self._text("word")
        self._at += 1
        while self._text("operator") in ("(", ")", "\n"):
            self._at += 1
        begin = self._at
        self._statement(False)
        if live and name:
            self._functions[name] = self._tokens[begin : self._at]
        return True

    def _brackets(self, live: bool) -> bool:
        self._at += 1
        words: List[str] = []
        while self._at < len(self._tokens) and self._text("word") != "]]":
            if live:
                sign = self._text("operator")
                words.append(sign or self._expander.text(self._text()))
            self._at += 1
        self._at += 1
        return not live or holds(words)

    # -- commands --------------------------------------------------------------------------
    def _simple(self, live: bool) -> bool:
        """Assignments, or a command; redirections are passed over."""
        found: List[Token] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind != "operator":
                found.append(token)
            elif token.text in REDIRECTIONS:
                self._at += 1
                if self._text("operator"):
                    continue
            elif token.text == "(" and len(found) == 1:
                self._at -= 1
                return self._function(live)
            else:
                break
            self._at += 1
        if not live or not found:
            return True
        declares = found[0].text in _DECLARE
        first = next((n for n, one in enumerate(found) if not ASSIGNMENT.match(one.text)), None)
        if declares or first is None:
            for token in found:
                self._assign(token)
            return True
        # assignments before a command are of its environment only
        rest = [one for one in found[first:] if one.kind == "word"]
        return self._start([word for one in rest for word in self._expander.words(one.text)])

    def _assign(self, token: Token) -> None:
        found = ASSIGNMENT.match(token.text)
        if found is None:
            return
        name, more = found.groups()
        variables, expander = self._expander.variables, self._expander
        before = variables.get(name, "") if more else ""
        if token.kind == "array":
            words = [word for item in token.items for word in expander.words(item.text)]
            old = [before] if isinstance(before, str) else before
            variables[name] = [*(old if before else []), *words]
        else:
            text = expander.text(token.text[found.end() :])
            first = before if isinstance(before, str) else "".join(before[:1])
            variables[name] = expander.paid(first + text)

    def _start(self, words: Sequence[str]) -> bool:
        """What a command does to this script; whether it succeeds."""
        if not words:
            return True
        name = words[0]
        if name in ("[", "test"):
            return holds(words[1:-1] if name == "[" else words[1:])
        if name == "unset":
            for one in words[1:]:
                self._expander.variables.pop(one, None)
        elif name == "eval":
            self._inside(tokens(" ".join(words[1:])))
        elif name in self._functions:
            self._inside(self._functions[name])
        else:
            self.commands.append(tuple(words))
            for place, word in enumerate(words[:-2]):
                # a shell that is started with a script in its arguments
                if os.path.basename(word) in ("bash", "sh") and re.fullmatch(
                    r"-\w*c", words[place + 1]
                ):
                    self._inside(tokens(words[place + 2]))
        return name != "false"


def holds(words: Sequence[str]) -> bool:
    """Whether a test (``[ ... ]``, ``[[ ... ]]``) holds; no file is there."""
    if len(words) > _TEST:
        return False
    for joints, combine in ((("||", "-o"), any), (("&&", "-a"), all)):
        for place in range(1, len(words) - 1):
            if words[place] in joints:
                return combine((holds(words[:place]), holds(words[place + 1 :])))
    if not words:
        return False
    if words[0] == "!" and len(words) > 1:
        return not holds(words[1:])
    if words[0] == "(" and words[-1] == ")" and len(words) > 2:
        return holds(words[1:-1])
    if len(words) == 1:
        return bool(words[0])
    if len(words) == 2:
        return words[0] == ("-n" if words[1] else "-z")
    if len(words) > 3:
        return False
    left, kind, right = words
    if kind in ("=", "==", "!="):
        return _matches(left, right) == (kind != "!=")
    whole = all(re.fullmatch(r"[+-]?[0-9]{1,18}", one) for one in (left, right))
    return whole and kind in _COMPARE and _COMPARE[kind](int(left), int(right))


def _matches(text: str, pattern: str) -> bool:
    try:
        return fnmatchcase(text, pattern)
    except re.error:  # a range that runs backwards
        return False
