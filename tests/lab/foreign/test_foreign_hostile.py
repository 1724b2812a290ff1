"""Hostile input: whatever a file holds, it becomes runs with finite figures, or one reason why not."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.lab.findings import explain
from headrace.lab.records.foreign import read_paths, study_from_runs, to_vllm_object
from headrace.lab.records.foreign.console import read_console
from headrace.lab.records.foreign.vllm_json import read_json
from headrace.lab.records.results import RunResult, study_from_json, study_to_json
from headrace.lab.report.data import study_view

LOG = """\
vllm serve org/model --max-model-len 4096 --max-num-batched-tokens=256 --enable-chunked-prefill
INFO vLLM API server version 0.6.3
INFO non-default args: {'model': 'org/model', 'max_num_seqs': 64, 'enforce_eager': True}
INFO Chunked prefill is enabled with max_num_batched_tokens=256.
$ python3 benchmark_serving.py --backend vllm --num-prompts 100 --request-rate 4 --burstiness 0.5 --max-concurrency 8
Namespace(backend='vllm', num_prompts=100, request_rate=4.0, burstiness=1.0, dataset='random', random_input_len=32)
Traffic request rate: 4.0
Burstiness factor: 1.0 (Poisson process)
Maximum request concurrency: 8
100%|##########| 100/100 [1:02:03<00:00,  1.00it/s]
============ Serving Benchmark Result ============
Successful requests:                     100
Failed requests:                         0
Maximum request concurrency:             8
Request rate configured (RPS):           4.00
Benchmark duration (s):                  10.50
Total input tokens:                      3,200
Total generated tokens:                  1600
Request throughput (req/s):              9.52
Output token throughput (tok/s):         152.38
---------------Time to First Token----------------
Mean TTFT (ms):                          12.34
P99 TTFT (ms):                           50.00
Acceptance rate (%):                     41.0
Position 0:                              60.0
==================================================
Successful requests: 4
Total time: 2.10 s
Throughput: 1.90 requests/s
Average latency: 1.05 s
"""
RESULT: dict[str, Any] = {
    "date": "20260101-000000",
    "backend": "vllm",
    "model_id": "org/model",
    "num_prompts": 10,
    "request_rate": 4.0,
    "burstiness": 1.0,
    "max_concurrency": 8,
    "max_num_batched_tokens": 256,
    "enable_chunked_prefill": True,
    "run_number": 1,
    "duration": 2.5,
    "completed": 10,
    "failed": 0,
    "total_input_tokens": 320,
    "total_output_tokens": 160,
    "request_throughput": 4.0,
    "output_throughput": 64.0,
    "mean_ttft_ms": 12.5,
    "spec_decode_per_position_acceptance_rates": [0.6, 0.3],
    "gpu": "some",
}
ODD_TEXT = [
    *("nan", "-inf", "inf", "Infinity", "1.0.", "1e999", "-1", "0", "²", "٣", "9" * 400, "9" * 5000, "{1, 2}"),
    *(
        "{[]: 2}",
        "{'max_model_len': [1]}",
        "[" * 300,
        "{",
        "$VAR",
        "'",
        "\\",
        "\ud800",
        "\x00",
        "\r",
        "\x1b[31m",
        "[/b]",
    ),
    *("None", "true", "", " ", ",", "..", "1,2,3", "0x10", "1_000", "--", "| | |"),
]
ODD_JSON = [
    *(math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e300, -1, 0, 0.5, True, None, "x", "inf", "nan", "\ud800"),
    *([], [None], [[]], {}, {"a": math.nan}, "9" * 400),
]


def check(runs: tuple[RunResult, ...]) -> None:
    """Everything that follows an import goes through, and its files hold no NaN."""
    for run in runs:
        assert all(math.isfinite(value) for value in run.metrics.values())
        json.dumps(to_vllm_object(run), ensure_ascii=False, allow_nan=False).encode()
    study = study_from_runs(runs, "imported", "imported")
    text = study_to_json(study)
    text.encode()
    again = study_from_json(text, source="the study")
    study_view(again, explain(again))


@st.composite
def mutated_logs(draw: st.DrawFn) -> str:
    """The log with some values replaced, lines dropped, doubled, cut or joined."""
    lines = LOG.splitlines() * draw(st.integers(1, 2))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(lines) - 1))
        line, odd = lines[place], draw(st.sampled_from(ODD_TEXT) | st.text(max_size=8))
        words = line.split(" ")
        word = draw(st.integers(0, len(words) - 1))
        what = draw(st.sampled_from(("value", "word", "cut", "drop", "double", "args")))
        if what == "value":
            head, separator, _ = line.rpartition(draw(st.sampled_from((":", "=", " "))))
            lines[place] = f"{head}{separator or ': '}{odd}"
        elif what == "word":
            lines[place] = " ".join([*words[:word], odd, *words[word + 1 :]])
        elif what == "cut":
            lines[place] = line[: draw(st.integers(0, len(line)))] + odd
        elif what == "drop" and len(lines) > 1:
            del lines[place]
        elif what == "double":
            lines.insert(place, line)
        else:
            lines[place] = f"INFO non-default args: {odd if odd.startswith('{') else '{' + odd + '}'}"
    return "\n".join(lines)


@st.composite
def mutated_results(draw: st.DrawFn) -> str:
    items = []
    for _ in range(draw(st.integers(1, 3))):
        item = dict(RESULT)
        for key in draw(st.lists(st.sampled_from([*RESULT, "extra", "\ud800", "request_goodput:"]), max_size=4)):
            item[key] = draw(st.sampled_from(ODD_JSON))
        items.append(item)
    text = draw(st.sampled_from(("list", "lines")))
    whole = json.dumps(items) if text == "list" else "\n".join(json.dumps(item) for item in items)
    return whole[: draw(st.sampled_from((len(whole), len(whole), len(whole) // 2)))]


@settings(max_examples=300, deadline=None)
@given(mutated_logs())
def test_a_mutated_log_never_ends_in_an_error(text: str) -> None:
    check(read_console(text, "a.log").runs)


@settings(max_examples=300, deadline=None)
@given(mutated_results())
def test_a_mutated_result_file_gives_runs_or_a_reason(text: str) -> None:
    try:
        runs = read_json(text, "a.json")
    except ConfigError:
        return
    check(runs)


def test_a_printed_nan_is_a_warning_and_no_figure() -> None:
    (run,) = read_console(LOG.replace("12.34", "nan").split("Successful requests: 4\n")[0], "a.log").runs
    assert "mean_ttft_ms" not in run.metrics and run.metrics["p99_ttft_ms"] == 50
    assert "Mean TTFT (ms): 'nan' is not a finite number" in run.warnings


@pytest.mark.parametrize("burstiness", [math.inf, "inf"])
def test_infinite_burstiness_is_evenly_spaced(burstiness: object) -> None:
    (run,) = read_json(json.dumps({**RESULT, "burstiness": burstiness}), "a.json")
    assert run.settings["burstiness"] == "inf"


def test_an_ill_typed_setting_counts_as_unknown() -> None:
    text = json.dumps({**RESULT, "max_concurrency": [8], "spec_decode_per_position_acceptance_rates": [None]})
    (run,) = read_json(text, "a.json")
    assert "max_concurrency" not in run.settings
    assert run.warnings == (
        "max_concurrency is not what it should be ([8]), so it counts as unknown",
        "spec_decode_per_position_acceptance_rates is not a list of numbers ([None])",
    )


@pytest.mark.parametrize("arguments", ["{1, 2}", "{[]: 2}", "{'max_num_seqs': [64]}", "[" * 3000])
def test_odd_argument_dumps_are_passed_over(arguments: str) -> None:
    start = f"INFO non-default args: {arguments if arguments[0] == '{' else '{' + arguments + '}'}\n"
    frame = LOG[LOG.index("=====") :].split("Successful requests: 4\n")[0]
    (run,) = read_console(start + frame, "a.log").runs
    assert run.metrics["completed"] == 100 and "max_num_seqs" not in run.settings


def test_a_reader_that_fails_loses_its_own_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.log").write_text(LOG)
    (tmp_path / "b.json").write_text(json.dumps(RESULT))

    def broken(text: str, source: str) -> None:
        raise IndexError("of ours")

    monkeypatch.setattr("headrace.lab.records.foreign.read.read_console", broken)
    found = read_paths([tmp_path])
    assert [run.source for run in found.runs] == ["b.json"]
    assert "headrace could not read it (IndexError: of ours)" in found.skipped[0][1]


def test_a_file_name_of_any_bytes(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/r\xff.json"
    with open(name, "w") as file:
        json.dump(RESULT, file)
    check(read_paths([tmp_path]).runs)
