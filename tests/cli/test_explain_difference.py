"""`headrace explain-difference`: one run, two tools, and the words for what lies between them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab" / "client"))
from scripted_server import ScriptedServer

from headrace.cli.main import run

SMALL = ["--num-prompts", "6", "--scale", "0.1", "--disable-tqdm"]


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    with ScriptedServer() as server:
        flags = ["--out", str(tmp_path / "run"), "--save-result", "--result-dir", str(tmp_path / "results")]
        assert (
            run(["bench", "--base-url", server.url, *SMALL, *flags, "--percentile-metrics", "ttft,tpot,itl,e2el"]) == 0
        )
    return tmp_path


def test_a_run_and_its_own_result_file_agree(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (result,) = (measured / "results").iterdir()
    assert run(["explain-difference", str(measured / "run"), str(result)]) == 0
    assert "figures that both report agree within 0.5%" in capsys.readouterr().out


def test_one_run_as_two_tools_count_it(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(measured / "run")
    assert run(["explain-difference", directory, directory, "--b-as", "guidellm"]) == 0
    out = capsys.readouterr().out
    assert "TPOT is (end − first token) / (tokens − 1) in vllm" in out and "it contains TTFT in guidellm" in out
    assert run(["explain-difference", directory, directory, "--b-as", "guidellm", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    tpot = next(one for one in body["differences"] if one["key"] == "mean_tpot_ms")
    assert tpot["total"] > 0 and tpot["left"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}", "{run}"], "--a-as and --b-as"),
        (["{run}", "{run}", "--b-as", "wrk"], "a dialect is one of"),
        (["{run}", "nowhere.json"], "is not there"),
        (["{run}", "{results}"], "not JSON"),
    ],
)
def test_bad_input_is_one_sentence(
    measured: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (measured / "bad.json").write_text("{")
    places = {"run": measured / "run", "results": measured / "bad.json"}
    capsys.readouterr()
    assert run(["explain-difference", *(argument.format(**places) for argument in arguments)]) == 2
    err = capsys.readouterr().err.strip()
    assert words in err and len(err.splitlines()) == 1
