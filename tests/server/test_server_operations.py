"""What operators use: profiler, prefix cache, limits, the answers of a dead engine, JSON logs."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

from fake_engine import CONFIG, ScriptedEngine
from server_harness import error_of, in_loop, serving

from headrace.server.limits import request_limits
from headrace.server.logs import JsonFormatter
from headrace.server.options import ServerOptions


@in_loop
async def test_the_profiler_is_started_and_stopped_by_post() -> None:
    async with serving(ScriptedEngine()) as served:
        off = await served.http.post("/stop_profile")
        assert off.status_code == 404 and error_of(off)["code"] == "profiler_off"
        assert (await served.http.post("/start_profile")).json() == {"trace": "/traces/1"}
        twice = await served.http.post("/start_profile")
        assert twice.status_code == 409 and error_of(twice)["code"] == "profiler_state"
        assert (await served.http.post("/stop_profile")).json()["steps"] == 3
        assert (await served.http.get("/start_profile")).status_code == 405


@in_loop
async def test_the_prefix_cache_is_reset_when_nothing_runs() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        assert (await served.http.post("/reset_prefix_cache")).status_code == 200
        engine.hold()
        async with served.http.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}):
            refused = await served.http.post("/reset_prefix_cache")
            assert refused.status_code == 409 and error_of(refused)["code"] == "cache_in_use"


@in_loop
async def test_a_queue_full_of_tokens_refuses_before_it_reads_a_body() -> None:
    engine = ScriptedEngine(config=replace(CONFIG, max_num_queued_tokens=100))
    engine.num_queued_tokens = 100
    async with serving(engine) as served:
        refused = await served.http.post("/v1/completions", content=b"no JSON at all")
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        assert error_of(refused)["code"] == "queue_full"


@in_loop
async def test_an_engine_that_died_under_a_request_is_a_503() -> None:
    engine = ScriptedEngine()
    engine.fail_after = 1
    async with serving(engine) as served:
        alive = await served.http.post("/v1/completions", json={"prompt": "a"})
        assert alive.status_code == 500  # this request failed; the engine goes on
        engine.healthy = (False, "the step loop has stopped")
        dead = await served.http.post("/v1/completions", json={"prompt": "a"})
        assert dead.status_code == 503 and dead.headers["retry-after"] == "1"


@in_loop
async def test_limits_are_metrics() -> None:
    options = ServerOptions(max_body_bytes=1234)
    async with serving(ScriptedEngine(), options) as served:
        text = (await served.http.get("/metrics")).text
    shown = dict(re.findall(r'headrace:request_limit\{.*?limit="(\w+)".*?\} (\S+)', text))
    assert {name: float(value) for name, value in shown.items()} == request_limits(CONFIG, options)
    assert float(shown["max_body_bytes"]) == 1234 and float(shown["max_model_len"]) == CONFIG.max_model_len


def test_json_logs_are_one_object_a_line_whatever_is_said() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("headrace.server", logging.ERROR, "f.py", 1, "a %s\nb", ("ü\u2028",), info)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "headrace.server", "a ü\u2028\nb")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    assert "ValueError: two" in line["exception"]
