"""A storm of clients that go away at random moments: every block comes back, and nobody else's tokens change."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from real_engine import MODEL, real, settled
from server_harness import Served, in_loop_for

from headrace.core.request import FinishReason
from headrace.core.scheduler import Scheduler
from headrace.core.sequence import Phase
from headrace.engine.async_engine import AsyncEngine

AT_ONCE = 32
PHASES = ("queued", "prefilling", "decoding", "preempted")
# Small enough that prompts take several steps, most requests queue, and running ones are preempted.
SETTINGS = {"max_num_seqs": 12, "max_num_batched_tokens": 64, "max_model_len": 512, "num_gpu_blocks_override": 60}
LETTERS = "abcdefghijklmnopqrstuvwxyz    "


class Steps:
    """Tells, after each step, who waited for it; takes the place of the metrics as the engine's observer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._inner = engine._observer
        self._scheduler = engine._engine.scheduler
        self._waiting: dict[int, tuple[str, asyncio.Future[None]]] = {}
        engine.set_observer(self)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def step(self, num_tokens: int) -> None:
        assert self._inner is not None
        self._inner.step(num_tokens)
        for sequence in list(self._scheduler.live.values()):
            phase, future = self._waiting.get(sequence.request.params.seed or -1, ("", None))
            if future is not None and phase == phase_of(self._scheduler, sequence.request_id) and not future.done():
                future.set_result(None)

    def until(self, seed: int, phase: str) -> asyncio.Future[None]:
        """When the request with that seed is in that phase."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[seed] = phase, future
        return future


def phase_of(scheduler: Scheduler, request_id: str) -> str:
    sequence = scheduler.get(request_id)
    if sequence is None:
        return "ended"
    if sequence.phase is Phase.WAITING:
        return "preempted" if sequence.num_preemptions else "queued"
    return "prefilling" if sequence.computed < sequence.prefill_length else "decoding"


def watch_aborts(engine: AsyncEngine) -> Counter[str]:
    """Counts the phases in which requests were when they were aborted."""
    phases: Counter[str] = Counter()
    step_engine, abort = engine._engine, engine._engine.abort

    def noted(request_id: str, reason: FinishReason = FinishReason.ABORT, stop_reason: Any = None) -> None:
        phases[phase_of(step_engine.scheduler, request_id)] += 1
        abort(request_id, reason, stop_reason)

    step_engine.abort = noted  # type: ignore[method-assign]
    return phases


async def leave_early(served: Served, steps: Steps, chance: random.Random) -> None:
    """Send a request and go away as soon as it is seen in a phase, politely or not."""
    seed = chance.randrange(1, 1 << 40)
    body = json.dumps(
        {
            "model": MODEL,
            "prompt": "".join(chance.choices(LETTERS, k=chance.randrange(10, 400))),
            "max_tokens": chance.randrange(100, 200),
            "ignore_eos": True,
            "stream": chance.random() < 0.5,
            "n": chance.choice((1, 1, 1, 2)),
            "seed": seed,
        }
    ).encode()
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        patience = steps.until(seed, chance.choice(PHASES))
        reading = asyncio.ensure_future(_read_all(reader))
        await asyncio.wait((patience, reading), return_when=asyncio.FIRST_COMPLETED)
        patience.cancel()
        reading.cancel()
    finally:
        if chance.random() < 0.5:
            writer.transport.abort()  # a reset
        else:
            writer.close()


async def _read_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(65536):
        pass


async def survivor(served: Served, index: int) -> list[str]:
    """The tokens of one greedy answer, by their ids."""
    chance = random.Random(index)
    answer = await served.openai.completions.create(
        model=MODEL,
        prompt=[chance.randrange(10, 4000) for _ in range(chance.randrange(5, 150))],
        max_tokens=60,
        temperature=0,
        logprobs=0,
        extra_body={"return_tokens_as_token_ids": True, "ignore_eos": True},
        timeout=300,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens is not None
    return logprobs.tokens


@pytest.mark.parametrize(("cancels", "survivors"), [(60, 4), pytest.param(2000, 60, marks=pytest.mark.slow)])
def test_clients_that_leave_take_nothing_with_them(cancels: int, survivors: int, model_directory: Path) -> None:
    @in_loop_for(600)
    async def scenario() -> None:
        async with real(model_directory, **SETTINGS) as (engine, served):
            calm = [await survivor(served, index) for index in range(survivors)]
            steps, phases = Steps(engine), watch_aborts(engine)
            chance = random.Random(7)

            async def storm() -> None:
                while phases.total() - phases["ended"] < cancels:
                    await leave_early(served, steps, random.Random(chance.random()))

            async def surviving() -> list[list[str]]:
                return [await survivor(served, index) for index in range(survivors)]

            first, second, *_ = await asyncio.gather(surviving(), surviving(), *(storm() for _ in range(AT_ONCE)))
            stats = await settled(engine)
            load = (await served.http.get("/load")).json()
            preemptions = stats.num_preemptions
        assert first == calm and second == calm
        assert stats.kv_blocks_free == stats.kv_blocks_total == 60
        assert load == {"server_load": 0}
        assert preemptions > 0
        for phase in PHASES:
            assert phases[phase] >= cancels / 25, phases

    scenario()
