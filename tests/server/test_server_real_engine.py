"""The real engine with a tiny random model behind the real server: what only the two together can show."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

pytest.importorskip("torch")

from real_engine import MODEL, real, settled
from server_harness import in_loop


@in_loop
async def test_streamed_text_is_the_whole_text_token_for_token(model_directory: Path) -> None:
    async with real(model_directory) as (_, served):
        arguments = {"model": MODEL, "prompt": "Water turns", "max_tokens": 40, "temperature": 0}
        whole = await served.openai.completions.create(**arguments)
        stream = await served.openai.completions.create(**arguments, stream=True)
        texts = [chunk.choices[0].text async for chunk in stream]
    assert "".join(texts) == whole.choices[0].text
    assert whole.usage.completion_tokens == 40 and whole.choices[0].finish_reason == "length"


@in_loop
async def test_a_stop_string_is_found_across_tokens_and_never_shown(model_directory: Path) -> None:
    async with real(model_directory) as (_, served):
        arguments = {"model": MODEL, "prompt": "Water turns", "max_tokens": 60, "temperature": 0, "logprobs": 0}
        plain = (await served.openai.completions.create(**arguments)).choices[0]
        # The end of one token and the start of the next, from what the model says anyway.
        tokens, text = plain.logprobs.tokens, plain.text
        at = next(
            i
            for i in range(20, len(tokens) - 1)
            if all(len(t) > 1 and t.isascii() for t in tokens[i : i + 2]) and tokens[i][-1] + tokens[i + 1][0] in text
        )
        stop = tokens[at][-1] + tokens[at + 1][0]
        expected = text[: text.index(stop)]
        whole = (await served.openai.completions.create(**arguments, stop=stop)).choices[0]
        kept = await served.openai.completions.create(
            **arguments, stop=[stop], extra_body={"include_stop_str_in_output": True}
        )
        stream = await served.openai.completions.create(**arguments, stop=stop, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    assert whole.text == expected == "".join(chunk.text for chunk in chunks)
    assert whole.finish_reason == chunks[-1].finish_reason == "stop"
    assert whole.model_extra is not None and whole.model_extra["stop_reason"] == stop
    assert kept.choices[0].text == expected + stop
    assert all(chunk.text for chunk in chunks[:-1])


@in_loop
async def test_a_seed_repeats_an_answer_and_n_varies_it(model_directory: Path) -> None:
    async with real(model_directory) as (_, served):
        arguments = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12, "seed": 5}
        first = await served.openai.chat.completions.create(**arguments, n=3, temperature=1)
        again = await served.openai.chat.completions.create(**arguments, n=3, temperature=1)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) == 3
    assert first.usage.completion_tokens == sum(12 for _ in texts)


@in_loop
async def test_usage_reports_prefix_hits(model_directory: Path) -> None:
    async with real(model_directory) as (_, served):
        arguments = {"model": MODEL, "prompt": list(range(100, 180)), "max_tokens": 2}
        cold = await served.openai.completions.create(**arguments)
        warm = await served.openai.completions.create(**arguments)
        salted = await served.openai.completions.create(**arguments, extra_body={"cache_salt": "tenant"})
        declined = await served.openai.completions.create(**arguments, extra_body={"skip_reading_prefix_cache": True})
        metrics = (await served.http.get("/metrics")).text
    cached = [result.usage.prompt_tokens_details.cached_tokens for result in (cold, warm, salted, declined)]
    assert cached == [0, 64, 0, 0]
    assert 'vllm:prompt_tokens_cached_total{engine="0",model_name="tiny"} 64.0' in metrics
    assert 'vllm:prompt_tokens_total{engine="0",model_name="tiny"} 320.0' in metrics
    assert 'vllm:generation_tokens_total{engine="0",model_name="tiny"} 8.0' in metrics
    assert 'vllm:time_to_first_token_seconds_count{engine="0",model_name="tiny"} 4.0' in metrics
    assert 'vllm:inter_token_latency_seconds_count{engine="0",model_name="tiny"} 4.0' in metrics


@in_loop
async def test_chat_logprobs_sum_below_one(model_directory: Path) -> None:
    from math import exp

    async with real(model_directory) as (_, served):
        result = await served.openai.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=5,
            temperature=0,
            logprobs=True,
            top_logprobs=4,
        )
    for item in result.choices[0].logprobs.content:
        assert item.logprob == item.top_logprobs[0].logprob, "greedy takes the likeliest"
        assert sum(exp(top.logprob) for top in item.top_logprobs) <= 1
        assert len(item.top_logprobs) == 4


@pytest.mark.parametrize("phase", ["queued", "streaming", "whole"])
def test_a_disconnect_frees_the_blocks_in_every_phase(model_directory: Path, phase: str) -> None:
    @in_loop
    async def scenario() -> None:
        async with real(model_directory, max_num_seqs=1 if phase == "queued" else 8) as (engine, served):

            def call(**extra: object) -> asyncio.Task[object]:
                body = {"model": MODEL, "prompt": "Water", "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
                return asyncio.create_task(served.openai.completions.create(**body, **extra))

            runner = call(stream=phase == "streaming")
            while engine.stats().num_running < 1:
                await asyncio.sleep(0)
            if phase == "queued":
                waiting = call()
                while engine.stats().num_waiting < 1:
                    await asyncio.sleep(0)
                waiting.cancel()
                while engine.stats().num_waiting:
                    await asyncio.sleep(0)
                assert engine.stats().num_running == 1, "the other one goes on"
            if phase == "streaming":
                stream = await runner
                await anext(aiter(stream))
                await stream.close()
            else:
                runner.cancel()
            stats = await settled(engine)
            assert stats.kv_blocks_free == stats.kv_blocks_total == 320
            # Cut short, and the server serves on.
            assert stats.generation_tokens < 4000
            again = await served.openai.completions.create(model=MODEL, prompt="Water", max_tokens=3)
            assert again.usage.completion_tokens == 3

    scenario()


@in_loop
async def test_more_requests_than_seats_all_get_their_answer(model_directory: Path) -> None:
    async with real(model_directory, max_num_seqs=4, max_model_len=256, num_gpu_blocks_override=16) as (engine, served):
        calls = [
            served.openai.completions.create(
                model=MODEL, prompt=[7] * (20 + i), max_tokens=60, extra_body={"ignore_eos": True}
            )
            for i in range(24)
        ]
        results = await asyncio.gather(*calls)
        stats = await settled(engine)
    assert [result.usage.completion_tokens for result in results] == [60] * 24
    assert stats.kv_blocks_free == stats.kv_blocks_total


@in_loop
async def test_the_engines_own_queue_limit_is_a_429(model_directory: Path) -> None:
    async with real(model_directory, max_num_seqs=1, max_num_queued_reqs=1) as (engine, served):
        body = {"model": MODEL, "prompt": "Water", "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
        calls = [asyncio.create_task(served.openai.completions.create(**body)) for _ in range(6)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        errors = [call.exception() for call in done if call.exception()]
        assert errors and all(isinstance(error, openai.RateLimitError) for error in errors)
        for call in calls:
            call.cancel()
        await settled(engine)


def test_headrace_serve_drains_at_sigterm(model_directory: Path) -> None:
    """The command itself, as a user starts it: ready line, stream, SIGTERM in the middle, a complete answer, exit 0."""
    command = ["-m", "headrace.cli.main", "serve", str(model_directory), "--served-model-name", MODEL]
    flags = ["--load-format", "dummy", "--max-model-len", "2048", "--port", "0", "--num-threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, *command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)
            stream = client.completions.create(
                model=MODEL, prompt="Water", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
            )
            chunks = iter(stream)
            next(chunks)
            process.send_signal(signal.SIGTERM)
            *_, last = chunks
            assert last.choices[0].finish_reason == "length"
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


@in_loop
async def test_tokens_accepted_together_are_chunks_of_their_own(model_directory: Path) -> None:
    """Clients count chunks: speculation changes when they come, and nothing else."""
    drafts = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}'
    arguments = {"model": MODEL, "prompt": "Water turns the wheel. Water turns", "max_tokens": 60, "temperature": 0}
    arguments |= {"logprobs": 1, "extra_body": {"logit_bias": {"300": 40, "301": 38}, "frequency_penalty": 1.0}}
    seen = []
    for speculative_config in (None, drafts):
        async with real(model_directory, speculative_config=speculative_config) as (engine, served):
            stream = await served.openai.completions.create(**arguments, stream=True)
            chunks = [chunk.choices[0] async for chunk in stream]
            whole = await served.openai.completions.create(**arguments)
            stats, metrics = engine.stats(), (await served.http.get("/metrics")).text
        seen.append([(chunk.text, chunk.logprobs.token_logprobs, chunk.finish_reason) for chunk in chunks])
        assert "".join(chunk.text for chunk in chunks) == whole.choices[0].text
        assert whole.usage.completion_tokens == 60
    assert seen[0] == seen[1]
    assert stats.num_accepted_tokens > 20
    assert "vllm:spec_decode_num_accepted_tokens_total{" in metrics
