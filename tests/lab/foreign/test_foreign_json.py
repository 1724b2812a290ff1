"""Result JSONs of vLLM's client and its relatives."""

from __future__ import annotations

import json

import pytest

from headrace.errors import ConfigError
from headrace.lab.records.foreign.vllm_json import read_json

RESULT = {
    "date": "20260427-120529",
    "backend": "openai",
    "model_id": "m/x",
    "tokenizer_id": "m/x",
    "num_prompts": 10,
    "request_rate": "inf",
    "max_concurrency": None,
    "duration": 2.5,
    "completed": 9,
    "failed": 1,
    "request_throughput": 3.6,
    "mean_ttft_ms": 12.5,
    "p99.9_itl_ms": 3.5,
    "input_lens": [1, 2],
    "gpu": "H100",
}


def test_one_object() -> None:
    (run,) = read_json(json.dumps(RESULT), "a.json")
    assert run.metrics == {
        "duration": 2.5,
        "completed": 9,
        "failed": 1,
        "request_throughput": 3.6,
        "mean_ttft_ms": 12.5,
        "p99.9_itl_ms": 3.5,
    }
    assert run.settings == {
        "date": "20260427-120529",
        "backend": "openai",
        "model": "m/x",
        "num_prompts": 10,
        "request_rate": "inf",
        "metadata": {"gpu": "H100"},  # `--metadata` pairs stand among the other keys
    }


def test_one_object_a_line_and_the_misspelt_goodput() -> None:
    old = {**RESULT, "request_goodput:": 2.0}
    runs = read_json(f"{json.dumps(old)}\n\n{json.dumps(RESULT)}\n", "a.jsonl")
    assert [run.source for run in runs] == ["a.jsonl#1", "a.jsonl#2"]
    assert runs[0].metrics["request_goodput"] == 2.0
    assert "request_goodput" not in runs[1].metrics


def test_a_sweeps_summary_is_its_runs() -> None:
    runs = read_json(json.dumps([{**RESULT, "run_number": n, "max_num_seqs": 4} for n in (0, 1)]), "summary.json")
    assert [run.settings["repeat"] for run in runs] == [0, 1]
    assert runs[0].settings["max_num_seqs"] == 4


def test_infinity_and_sglangs_keys() -> None:
    text = json.dumps(
        {**RESULT, "request_rate": float("inf"), "mean_e2e_latency_ms": 7.0, "total_throughput": 5.0, "server_info": {}}
    )
    assert "Infinity" in text
    (run,) = read_json(text, "s.json")
    assert run.settings["request_rate"] == "inf"
    assert run.metrics["mean_e2el_ms"] == 7.0
    assert run.metrics["total_token_throughput"] == 5.0


def test_null_is_absent_and_not_zero() -> None:
    (run,) = read_json(json.dumps({**RESULT, "output_throughput": None, "request_goodput": None}), "a.json")
    assert "output_throughput" not in run.metrics
    assert "request_goodput" not in run.metrics


def test_a_run_without_a_success_is_marked() -> None:
    (run,) = read_json(json.dumps({**RESULT, "completed": 0}), "a.json")
    assert run.warnings == ("no request was completed: the zeros below are not measurements",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1}', "no duration, completed, request_throughput"),
        ("[1, 2]", "a int where a result object was expected"),
        ('{"benchmarks": [], "metadata": {}}', "a GuideLLM report without figures"),
        ('{"duration": ', "not JSON"),
        ("[]", "an empty JSON file"),
        ('{"duration": true, "completed": 1, "request_throughput": 2}', "no duration"),
    ],
)
def test_other_json_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_json(text, "x.json")
