"""Fields of a chat that reach its template, and ids that come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_engine import TOKENIZER, ByteBpe, ScriptedEngine
from server_harness import error_of, events, in_loop, serving

from headrace.engine.chat_template import ChatTemplate
from headrace.errors import InvalidRequest
from headrace.server.bodies import Message
from headrace.server.protocol import chat_text

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Templated(ByteBpe):
    """A tokenizer with a chat template."""

    special_tokens = TOKENS

    def __init__(self, text: str) -> None:
        super().__init__()
        self._template = ChatTemplate(text, TOKENS)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        return self._template.render(messages, add_generation_prompt, **variables)


def engine_with(template: str) -> ScriptedEngine:
    engine = ScriptedEngine()
    engine.tokenizer = Templated(template)
    return engine


@in_loop
async def test_arguments_reach_the_template() -> None:
    engine = engine_with("{{ messages[0].content }}{% if enable_thinking is false %} no thinking{% endif %}")
    async with serving(engine) as served:
        for arguments in (None, {}, {"enable_thinking": True}, {"enable_thinking": False}):
            body = {"messages": USER, "max_tokens": 1, "chat_template_kwargs": arguments}
            assert (await served.http.post(CHAT, json=body)).status_code == 200
    texts = [TOKENIZER.decode(request.prompt_token_ids, False) for request in engine.requests]
    assert texts == ["Hi", "Hi", "Hi", "Hi no thinking"]


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token"])
def test_arguments_may_not_replace_what_the_server_gives(name: str) -> None:
    @in_loop
    async def scenario() -> None:
        async with serving(engine_with("{{ messages[0].content }}{{ bos_token }}")) as served:
            body = {"messages": USER, "chat_template_kwargs": {name: "x"}}
            refused = await served.http.post(CHAT, json=body)
            assert refused.status_code == 400 and error_of(refused)["param"] == "chat_template_kwargs"

    scenario()


@in_loop
async def test_the_last_message_is_continued() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    engine = engine_with(template)
    talk = [*USER, {"role": "assistant", "content": "The wheel "}]
    body = {"messages": talk, "max_tokens": 1, "continue_final_message": True}
    async with serving(engine) as served:
        both = await served.http.post(CHAT, json=body)
        await served.http.post(CHAT, json={**body, "add_generation_prompt": False})
    assert both.status_code == 400 and error_of(both)["code"] == "conflicting_fields"
    assert TOKENIZER.decode(engine.requests[0].prompt_token_ids, False) == "[user]Hi[end][assistant]The wheel "


def test_real_templates_are_continued_as_transformers_continues_them(shared_data: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    talk = [*USER, {"role": "assistant", "content": "The wheel turns "}]
    compared = 0
    for path in sorted((shared_data / "chat-templates").rglob("*.jinja")):
        text = path.read_text()
        try:
            (theirs,), _ = render_jinja_template([talk], chat_template=text, continue_final_message=True, **TOKENS)
        except Exception:  # it refuses such a talk
            continue
        messages = [Message(**each) for each in talk]
        assert chat_text(messages, Templated(text), False, continues=True) == theirs, path.name
        compared += 1
    assert compared > 20


def test_a_template_that_hides_the_last_message_cannot_continue_it() -> None:
    messages = [Message(role="user", content="Hi")]
    with pytest.raises(InvalidRequest, match="does not show the last message"):
        chat_text(messages, Templated("{{ messages[0].role }}"), False, continues=True)


@in_loop
async def test_ids_come_back_whole_and_streamed() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        for path, asked in ((CHAT, {"messages": USER}), ("/v1/completions", {"prompt": "Hi"})):
            body = {**asked, "max_tokens": 30, "return_token_ids": True}
            whole = (await served.http.post(path, json=body)).json()
            chunks = events((await served.http.post(path, json={**body, "stream": True})).text)[:-1]
            choices = [chunk["choices"][0] for chunk in chunks]
            prompt = list(engine.requests[-1].prompt_token_ids)
            assert (whole if path == CHAT else whole["choices"][0])["prompt_token_ids"] == prompt
            assert choices[0]["prompt_token_ids"] == prompt and "prompt_token_ids" not in choices[1]
            ids = whole["choices"][0]["token_ids"]
            assert len(ids) == 30 and ids == [token for choice in choices for token in choice["token_ids"]]
            plain = (await served.http.post(path, json={**body, "return_token_ids": False})).json()
            assert "token_ids" not in plain["choices"][0]


@in_loop
async def test_reading_the_prefix_cache_can_be_declined() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        await served.http.post(CHAT, json={"messages": USER, "max_tokens": 1, "skip_reading_prefix_cache": True})
    assert engine.requests[0].params.skip_reading_prefix_cache
