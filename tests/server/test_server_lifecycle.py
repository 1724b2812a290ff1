"""A whole server process: ready, draining, gone.  Its engine makes one step per byte that the test writes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from headrace.errors import LaunchError
from headrace.server.lifecycle import bind

HERE = Path(__file__).parent
PROGRAM = """
import asyncio, os, sys
from fake_engine import ScriptedEngine
from headrace.errors import ConfigError
from headrace.server.lifecycle import serve
from headrace.server.options import ServerOptions

class Stepped(ScriptedEngine):
    def submit(self, request):
        asyncio.get_running_loop().add_reader(0, lambda: self.release(len(os.read(0, 4096))))
        return super().submit(request)

def load():
    if sys.argv[2] == "fails":
        raise ConfigError("--model nothing: there is no such model")
    if sys.argv[2] == "waits":
        os.read(0, 1)
    engine = Stepped("abc" * 40)
    engine.hold()
    return engine

try:
    sys.exit(serve(load, ServerOptions(port=int(sys.argv[3]), shutdown_timeout_s=float(sys.argv[1]))))
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""
STREAM = {"prompt": "Hi", "max_tokens": 6, "stream": True}


class Process:
    def __init__(self, timeout_s: float, load: str = "now", port: int = 0) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(timeout_s), load, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"},
        )

    def ready(self) -> httpx.Client:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline().decode()
        assert line.startswith("headrace is ready on http://127.0.0.1:"), line
        return httpx.Client(base_url=line.split()[-1], timeout=20)

    def step(self, count: int = 1) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(b"." * count)
        self.popen.stdin.flush()

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def exit_code(self) -> int:
        return self.popen.wait(timeout=20)


@contextmanager
def process(timeout_s: float, load: str = "now", port: int = 0) -> Iterator[Process]:
    started = Process(timeout_s, load, port)
    try:
        yield started
    finally:
        started.popen.kill()
        started.popen.communicate()


def payloads(lines: Iterator[str]) -> list[dict[str, object] | str]:
    data = [line.removeprefix("data: ") for line in lines if line]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@contextmanager
def stream(http: httpx.Client, server: Process) -> Iterator[Iterator[str]]:
    """A stream of six tokens of which the first has come."""
    with http.stream("POST", "/v1/completions", json=STREAM) as response:
        lines = response.iter_lines()
        server.step()
        assert next(lines).startswith("data: ")
        yield lines


def test_sigterm_drains_and_refuses_new_work() -> None:
    with process(timeout_s=60) as server, server.ready() as http, stream(http, server) as lines:
        server.signal(signal.SIGTERM)
        while http.get("/health").status_code == 200:
            pass
        refused = http.post("/v1/completions", json={"prompt": "Hi"})
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
        assert "retry-after" in refused.headers
        assert http.get("/health/live").status_code == 200
        server.step(5)
        *chunks, done = payloads(lines)
        assert done == "[DONE]" and chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert server.exit_code() == 0


def test_a_timeout_of_zero_aborts_and_every_stream_gets_its_end() -> None:
    with process(timeout_s=0) as server, server.ready() as http, stream(http, server) as lines:
        server.signal(signal.SIGTERM)
        *_, error, done = payloads(lines)
        assert done == "[DONE]" and error["error"]["code"] == "aborted"
        assert server.exit_code() == 0


def test_a_second_signal_ends_the_drain_at_once() -> None:
    with process(timeout_s=600) as server, server.ready() as http, stream(http, server) as lines:
        server.signal(signal.SIGTERM)
        while http.get("/health").status_code == 200:
            pass
        server.signal(signal.SIGINT)
        *_, error, done = payloads(lines)
        assert done == "[DONE]" and error["error"]["code"] == "aborted"
        assert server.exit_code() == 130


def test_an_idle_server_leaves_at_once() -> None:
    with process(timeout_s=600) as server, server.ready() as http:
        assert http.get("/health").status_code == 200
        server.signal(signal.SIGINT)
        assert server.exit_code() == 0


def test_while_loading_health_says_so_and_a_signal_ends_it() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with process(timeout_s=600, load="waits", port=port) as server, httpx.Client(timeout=20) as http:
        health = None
        while health is None:
            try:
                health = http.get(f"http://127.0.0.1:{port}/health")
            except httpx.ConnectError:
                assert server.popen.poll() is None, server.popen.communicate()
        assert health.status_code == 503 and health.json()["error"]["code"] == "loading"
        server.signal(signal.SIGTERM)
        assert server.exit_code() == 0


def test_a_model_that_does_not_load_ends_the_process_with_its_reason() -> None:
    with process(timeout_s=0, load="fails") as server:
        assert server.exit_code() == 2
        out, err = server.popen.communicate()
    assert out == b"" and err.decode().strip() == "--model nothing: there is no such model"


def test_a_taken_port_is_named() -> None:
    taken = bind("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with taken, pytest.raises(LaunchError, match=f"127.0.0.1:{port}.*--port") as caught:
        bind("127.0.0.1", port)
    assert caught.value.kind == "port"
