"""Requests through the threaded engine: every way to end one, in every phase, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from engine_world import CONFIG, LetterTokenizer, ScriptedRunner, config, request

from headrace.clock import Clock, FakeClock
from headrace.core.batch import Batch
from headrace.core.request import FinishReason
from headrace.engine.async_engine import AsyncEngine, FinishedRequest, Output
from headrace.engine.config import EngineConfig
from headrace.engine.engine import Engine as StepEngine
from headrace.errors import HeadraceError, InvalidRequest, InvariantError


class World:
    def __init__(self, settings: EngineConfig, runner: ScriptedRunner, clock: Clock | None = None) -> None:
        self.runner = runner
        self.steps = StepEngine(settings, runner, clock=clock)
        self.engine = AsyncEngine(self.steps, LetterTokenizer())  # type: ignore[arg-type]

    async def all_blocks_free(self) -> None:
        await until(lambda: self.engine.stats().kv_blocks_free == self.engine.config.num_kv_blocks)
        assert self.engine.stats().num_running == self.engine.stats().num_waiting == 0


async def until(true: Callable[[], bool]) -> None:
    """Let the step thread work until something is true of its snapshot."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0)


def in_world(
    test: Callable[[World], Awaitable[None]],
    settings: EngineConfig = CONFIG,
    runner: ScriptedRunner | None = None,
    clock: Clock | None = None,
) -> None:
    async def main() -> None:
        world = World(settings, runner or ScriptedRunner(), clock)
        try:
            async with asyncio.timeout(60):
                await test(world)
        finally:
            world.runner.release()
            world.engine.close()

    asyncio.run(main())


async def read(stream: AsyncIterator[Output]) -> list[Output]:
    return [output async for output in stream]


async def entered(runner: ScriptedRunner) -> None:
    """Wait until the runner has begun one more step."""
    await asyncio.to_thread(runner.entered.acquire, timeout=30)


def text(outputs: list[Output]) -> str:
    return "".join(output.text for output in outputs)


def test_one_output_a_token_and_the_last_tells_why() -> None:
    async def test(world: World) -> None:
        outputs = await read(world.engine.submit(request(max_tokens=4)))
        assert [output.text for output in outputs] == ["a", "b", "c", "d"]
        assert [output.finish_reason for output in outputs] == [None, None, None, FinishReason.LENGTH]
        assert (outputs[-1].num_prompt_tokens, outputs[-1].num_output_tokens) == (5, 4)
        await world.all_blocks_free()

    in_world(test)


def test_many_requests_at_once_get_their_own_outputs() -> None:
    async def test(world: World) -> None:
        streams = [world.engine.submit(request(f"r{i}", max_tokens=1 + i)) for i in range(20)]
        everything = await asyncio.gather(*map(read, streams))
        alphabet = "abcdefghijklmnopqrstuvwxyz"
        assert [text(outputs) for outputs in everything] == [alphabet[: 1 + i] for i in range(20)]
        await world.all_blocks_free()

    in_world(test)


def test_a_stop_string_ends_the_request_in_the_core_too() -> None:
    async def test(world: World) -> None:
        world.runner.hold()
        for _ in range(4):
            world.runner.allow()
        outputs = await read(world.engine.submit(request(max_tokens=200, stop=("cd",))))
        world.runner.allow()  # the step that may have begun before the stop was seen; no other may follow
        assert text(outputs) == "ab"
        assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == (FinishReason.STOP, "cd")
        assert outputs[-1].num_output_tokens == 4
        await world.all_blocks_free()

    in_world(test)


def test_a_token_whose_text_is_held_back_comes_at_once_with_its_logprob() -> None:
    async def test(world: World) -> None:
        outputs = await read(world.engine.submit(request(max_tokens=5, stop=("bcx",), logprobs=1)))
        assert [output.text for output in outputs] == ["a", "", "", "bcd", "e"]
        assert [len(output.token_ids) for output in outputs] == [1, 1, 1, 1, 1]
        assert [len(output.logprobs or ()) for output in outputs] == [1, 1, 1, 1, 1]

    in_world(test)


def test_the_end_token_is_counted_and_not_shown() -> None:
    async def test(world: World) -> None:
        outputs = await read(world.engine.submit(request(max_tokens=9)))
        assert text(outputs) == "aa"
        assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == (FinishReason.STOP, None)
        assert outputs[-1].num_output_tokens == 3

    in_world(test, runner=ScriptedRunner(lambda sequence: ord("a") if sequence.num_output_tokens < 2 else 0))


# -- every way to leave, in every phase -----------------------------------------------------------------------------

Leave = Callable[[World, AsyncIterator[Output]], Coroutine[Any, Any, None]]


async def by_abort(world: World, stream: AsyncIterator[Output]) -> None:
    world.engine.abort("r")
    world.engine.abort("r")  # idempotent
    assert (await read(stream))[-1].finish_reason is FinishReason.ABORT


async def by_closing(world: World, stream: AsyncIterator[Output]) -> None:
    await stream.aclose()  # type: ignore[attr-defined]
    assert await read(stream) == []


async def by_cancelling(world: World, stream: AsyncIterator[Output]) -> None:
    async def wait_for_ever() -> None:
        async for _ in stream:
            pass

    task = asyncio.create_task(wait_for_ever())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_dropping(world: World, stream: AsyncIterator[Output]) -> None:
    del stream  # the test's own reference went before


@pytest.mark.parametrize("leave", [by_abort, by_closing, by_cancelling, by_dropping])
@pytest.mark.parametrize("phase", ["queued", "prefilling", "decoding", "preempted"])
def test_blocks_return_however_and_whenever_a_request_is_left(phase: str, leave: Leave) -> None:
    async def test(world: World) -> None:
        runner, engine = world.runner, world.engine
        runner.hold()
        company: AsyncIterator[Output] | None = None
        if phase in ("queued", "preempted"):
            company = engine.submit(request("company", max_tokens=200))
            await entered(runner)
        stream = engine.submit(request("r", prompt="x" * 50, max_tokens=200))
        if phase == "prefilling":
            await entered(runner)  # the first of four chunks is in flight
        elif phase == "queued":
            runner.allow()
            await entered(runner)  # the one seat is taken in the next step as well
            assert engine.stats().num_running == 1
        elif phase == "decoding":
            await entered(runner)
            runner.allow()
            await anext(stream)
            await entered(runner)
        else:
            while engine.stats().num_preemptions == 0:
                runner.allow()
                await entered(runner)
        if leave is by_dropping:
            dropped, stream = stream, None  # type: ignore[assignment]
            await leave(world, dropped)
            del dropped
        else:
            await leave(world, stream)
        runner.release()
        if company is not None:
            assert (await read(company))[-1].finish_reason is FinishReason.LENGTH
        await world.all_blocks_free()

    seats = 1 if phase == "queued" else 8
    blocks = 64 if phase == "preempted" else 128
    budget = 16 if phase == "prefilling" else 64
    in_world(test, config(max_num_seqs=seats, num_kv_blocks=blocks, max_num_batched_tokens=budget))


def test_an_id_may_be_used_again_and_gets_only_its_own_tokens() -> None:
    async def test(world: World) -> None:
        world.runner.hold()
        first = world.engine.submit(request("r", max_tokens=9))
        await entered(world.runner)  # its token is on the way
        world.engine.abort("r")
        second = world.engine.submit(request("r", max_tokens=3))
        world.runner.release()
        assert (await read(first))[-1].finish_reason is FinishReason.ABORT
        assert text(await read(second)) == "abc"
        await world.all_blocks_free()

    in_world(test)


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(prompt=""), "The prompt is empty"),
        (request(prompt="x" * 256), "maximum context length is 256 tokens"),
        (request(prompt="é"), "token id outside 0 to 127"),
        (request(max_tokens=0), "must be at least 1"),
        (request(min_tokens=6, max_tokens=5), "`min_tokens` \\(6\\)"),
    ],
)
def test_what_can_never_be_served_is_refused_at_once(bad: Any, message: str) -> None:
    async def test(world: World) -> None:
        with pytest.raises(InvalidRequest, match=message):
            world.engine.submit(bad)

    in_world(test)


def test_what_only_the_scheduler_refuses_ends_that_stream_alone() -> None:
    async def test(world: World) -> None:
        good = world.engine.submit(request("good", max_tokens=3))
        with pytest.raises(InvalidRequest, match="KV blocks"):
            await read(world.engine.submit(request("big", prompt="x" * 60, max_tokens=100)))
        assert text(await read(good)) == "abc"
        await world.all_blocks_free()

    in_world(test, config(num_kv_blocks=20))


def test_the_queue_is_bounded_and_admission_makes_room() -> None:
    async def test(world: World) -> None:
        world.runner.hold()
        running = world.engine.submit(request("running", max_tokens=3))
        await entered(world.runner)  # scheduled, but this side does not know yet: it still counts
        queued = world.engine.submit(request("queued", max_tokens=3))
        with pytest.raises(InvalidRequest) as refused:
            world.engine.submit(request("refused"))
        assert refused.value.code == "queue_full"
        world.runner.release()
        assert [text(await read(stream)) for stream in (running, queued)] == ["abc", "abc"]
        assert text(await read(world.engine.submit(request("later", max_tokens=1)))) == "a"

    in_world(test, config(max_num_queued_reqs=2))


def test_the_queue_is_bounded_in_tokens_but_one_prompt_may_always_wait() -> None:
    async def test(world: World) -> None:
        world.runner.hold()
        running = world.engine.submit(request("long", "twelve token", max_tokens=3))  # more than the limit, alone
        await entered(world.runner)
        with pytest.raises(InvalidRequest, match=r"exceed 10 \(--max-num-queued-tokens\)") as refused:
            world.engine.submit(request("more", "1"))
        assert refused.value.code == "queue_full" and world.engine.num_queued_tokens == 12
        world.runner.release()
        await until(lambda: world.engine.num_queued_tokens == 0)
        also = [world.engine.submit(request(name, "12345", max_tokens=3)) for name in ("a", "b")]
        assert [text(await read(stream)) for stream in (running, *also)] == ["abc"] * 3
        assert world.engine.num_queued_tokens == 0

    in_world(test, config(max_num_queued_tokens=10))


def test_the_prefix_cache_is_forgotten_only_while_no_block_is_in_use() -> None:
    async def test(world: World) -> None:
        async def cached() -> int:
            return (await read(world.engine.submit(request("r", "0123456789", max_tokens=1))))[-1].num_cached_tokens

        assert [await cached(), await cached()] == [0, 8]
        while world.runner.entered.acquire(blocking=False):
            pass  # the steps so far
        world.runner.hold()
        stream = world.engine.submit(request("busy", max_tokens=2))
        await entered(world.runner)
        waiting = asyncio.create_task(world.engine.reset_prefix_cache())
        await asyncio.sleep(0)  # it is in the inbox before the held step ends
        world.runner.release()
        with pytest.raises(InvalidRequest, match="KV blocks are in use by 1 running sequences; try again"):
            await waiting
        await read(stream)
        assert await cached() == 8
        await world.engine.reset_prefix_cache()
        assert await cached() == 0

    in_world(test, config(enable_prefix_caching=True))


# -- failures -------------------------------------------------------------------------------------------------------


def test_a_failing_row_ends_its_request_and_nobody_else() -> None:
    async def test(world: World) -> None:
        world.runner.failed = {"bad": "NaN in its logits"}
        good, bad = world.engine.submit(request("good")), world.engine.submit(request("bad"))
        end = (await read(bad))[-1]
        assert (end.finish_reason, end.error) == (FinishReason.ERROR, "NaN in its logits")
        assert text(await read(good)) == "abcde"
        await world.all_blocks_free()

    in_world(test)


def test_a_model_that_raises_fails_its_batch_and_the_loop_goes_on() -> None:
    async def test(world: World) -> None:
        def explode(batch: Batch) -> None:
            raise RuntimeError("out of memory")

        world.runner.before = explode
        end = (await read(world.engine.submit(request("one"))))[-1]
        assert end.finish_reason is FinishReason.ERROR
        assert "out of memory" in (end.error or "")
        assert world.engine.is_healthy() == (True, "")
        for i in range(2):
            await read(world.engine.submit(request(f"again{i}")))
        healthy, why = world.engine.is_healthy()
        assert not healthy and "the last 3 steps failed" in why and "out of memory" in why
        world.runner.before = lambda batch: None
        assert text(await read(world.engine.submit(request("after")))) == "abcde"
        assert world.engine.is_healthy() == (True, "")
        await world.all_blocks_free()

    in_world(test)


def test_a_broken_invariant_stops_the_engine_and_answers_everybody() -> None:
    async def test(world: World) -> None:
        def broken() -> Batch:
            raise InvariantError("a block is owned twice")

        world.runner.hold()
        stream = world.engine.submit(request("r", max_tokens=9))
        await entered(world.runner)
        world.steps.scheduler.schedule = broken  # type: ignore[method-assign]
        world.runner.release()
        end = (await read(stream))[-1]
        assert end.finish_reason is FinishReason.ERROR and "a block is owned twice" in (end.error or "")
        assert not world.engine.is_healthy()[0]
        with pytest.raises(HeadraceError, match="the engine has stopped"):
            world.engine.submit(request("late"))

    in_world(test)


def test_text_that_cannot_be_made_ends_that_request_alone() -> None:
    class Picky(LetterTokenizer):
        def detokenizer(self, params: Any, prompt_token_ids: Any) -> Any:
            made = super().detokenizer(params, prompt_token_ids)
            if params.max_tokens == 7:
                made.push = lambda *_, **__: 1 / 0  # type: ignore[method-assign, assignment]
            return made

    async def test(world: World) -> None:
        world.engine.tokenizer = Picky()  # type: ignore[assignment]
        good, bad = world.engine.submit(request("good")), world.engine.submit(request("bad", max_tokens=7))
        end = (await read(bad))[-1]
        assert end.finish_reason is FinishReason.ERROR and "cannot be decoded" in (end.error or "")
        assert text(await read(good)) == "abcde"
        await world.all_blocks_free()

    in_world(test)


# -- health, drain, times -------------------------------------------------------------------------------------------


def test_health_is_progress_and_not_a_running_process() -> None:
    clock = FakeClock()

    async def test(world: World) -> None:
        await read(world.engine.submit(request("warm")))
        clock.advance_ns(10**15)
        assert world.engine.is_healthy() == (True, "")  # idle is not stuck
        world.runner.hold()
        while world.runner.entered.acquire(blocking=False):
            pass
        stream = world.engine.submit(request("r"))
        await entered(world.runner)
        clock.advance_ns(59 * 10**9)
        assert world.engine.is_healthy()[0]
        clock.advance_ns(2 * 10**9)
        healthy, why = world.engine.is_healthy()
        assert not healthy and "no step has ended for 61 s" in why
        world.runner.release()
        await read(stream)
        assert world.engine.is_healthy()[0]

    in_world(test, clock=clock)


def test_drain_waits_for_what_runs() -> None:
    async def test(world: World) -> None:
        reading = asyncio.create_task(read(world.engine.submit(request(max_tokens=50))))
        await world.engine.drain(3600)
        assert (await reading)[-1].finish_reason is FinishReason.LENGTH

    in_world(test)


def test_drain_aborts_the_rest_and_each_stream_gets_its_end() -> None:
    async def test(world: World) -> None:
        world.runner.hold()
        streams = [world.engine.submit(request(f"r{i}")) for i in range(3)]
        await world.engine.drain(0)
        assert [(await read(stream))[-1].finish_reason for stream in streams] == [FinishReason.ABORT] * 3
        world.runner.release()
        await world.all_blocks_free()

    in_world(test)


def test_closing_ends_the_thread_and_is_idempotent() -> None:
    async def test(world: World) -> None:
        world.runner.hold()
        stream = world.engine.submit(request(max_tokens=200))
        await entered(world.runner)
        world.runner.allow()
        await anext(stream)
        world.runner.release()
        world.engine.close()
        world.engine.close()
        assert (await read(stream))[-1].finish_reason is FinishReason.ABORT
        assert "steps" not in {thread.name for thread in threading.enumerate()}

    in_world(test)


class Notes:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.ends: list[FinishedRequest] = []

    def step(self, num_tokens: int) -> None:
        self.steps.append(num_tokens)

    def first_token(self, seconds_since_arrival: float) -> None:
        self.firsts.append(seconds_since_arrival)

    def next_token(self, seconds_since_previous: float) -> None:
        self.gaps.append(seconds_since_previous)

    def finished(self, request: FinishedRequest) -> None:
        self.ends.append(request)


def test_the_observer_is_told_the_times_of_the_steps() -> None:
    clock, notes, runner = FakeClock(), Notes(), ScriptedRunner()
    runner.before = lambda batch: clock.advance_ns(batch.num_tokens * 10**9)  # a second a token

    async def test(world: World) -> None:
        world.engine.set_observer(notes)
        await read(world.engine.submit(request(prompt="hello", max_tokens=3)))
        assert notes.steps == [5, 1, 1]
        assert (notes.firsts, notes.gaps) == ([5.0], [1.0, 1.0])
        (end,) = notes.ends
        assert (end.arrived_s, end.first_scheduled_s, end.first_token_s, end.last_token_s) == (0.0, 0.0, 5.0, 7.0)
        assert (end.finish_reason, end.num_output_tokens, end.max_tokens) == (FinishReason.LENGTH, 3, 3)
        stats = world.engine.stats()
        assert (stats.num_steps, stats.prompt_tokens, stats.generation_tokens) == (3, 5, 3)
        assert (stats.last_step_end_s, stats.step_seconds_p99) == (7.0, 5.0)

    in_world(test, runner=runner, clock=clock)


def test_prefix_hits_are_told_with_the_outputs_and_counted() -> None:
    async def test(world: World) -> None:
        await read(world.engine.submit(request("cold", prompt="x" * 12)))
        warm = await read(world.engine.submit(request("warm", prompt="x" * 12)))
        assert [output.num_cached_tokens for output in warm] == [8] * 5
        stats = world.engine.stats()
        assert (stats.prompt_tokens, stats.prompt_tokens_cached, stats.prefix_cache_hits) == (24, 8, 8)

    in_world(test, config(enable_prefix_caching=True))


@pytest.mark.parametrize("seed", range(5))
def test_a_storm_of_arrivals_and_departures_leaves_nothing(seed: int) -> None:
    chance = random.Random(seed)

    async def client(world: World, name: str) -> None:
        prompt = "x" * chance.randrange(1, 60)
        stream = world.engine.submit(request(name, prompt=prompt, max_tokens=chance.randrange(1, 60), stop=("yz",)))
        patience, manner = chance.randrange(0, 40), chance.randrange(4)
        async for output in stream:
            if output.num_output_tokens > patience:
                if manner == 0:
                    world.engine.abort(name)
                elif manner == 1:
                    await stream.aclose()  # type: ignore[attr-defined]
                elif manner == 2:
                    return  # the stream is dropped

    async def test(world: World) -> None:
        for wave in range(8):
            tasks = [asyncio.create_task(client(world, f"{wave}-{i}")) for i in range(25)]
            for task in tasks:
                if chance.random() < 0.1:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert not [task for task in tasks if not task.cancelled() and task.exception()]
        await world.all_blocks_free()
        await world.engine.drain(1)
        assert world.engine._num_queued == 0

    in_world(test, config(num_kv_blocks=40, max_num_batched_tokens=32, enable_prefix_caching=True))
