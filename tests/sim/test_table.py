"""Measured rates: looked up, interpolated, refused when damaged, and counted in a prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict

import pytest

from loopmoe_train.config.compose import compose
from loopmoe_train.errors import Refused
from loopmoe_train.sim import efficiency
from loopmoe_train.sim.coverage import EXACT, FORMULA, NEAR, Coverage, measured
from loopmoe_train.sim.machine import Machine, machine_of, named
from loopmoe_train.sim.operators import Rank
from loopmoe_train.sim.stage import Stages
from loopmoe_train.sim.step import estimate
from loopmoe_train.sim.table import FORMAT, Header, Point, Size, Table, load, parse, work
from loopmoe_train.sim.workload import Workload, workload_of

HEADER = Header("a device", {"torch": "2.13.0"}, "bf16", "2026-11-26", 1, 1, 5.0)


def table(rates: Dict[str, Dict[Size, float]], header: Header = HEADER) -> Table:
    """A table in which these rates were measured."""
    points = {
        name: {
            size: Point(work(*name.split("/"), size) / rate, 0.01)  # type: ignore[call-arg]
            for size, rate in found.items()
        }
        for name, found in rates.items()
    }
    return Table(header, points)


def machine(rates: Dict[str, Dict[Size, float]]) -> Machine:
    return dataclasses.replace(machine_of(named("ascend_a2")), table=table(rates))


def workload(*words: str) -> Workload:
    return workload_of(compose(["parallel=data", "cluster.devices=1", "precision=bf16", *words]))


def test_a_measured_size_is_exact() -> None:
    size = (512, 1024, 2048)
    one = machine({"matmul/forward": {size: 3e14, (4096, 4096, 4096): 1e14}})
    seconds, source = efficiency.matmul(one, *size, "bf16")
    assert source == EXACT and seconds == pytest.approx(2 * 512 * 1024 * 2048 / 3e14)


def test_between_two_sizes_the_rate_goes_from_one_to_the_other() -> None:
    rates = {"matmul/forward": {(256, 512, 512): 1e14, (1024, 512, 512): 2e14}}
    found = table(rates)
    between = [found.rate("matmul/forward", (rows, 512, 512)) for rows in range(256, 1025, 16)]
    values = [one[0] for one in between if one is not None]
    assert len(values) == 49 and values == sorted(values)
    assert values[0] == pytest.approx(1e14) and values[-1] == pytest.approx(2e14)
    middle = found.rate("matmul/forward", (512, 512, 512))
    assert middle == (pytest.approx(1.5e14), False)


def test_far_from_every_size_the_formula_counts() -> None:
    one = machine({"matmul/forward": {(512, 512, 512): 1e14}})
    bare = dataclasses.replace(one, table=None)
    for rows, source in ((512, EXACT), (64, NEAR), (63, FORMULA), (4096, NEAR), (4097, FORMULA)):
        seconds, found = efficiency.matmul(one, rows, 512, 512, "bf16")
        assert found == source
        same = seconds == efficiency.matmul(bare, rows, 512, 512, "bf16")[0]
        assert same == (source == FORMULA)
    # a factor of 4 in each of two dimensions is within reach, one in all three is not
    assert efficiency.matmul(one, 2048, 2048, 512, "bf16")[1] == NEAR
    assert efficiency.matmul(one, 2048, 2048, 2048, "bf16")[1] == FORMULA


@pytest.mark.parametrize("other", [dict(layout="wgrad"), dict(groups=4), dict(precision="fp32")])
def test_another_layout_kind_or_precision_is_not_measured(other: Dict[str, Any]) -> None:
    one = machine({"matmul/forward": {(512, 512, 512): 1e14}})
    words = {"precision": "bf16", **other}
    assert efficiency.matmul(one, 512, 512, 512, **words)[1] == FORMULA


def test_attention_and_vectors() -> None:
    size = (4096, 8, 128, 128)
    one = machine(
        {
            "attention/forward": {size: 2e14},
            "attention/backward": {size: 1e14},
            "vector/norm": {(2**20,): 1e12},
        }
    )
    flops = work("attention", "forward", size)
    assert efficiency.attention(one, size, flops, "bf16") == (pytest.approx(flops / 2e14), EXACT)
    back = efficiency.attention(one, size, 2.5 * flops, "bf16", backward=True)
    assert back == (pytest.approx(2.5 * flops / 1e14), EXACT)
    windowed = efficiency.attention(one, None, flops, "bf16")
    assert windowed == (pytest.approx(flops / one.attention), FORMULA)
    # two kernels that move as much each
    moved = efficiency.vector(one, 2**21, "norm", kernels=2)
    assert moved == (pytest.approx(2**21 / 1e12), EXACT)
    assert efficiency.vector(one, 2**20) == (pytest.approx(2**20 / one.bandwidth), FORMULA)
    assert efficiency.vector(one, 0.0, "norm") == (0.0, FORMULA)


def test_a_product_looks_up_all_three_of_its_passes() -> None:
    rows, inner, columns = 4096, 512, 2048
    one = machine(
        {
            "matmul/forward": {(rows, columns, inner): 1e14},
            "matmul/dgrad": {(rows, inner, columns): 2e14},
            "matmul/wgrad": {(inner, columns, rows): 4e14},
        }
    )
    product = Rank(workload(), one).product("p", "", rows, inner, columns)
    flops = 2 * rows * inner * columns
    times = (product.forward, product.dgrad, product.wgrad)
    assert times == pytest.approx((flops / 1e14, flops / 2e14, flops / 4e14))
    assert product.measured == (pytest.approx(sum(times)), 0.0)


def test_the_file_holds_what_was_measured(tmp_path: Path) -> None:
    first = table(
        {
            "matmul/dgrad": {(64, 128, 256): 1.25e14},
            "grouped/wgrad": {(8, 64, 128, 256): 1e14, (4, 64, 128, 256): 2e14},
            "vector/copy": {(1024,): 1e12},
        }
    )
    (tmp_path / "own.json").write_text(first.text())
    again = load(str(tmp_path / "own.json"))
    assert again.header == first.header and len(again) == 4
    assert again.text() == first.text()
    rate = again.rate("matmul/dgrad", (64, 128, 256))
    assert rate == (pytest.approx(1.25e14, rel=1e-3), True)


GOOD = {
    "format": FORMAT, "hardware": "h", "software": {"torch": "2"}, "precision": "bf16",
    "date": "2026-11-26", "processes": 1, "threads": 1, "launch_us": 1.0,
    "points": {"matmul/forward": [[[2, 2, 2], 1e-6, 0.0]]},
}  # fmt: skip
DAMAGES: Dict[str, Any] = {
    "its \"format\" is not": {"format": "loopmoe operator rates 0"},
    "is no operator": {"points": {"matmul/sideways": [[[2, 2, 2], 1e-6, 0.0]]}},
    "has the point [[2, 2], 1e-06, 0.0]": {"points": {"matmul/wgrad": [[[2, 2], 1e-6, 0.0]]}},
    "has the point [[2, 2, 0], 1e-06, 0.0]": {"points": {"matmul/wgrad": [[[2, 2, 0], 1e-6, 0.0]]}},
    "has the point [[2, 2, 2], 0.0, 0.0]": {"points": {"matmul/wgrad": [[[2, 2, 2], 0.0, 0.0]]}},
    "has the point [[2, 2, 2], NaN, 0.0]": {
        "points": {"matmul/wgrad": [[[2, 2, 2], float("nan"), 0.0]]}
    },
    "has the point [[2, 2, 2], \"fast\", 0.0]": {
        "points": {"matmul/wgrad": [[[2, 2, 2], "fast", 0.0]]}
    },
    "has the point [7]": {"points": {"vector/copy": [[7]]}},
    "has the point 7": {"points": {"vector/copy": [7]}},
    "has the point [[9], 2.0, 0.0]": {
        "points": {"vector/copy": [[[9], 1.0, 0.0], [[9], 2.0, 0.0]]}
    },
    "it has no points": {"points": {"matmul/forward": []}},
    "not a table": {"software": 3},
    "not iterable": {"points": {"matmul/forward": 3}},
}  # fmt: skip


@pytest.mark.parametrize("words", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(words: str) -> None:
    parse(json.dumps(GOOD), "t.json")
    with pytest.raises(Refused) as refusal:
        parse(json.dumps({**GOOD, **DAMAGES[words]}), "t.json")
    assert words in refusal.value.what and "\n" not in str(refusal.value)
    assert "loopmoe bench ops --json FILE" in refusal.value.fix


@pytest.mark.parametrize("missing", GOOD)
def test_every_field_is_needed(missing: str) -> None:
    with pytest.raises(Refused, match="missing|format"):
        parse(json.dumps({key: value for key, value in GOOD.items() if key != missing}), "t.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"points": 1}'])
def test_no_table_at_all(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(Refused, match="not a table of operator rates"):
        load(str(tmp_path / "t.json"))


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(b"\xff\xfe\x00")
    for name, why in ((str(tmp_path / "no.json"), "No such file"), ("nope", "or cpu"),
                      (str(tmp_path / "t.json"), "it is no text")):  # fmt: skip
        with pytest.raises(Refused) as refusal:
            load(name)
        assert why in str(refusal.value)


def test_coverage_is_arithmetic_with_seconds() -> None:
    exact, near = measured((1.0, EXACT), (2.0, NEAR), (4.0, FORMULA), (0.5, EXACT))
    assert (exact, near) == (1.5, 2.0)
    both = Coverage(1.5, 2.0, 0.5) + Coverage(0.5, 0.0, 3.5)
    assert both == Coverage(2.0, 2.0, 4.0) and both.total == 8.0
    assert both.share == 0.5 and both.exact_share == 0.25
    assert str(both) == "50% of the arithmetic's time measured (25% at just its sizes)"
    assert Coverage().share == 0.0


def test_the_coverage_of_a_step() -> None:
    work = workload("model=loopmoe_tiny")
    bare = dataclasses.replace(machine({}), table=None)
    assert estimate(work, bare).coverage is None
    # all tokens are taken by the head, so that there is a product of just this size
    tokens = work.micro_batch * work.sequence
    one = machine({"matmul/forward": {(tokens, work.shape.vocab, work.shape.hidden): 1e12}})
    found = estimate(work, one).coverage
    assert found is not None
    logits = 2 * tokens * work.shape.vocab * work.shape.hidden / 1e12
    assert found.exact == pytest.approx(logits)
    stages = Stages(work, one)
    operators = stages.rank.embedding() + stages.rank.head()
    for index in work.shape.order:
        operators += stages.rank.visit(work.shape.layers[index])
    whole = sum(one.forward + one.dgrad + one.wgrad for one in operators)
    assert found.total == pytest.approx(whole)
    assert found.near == pytest.approx(sum(one.measured[1] for one in operators))


def test_a_step_with_only_the_formula_is_as_without_a_table() -> None:
    work = workload("model=loopmoe_small", "micro_batch_size=4")
    one = machine({"vector/copy": {(1,): 1.0}})
    assert one.table is not None
    found = estimate(work, one)
    assert found.coverage is not None and found.coverage.share == 0.0
    bare = estimate(work, dataclasses.replace(one, table=None))
    assert found.seconds == bare.seconds and found.parts == bare.parts


@pytest.mark.parametrize("model", ["loopmoe_tiny", "vanilla_tiny", "loopmoe_mini", "vanilla_mini"])
def test_the_shipped_table_covers_small_models_on_a_processor(model: str) -> None:
    run = compose([f"model={model}"])
    assert run.cluster.peak_tflops_fp32 is None  # training measures it
    one = machine_of(run.cluster)
    assert one.table is not None and one.table.header.precision == "fp32"
    assert one.peak["fp32"] == one.table.best("matmul")
    found = estimate(workload_of(run), one)
    assert found.coverage is not None and found.coverage.share > 0.95
    assert 0.02 < found.seconds < 20
