"""`headrace compare`: a gate that fails for a difference beyond noise, and says when it cannot tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli.main import run
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study, study_to_json

NOISE = (1.0, 1.01, 0.99, 1.005, 0.995)
OTHER = (0.995, 1.0, 1.01, 0.99, 1.005)


def study(directory: Path, cells: dict[str, tuple[float, ...]], metric: str = "p99_ttft_ms") -> str:
    """Writes a campaign's study whose cells have these values of one metric; returns its directory."""
    made = tuple(
        Cell(
            name,
            {"model": "m", "max_num_seqs": index},
            CellStatus.OK,
            tuple(
                RunResult(f"{name}/{k}", {"repeat": k, "model": "m"}, {metric: value, "completed": 10.0})
                for k, value in enumerate(values, 1)
            ),
        )
        for index, (name, values) in enumerate(cells.items())
    )
    directory.mkdir()
    (directory / "study.json").write_text(study_to_json(Study(directory.name, "t", "measured", made)))
    return str(directory)


def scaled(factor: float, shape: tuple[float, ...] = NOISE) -> tuple[float, ...]:
    return tuple(100 * factor * x for x in shape)


@pytest.mark.parametrize(
    ("factor", "condition", "code", "said"),
    [
        (1.20, "p99_ttft_ms > 5%", 1, "FAILED  p99_ttft_ms > 5%: +20 % ("),
        (1.00, "p99_ttft_ms > 5%", 0, "PASSED  p99_ttft_ms > 5%"),
        (0.70, "p99_ttft_ms > 5%", 0, "PASSED  p99_ttft_ms > 5%: \u221230 %"),
        (1.05, "p99_ttft_ms > 5%", 0, "UNDECIDED  p99_ttft_ms > 5%"),
        (0.70, "p99_ttft_ms < -10%", 1, "FAILED  p99_ttft_ms < -10%"),
        (1.20, "p99_ttft_ms > 110", 1, "FAILED  p99_ttft_ms > 110: 120 ms ("),
        (1.00, "p99_ttft_ms > 110", 0, "PASSED  p99_ttft_ms > 110: 100.0 ms ("),
    ],
)
def test_a_condition_fails_only_beyond_noise(
    factor: float, condition: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = study(tmp_path / "a", {"on-64": scaled(1)})
    b = study(tmp_path / "b", {"on-64": scaled(factor, OTHER)})
    assert run(["compare", a, b, "--fail-if", condition]) == code
    assert said in capsys.readouterr().out


def test_an_undecided_condition_says_what_would_decide_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = study(tmp_path / "a", {"on-64": scaled(1)})
    b = study(tmp_path / "b", {"on-64": scaled(1.055, OTHER)})
    arguments = ["compare", a, b, "--fail-if", "p99_ttft_ms > 5%"]
    assert run(arguments) == 0
    assert "more repeats needed" in capsys.readouterr().out
    assert run([*arguments, "--strict"]) == 1


def test_cells_of_one_campaign_are_paired_by_their_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A drift that both cells of a repeat share is no noise between them; between two campaigns it is."""
    drift = (1.0, 1.3, 0.8, 1.1, 1.2)
    cells = {
        "on-64": tuple(100 * d * n for d, n in zip(drift, NOISE, strict=True)),
        "on-512": tuple(112 * d * n for d, n in zip(drift, OTHER, strict=True)),
    }
    one = study(tmp_path / "one", cells)
    assert run(["compare", f"{one}:on-64", f"{one}:on-512", "--fail-if", "p99_ttft_ms > 5%"]) == 1
    capsys.readouterr()
    apart = [study(tmp_path / name, {"on": values}) for name, values in cells.items()]
    assert run(["compare", *apart, "--fail-if", "p99_ttft_ms > 5%"]) == 0
    assert "were not measured in turn" in capsys.readouterr().out


def test_a_family_of_conditions_shares_one_error_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What fails alone may be undecided among forty others that are looked at as well."""
    many = {f"c{k}": scaled(1) for k in range(40)}
    a = study(tmp_path / "a", many)
    b = study(tmp_path / "b", {name: scaled(1.064, OTHER) for name in many})
    assert run(["compare", f"{a}:c0", f"{b}:c0", "--fail-if", "p99_ttft_ms > 5%"]) == 1
    assert run(["compare", a, b, "--fail-if", "p99_ttft_ms > 5%"]) == 0
    assert "UNDECIDED" in capsys.readouterr().out


def test_result_files_of_vllm_are_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, factor in (("before", 1.0), ("after", 2.0)):
        result = {
            "date": "20260101-000000", "backend": "vllm", "model_id": "m", "num_prompts": 10, "request_rate": "inf",
            "duration": 10 * factor, "completed": 10, "total_input_tokens": 100, "total_output_tokens": 100,
            "request_throughput": 1 / factor, "output_throughput": 10 / factor, "total_token_throughput": 20 / factor,
            "mean_ttft_ms": 50 * factor, "median_ttft_ms": 50 * factor, "p99_ttft_ms": 80 * factor,
        }  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    arguments = ["compare", str(tmp_path / "before.json"), str(tmp_path / "after.json"), "--json", str(tmp_path / "c")]
    assert run([*arguments, "--fail-if", "output_throughput < -20%"]) == 1
    out = capsys.readouterr().out
    assert "worse by 50 %" in out and "one run each: the noise is an assumption" in out
    assert json.loads((tmp_path / "c").read_text())["judged"][0]["outcome"] == "failed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["A", "A"], "A and B are the same"),
        (["A", "nowhere"], "nowhere does not exist"),
        (["A", "A:on-65"], "has no cell 'on-65' (it has on-64)"),
        (["A", "B", "--fail-if", "slower"], "--fail-if takes METRIC > NUMBER"),
        (["A", "B", "--fail-if", "p99_tfft_ms > 5%"], "no run has the metric 'p99_tfft_ms'"),
        (["A", "B", "--resolution", "0"], "--resolution must be a number of per cent"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"A": study(tmp_path / "a", {"on-64": scaled(1)}), "B": study(tmp_path / "b", {"on-64": scaled(1, OTHER)})}
    told = [names["A"] + word[1:] if word.startswith("A:") else names.get(word, word) for word in arguments]
    assert run(["compare", *told]) == 2
    assert said in capsys.readouterr().err


def test_nothing_in_common_is_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = study(tmp_path / "a", {"x": scaled(1), "y": scaled(1)})
    b = study(tmp_path / "b", {"z": scaled(1), "w": scaled(1)})
    assert run(["compare", a, b]) == 4
    assert "no cell of the same name" in capsys.readouterr().out
