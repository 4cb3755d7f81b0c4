"""The mark by which nodes know that they see one run folder."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused
from loopmoe_train.train import shared
from loopmoe_train.train.preflight import prepare, starts_here


def test_a_mark_is_found_also_late_and_an_old_one_is_none(tmp_path: Path) -> None:
    old = shared.mark(tmp_path)
    shared.look_for(old, tmp_path, rank=1, patience_s=0)
    new = shared.mark(tmp_path)
    assert new != old
    with pytest.raises(Refused, match="rank 1 on .* does not see what rank 0 has written into"):
        shared.look_for(old, tmp_path, rank=1, patience_s=0)
    (tmp_path / "other").mkdir()
    late = threading.Timer(0.3, lambda: (tmp_path / "other/.shared").write_text(new))
    late.start()
    began = time.monotonic()
    shared.look_for(new, tmp_path / "other", rank=1, patience_s=10)
    assert 0.2 < time.monotonic() - began < 5


def test_the_command_leaves_to_rank_zero_what_is_on_other_machines(tmp_path: Path) -> None:
    two = ["launcher=torchrun", "launcher.nodes=2", "launcher.endpoint=a:1",
           "cluster.devices_per_node=1", f"runs_dir={tmp_path}"]  # fmt: skip
    run, text = prepare(two, print)
    assert text is None and not starts_here(run) and not list(tmp_path.iterdir())
    assert starts_here(compose(["launcher=torchrun"]))
    assert starts_here(compose(["launcher=mpirun"]))
    for words in (["launcher=slurm"], ["launcher=mpirun", "launcher.hostfile=f"]):
        assert not starts_here(compose(words))
