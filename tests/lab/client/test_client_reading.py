"""From bytes and their times to a record: which message was the first token, and what went wrong."""

from __future__ import annotations

import json

import pytest
from scripted_server import data

from headrace.lab.client.reading import MAX_ERROR_CHARS, bounded, read_answer
from headrace.lab.records.schema import RequestRecord


def read(*reads: tuple[int, bytes], status: int = 200) -> RequestRecord:
    record = RequestRecord(0, planned_ns=0, status=status, done_ns=reads[-1][0] if reads else 0)
    read_answer(record, reads)
    return record


def choice(text: str, finish: str | None = None, **more: object) -> bytes:
    return data({"choices": [{"text": text, "finish_reason": finish}], **more})


def delta(finish: str | None = None, **fields: object) -> bytes:
    return data({"choices": [{"delta": fields, "finish_reason": finish}]})


def test_a_role_message_is_not_a_first_token() -> None:
    record = read(
        (10, delta(role="assistant", content="")),
        (1010, delta(content="Hi")),
        (1020, delta("stop")),
        (1030, data("[DONE]")),
    )
    assert [(c.t_ns, c.kind) for c in record.chunks] == [(10, "role"), (1010, "content"), (1020, "empty")]
    assert record.ok and record.output_text == "Hi" and record.finish_reason == "stop" and record.done_ns == 1030


def test_reasoning_and_tool_calls_have_their_own_kinds() -> None:
    record = read(
        (1, delta(reasoning_content="hm")),
        (2, delta(reasoning="hm")),
        (3, delta(tool_calls=[{"index": 0}])),
        (4, delta(role="assistant", content="now")),
        (5, delta("stop")),
    )
    assert [c.kind for c in record.chunks] == ["reasoning", "reasoning", "tool_call", "content", "empty"]


def test_messages_of_one_read_share_its_time_and_a_bundle_is_one_chunk() -> None:
    record = read((10, choice("one") + choice("two three four")), (20, choice("", "length") + data("[DONE]")))
    assert [c.t_ns for c in record.chunks] == [10, 10, 20]
    assert record.output_text == "onetwo three four"


@pytest.mark.parametrize(
    "reads",
    [
        [
            choice("a"),
            choice("b", "stop"),
            data({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
        ],
        [choice("a"), choice("b", "stop", usage={"prompt_tokens": 3, "completion_tokens": 2})],
        [
            choice("a", usage={"prompt_tokens": 3, "completion_tokens": 1}),
            choice("b", "stop", usage={"prompt_tokens": 3, "completion_tokens": 2}),
        ],
        [
            data({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
            choice("a", usage=None),
            choice("b", "stop"),
        ],
    ],
    ids=["alone", "beside the last choice", "growing with every chunk", "first"],
)
def test_usage_counts_wherever_the_server_puts_it(reads: list[bytes]) -> None:
    record = read(*enumerate(reads))
    assert (record.prompt_tokens_server, record.output_tokens_server) == (3, 2)
    assert len(record.chunks) == 2 and record.ok


def test_an_error_in_the_middle_keeps_what_came_before() -> None:
    record = read((1, choice("a")), (2, data({"error": {"message": "out of memory", "code": 500}})))
    assert record.error_class == "server_error_event" and "out of memory" in str(record.error)
    assert len(record.chunks) == 1 and record.output_text == "a"


def test_a_body_that_ends_in_the_middle_is_a_failure() -> None:
    assert read((1, choice("a"))).error_class == "disconnected"


def test_a_finish_reason_without_done_is_a_success() -> None:
    assert read((1, choice("a", "stop"))).ok


def test_an_answer_that_is_no_stream_says_what_it_was() -> None:
    record = read((1, b'{"object": "text_completion"}'))
    assert record.error_class == "protocol" and "text_completion" in str(record.error)
    assert read().error_class == "protocol"


def test_a_message_that_is_not_json_is_named() -> None:
    record = read((1, choice("a", "stop")), (2, b"data: [DATA]\n\n"))
    assert record.error_class == "protocol" and "[DATA]" in str(record.error)


def test_a_multi_byte_character_may_be_split_between_reads() -> None:
    body = choice("größe 🚀", "stop")
    for at in range(1, len(body)):
        assert read((1, body[:at]), (2, body[at:])).output_text == "größe 🚀"


def test_the_transports_error_stays_and_the_body_is_bounded() -> None:
    record = RequestRecord(0, planned_ns=0, error_class="timeout", error="late")
    read_answer(record, [(1, choice("a")), (2, data({"error": {"message": "x"}}))])
    assert record.error_class == "timeout" and len(record.chunks) == 1
    long = read((1, data({"error": {"message": "y" * 10_000}})))
    assert long.error is not None and len(long.error) < MAX_ERROR_CHARS + 100
    assert bounded("short") == "short"


def test_garbage_never_raises() -> None:
    for body in (
        b"\xff\xfe\n\n",
        b"data: \xff\n\n",
        b"data: 3\n\n",
        data({"choices": ["x", None]}),
        data({"usage": 4}),
    ):
        record = read((1, body))
        assert not record.ok and json.dumps(record.error)
