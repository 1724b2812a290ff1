"""Log-probabilities of prompts, masks of single tokens: fields that reach into the sampler, with the real engine."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

pytest.importorskip("torch")

from real_engine import MODEL, real
from server_harness import in_loop

PROMPT = "Water turns the wheel"
GREEDY = {"model": MODEL, "prompt": PROMPT, "temperature": 0}


@in_loop
async def test_echo_scores_the_prompt_as_an_answer_is_scored(model_directory: Path) -> None:
    """The log-probability of a token is the same whether the model said it or was told it."""
    async with real(model_directory) as (engine, served):
        ids, extra = engine.tokenizer.encode(PROMPT), {"return_tokens_as_token_ids": True}
        ask = served.openai.completions.create
        said = (await ask(**GREEDY, max_tokens=6, logprobs=2, extra_body=extra)).choices[0]
        both = ids + [int(name.removeprefix("token_id:")) for name in said.logprobs.tokens]
        told = await ask(**{**GREEDY, "prompt": both}, max_tokens=0, echo=True, logprobs=2, extra_body=extra)
    choice, scores = told.choices[0], told.choices[0].logprobs
    assert choice.text == PROMPT + said.text and choice.finish_reason == "length"
    assert told.usage.completion_tokens == 0 and told.usage.prompt_tokens == len(scores.tokens)
    assert scores.tokens == [f"token_id:{token}" for token in both]
    assert scores.token_logprobs[0] is None and scores.top_logprobs[0] is None
    assert scores.text_offset == [len("".join(scores.tokens[:i])) for i in range(len(scores.tokens))]
    assert scores.token_logprobs[len(ids) :] == pytest.approx(said.logprobs.token_logprobs, abs=1e-4)
    whole = [*zip(scores.token_logprobs[1:], scores.top_logprobs[1:], strict=True)]
    assert all(2 <= len(top) <= 3 and value in top.values() for value, top in whole)


@in_loop
async def test_a_streamed_echo_scores_the_same(model_directory: Path) -> None:
    async with real(model_directory, max_num_batched_tokens=8) as (_, served):
        arguments = {**GREEDY, "max_tokens": 5, "echo": True, "logprobs": 1}
        whole = (await served.openai.completions.create(**arguments)).choices[0]
        chunks = [c.choices[0] async for c in await served.openai.completions.create(**arguments, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [one for c in chunks for one in getattr(c.logprobs, name)] == getattr(whole.logprobs, name)


@in_loop
async def test_prompt_logprobs_by_token_id(model_directory: Path) -> None:
    async with real(model_directory) as (engine, served):
        extra = {"prompt_logprobs": 2}
        warm = await served.openai.completions.create(**GREEDY, max_tokens=1)
        plain = await served.openai.completions.create(**GREEDY, max_tokens=1, n=2, extra_body=extra)
        chat = await served.http.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, **extra}
        )
        ids = engine.tokenizer.encode(PROMPT)
    assert warm.usage.prompt_tokens == len(ids)
    for choice in plain.choices:
        positions = choice.model_extra["prompt_logprobs"]
        assert positions[0] is None and len(positions) == len(ids)
        for token, entry in zip(ids[1:], positions[1:], strict=True):
            own = entry[str(token)]
            assert set(own) == {"logprob", "rank", "decoded_token"}
            assert sorted(each["rank"] for each in entry.values())[:2] == [1, 2]
            assert (len(entry) == 2) == (own["rank"] <= 2)
    body = chat.json()
    assert len(body["prompt_logprobs"]) == body["usage"]["prompt_tokens"]


@in_loop
async def test_masks_reach_the_sampler(model_directory: Path) -> None:
    async with real(model_directory) as (engine, served):
        plain = (await served.openai.completions.create(**GREEDY, max_tokens=3, logprobs=0)).choices[0]
        ids = {name: engine.tokenizer.encode(name, False)[0] for name in ("a", "b", "c")}
        ask = served.openai.completions.create
        biased = await ask(**GREEDY, max_tokens=3, logit_bias={str(ids["b"]): 100})
        allowed = await ask(**GREEDY, max_tokens=20, extra_body={"allowed_token_ids": list(ids.values())})
        banned = await ask(**GREEDY, max_tokens=3, extra_body={"bad_words": [plain.logprobs.tokens[0]]})
        named = await ask(**GREEDY, max_tokens=1, logprobs=1, extra_body={"return_tokens_as_token_ids": True})
    assert biased.choices[0].text == "bbb"
    assert set(allowed.choices[0].text) <= set("abc")
    assert not banned.choices[0].text.startswith(plain.logprobs.tokens[0])
    (token,) = named.choices[0].logprobs.tokens
    assert token.startswith("token_id:")
    assert engine.tokenizer.token_text(int(token.removeprefix("token_id:"))) == plain.logprobs.tokens[0]


@in_loop
async def test_prompt_logprobs_are_refused_in_a_stream(model_directory: Path) -> None:
    async with real(model_directory) as (_, served):
        with pytest.raises(openai.BadRequestError, match="prompt_logprobs"):
            await served.openai.completions.create(
                **GREEDY, max_tokens=1, stream=True, extra_body={"prompt_logprobs": 1}
            )
