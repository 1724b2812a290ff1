"""vLLM's further request fields, over HTTP: what each changes in the answer or in what the engine is asked for."""

from __future__ import annotations

from typing import Any

import pytest
from fake_engine import TOKENIZER, ScriptedEngine
from server_harness import Served, error_of, events, in_loop, serving
from test_server_chat_fields import Templated

from headrace.server.bodies import ChatBody, parse
from headrace.server.options import ServerOptions
from headrace.server.tool_choice import reading_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
PROMPT = "Water turns the wheel; the wheel turns the stone."


async def ask(served: Served, path: str = COMPLETIONS, **fields: Any) -> Any:
    base = {"prompt": PROMPT} if path == COMPLETIONS else {"messages": USER}
    response = await served.http.post(path, json={**base, "max_tokens": 4, **fields})
    assert response.status_code == 200, response.text
    return response.json()


async def refused(served: Served, path: str = COMPLETIONS, **fields: Any) -> dict[str, Any]:
    base = {"prompt": PROMPT} if path == COMPLETIONS else {"messages": USER}
    response = await served.http.post(path, json={**base, "max_tokens": 4, **fields})
    assert response.status_code == 400, response.text
    return error_of(response)


@in_loop
async def test_a_prompt_is_cut_from_the_left_unless_said_otherwise() -> None:
    engine, ids = ScriptedEngine(), TOKENIZER.encode(PROMPT)
    async with serving(engine) as served:
        echoed = await ask(served, truncate_prompt_tokens=3, echo=True)
        await ask(served, truncate_prompt_tokens=3, truncation_side="right")
        long = await ask(served, prompt=ids * 50, truncate_prompt_tokens=-1)
        await ask(served, CHAT, truncate_prompt_tokens=2)
        zero = await refused(served, truncate_prompt_tokens=0)
    assert [list(request.prompt_token_ids) for request in engine.requests[:2]] == [ids[-3:], ids[:3]]
    assert echoed["choices"][0]["text"].startswith(TOKENIZER.decode(ids[-3:]))
    assert long["usage"]["prompt_tokens"] == 256 - 4
    assert len(engine.requests[3].prompt_token_ids) == 2
    assert zero["param"] == "truncate_prompt_tokens"


@in_loop
async def test_a_request_may_bring_its_own_id() -> None:
    engine = ScriptedEngine()
    engine.hold()
    async with serving(engine) as served:
        body = {"prompt": "Hi", "max_tokens": 1, "request_id": "mine-7"}
        engine.release(2)
        answer = await served.http.post(COMPLETIONS, json=body)
        assert answer.json()["id"] == answer.headers["X-Request-Id"] == "cmpl-mine-7"
        assert (await refused(served, request_id="line\nend"))["param"] == "request_id"
    assert engine.requests[0].request_id == "cmpl-mine-7-0"


@in_loop
async def test_the_best_of_several_are_the_likeliest() -> None:
    """The scripted tokens are equally likely: which ones are kept is shown in test_offline_fields."""
    engine = ScriptedEngine()
    async with serving(engine) as served:
        answer = await ask(served, prompt=["a", "b"], n=2, best_of=3)
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
        assert answer["usage"]["completion_tokens"] == 2 * 3 * 4, "what was generated counts"
        assert all(choice["logprobs"] is None for choice in answer["choices"])
        assert (await refused(served, n=3, best_of=2))["code"] == "conflicting_fields"
        assert (await refused(served, best_of=2, stream=True))["param"] == "best_of"
    assert len(engine.requests) == 6 and engine.requests[0].params.logprobs == 0


@in_loop
async def test_documents_and_effort_reach_templates_that_read_them() -> None:
    template = (
        "{% for d in documents or [] %}[{{ d.title }}]{% endfor %}{{ messages[0].content }}"
        "{% if reasoning_effort %} {{ reasoning_effort }}{% endif %}{% if enable_thinking is false %} quiet{% endif %}"
    )
    engine = ScriptedEngine()
    engine.tokenizer = tokenizer = Templated(template)
    tokenizer.read_by_template = frozenset({"documents", "reasoning_effort", "enable_thinking"})
    async with serving(engine) as served:
        await ask(served, CHAT, documents=[{"title": "A", "text": "x"}, {"title": "B", "text": "y"}])
        await ask(served, CHAT, reasoning_effort="low")
        await ask(served, CHAT, reasoning_effort="none")
        tokenizer.read_by_template = frozenset({"enable_thinking"})
        await ask(served, CHAT, reasoning_effort="none")
        for fields in ({"reasoning_effort": "high"}, {"documents": [{"title": "A"}]}):
            error = await refused(served, CHAT, **fields)
            assert error["code"] == "unsupported_parameter" and error["param"] in fields
    texts = [TOKENIZER.decode(request.prompt_token_ids, False) for request in engine.requests]
    assert texts == ["[A][B]Hi", "Hi low", "Hi none quiet", "Hi quiet"]


@in_loop
async def test_stop_rules_and_forms_of_streams_reach_the_engine() -> None:
    engine = ScriptedEngine()
    rule = {"max_pattern_size": 3, "min_count": 2}
    async with serving(engine) as served:
        await ask(served, repetition_detection=rule, stream_interval=5, spaces_between_special_tokens=False)
        error = await refused(served, repetition_detection={"max_pattern_size": 3})
        assert (error["param"], error["code"]) == ("repetition_detection.min_count", "conflicting_fields")
        assert (await refused(served, detokenize=False))["code"] == "unsupported_parameter"
        await ask(served, detokenize=True)
    params = engine.requests[0].params
    assert params.repetition_detection is not None and params.repetition_detection.max_pattern_size == 3
    assert params.stream_interval == 5 and not params.spaces_between_special_tokens


@in_loop
async def test_a_thinking_budget_knows_where_the_prompt_left_off() -> None:
    """The scripted model's marks of thinking are two of its roles."""
    engine = ScriptedEngine()
    marks = {"<think>": TOKENIZER.token_id("<|user|>"), "</think>": TOKENIZER.token_id("<|system|>")}
    async with serving(engine) as served:
        assert (await refused(served, thinking_token_budget=3))["code"] == "unsupported_parameter"
        engine.tokenizer = tokenizer = Templated("{{ messages[0].content }}")
        tokenizer.token_id = marks.get  # type: ignore[method-assign]
        for prompt in ("Hi", "Hi <|user|>", "<|user|>Hi<|system|>"):
            await ask(served, prompt=prompt, thinking_token_budget=3)
        await ask(served, thinking_token_budget=-1)
    budgets = [request.params.thinking for request in engine.requests]
    assert [budget and (budget.tokens, budget.begins_inside) for budget in budgets] == [
        (3, False),
        (3, True),
        (3, False),
        None,
    ]


def test_a_structural_tag_leaves_room_for_reasoning() -> None:
    """A grammar that holds from the first token on leaves none."""
    tag = {"begin": "<f>", "schema": {"type": "integer"}, "end": "</f>"}
    tagged = {"type": "structural_tag", "structures": [tag], "triggers": ["<f"]}
    for form, inside in ((tagged, True), ({"type": "json_object"}, None), ({"type": "text"}, True)):
        body = parse(ChatBody, {"messages": USER, "response_format": form})
        reading = reading_of(body, ServerOptions(reasoning_parser="deepseek_r1"), "Hi")
        assert (None if reading is None else reading.begins_inside) is inside


class TestWithTheRealEngine:
    def test_repetition_ends_an_answer_and_is_counted(self, model_directory: Any) -> None:
        pytest.importorskip("torch")
        from real_engine import real

        @in_loop
        async def scenario() -> None:
            async with real(model_directory) as (_, served):
                fields = {"allowed_token_ids": [9], "repetition_detection": {"max_pattern_size": 1, "min_count": 3}}
                answer = await ask(served, max_tokens=9, ignore_eos=True, **fields)
                text = (await served.http.get("/metrics")).text
            choice = answer["choices"][0]
            assert (choice["finish_reason"], choice["stop_reason"]) == ("repetition", "repetition_detected")
            assert answer["usage"]["completion_tokens"] == 3
            (line,) = [
                each for each in text.splitlines() if 'finished_reason="repetition"' in each and "_total" in each
            ]
            assert line.startswith("vllm:request_success_total") and line.endswith(" 1.0")

        scenario()

    def test_named_ids_and_scores_of_a_prompt(self, model_directory: Any) -> None:
        pytest.importorskip("torch")
        from real_engine import real

        @in_loop
        async def scenario() -> None:
            async with real(model_directory) as (engine, served):
                ids = engine.tokenizer.encode(PROMPT)
                named = {"return_tokens_as_token_ids": True, "logprob_token_ids": [5, 9]}
                told = (await ask(served, temperature=0, **named))["choices"][0]["logprobs"]
                assert all({"token_id:5", "token_id:9"} <= top.keys() for top in told["top_logprobs"])
                chat = await ask(served, CHAT, temperature=0, **named)
                first = chat["choices"][0]["logprobs"]["content"][0]
                assert [each["token"] for each in first["top_logprobs"]] == ["token_id:5", "token_id:9"]
                asked = {"prompt_logprob_token_ids": [[token, -1] for token in ids[2:]], "prompt_logprob_start": 1}
                scores = (await ask(served, **asked))["choices"][0]["prompt_token_id_logprobs"]
                known = (await ask(served, prompt_logprobs=0))["choices"][0]["prompt_logprobs"]
                for row, token, table in zip(scores, ids[2:], known[2:], strict=True):
                    assert row == [pytest.approx(table[str(token)]["logprob"], abs=1e-4), -9999.0]
                for wrong in ({"stream": True}, {"prompt_logprobs": 1}, {"prompt_logprob_start": 2}):
                    assert (await refused(served, **{**asked, **wrong}))["param"] == "prompt_logprob_token_ids"
                pieces = await served.http.post(
                    COMPLETIONS,
                    json={"prompt": "x", "max_tokens": 7, "ignore_eos": True, "stream": True, "stream_interval": 3},
                )
                assert len(events(pieces.text)) <= 5, "the first, two of three, and [DONE]"

        scenario()
