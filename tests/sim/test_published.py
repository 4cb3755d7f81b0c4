"""Published rows: read right, scored right, and no further off than they were."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopmoe_train.bench import sim as bench
from loopmoe_train.errors import Refused
from loopmoe_train.sim.published import rows, scales, score, validate
from loopmoe_train.sim.published.predict import case_of
from loopmoe_train.sim.published.rows import COLUMNS, Row, Skipped


@pytest.fixture(scope="module")
def measured() -> list[Row]:
    return rows.read(bench.own_rows())


@pytest.fixture(scope="module")
def found(measured: list[Row]) -> list[validate.Prediction]:
    return validate.predict(measured)


def _row(measured: list[Row], name: str) -> Row:
    return next(row for row in measured if row.id == name)


# -- reading -----------------------------------------------------------------------------------
def test_a_dense_row(measured: list[Row]) -> None:
    work = rows.workload(_row(measured, "VTR-047"))
    grid = work.grid
    assert (grid.tensor, grid.pipeline, grid.data, grid.expert) == (4, 8, 16, 1)
    assert (work.micro_batch, work.global_batch, work.micro_batches) == (2, 1536, 48)
    assert work.memory.full == 6 and not work.shape.layers[0].ffn.gated
    assert work.shape.parameters() == pytest.approx(39.1e9, rel=0.01)
    assert work.shape.layers[0].ffn.width == 4 * 8192


def test_a_latent_row(measured: list[Row]) -> None:
    case = case_of(_row(measured, "ASC-HEAD-3"))
    work = case.workload
    assert work.shape.parameters() == pytest.approx(671e9, rel=0.01)
    assert (work.grid.tensor, work.grid.expert, work.grid.expert_tensor) == (2, 32, 1)
    assert [sum(map(len, work.slots)), len(work.slots[-1])] == [61, 5]  # 64 with idle ones
    assert "optimizer" in work.memory.swap
    # tokens/s of a package with two dies
    assert case.measured == pytest.approx(3840 * 4096 / (914.97 * 256))


def test_units(measured: list[Row]) -> None:
    for row in measured:
        try:
            case = case_of(row)
        except Skipped:
            continue
        assert case.to_unit(case.measured) == pytest.approx(row.value)
        assert case.measured > 0


@pytest.mark.parametrize(
    ("name", "why"),
    [("NVB-0215", "no layers, hidden, heads"), ("NVB-0283", "LoRA"), ("NVM-020t", "suspect"),
     ("ASC-PANGU-6", "no hidden, heads|relative"), ("ASC-LIN-128", "no layout"),
     ("NVB-0224", "Mamba")],
)  # fmt: skip
def test_skipped_with_a_reason(measured: list[Row], name: str, why: str) -> None:
    with pytest.raises(Skipped, match=why):
        case_of(_row(measured, name))


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nothing.csv"):
        rows.read(tmp_path / "nothing.csv")
    (tmp_path / "short.csv").write_text("id,model\na,b\n")
    with pytest.raises(Refused, match="lacks the columns layers"):
        rows.read(tmp_path / "short.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00" * 9)
    with pytest.raises(Refused, match="bytes.csv"):
        rows.read(tmp_path / "bytes.csv")


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(COLUMNS), st.text(max_size=12)))
def test_any_row_is_predicted_or_skipped(values: dict[str, str]) -> None:
    fields = dict.fromkeys(COLUMNS, "") | {
        "id": "X-1", "model": "llama", "layers": "4", "hidden": "256", "heads": "4", "seq": "512",
        "gbs": "8", "devices": "8", "tp": "2", "metric": "step_time", "unit": "s", "value": "1",
        "hardware": "A100",
    } | values  # fmt: skip
    try:
        case = case_of(rows._row(fields, Path("made up")))
    except Skipped:
        return
    assert math.isfinite(validate.raw(case))


# -- scoring -----------------------------------------------------------------------------------
def test_an_order_of_ties_alone_says_nothing() -> None:
    assert score.tau_b([(1, 1), (1, 2), (1, 3)]) == 0
    assert score.tau_b([(1, 1), (2, 2), (3, 3)]) == 1


def test_errors() -> None:
    some = score.errors([(11, 10), (9, 10), (15, 10)])
    assert (some.rows, some.median, some.bias) == (3, pytest.approx(0.1), pytest.approx(0.1))


def test_a_factor_leans_on_the_wider_group(measured: list[Row]) -> None:
    one = _row(measured, "VTR-047")
    few, many = ([(one, 1.0, 2.0)] * count for count in (1, 1000))
    assert 1 < scales.factor(scales.fit(few), one) < 1.5
    assert scales.factor(scales.fit(many), one) == pytest.approx(2, rel=0.02)
    assert scales.factor({}, one) == 1


def test_models_are_either_for_calibration_or_for_validation(measured: list[Row]) -> None:
    chosen = scales.is_calibration(measured)
    of_model: dict[tuple[str, str], set[bool]] = {}
    for row in measured:
        of_model.setdefault((row.family, scales.base_model(row)), set()).add(chosen[row.id])
    assert all(len(kinds) == 1 for kinds in of_model.values())
    assert {True, False} == {kind for kinds in of_model.values() for kind in kinds}


# -- the simulator -----------------------------------------------------------------------------
def test_it_is_no_further_off_than_it_was(found: list[validate.Prediction]) -> None:
    table = validate.report(found)
    own = table["all"]["simulator"]
    assert table["predicted"] / table["rows"] >= 0.85
    assert own["median"] <= 0.08 and own["p90"] <= 0.27 and abs(own["bias"]) <= 0.06
    for name in ("constant MFU", "constant MFU x bubble", "closed form"):
        assert own["median"] < 0.8 * table["all"][name]["median"]
    rank = table["ranking"]["simulator"]
    assert rank["tau"] >= 0.8 and rank["regret"] <= 0.03 and rank["worst_regret"] <= 0.06
    assert table["memory"]["all"]["median"] <= 0.05
    assert table["memory"]["confusion"]["fits, predicted not to"] == 0


def test_shipped_factors_are_those_of_the_shipped_rows(found: list[validate.Prediction]) -> None:
    fitted = validate.calibrate(found, everything=True)
    assert scales.shipped() == {name: round(value, 4) for name, value in fitted.items()}


def test_rows_of_another_file(measured: list[Row], tmp_path: Path) -> None:
    """One prediction or reason a row, in its unit, with the shipped factors."""
    some = [_row(measured, name) for name in ("VTR-047", "SMX-01m", "ASC-HEAD-3", "NVB-0215")]
    file = tmp_path / "rows.csv"
    with open(file, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(some[0].fields))
        writer.writeheader()
        writer.writerows(row.fields | {"value": str(row.value * 3)} for row in some)
    table = bench.run(str(file), str(tmp_path / "out.json"), calibrate=False)
    out = json.loads((tmp_path / "out.json").read_text())
    assert [entry["id"] for entry in out] == [row.id for row in some]
    assert out[3] == {"id": "NVB-0215", "skipped": "no layers, hidden, heads given"}
    for entry, row in zip(out[:3], some, strict=False):
        # the measured value plays no part
        assert entry["predicted"] == pytest.approx(row.value, rel=0.35)
    assert table["rows"] == 4 and table["predicted"] == 3
