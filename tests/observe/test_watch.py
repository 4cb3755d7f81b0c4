"""The console of several runs: what is told when, from what stands in their folders."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from loopmoe_train.observe.jsonl import last_record
from loopmoe_train.observe.watch import Watch


def write(folder: Path, step: int, bits: float | None = None) -> None:
    folder.mkdir(exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}, "loss": 3.25}}\n')
        if bits is not None:
            file.write(f'{{"step": {step}, "val_bits_per_byte": {bits}}}\n')


def test_lines_of_a_study(tmp_path: Path) -> None:
    clock, out = [0.0], io.StringIO()
    runs = {name: (tmp_path / name, 100) for name in "abc"}
    with Watch(runs, total=4, done=1, stream=out, clock=lambda: clock[0]) as watch:
        watch.look(["a", "b"], {})
        clock[0] = 61
        write(tmp_path / "a", 40)
        watch.look(["a", "b"], {})
        clock[0] = 100
        write(tmp_path / "a", 100, 2.5)
        write(tmp_path / "b", 50)
        watch.look(["b", "c"], {"a": 0})
        watch.look(["b", "c"], {"a": 0})
        clock[0] = 130
        watch.look(["c"], {"a": 0, "b": 3})
        watch.look([], {"a": 0, "b": 3, "c": 0})
    assert out.getvalue().splitlines() == [
        "a 40/100 loss 3.250   b 0/100",
        # one and a half runs took 100 s, one and a half are left
        "[2/4] a: 2.5000 bits/byte in 1:40, about 1:40 to go",
        "b: ended with code 3 after step 50, 2:10",
        "c 0/100",
        "c: stopped after step 0, 30 s",
    ]


@pytest.mark.parametrize("tail", ["", '{"step": 9, "lo', "nonsense\n", "[1]\n"])
def test_the_last_whole_record(tmp_path: Path, tail: str) -> None:
    write(tmp_path / "run", 8)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write(tail)
    assert last_record(tmp_path / "run" / "metrics.jsonl")["step"] == 8


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert last_record(tmp_path / "metrics.jsonl") == {}
