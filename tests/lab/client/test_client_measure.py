"""One call measures a server, stores the run, and gives the result that the stored run gives again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer, Seen, as_json, model_server

from headrace.errors import ConfigError
from headrace.lab.client import Progress, measure
from headrace.lab.client.bodies import request_body
from headrace.lab.metrics.result import run_result_from_directory
from headrace.lab.records.store import read_run
from headrace.lab.workload.samples import build_workload
from headrace.lab.workload.spec import WorkloadSpec
from headrace.lab.workload.tokens import open_tokenizer

SMALL = WorkloadSpec(num_prompts=12, scale=0.1, seed=3, tokenizer=None)


def test_a_run_is_measured_stored_and_read_back(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        result = measure(server.url, SMALL, tmp_path / "run", model="tiny", settings={"max_num_seqs": 4})
    assert result.metrics["completed"] == 12 and result.metrics["failed"] == 0
    sent = server.completions()
    assert result.metrics["total_output_tokens"] == sum(body["max_tokens"] for body in sent)
    assert result.metrics["total_input_tokens"] == sum(len(body["prompt"]) for body in sent)
    assert result.settings["max_num_seqs"] == 4 and result.settings["request_rate"] == "inf"
    assert result.settings["dataset"] == "conversation" and result.settings["num_prompts"] == 12
    again = run_result_from_directory(tmp_path / "run")
    assert again == result and result.verdict is not None
    manifest, records = read_run(tmp_path / "run")
    assert result.verdict.level == manifest["verdict"]["level"]
    assert [record.index for record in records] == list(range(12))
    assert manifest["workload"]["seed"] == 3 and manifest["environment"]["cpus"] >= 1
    assert len(manifest["clock_pairs"]) == 2 and manifest["verdict"]["level"] in ("VALID", "WARN", "INVALID")


def test_the_request_is_the_one_vllm_sends() -> None:
    spec = WorkloadSpec(num_prompts=1, scale=0.1, temperature=0.0, extra_body={"top_k": 5})
    with ScriptedServer() as server:
        workload = build_workload(spec, open_tokenizer(None, base_url=server.url, model="tiny"))
    sample = workload.samples[0]
    assert json.loads(request_body(spec, sample, "tiny")) == {
        "model": "tiny",
        "prompt": list(sample.prompt),
        "max_tokens": sample.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "ignore_eos": True,
        "top_k": 5,
    }


def test_chat_sends_text_of_the_wanted_length(tmp_path: Path) -> None:
    spec = WorkloadSpec(num_prompts=3, dataset_name="random", random_input_len=20, random_output_len=4, endpoint="chat")
    with ScriptedServer() as server:
        result = measure(server.url, spec, tmp_path / "run", model="tiny")
    for body in server.completions():
        (message,) = body["messages"]
        assert message["role"] == "user" and len(message["content"][0]["text"]) == 20  # a token a character
        assert body["max_completion_tokens"] == 4 and "max_tokens" not in body
    assert result.metrics["total_output_tokens"] == 12
    # The role chunk comes first, so vLLM's TTFT event is earlier than the first visible text, never later.
    assert result.metrics["mean_ttft_ms"] <= result.metrics["mean_ttft_visible_ms"]


def test_warm_up_prompts_are_never_measured(tmp_path: Path) -> None:
    spec = WorkloadSpec(num_prompts=4, scale=0.1, warmup_requests=3)
    with ScriptedServer() as server:
        result = measure(server.url, spec, tmp_path / "run", model="tiny")
    prompts = [tuple(body["prompt"]) for body in server.completions()]
    assert len(prompts) == 7 and len(set(prompts)) == 7
    assert result.metrics["completed"] == 4


def test_a_closed_loop_never_has_more_in_flight_than_users(tmp_path: Path) -> None:
    spec = WorkloadSpec(num_prompts=9, scale=0.1, max_concurrency=2)
    with ScriptedServer() as server:
        result = measure(server.url, spec, tmp_path / "run", model="tiny")
    assert result.metrics["max_concurrent_requests"] <= 2 and result.settings["max_concurrency"] == 2
    manifest, _ = read_run(tmp_path / "run")
    assert manifest["loop"] == "closed" and manifest["schedule_ns"] is None


def test_a_paced_run_saves_its_schedule(tmp_path: Path) -> None:
    spec = WorkloadSpec(num_prompts=5, scale=0.1, request_rate=500.0)
    with ScriptedServer() as server:
        measure(server.url, spec, tmp_path / "run", model="tiny")
    manifest, records = read_run(tmp_path / "run")
    assert [r.planned_ns - manifest["start_ns"] for r in records] == manifest["schedule_ns"]
    assert all(r.sent_ns >= r.planned_ns for r in records)


def test_failed_requests_are_rows_with_their_cause(tmp_path: Path) -> None:
    def refuses_long_ones(seen: Seen) -> Answer:
        if "completions" in seen.path and seen.body and len(seen.body["prompt"]) > 20:
            return as_json({"error": {"message": "maximum context length is 20 tokens"}}, 400)
        return model_server(seen)

    seen: list[Progress] = []
    with ScriptedServer(refuses_long_ones) as server:
        result = measure(server.url, SMALL, tmp_path / "run", model="tiny", progress=seen.append)
    _, records = read_run(tmp_path / "run")
    failed = [record for record in records if not record.ok]
    assert 0 < len(failed) < 12 and len(records) == 12
    assert all(r.error_class == "http_4xx" and "maximum context" in str(r.error) for r in failed)
    assert result.metrics["failed"] == len(failed) == seen[-1].failed
    assert any("failed" in warning for warning in result.warnings)


def test_a_run_where_everything_failed_has_no_latencies(tmp_path: Path) -> None:
    def dead(seen: Seen) -> Answer:
        return as_json({"error": "dead"}, 500) if "completions" in seen.path else model_server(seen)

    with ScriptedServer(dead) as server:
        result = measure(server.url, SMALL, tmp_path / "run", model="tiny")
    assert set(result.metrics) == {"duration", "completed", "failed"}
    assert result.warnings[0].startswith("INVALID")


def test_a_finished_run_is_never_overwritten(tmp_path: Path) -> None:
    with ScriptedServer() as server:
        measure(server.url, SMALL, tmp_path / "run", model="tiny")
        sent = len(server.seen)
        with pytest.raises(ConfigError, match="already holds a finished run"):
            measure(server.url, SMALL, tmp_path / "run", model="tiny")
        assert len(server.seen) == sent  # said before measuring, not after


def test_without_any_tokenizer_it_says_what_would_help(tmp_path: Path) -> None:
    def no_tokenize(seen: Seen) -> Answer:
        return as_json({"error": "no"}, 404) if "tokenize" in seen.path else model_server(seen)

    with ScriptedServer(no_tokenize) as server, pytest.raises(ConfigError, match="--tokenizer"):
        measure(server.url, SMALL, tmp_path / "run", model="tiny")


def test_answers_are_read_on_the_way_when_too_many_bytes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.lab.client.shard.MAX_UNREAD_BYTES", 100)
    with ScriptedServer() as server:
        result = measure(server.url, SMALL, tmp_path / "run", model="tiny")
    assert result.metrics["completed"] == 12
    assert result.metrics["total_output_tokens"] == sum(body["max_tokens"] for body in server.completions())
