"""Over real sockets: each way a request can end becomes a record of its class."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer, Seen, as_json, completion, data

from headrace.clock import MonotonicClock
from headrace.errors import ConfigError
from headrace.lab.client.transport import Exchange, HttpTransport


def post(url: str, times: int = 1, timeout_s: float = 30.0) -> list[Exchange]:
    async def main() -> list[Exchange]:
        exchanges = [Exchange() for _ in range(times)]
        async with HttpTransport(
            url, headers={"X-Mine": "1"}, timeout_s=timeout_s, clock=MonotonicClock()
        ) as transport:
            for exchange in exchanges:
                await transport.post(b'{"max_tokens": 3}', exchange)
        return exchanges

    return asyncio.run(main())


def test_stamps_are_in_order_and_the_connection_is_kept() -> None:
    with ScriptedServer(lambda seen: completion(["a", "b", "c"])) as server:
        first, second = post(server.url + "/v1/completions", times=2)
    for exchange in (first, second):
        assert exchange.ok and exchange.status == 200 and exchange.headers_ns is not None
        times = [exchange.sent_ns, exchange.headers_ns, *(t for t, _ in exchange.reads), exchange.done_ns]
        assert times == sorted(times)
        assert exchange.body() == b"".join(completion(["a", "b", "c"]).pieces)
    assert (first.new_connection, second.new_connection) == (True, False)
    assert {seen.connection for seen in server.seen} == {1} and server.seen[0].headers["x-mine"] == "1"


@pytest.mark.parametrize(
    ("answer", "error_class", "words"),
    [
        (as_json({"error": {"message": "prompt of 5000 tokens"}}, 400), "http_4xx", "prompt of 5000 tokens"),
        (as_json({"detail": "engine died"}, 500), "http_5xx", "engine died"),
        (Answer((), 503), "http_5xx", "Scripted"),
        (Answer((data({"choices": [{"text": "a"}]}),), abort=True), "disconnected", "in the middle of"),
    ],
    ids=["400 with a body", "500 with a body", "503 without", "dropped in the middle"],
)
def test_failures_keep_their_cause(answer: Answer, error_class: str, words: str) -> None:
    with ScriptedServer(lambda seen: answer) as server:
        (exchange,) = post(server.url)
    assert exchange.error_class == error_class and words in str(exchange.error)
    assert exchange.done_ns >= exchange.sent_ns


def test_a_server_that_does_not_answer_is_a_timeout() -> None:
    with ScriptedServer(lambda seen: Answer(hang=True)) as server:
        (exchange,) = post(server.url, timeout_s=0.05)
    assert exchange.error_class == "timeout" and "0.05 s" in str(exchange.error)


def test_nobody_listening_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: the port stays free of others
        (exchange,) = post(f"http://127.0.0.1:{taken.getsockname()[1]}/v1/completions")
    assert exchange.error_class == "refused" and exchange.status is None


def test_a_large_burst_is_read_whole() -> None:
    burst = data({"choices": [{"text": "z" * 400_000, "finish_reason": "stop"}]})
    with ScriptedServer(lambda seen: Answer((burst, data("[DONE]")))) as server:
        (exchange,) = post(server.url)
    assert exchange.ok and exchange.body() == burst + data("[DONE]")


def test_an_address_without_a_scheme_is_bad_input() -> None:
    with pytest.raises(ConfigError, match="http://"):
        HttpTransport("localhost:8000", headers={}, timeout_s=1, clock=MonotonicClock())


def test_bytes_pass_unchanged_whatever_the_pieces(tmp_path: Path) -> None:
    text = data({"choices": [{"text": "größe 🚀 " * 3, "finish_reason": "stop"}]})

    def byte_by_byte(seen: Seen) -> Answer:
        return Answer(tuple(text[i : i + 1] for i in range(len(text))))

    with ScriptedServer(byte_by_byte) as server:
        (exchange,) = post(server.url)
    assert exchange.body() == text
