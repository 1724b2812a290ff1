"""The relay of the clients' benchmark: what it makes of the bytes that pass (benchmarks/tap.py)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

MS = 1_000_000


@pytest.fixture(scope="module")
def tap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tap", Path(__file__).parents[3] / "benchmarks" / "tap.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frame(message: object) -> bytes:
    event = f"data: {json.dumps(message)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def text(number: int) -> bytes:
    return frame({"choices": [{"index": 0, "text": f"{number}"}], "usage": None})


def usage(prompt: int, completion: int) -> bytes:
    return frame({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


POST = b"POST /v1/completions HTTP/1.1\r\n\r\n"


def test_events_belong_to_the_request_before_them_and_to_the_read_that_completed_them(tap: ModuleType) -> None:
    up = [(0, b"GET /v1/models HTTP/1.1\r\n\r\n"), (10 * MS, POST), (11 * MS, b'{"prompt": "POST "}'), (100 * MS, POST)]
    split = text(2)
    down = [
        (20 * MS, b"HTTP/1.1 200 OK\r\n\r\n" + text(1)),
        (30 * MS, split[:20]),
        (40 * MS, split[20:] + text(3)),
        (50 * MS, usage(7, 3) + b"data: [DONE]\n\n"),
        (140 * MS, text(1)),
        (180 * MS, text(2) + usage(5, 2)),
    ]
    first, second = tap.answers(up, down)
    assert first == {
        "sent_ns": 10 * MS,
        "stamps_ns": [20 * MS, 40 * MS, 40 * MS],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }
    assert (second["sent_ns"], second["stamps_ns"]) == (100 * MS, [140 * MS, 180 * MS])
    figures = tap.vllm_figures([first, second])
    assert (figures["completed"], figures["total_input_tokens"], figures["total_output_tokens"]) == (2, 12, 5)
    assert figures["duration"] == pytest.approx(0.17)
    assert figures["mean_ttft_ms"] == pytest.approx((10 + 40) / 2)
    assert figures["mean_tpot_ms"] == pytest.approx((20 / 2 + 40 / 1) / 2)
    assert figures["mean_itl_ms"] == pytest.approx((20 + 0 + 40) / 3)
    assert figures["mean_e2el_ms"] == pytest.approx((30 + 80) / 2)


def test_a_connection_without_requests_has_no_answers(tap: ModuleType) -> None:
    assert tap.answers([], []) == []
