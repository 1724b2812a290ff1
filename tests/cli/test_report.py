"""`headrace report` from the outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli.main import run
from headrace.lab.records.results import Cell, RunResult, Study, study_to_json


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory as `headrace run` and `headrace import --out` leave it."""
    cells = []
    for budget, duration in ((64, 80.0), (128, 50.0), (256, 40.0)):
        known = {"enable_chunked_prefill": True, "max_num_batched_tokens": budget}
        metrics = {"completed": 10, "duration": duration, "total_token_throughput": 4000 / duration}
        cells.append(Cell(f"on-{budget}", known, runs=(RunResult(f"runs/{budget}", known, metrics),)))
    (tmp_path / "study.json").write_text(study_to_json(Study("s", "Three budgets", "measured", tuple(cells))))
    return tmp_path


def test_writes_page_twin_and_summary(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(directory)]) == 0
    said = capsys.readouterr().out
    assert "Three budgets" in said and "report.html" in said and len(said.splitlines()) <= 30
    assert (directory / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((directory / "report.json").read_text())["studies"][0]["study"]["name"] == "s"


def test_published_rounds_and_directories_stand_beside(directory: Path) -> None:
    assert run(["report", str(directory), "--beside", "published", str(directory)]) == 0
    twin = json.loads((directory / "report.json").read_text())
    assert [len(entry["study"]["cells"]) for entry in twin["studies"]] == [3, 12, 3]


def test_out_and_json_name_the_files(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "elsewhere" / "page.html"
    assert run(["report", str(directory), "--out", str(page), "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert page.is_file() and captured.out == (tmp_path / "elsewhere" / "page.json").read_text()
    assert "page.html" in captured.err  # the summary makes way for the JSON


@pytest.mark.parametrize(
    ("content", "said"), [(None, "has no study.json"), ("{", "is not JSON"), ('{"schema_version": 1}', "damaged study")]
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    assert run(["report", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert said in message and len(message.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_wrong_usage_is_exit_code_2(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report"]) == 2
    assert run(["report", str(directory), "--open", "maybe"]) == 2
    assert run(["report", str(directory), "--wrong"]) == 2
    assert run(["report", str(directory), "--beside", "nowhere"]) == 2
    capsys.readouterr()


def test_help_loads_neither_plotly_nor_torch() -> None:
    code = (
        "import sys\n"
        "from headrace.cli.main import run\n"
        "run(['report', '--help'])\n"
        "print([name for name in ('torch', 'plotly', 'scipy', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert "--beside" in done.stdout and done.stderr.strip() == "[]"
