"""Bash scripts are read as bash reads them, and nothing of them is ever run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopmoe_train.errors import Refused
from loopmoe_train.sim.scripts.bash.shell import Shell

BASH = shutil.which("bash") or "bash"


def commands(text: str, **variables: str) -> List[Tuple[str, ...]]:
    shell = Shell(variables)
    shell.follow(text)
    return shell.commands


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A=8; show $A", ["8"]),
        ("export A=8 B=9\nshow $A$B", ["89"]),
        ("A='x  y'; show $A \"$A\" '$A'", ["x", "y", "x  y", "$A"]),
        ('A=" --a 1 \\\n --b 2 \\\n"\nshow $A', ["--a", "1", "--b", "2"]),
        ("L=(--a 1 # one\n  'p q')\nL+=(z)\nshow ${L[@]}", ["--a", "1", "p", "q", "z"]),
        ("L=(a 'p q')\nshow \"${L[@]}\" ${L[1]} ${#L[@]}", ["a", "p q", "p", "q", "2"]),
        ("show ${A:-1} ${A:-$B} ${A:-${B:-2}} ${B:+no}", ["1", "2"]),
        ("B=3; show ${A:-$B} ${A:=4} $A ${B:+yes}", ["3", "4", "4", "yes"]),
        ("A=6; B=4; show $((A*B/5)) $(( ($A+${B}) % 3 )) $((2**3-1))", ["4", "1", "7"]),
        ("A=2; B=A*3; show $((B)) $((-7/2)) $((C+1))", ["6", "-3", "1"]),
        ("show $((1/0)) $((8x)) $((2**64)) $((a b)) end", ["end"]),
        ("show a#b '#c' \\# # d", ["a#b", "#c", "#"]),
        ("show a \\\n  # b\n--c", ["a"]),
        ('show $1 $# "$@" $? $$ end', ["0", "0", "end"]),
        ("cat <<'E'\nshow 'no\nE\nshow yes", ["yes"]),
        ("A=5 show $A x", ["x"]),
        ("show a 2>&1 > /dev/null | tee log &", ["a"]),
        ("A=1\r\nshow $A\r\n", ["1"]),
    ],
)
def test_words(text: str, words: List[str]) -> None:
    assert [list(one[1:]) for one in commands(text) if one[0] == "show"] == [words]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("if [ -z $A ]; then show a; else show b; fi", "a"),
        ("if [[ $N == 8 && ! -f x ]]; then show a; elif true; then show b; fi", "a"),
        ("if [ $N -gt 8 -o -d / ]; then show a; elif [ 1 ]; then show b; fi", "b"),
        ("[ $# -lt 1 ] && exit 1\nshow a", "a"),
        ("mkdir x || show b\nfalse || show c\nfalse && show d", "c"),
        ("case $N in 7) show a;; 8|9) show b;; *) show c;; esac", "b"),
        ("for X in $N 9; do show $X; done", "8"),
        ("while [ $# -gt 0 ]; do show a; done", ""),
        ("until false; do show a; done", "a"),
        ("f() { show $1$N; }\nN=9\nf\nf", "9 9"),
        ("function f { show a; }", ""),
        ("A='show x'; eval $A; srun -n 2 bash -lc \"$A$N\"", "x x8"),
        ("( show a ); { show b; }; ! show c", "a b c"),
        ("if true; then if false; then show a; else show b; fi; fi", "b"),
    ],
)
def test_statements(text: str, words: str) -> None:
    found = [" ".join(one[1:]) for one in commands(f"N=8\n{text}") if one[0] == "show"]
    assert " ".join(found) == words


def test_variables_come_from_the_environment_too() -> None:
    text = "N=${N:-1}; show $N $1 ${2:-b} $#"
    assert commands(text, N="4", **{"1": "x"}) == [("show", "4", "x", "b", "1")]
    shell = Shell({"A": "1"})
    shell.follow("unset A; L=(1 2); B=3")
    assert shell.variables == {"L": "1 2", "B": "3"}


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Popen", "run", "call", "check_output"):
        monkeypatch.setattr(subprocess, name, pytest.fail)
    monkeypatch.setattr("os.system", pytest.fail)
    file = tmp_path / "made"
    text = (
        f'A=$(touch {file})x\nB=`touch {file}`\nC="$(rm -rf {tmp_path})"\nD=(a $(touch {file}))\n'
        f"touch {file}\nsource {file}\n. {file}\neval touch {file}\ncat <(touch {file}) > {file}\n"
        f"E=$(($(touch {file})+2))\nF=${{F:-$(touch {file})}}\n[ $(touch {file}) ]\n"
        f'show "$A" "$B" "$C" "${{D[@]}}" "$E" "$F" $(echo a; echo \')\' b)\n'
    )
    assert commands(text)[-1] == ("show", "x", "", "", "a", "2", "")
    assert tmp_path.exists() and not file.exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("A='x", "line 1: a quote or bracket is never closed"),
        ("B=1\nA=(1 2\n", "line 3: a quote or bracket is never closed"),
        ("\nshow $(x", "line 2: a quote or bracket is never closed"),
        ("A=${B", "never closed"),
        ("A=aaaaaaaaaa\n" + "A=$A$A\n" * 60, "grow without end"),
        ("X=X+X; Y=$((X)); Z=$((Y+X))" + "; Z=$((X))" * 2000, "grow without end"),
        ("f() { f; }; f", "too many"),
        ("f() { :; }\n" + "f() { f; f; }\n" + "f", "too many"),
        ('A=\'eval "$A"\'; eval "$A"', "too many"),
        ("if x; then " * 5000, "too many"),
        ("! " * 5000, "too many"),
        ("(" * 5000, "too many"),
        ("A=" + "${A:-" * 50 + "}" * 50, "too many"),
        (":\n" * 30000, "too many"),
    ],
)
def test_what_bash_could_not_do_is_refused(text: str, what: str) -> None:
    with pytest.raises(Refused, match=what):
        commands(text)


def test_long_tests_and_wild_numbers_are_false() -> None:
    assert commands("[ " + "! " * 90 + "x ] && show a") == []
    assert (
        commands("[ " + "9" * 5000 + " -gt 1 ] && show a; A=$((" + "(" * 500 + "1" + ")" * 502)
        == []
    )
    assert commands("case x in [b-a]) show a;; esac") == []


PARTS = (
    "$A", '"$A"', "${B:-$A}", '"${B:-q r}"', "${U:-\"$A\"}", "${L[@]}", '"${L[@]}"', '"x${L[@]}y"',
    "${E[@]}", '"${E[@]}"', "${#L[@]}", "${L[N-4]}", "$((N*2))", "$(( D+1 ))", "'a b'", "\\ ",
    "\\\n", "\n", " #c\n", "#", "--k=v", " ", " ", '"$B"', "''", "${C}z", "\"it's\"", '"a\\b"',
    "${B:=new}", "${U+s}", "`:`", '"$(:)x"', "; show ", "&& show ", "|| show ", "| cat\nshow ",
    "X+=7\nshow ", "$X", "L+=(z)\nshow ", " 2>&1 ", "A=(${A} \"$C\" # k\n q)\nshow ",
    "if [ $N -eq 6 ]; then show in; else show out; fi\nshow ",
    "if [[ $A == one* && -n $B ]]; then show y; elif [ -z \"$B\" ]; then show z; fi\nshow ",
    "case $N in 5|7) show five;; 6) show six;; *) show any;; esac\nshow ", "f() { show f; }\nf\n",
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PARTS), max_size=8))
def test_words_are_those_of_bash(parts: List[str]) -> None:
    """The parts name only builtins, so that bash itself may run them.

    Not followed: a line that is continued in the midst of a variable's name.
    """
    text = "A='one  two'; B=; C='x y'; N=6; L=(--a 1 'p q' ''); E=(); D=\"$N*2\"\nshow "
    text += "".join(parts)
    told = 'exec 7>&1; show() { printf \'%s\\0\' "$#" "$@" >&7; }; cat() { :; }\n'
    done = subprocess.run([BASH, "-c", told + text], capture_output=True, text=True)
    if done.stderr or "command not found" in done.stdout:
        return  # bash cannot read it
    out, found = done.stdout.split("\0")[:-1], []
    while out:
        count = int(out[0])
        found.append(("show", *out[1 : count + 1]))
        out = out[count + 1 :]
    assert [one for one in commands(text) if one[0] == "show"] == found


ODD = st.sampled_from(
    [*PARTS, *"\"'`$(){}[]<>|&;\\#\n!*?=+-", "$((", "))", "${", "<<E\n", "E\n", "case x in", "esac",
     "for", "in", "do", "done", "if", "then", "fi", "while", "f()", "eval ", "bash -c ", "[[", "[",
     "]", "A=(", "torchrun a.py ", "--num-layers 4 ", "\x00", "\ud800", "A=A+A\n", " -o ", "=="]
)  # fmt: skip


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.one_of(st.text(), st.lists(ODD, max_size=40).map("".join)))
def test_any_text_is_followed_or_refused(text: str) -> None:
    try:
        commands(text)
    except Refused:
        pass
