"""`headrace import`: a table, JSON with vLLM's keys, or a study; bad input is one sentence and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli.main import run
from headrace.lab.records.results import CellStatus, study_from_json

LOG = """\
$ vllm serve M --max-num-batched-tokens {budget} --max-num-seqs 8 --enable-chunked-prefill
Traffic request rate: inf
Burstiness factor: 1.0 (Poisson process)
100%|####| 10/10 [00:02<00:00,  4.00it/s]
============ Serving Benchmark Result ============
Successful requests:                     {served}
Benchmark duration (s):                  2.50
Total input tokens:                      100
Total generated tokens:                  50
Request throughput (req/s):              4.00
Mean TTFT (ms):                          12.00
==================================================
"""


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "a.log").write_text(LOG.format(budget=64, served=10))
    (folder / "b.log").write_text(LOG.format(budget=128, served=7))
    return folder


def test_json_on_standard_output_is_only_json(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", str(logs), "--json", "-"]) == 0
    out = capsys.readouterr()
    first, second = json.loads(out.out)
    assert first["source"].endswith("a.log")
    assert (first["completed"], first["duration"], first["mean_ttft_ms"]) == (10, 2.5, 12.0)
    assert first["settings"]["max_num_batched_tokens"] == 64
    assert "failed" not in first  # no such line in the log
    assert (second["completed"], second["settings"]["num_prompts"]) == (7, 10)


def test_json_to_a_file_and_the_table_in_the_terminal(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["import", str(logs), "--json", str(tmp_path / "r.json")]) == 0
    assert len(json.loads((tmp_path / "r.json").read_text())) == 2
    shown = capsys.readouterr().out
    assert "on-64" in shown
    assert "3 of 10 requests were not served" in shown


def test_out_writes_a_study_that_can_be_written_again(logs: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(["import", str(logs), "--out", str(tmp_path / "study"), "--title", "Two budgets"]) == 0
    study = study_from_json((tmp_path / "study" / "study.json").read_text(), source="study.json")
    assert (study.title, study.kind) == ("Two budgets", "imported")
    assert [(cell.name, cell.status) for cell in study.cells] == [
        ("on-64", CellStatus.OK),
        ("on-128", CellStatus.DEGRADED),
    ]


def test_a_measured_study_is_never_overwritten(logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = tmp_path / "study.json"
    measured.write_text('{"kind": "measured"}')
    assert run(["import", str(logs), "--out", str(tmp_path)]) == 2
    assert "choose another directory" in capsys.readouterr().err
    assert measured.read_text() == '{"kind": "measured"}'


def test_what_is_skipped_is_named_on_stderr(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "notes.txt").write_text("nothing here\n")
    (logs / "blob.bin").write_bytes(b"\0\1\2")
    (logs / "empty.log").write_bytes(b"")
    assert run(["import", str(logs), "--json", "-"]) == 0
    out = capsys.readouterr()
    assert len(json.loads(out.out)) == 2
    for name, reason in (("notes.txt", "no result block"), ("blob.bin", "not a text file"), ("empty.log", "empty")):
        assert any(name in line and reason in line for line in out.err.splitlines())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"benchmarks": [], "metadata": {}}', "GuideLLM"),
        ("{broken", "not JSON"),
        ("[1]", "result object"),
        ("", "empty file"),
    ],
)
def test_nothing_readable_is_exit_code_2_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, reason: str
) -> None:
    (tmp_path / "x.json").write_text(content)
    assert run(["import", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert "x.json" in error
    assert reason in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", [[], ["/does/not/exist"], ["--frobnicate"]])
def test_bad_usage_is_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_published_rounds_in_json(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs = sorted(map(str, (shared_data / "published-rounds").glob("*.log")))
    assert run(["import", *logs, "--json", "-"]) == 0
    objects = json.loads(capsys.readouterr().out)
    assert [item["completed"] for item in objects] == [1000] * 7 + [296, 700] + [1000] * 3
    assert [item["duration"] for item in objects][:3] == [458.11, 407.0, 390.7]
