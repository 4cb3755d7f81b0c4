"""Progress: plain lines without a terminal, a bar on one, never an exception."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest

from loopmoe_train.observe.progress import Progress, format_seconds


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": 3.21, "tokens_per_s": 12345.6, "step_s": 2.0, **more}


def test_plain_lines_at_the_first_step_then_every_ten_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(100, stream=out, clock=clock)
    progress.start()
    for step in range(1, 101):
        progress.train(record(step))
        clock.now += 1.0
        if step == 15:
            progress.validation({"step": 15, "val_loss": 3.0, "val_bits_per_byte": 2.0})
    progress.note("[saved] runs/x")
    progress.close()
    lines = out.getvalue().splitlines()
    steps = [int(line.split("/")[0].split()[1]) for line in lines[:-1]]
    assert steps == [1, 11, 15, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert lines[0] == "step   1/100  loss 3.2100  12,346 tokens/s  ETA 3:18"
    assert lines[2] == "step  15/100  validation loss 3.0000  2.0000 bits/byte"
    assert lines[-1] == "[saved] runs/x"
    assert "\x1b" not in out.getvalue()


def test_eta_forgets_the_slow_first_step() -> None:
    out = io.StringIO()
    progress = Progress(11, stream=out, every_s=0.0)
    progress.train(record(1, step_s=100.0))
    progress.train(record(2, step_s=1.0, bits_per_byte=1.5))
    assert out.getvalue().splitlines()[1].endswith("1.500 bits/byte  12,346 tokens/s  ETA 9 s")


@pytest.mark.parametrize("live", [False, True])
def test_records_with_holes_are_shown(live: bool) -> None:
    out = io.StringIO()
    progress = Progress(3, stream=out, live=live)
    progress.start()
    progress.train({"step": 1, "loss": None})
    progress.train({"step": 3, "loss": math.nan, "tokens_per_s": None, "step_s": math.nan})
    progress.validation({"step": 3, "val_loss": None})
    progress.close()
    assert "not finite" in out.getvalue() and "ETA unknown" in out.getvalue()


def test_bar_on_a_terminal() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(10, stream=out, live=True, clock=clock)
    progress.start()
    for step in range(1, 11):
        progress.train(record(step))
        clock.now += 1.0
    progress.validation({"step": 10, "val_loss": 3.0, "val_bits_per_byte": 2.0})
    progress.note("a [path] in brackets")
    progress.close()
    progress.close()
    assert "step 10/10" in out.getvalue()
    assert "2.0000 bits/byte" in out.getvalue() and "a [path] in brackets" in out.getvalue()


@pytest.mark.parametrize("live", [False, True])
def test_a_closed_pipe_does_not_stop_training(live: bool) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress = Progress(2, stream=Gone(), live=live, every_s=0.0)
    progress.start()
    progress.train(record(1))
    progress.validation({"step": 1, "val_loss": 1.0})
    progress.close()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1:00"), (187, "3:07"), (7387, "2:03:07")]
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_validation_sets_stand_behind_the_whole() -> None:
    out = io.StringIO()
    figures = {"val/web/loss": 3.0, "val/web/bits_per_byte": 1.9, "val/code/bits_per_byte": 2.25}
    Progress(9, stream=out).validation(
        {"step": 3, "val_loss": 3.0, "val_bits_per_byte": 2.0, **figures}
    )
    assert out.getvalue().endswith("2.0000 bits/byte  (web 1.9000, code 2.2500)\n")
