"""`headrace capacity` against the scripted server: a limit, a report, and the same command again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from headrace.cli.main import run
from headrace.lab.records.results import RunResult

sys.path.insert(0, str(Path(__file__).parents[1] / "lab" / "campaign"))
from campaign_world import TOKENIZER, World


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    # On a busy machine the client itself is late, and says so; here it is the search that is looked at.
    monkeypatch.setattr(RunResult, "invalid", property(lambda run: False))
    world = World(tmp_path / "world", {"1": "takes 20 ms"})
    server = world.launcher().start({"max-num-seqs": 1}, log=tmp_path / "log", nonce="headrace-run-capacity")
    yield server.url
    server.stop(grace_s=5)


def arguments(url: object, out: Path, *more: str) -> list[str]:
    small = ["--num-prompts", "3", "--scale", "0.02", "--tokenizer", str(TOKENIZER), "--start-rate", "200"]
    return ["capacity", "--base-url", str(url), "--out", str(out), *small, "--max-rate", "400", *more]


def test_a_level_that_is_always_kept_is_bounded_from_below(
    url: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "limit"
    assert run(arguments(url, out, "--slo", "p99_ttft_ms < 60000")) == 0
    said = capsys.readouterr().out
    assert "capacity under p99_ttft_ms < 60000: at least 400 requests/s (7 of 7 runs there kept it)" in said
    report = json.loads((out / "capacity.json").read_text())
    assert report["at_least"] == 400 and report["at_most"] is None and len(report["trials"]) == 8
    before = {path: path.read_bytes() for path in out.rglob("requests.jsonl")}
    assert run(arguments(url, out, "--slo", "p99_ttft_ms < 60000")) == 0  # every run is there already
    assert {path: path.read_bytes() for path in out.rglob("requests.jsonl")} == before


def test_runs_that_their_own_client_calls_invalid_prove_nothing(
    url: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RunResult, "invalid", property(lambda run: True))
    assert run(arguments(url, tmp_path / "limit", "--slo", "p99_ttft_ms < 60000")) == 4
    assert "run-1 cannot be believed" in capsys.readouterr().out


def test_a_level_that_is_never_kept(url: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    level = ["--slo", "p99_ttft_ms < 0.001", "--min-rate", "100"]
    assert run(arguments(url, tmp_path / "limit", *level)) == 1
    assert "no run kept p99_ttft_ms < 0.001, down to 100 requests/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--slo", "p99_ttft_ms < 5%"], 2, "a service level is in the metric's own unit, without %"),
        (["--slo", "fast"], 2, "takes METRIC > NUMBER"),
        (["--slo", "p99_tfft_ms < 5"], 2, "no run has the metric 'p99_tfft_ms'"),
        (["--slo", "p99_ttft_ms < 5", "--confidence", "100"], 2, "--confidence 100 cannot be"),
    ],
)
def test_bad_input(
    url: object, more: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(url, tmp_path / "limit", *more)) == code
    assert said in capsys.readouterr().err


def test_nobody_at_the_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments("http://127.0.0.1:9", tmp_path / "limit", "--slo", "p99_ttft_ms < 5")) == 3
    assert "nobody answers at http://127.0.0.1:9" in capsys.readouterr().err
