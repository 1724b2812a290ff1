"""The official `openai` client against the scripted engine: what an application sees."""

from __future__ import annotations

import asyncio

import openai
import pytest
from fake_engine import ANSWER, TOKENIZER, ScriptedEngine
from server_harness import in_loop, serving

MESSAGES = [{"role": "user", "content": "What turns the wheel?"}]


def answer(tokens: int) -> str:
    """What the scripted engine says in so many tokens (unfinished characters at the end are flushed)."""
    return TOKENIZER.decode(TOKENIZER.encode(ANSWER, False)[:tokens])


@in_loop
async def test_a_completion_ends_at_max_tokens() -> None:
    async with serving(ScriptedEngine()) as served:
        result = await served.openai.completions.create(model="scripted", prompt="Hello", max_tokens=12)
    assert result.object == "text_completion"
    assert result.choices[0].text == answer(12)
    assert result.choices[0].finish_reason == "length"
    prompt = len(TOKENIZER.encode("Hello"))
    assert (result.usage.prompt_tokens, result.usage.completion_tokens) == (prompt, 12)
    assert result.usage.total_tokens == prompt + 12


@in_loop
async def test_max_tokens_is_16_by_default() -> None:
    async with serving(ScriptedEngine()) as served:
        result = await served.openai.completions.create(model="scripted", prompt="Hello")
    assert result.usage.completion_tokens == 16


@in_loop
async def test_chat_fills_the_rest_of_the_context_by_default() -> None:
    async with serving(ScriptedEngine()) as served:
        result = await served.openai.chat.completions.create(model="scripted", messages=MESSAGES)
    assert result.object == "chat.completion"
    assert result.choices[0].message.role == "assistant"
    assert result.usage.total_tokens == 256
    assert result.choices[0].finish_reason == "length"


@in_loop
async def test_the_models_own_end_is_a_stop_and_counts_as_a_token() -> None:
    async with serving(ScriptedEngine("Water.", ends=True)) as served:
        result = await served.openai.chat.completions.create(model="scripted", messages=MESSAGES)
    assert result.choices[0].message.content == "Water."
    assert result.choices[0].finish_reason == "stop"
    assert result.usage.completion_tokens == len(TOKENIZER.encode("Water.", False)) + 1


@in_loop
async def test_chat_streams_the_same_text() -> None:
    async with serving(ScriptedEngine()) as served:
        stream = await served.openai.chat.completions.create(
            model="scripted", messages=MESSAGES, max_tokens=40, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    *content, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in content) == answer(40)
    assert [chunk.choices[0].finish_reason for chunk in content] == [None] * (len(content) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in content)
    assert usage.choices == [] and usage.usage.completion_tokens == 40


@in_loop
async def test_completions_stream_the_same_text() -> None:
    async with serving(ScriptedEngine()) as served:
        stream = await served.openai.completions.create(model="scripted", prompt="Hi", max_tokens=40, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer(40)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all(chunk.usage is None for chunk in chunks)


@in_loop
async def test_every_chunk_has_usage_when_continuous_usage_is_asked_for() -> None:
    async with serving(ScriptedEngine("abc" * 40)) as served:
        stream = await served.openai.completions.create(
            model="scripted",
            prompt="Hi",
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
        counts = [chunk.usage.completion_tokens async for chunk in stream]
    assert counts == [1, 2, 3, 4, 5, 5]


@in_loop
async def test_n_choices_differ_by_seed_and_count_the_prompt_once() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        result = await served.openai.completions.create(
            model="scripted", prompt="Hello", max_tokens=6, n=3, seed=7, temperature=1
        )
    assert [choice.index for choice in result.choices] == [0, 1, 2]
    assert len({choice.text for choice in result.choices}) == 3
    assert [request.params.seed for request in engine.requests] == [7, 8, 9]
    assert result.usage.prompt_tokens == len(TOKENIZER.encode("Hello"))
    assert result.usage.completion_tokens == 18


@in_loop
async def test_streamed_choices_are_told_apart_by_index() -> None:
    async with serving(ScriptedEngine()) as served:
        stream = await served.openai.chat.completions.create(
            model="scripted", messages=MESSAGES, max_tokens=4, n=2, seed=0, stream=True
        )
        by_index: dict[int, list[object]] = {0: [], 1: []}
        async for chunk in stream:
            by_index[chunk.choices[0].index].append(chunk.choices[0])
    for choices in by_index.values():
        assert choices[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in choices].count("length") == 1


@in_loop
async def test_a_list_of_prompts_gives_a_choice_each() -> None:
    async with serving(ScriptedEngine()) as served:
        texts = await served.openai.completions.create(model="scripted", prompt=["Hello", "Bye"], max_tokens=3)
        ids = await served.openai.completions.create(model="scripted", prompt=[[5, 6, 7], [8]], max_tokens=3)
    assert [choice.index for choice in texts.choices] == [0, 1]
    assert ids.usage.prompt_tokens == 4


@in_loop
async def test_echo_repeats_the_prompt() -> None:
    async with serving(ScriptedEngine()) as served:
        result = await served.openai.completions.create(model="scripted", prompt="Hello, ", max_tokens=3, echo=True)
        only = await served.openai.completions.create(model="scripted", prompt="Hello, ", max_tokens=0, echo=True)
    assert result.choices[0].text == "Hello, " + answer(3)
    assert only.choices[0].text == "Hello, " and only.usage.completion_tokens == 0


@in_loop
async def test_completion_logprobs_are_parallel_lists() -> None:
    async with serving(ScriptedEngine()) as served:
        result = await served.openai.completions.create(model="scripted", prompt="Hello", max_tokens=4, logprobs=2)
    logprobs = result.choices[0].logprobs
    assert "".join(logprobs.tokens) == answer(4)
    assert logprobs.token_logprobs == [-0.25] * 4
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 4
    ends = [offset + len(token) for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)]
    assert logprobs.text_offset == [0, *ends[:-1]]


@in_loop
async def test_chat_logprobs_are_one_object_per_token_also_where_its_text_is_held_back() -> None:
    async with serving(ScriptedEngine("水 flows")) as served:
        result = await served.openai.chat.completions.create(
            model="scripted", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=2
        )
        stream = await served.openai.chat.completions.create(
            model="scripted", messages=MESSAGES, max_tokens=5, logprobs=True, top_logprobs=2, stream=True
        )
        streamed = [chunk.choices[0] async for chunk in stream]
    content = result.choices[0].logprobs.content
    assert len(content) == 5
    assert all(len(item.top_logprobs) == 2 and item.logprob == -0.25 for item in content)
    assert [len(choice.logprobs.content) for choice in streamed] == [1] * 5
    assert [choice.delta.content for choice in streamed[:3]] == ["", "", "水"], "its three bytes are three tokens"


@in_loop
async def test_the_models_own_sampling_defaults_apply_where_the_request_is_silent() -> None:
    engine = ScriptedEngine(defaults={"temperature": 0.7, "top_k": 20})
    async with serving(engine) as served:
        await served.openai.chat.completions.create(model="scripted", messages=MESSAGES, max_tokens=1)
        await served.openai.chat.completions.create(model="scripted", messages=MESSAGES, max_tokens=1, temperature=0)
    assert [(request.params.temperature, request.params.top_k) for request in engine.requests] == [(0.7, 20), (0.0, 20)]


@in_loop
async def test_models_are_listed_and_an_unknown_one_is_a_404() -> None:
    async with serving(ScriptedEngine()) as served:
        listed = await served.openai.models.list()
        one = await served.openai.models.retrieve("scripted")
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await served.openai.completions.create(model="gpt-5", prompt="Hello")
        with pytest.raises(openai.NotFoundError):
            await served.openai.models.retrieve("gpt-5")
    assert [model.id for model in listed.data] == ["scripted"] and one.id == "scripted"
    assert one.model_extra is not None and one.model_extra["max_model_len"] == 256


@in_loop
async def test_a_prompt_over_the_limit_is_a_400_with_the_numbers() -> None:
    wording = (
        "This model's maximum context length is 256 tokens. However, you requested 100 output tokens and your prompt "
        "contains at least 200 input tokens, for a total of at least 300 tokens."
    )
    async with serving(ScriptedEngine()) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await served.openai.completions.create(model="scripted", prompt=[5] * 200, max_tokens=100)
        assert wording in str(caught.value) and caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="256 input tokens") as caught:
            await served.openai.completions.create(model="scripted", prompt=[5] * 256)
        assert caught.value.param == "prompt"
        # A default limit is no wish: it is cut to what is left.
        fits = await served.openai.completions.create(model="scripted", prompt=[5] * 250)
    assert fits.usage.completion_tokens == 6


@in_loop
async def test_a_failing_sequence_ends_the_stream_with_an_error_event() -> None:
    engine = ScriptedEngine()
    engine.fail_after = 3
    async with serving(engine) as served:
        stream = await served.openai.chat.completions.create(
            model="scripted", messages=MESSAGES, max_tokens=9, stream=True
        )
        seen = []
        with pytest.raises(openai.APIError, match="not finite"):
            async for chunk in stream:
                seen.append(chunk)
        with pytest.raises(openai.InternalServerError, match="not finite"):
            await served.openai.chat.completions.create(model="scripted", messages=MESSAGES, max_tokens=9)
    assert len(seen) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_frees_the_blocks(stream: bool) -> None:
    @in_loop
    async def scenario() -> None:
        engine = ScriptedEngine()
        engine.hold()
        async with serving(engine) as served:
            if stream:
                chunks = await served.openai.completions.create(
                    model="scripted", prompt="Hello", max_tokens=100, n=2, stream=True
                )
                engine.release(2)
                await anext(aiter(chunks))
                await chunks.close()
            else:
                call = asyncio.create_task(
                    served.openai.completions.create(model="scripted", prompt="Hello", max_tokens=100, n=2)
                )
                await engine.until(lambda stats: stats.num_running == 2)
                call.cancel()
            after = await engine.until(lambda stats: stats.num_running == 0)
            assert after.kv_blocks_free == after.kv_blocks_total
            # The server is as before: the next request is served.
            engine.release(1000)
            await served.openai.completions.create(model="scripted", prompt="Hello", max_tokens=2)
            assert (await served.http.get("/load")).json() == {"server_load": 0}

    scenario()


@in_loop
async def test_without_the_key_everything_is_a_401() -> None:
    from headrace.server.options import ServerOptions

    options = ServerOptions(api_keys=("first", "zwei-ß"))
    async with serving(ScriptedEngine(), options, key="wrong") as served:
        with pytest.raises(openai.AuthenticationError):
            await served.openai.models.list()
        assert (await served.openai.with_options(api_key="first").models.list()).data
