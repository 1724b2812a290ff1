"""`headrace import`: a table, JSON with vLLM's keys, or a study; bad input is one sentence and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headrace.cli.main import run
from headrace.lab.records.results import CellStatus, study_from_json
from headrace.lab.records.schema import ChunkStamp, RequestRecord
from headrace.lab.records.store import write_run

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


def test_a_second_import_says_that_it_replaced_the_first(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["import", str(logs), "--out", str(tmp_path / "o"), "--title", "First"]) == 0
    assert "wrote" in capsys.readouterr().err
    assert run(["import", str(logs / "a.log"), "--out", str(tmp_path / "o")]) == 0
    assert 'study.json (it was "First")' in capsys.readouterr().err


def test_the_title_says_what_was_measured_and_nothing_says_where_on_this_machine(logs: Path, tmp_path: Path) -> None:
    (logs / "warmup.log").write_text(LOG.format(budget=64, served=10))
    assert run(["import", str(logs), "--out", str(tmp_path / "imported")]) == 0
    text = (tmp_path / "imported" / "study.json").read_text()
    study = study_from_json(text, source="study.json")
    assert study.title == "M, logs (2 runs)"
    assert [one.source for cell in study.cells for one in cell.runs] == ["a.log", "b.log"]
    assert str(tmp_path) not in text


def test_a_warm_up_is_skipped_with_its_reason(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "warmup.log").write_text(LOG.format(budget=64, served=10))
    (logs / "no-warmup.log").write_text(LOG.format(budget=256, served=10))
    result = {"duration": 1.0, "completed": 5, "request_throughput": 5.0, "run_number": -1}
    (logs / "c.json").write_text(json.dumps(result))
    assert run(["import", str(logs)]) == 0
    out = capsys.readouterr()
    assert "warmup.log: a warm-up (by its name)" in out.err and "c.json: a warm-up (run number -1)" in out.err
    assert out.out.startswith("3 runs in 3 cells\n")


def test_runs_are_counted_once_and_duplicates_named(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (logs / "copy.log").write_bytes((logs / "a.log").read_bytes())
    assert run(["import", str(logs)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 runs in 2 cells\n")
    assert "not counted, exact duplicates: copy.log" in shown
    assert run(["import", str(logs), "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_table_is_as_wide_as_the_terminal(
    logs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    text = LOG.replace("serve M", "serve org/" + "a-model-with-a-rather-long-name-" * 3)
    (logs / "c.log").write_text(text.replace("--enable-chunked-prefill", "").format(budget=256, served=10))
    monkeypatch.setenv("COLUMNS", str(width))
    assert run(["import", str(logs / "c.log"), str(logs / "a.log")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert max(map(len, table)) <= width
    assert any("more column" in line for line in table) is (width < 80)


def test_the_published_table_is_recognised(capsys: pytest.CaptureFixture[str]) -> None:
    table = Path(__file__).parents[2] / "examples" / "published-campaign.toml"
    assert run(["import", str(table)]) == 0
    assert capsys.readouterr().out.startswith("12 runs in 12 cells\n")
    assert run(["run", str(table), "--dry-run"]) == 2
    assert "headrace import" in capsys.readouterr().err


def test_a_campaign_directory_points_to_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "campaign.json").write_text("{}")
    for number in range(30):
        (tmp_path / f"{number}.log").write_text("x\n")
    assert run(["import", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"headrace report {tmp_path}" in line


@pytest.mark.parametrize("named", [["raw"], ["raw/manifest.json", "raw/requests.jsonl"]])
def test_a_run_of_our_own_client_is_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], named: list[str]
) -> None:
    records = [
        RequestRecord(
            index=index, planned_ns=0, done_ns=2_000_000_000, status=200, prompt_tokens_client=10,
            output_tokens_server=2, chunks=[ChunkStamp(10**9, "content"), ChunkStamp(2 * 10**9, "content")],
        )
        for index in range(3)
    ]  # fmt: skip
    manifest = {"verdict": {"level": "VALID", "reasons": []}, "settings": {"model": "m", "num_prompts": 3}}
    write_run(tmp_path / "raw", {**manifest, "start_ns": 0, "end_ns": 2_000_000_000, "warnings": []}, records)
    assert run(["import", *(str(tmp_path / name) for name in named), "--json", "-"]) == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["source"], only["completed"], only["duration"]) == ("raw", 3, 2.0)
    assert only["mean_ttft_ms"] == 1000.0
