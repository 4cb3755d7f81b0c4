"""`loopmoe bench optimizer`: every side makes the same step, and the output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loopmoe_train.bench.optimizer_show import OURS, OURS_DEEPSPEED, headline
from loopmoe_train.cli import main


def test_every_side_makes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from loopmoe_train.bench import optimizer
    from loopmoe_train.device.accelerator import select

    select("cpu")
    made = []
    weights = optimizer._weights

    def remembered(tensors: int, size: int) -> list[torch.Tensor]:
        made.append(weights(tensors, size))
        return made[-1]

    monkeypatch.setattr(optimizer, "_weights", remembered)
    sides = optimizer.sides(3, 37)
    before = [one.clone() for one in made[0]]
    for step in sides.values():
        step()
    stepped = made[::2]  # weights, then gradients, of each side
    assert len(stepped) == len(sides)
    for mine in stepped:
        for one, first, old in zip(mine, stepped[0], before):
            torch.testing.assert_close(one, first, rtol=1e-6, atol=1e-7)
            assert not torch.equal(one, old)


def test_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
                ) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "optimizer", "--quick", "--json", "out.json"]) == 0
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("headline: offload_torch=")
    found = json.loads(Path("out.json").read_text())
    assert {row["tensors"] for row in found["rows"]} == {8, 2}
    assert all(speed > 0 for row in found["rows"] for side in row["elements_per_s"].values()
               for speed in side)  # fmt: skip


def test_headline_is_the_median_of_ratios() -> None:
    speeds = {
        OURS: [2e6, 2e6],
        OURS_DEEPSPEED: [6e6, 6e6],
        "torch fused": [2e6, 6e6],
        "torch foreach": [3e6, 3e6],
        "torch, one by one (core's on a host)": [1e6, 1e6],
    }
    told = headline({"rows": [{"elements_per_s": speeds}]})
    assert told == pytest.approx(dict(offload_torch=2, offload_deepspeed=6, over_torch_fused=2,
                                      over_torch_foreach=2, over_core=6))  # fmt: skip
