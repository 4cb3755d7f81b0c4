"""A checkpoint continues on any layout as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch

from tests.dist import ranks
from tests.parity.grid import GATHER, ROWS, on

pytestmark = pytest.mark.timeout(1200)  # the fixture trains all of them

STEPS = 2
RAMP = ["batch_ramp_from=4", "batch_ramp_samples=12"]  # the save falls inside it

LAYOUTS = {
    "one": ["parallel=data"],
    "DP2": ["parallel=data"],
    "EP2": ["parallel=expert"],
    "EP2 overlapped": ["parallel=expert", "parallel.overlap_grad_reduce=true",
                       "parallel.overlap_param_gather=true"],
    "EP2 whole": ["parallel=expert", "parallel.distributed_optimizer=false"],
    "DP2 whole": ["parallel=data", "parallel.distributed_optimizer=false"],
    "PP2": on("pp2"),
    "PP2 overlapped": on("pp2", GATHER),
    "PP2, experts on one stage": on("pp2", ["parallel.pipeline_layout=[1,7]"]),
    "TP2": on("tp2 ep2"),
    "one muon": ["parallel=data", "optim=muon"],
    "EP2 muon": ["parallel=expert", "optim=muon"],
    "EP2 muon bf16": ["parallel=expert", "optim=muon", "precision=bf16",
                      "model.moe.expert_hidden_size=32"],
}  # fmt: skip
SAVED = {
    1: ["one", "one muon"],
    2: ["DP2", "EP2", "EP2 whole", "EP2 overlapped", "PP2", "PP2, experts on one stage", "TP2",
        "EP2 muon", "EP2 muon bf16"],
}  # fmt: skip
CONTINUED = {
    1: [("EP2", "one"), ("one", "one"), ("PP2", "one"), ("TP2", "one"),
        ("PP2, experts on one stage", "one"), ("EP2 overlapped", "one"), ("EP2 muon", "one muon"),
        ("one muon", "one muon")],
    2: [("one", "EP2"), ("EP2", "EP2"), ("EP2", "EP2 overlapped"), ("EP2 whole", "DP2 whole"),
        ("EP2 whole", "EP2"), ("EP2", "EP2 whole"), ("one", "PP2"), ("PP2", "PP2"),
        ("PP2", "TP2"), ("TP2", "PP2 overlapped"),
        ("one muon", "EP2 muon"), ("EP2 muon", "EP2 muon"), ("EP2 muon bf16", "EP2 muon bf16")],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """Everything in four launches."""
    root = str(tmp_path_factory.mktemp("checkpoints"))
    found: Dict[str, Any] = {"saved": {}, "continued": {}}
    for processes, names in SAVED.items():
        cases = [dict(name=name, overrides=LAYOUTS[name] + RAMP) for name in names]
        found["saved"] |= ranks.run(
            "tests.checkpoint.worker:train_and_save", processes, cases, root, STEPS
        )[0]
    for processes, pairs in CONTINUED.items():
        cases = [
            dict(name=f"{saved} -> {layout}", saved=saved, overrides=LAYOUTS[layout] + RAMP)
            for saved, layout in pairs
        ]
        found["continued"] |= ranks.run(
            "tests.checkpoint.worker:load_and_train", processes, cases, root, STEPS
        )[0]
    found["root"] = Path(root)
    return found


GO_ON = [pair for pairs in CONTINUED.values() for pair in pairs if "bf16" not in pair[0]]


@pytest.mark.parametrize("pair", GO_ON, ids=lambda pair: " -> ".join(pair))
def test_losses_go_on(trained: Dict[str, Any], pair: Any) -> None:
    one = "one muon" if "muon" in pair[0] else "one"
    straight = trained["saved"][one][STEPS:]
    found = trained["continued"][" -> ".join(pair)]
    assert found["losses"] == pytest.approx(straight, rel=1e-6)
    wanted = trained["continued"][f"{one} -> {one}"]["weights"]
    for name, weight in found["weights"].items():
        error = (weight - wanted[name]).norm()
        assert error <= 1e-4 * wanted[name].norm(), name


@pytest.mark.parametrize("name", ["one", "EP2", "PP2", "one muon", "EP2 muon", "EP2 muon bf16"])
def test_on_the_same_layout_bitwise(trained: Dict[str, Any], name: str) -> None:
    assert trained["continued"][f"{name} -> {name}"]["losses"] == trained["saved"][name][STEPS:]


def test_a_layer_is_stored_once_under_its_own_number(trained: Dict[str, Any]) -> None:
    from loopmoe_train.checkpoint.manifest import read_manifest

    manifest = read_manifest(trained["root"] / "EP2" / f"step-{STEPS}")
    keys = set(manifest.by_key())
    for layout in ("one", "PP2", "TP2"):
        other = read_manifest(trained["root"] / layout / f"step-{STEPS}").by_key()
        assert {k for k in other if not k.startswith("random/")} == {
            k for k in keys if not k.startswith("random/")
        }
    layers = {key.split("layers.")[1].split(".")[0] for key in keys if "layers." in key}
    assert layers == {"0", "1", "2", "3"}  # eight visits, four layers
    experts = manifest.by_key()["decoder.layers.1.mlp.experts.w1_EDGF"]
    assert sorted(shard.offset for shard in experts) == [(0, 0, 0, 0), (4, 0, 0, 0)]
    for key in keys:
        if key.startswith("decoder"):
            assert f"optimizer.state.exp_avg.{key}" in keys or key.endswith("expert_bias"), key


def test_the_ramp_was_in_its_midst(trained: Dict[str, Any]) -> None:
    from loopmoe_train.spec.batch import global_batch
    from tests.parity.worker import golden

    run = golden(["cluster.devices=1", "parallel=data", *RAMP])
    sizes, consumed = [], 0
    for _ in range(8):
        sizes.append(global_batch(run, consumed))
        consumed += sizes[-1]
    assert sizes == [4, 4, 4, 8, 8, 8, 8, 8]
    assert trained["continued"]["EP2 -> one"]["consumed"] == 2 * 4


def test_tensors_are_equal_whoever_wrote_them(trained: Dict[str, Any]) -> None:
    from safetensors import safe_open

    files = {
        name: sorted((trained["root"] / name / f"step-{STEPS}").glob("*.safetensors"))
        for name in ("one", "DP2")
    }
    assert len(files["one"]) == 1 and len(files["DP2"]) == 2
    key = "optimizer.state.exp_avg.output_layer.weight@0,0"
    values = []
    for paths in files.values():
        for path in paths:
            with safe_open(path, "pt") as stream:  # readable with the usual library
                if key in stream.keys():
                    values.append(stream.get_tensor(key))
    assert len(values) == 2
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-9)


# Rows of the parity grid that train the golden model, of 1, 2 and 4 ranks.
GOLDEN_ROWS = {row.name: row for row in ROWS if row.model == "golden"}
PAIRS = 36


@pytest.mark.parity
@pytest.mark.timeout(3600)
def test_any_row_of_the_grid_continues_any_other(tmp_path: Path) -> None:
    """A sample of all pairs: what a layout saved, another one continues."""
    names = sorted(GOLDEN_ROWS)
    drawn = random.Random(5).sample([(a, b) for a in names for b in names if a != b], PAIRS)
    saved = sorted({a for a, _ in drawn})
    straight = _launches("train_and_save", {"one": (1, ["parallel=data"])}, tmp_path)["one"]
    _launches("train_and_save", {a: _case_of(a) for a in saved}, tmp_path)
    continued = _launches(
        "load_and_train", {f"{a} -> {b}": (*_case_of(b), a) for a, b in drawn}, tmp_path
    )
    wrong = [
        f"{name}: {found['losses']} instead of {straight[STEPS:]}"
        for name, found in continued.items()
        if found["losses"] != pytest.approx(straight[STEPS:], rel=1e-6)
    ]
    assert len(continued) == PAIRS and not wrong, "\n".join(wrong)


def _case_of(name: str) -> Tuple[int, List[str]]:
    return GOLDEN_ROWS[name].ranks, list(GOLDEN_ROWS[name].settings)


def _launches(function: str, cases: Dict[str, Any], root: Path) -> Dict[str, Any]:
    """Name -> (ranks, settings[, whose checkpoint]), a dozen of the same ranks in a launch."""
    found: Dict[str, Any] = {}
    for processes in (1, 2, 4):
        mine = [
            dict(name=name, overrides=case[1], saved=case[2] if len(case) > 2 else "")
            for name, case in cases.items()
            if case[0] == processes
        ]
        for first in range(0, len(mine), 12):
            some, worker = mine[first : first + 12], f"tests.checkpoint.worker:{function}"
            found |= ranks.run(worker, processes, some, str(root), STEPS, timeout_s=600)[0]
    return found
