"""The step log: one line a step with what it did; bounded, and harmless when the disk is not there."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from engine_world import ScriptedRunner, config, request

from headrace.clock import FakeClock
from headrace.core.batch import Batch, Chunk
from headrace.core.sequence import Sequence
from headrace.engine import step_log
from headrace.engine.config import EngineArgs, resolve
from headrace.engine.engine import Engine
from headrace.engine.step_log import StepLog, StepLogConfig
from headrace.errors import ConfigError
from headrace.lab.sim.stepwise import step_shape


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def note(log: StepLog, count: int, first: int = 1) -> None:
    for step in range(first, first + count):
        log.record(Batch(step, ()), (), 1.0, 2.0, running=0, waiting=0, kv_used=0, kv_free=8)


def test_a_line_says_what_the_step_did(tmp_path: Path) -> None:
    clock, runner = FakeClock(), ScriptedRunner()
    runner.before = lambda batch: clock.advance_ns(2_000_000)
    log = StepLog(StepLogConfig(tmp_path / "steps.jsonl", with_requests=True), {"model": "m"})
    engine = Engine(config(num_kv_blocks=10, max_num_seqs=2), runner, clock=clock, step_log=log)
    engine.add(request("a", "hello", max_tokens=2))
    engine.add(request("b", "hi", max_tokens=9))
    engine.add(request("c", "wait", max_tokens=1))
    while engine.has_work:
        engine.step()
    engine.close()
    header, first, second, third, *_ = lines(tmp_path / "steps.jsonl")
    assert header["schema"] == "headrace.step-log/1" and header["model"] == "m"
    work = {"step": 1, "start_s": 0.0, "end_s": 0.002, "prefill_tokens": 7, "decode_tokens": 0, "sequences": 2}
    work |= {"kv_tokens": 0, "pairs": 5 * 5 + 2 * 2, "rows": 2}
    state = {
        "running": 2,
        "waiting": 1,
        "kv_used": 3,
        "kv_free": 7,
        "preempted": 0,
        "admitted": 2,
        "finished": 0,
        "drafted": 0,
        "accepted": 0,
    }
    assert first == work | state | {"chunks": [["a", 0, 5], ["b", 0, 2]]}
    assert (second["prefill_tokens"], second["decode_tokens"], second["finished"]) == (0, 2, 1)
    assert (third["prefill_tokens"], third["decode_tokens"], third["admitted"]) == (4, 1, 1)  # c took a's place


def test_each_draft_is_a_row_of_logits_for_the_log_and_the_simulator(tmp_path: Path) -> None:
    guessing, plain, unfinished = (Sequence(request(name, "hello")) for name in "abc")
    chunks = (Chunk(guessing, 4, 4, True, (7, 8, 9)), Chunk(plain, 4, 1, True), Chunk(unfinished, 0, 3, False))
    batch = Batch(1, chunks)
    log = StepLog(StepLogConfig(tmp_path / "steps.jsonl"), {})
    log.record(batch, (), 1.0, 2.0, running=3, waiting=0, kv_used=6, kv_free=2)
    log.close()
    _, step = lines(tmp_path / "steps.jsonl")
    assert (step["rows"], step["drafted"]) == (4 + 1 + 0, 3)
    assert step_shape(batch).rows == step["rows"]


def test_a_preemption_and_what_is_computed_again_are_seen(tmp_path: Path) -> None:
    log = StepLog(StepLogConfig(tmp_path / "steps.jsonl"), {})
    engine = Engine(config(num_kv_blocks=5, block_size=4), ScriptedRunner(), step_log=log)
    engine.add(request("a", "hello", max_tokens=10))
    engine.add(request("b", "hello", max_tokens=10))
    while engine.has_work:
        engine.step()
    engine.close()
    _, *steps = lines(tmp_path / "steps.jsonl")
    assert sum(step["preempted"] for step in steps) == engine.stats().num_preemptions > 0
    assert sum(step["prefill_tokens"] for step in steps) > 10  # the prompts, and a preempted sequence once more
    assert sum(step["admitted"] for step in steps) == 2 + engine.stats().num_preemptions
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))


def test_the_disk_is_bounded_and_the_newest_steps_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(StepLogConfig(path, max_bytes=1 << 20), {})
    note(log, 20_000)
    log.close()
    older, newer = lines(tmp_path / "steps.jsonl.1"), lines(path)
    assert (tmp_path / "steps.jsonl.1").stat().st_size + path.stat().st_size <= 1 << 20
    assert older[0]["schema"] == newer[0]["schema"] == step_log.SCHEMA
    numbers = [line["step"] for line in older[1:] + newer[1:]]
    assert numbers == list(range(numbers[0], 20_001))


def test_a_full_disk_is_said_once_and_costs_only_its_own_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if full and len(data) > 4:  # half of it still fits
            real(fd, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    log = StepLog(StepLogConfig(tmp_path / "steps.jsonl"), {})
    monkeypatch.setattr(step_log.os, "write", write)
    with caplog.at_level(logging.WARNING, "headrace.engine"):
        for _ in range(3):
            note(log, 5)
            log._write_pending()
        full = False
        note(log, 1, first=99)
        log.close()
    _, gap, last = lines(tmp_path / "steps.jsonl")
    assert gap == {"lost": 15, "why": "they could not be written"} and last["step"] == 99
    assert [record.getMessage().count("No space left") for record in caplog.records] == [1]


def test_a_writer_that_cannot_keep_up_loses_steps_and_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_log, "_MAX_PENDING", 3)
    log = StepLog(StepLogConfig(tmp_path / "steps.jsonl"), {})
    note(log, 5)
    log.close()
    assert [line.get("lost") for line in lines(tmp_path / "steps.jsonl")][1:] == [None, None, None, 2]


def test_a_restart_appends_behind_a_line_that_a_killed_process_left_half_written(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text('{"schema": "old"}\n{"step":')
    StepLog(StepLogConfig(path), {}).close()
    assert path.read_text().splitlines()[1] == '{"step":'
    assert json.loads(path.read_text().splitlines()[2])["schema"] == step_log.SCHEMA


def test_flags_become_a_configuration_or_a_refusal(tmp_path: Path) -> None:
    def resolved(**args: Any) -> StepLogConfig | None:
        return resolve(EngineArgs(**args), environ={}, free_memory_bytes=8 << 30)[0].step_log

    path = str(tmp_path / "s.jsonl")
    assert resolved() is None
    assert resolved(step_log=path, step_log_max_bytes="2M") == StepLogConfig(Path(path), 2 << 20)
    assert resolved(step_log=path, step_log_requests=True).with_requests  # type: ignore[union-attr]
    for args, words in (
        ({"step_log": str(tmp_path / "no" / "s.jsonl")}, "must name a file in a directory that is there"),
        ({"step_log": path, "step_log_max_bytes": "1k"}, "must be at least 1048576"),
        ({"step_log_max_bytes": "2M"}, "--step-log-max-bytes needs --step-log FILE"),
        ({"step_log_requests": True}, "--step-log-requests needs --step-log FILE"),
    ):
        with pytest.raises(ConfigError, match=words):
            resolved(**args)
    with pytest.raises(ConfigError, match="cannot be written"):
        StepLog(StepLogConfig(tmp_path / "no" / "s.jsonl"), {})
