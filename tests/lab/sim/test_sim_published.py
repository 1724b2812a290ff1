"""The published campaign: three printed rounds calibrate the simulator, the others are predicted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headrace.cli.main import run
from headrace.lab.sim.rows import Row

TABLE = Path(__file__).resolve().parents[3] / "examples" / "published-campaign.toml"

# Mean absolute errors over the full rounds that calibrated nothing.
BOUNDS = {
    "duration": 0.03,
    "total_token_throughput": 0.03,
    "mean_ttft_ms": 0.04,
    "median_ttft_ms": 0.06,
    "median_tpot_ms": 0.03,
    "median_itl_ms": 0.03,
    "p99_ttft_ms": 0.03,
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    from headrace.lab.sim.plans import simulate_rounds

    return simulate_rounds(TABLE, draws=40)


@pytest.mark.slow
def test_three_rounds_predict_the_seven_other_full_ones(rows: list[Row]) -> None:
    calibrated = [row["cell"] for row in rows if row["calibration"]]
    assert calibrated == ["on-64", "on-256", "on-2048"]
    others = [row for row in rows if not row["calibration"] and row["published"]["completed"] == 1000]
    assert len(others) == 7
    errors = {key: float(np.mean([abs(row["error"][key]) for row in others])) for key in BOUNDS}
    assert {key: error for key, error in errors.items() if error > BOUNDS[key]} == {}


@pytest.mark.slow
def test_the_truncated_rounds_are_predicted_as_truncated(rows: list[Row]) -> None:
    truncated = [row for row in rows if row["truncated"]["predicted"]]
    assert [row["cell"] for row in truncated] == ["off-256", "off-512"]
    for row in truncated:
        assert row["refused"]["predicted"] == pytest.approx(row["refused"]["published"], rel=0.10)


@pytest.mark.slow
def test_intervals_hold_most_of_what_was_published(rows: list[Row]) -> None:
    full = [row for row in rows if not row["calibration"] and row["published"]["completed"] == 1000]
    inside = [
        row["interval"][key][0] <= row["published"][key] <= row["interval"][key][1] for row in full for key in BOUNDS
    ]
    assert np.mean(inside) >= 0.80


def test_a_table_of_rounds_takes_no_calibration_from_outside(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(TABLE), "--goal", "p99_ttft_ms:2000"]) == 2
    assert "calibrates itself" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_one_object_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", str(TABLE), "--draws", "0", "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed) == 12
    for row in printed:
        assert {"cell", "predicted", "published", "error", "calibration"} <= row.keys()
        assert row["error"]["duration"] == row["predicted"]["duration"] / row["published"]["duration"] - 1
