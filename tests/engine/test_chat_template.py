"""Chat templates: what transformers renders, refusals as the caller's error, and limits on hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.engine import chat_template
from headrace.engine.chat_template import ChatTemplate
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.tokenizer import Tokenizer, sampling_defaults
from headrace.errors import ConfigError, InvalidRequest

TALK = [
    {"role": "user", "content": 'Say "hé <b>" & bye'},
    {"role": "assistant", "content": "hé"},
    {"role": "user", "content": "again 😀"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(text: str, messages: list[dict[str, str]] | None = None, **variables: Any) -> str:
    return ChatTemplate(text, TOKENS, max_seconds=0.2).render(messages or TALK, **variables)


def test_the_demonstration_model_speaks_chatml() -> None:
    text = Tokenizer(DEMO_DIRECTORY).render_chat([{"role": "user", "content": "hi"}])
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_special_tokens_of_a_rendered_chat_are_single_ids() -> None:
    tokenizer = Tokenizer(DEMO_DIRECTORY)
    ids = tokenizer.encode(tokenizer.render_chat([{"role": "user", "content": "hi"}]))
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 2, 1)


FUNCTION = {
    "name": "weather",
    "description": "Weather now",
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
CALLS = [
    TALK[0],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain", "tool_call_id": "call12345", "name": "weather"},
]
# What is rendered: messages, whether the answer is to begin, and what else the template is given.
FORMS: dict[str, tuple[list[dict[str, Any]], bool, dict[str, Any]]] = {
    "one message": ([{"role": "user", "content": "Hello"}], True, {}),
    "talk": (TALK, True, {}),
    "a whole talk": ([*TALK, {"role": "assistant", "content": " bye "}], False, {}),
    "system": ([{"role": "system", "content": "Be brief."}, *TALK], True, {}),
    "tools": (TALK, True, {"tools": TOOLS}),
    "calls and results": (CALLS, True, {"tools": TOOLS}),
    "without thinking": (TALK, True, {"enable_thinking": False}),
}


def collected() -> list[str]:
    top = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "chat-templates"
    files = [*top.rglob("*.jinja"), *top.rglob("tokenizer_config.json")]
    return sorted(str(path.relative_to(top)) for path in files)


def template_of(path: Path) -> str:
    return path.read_text() if path.suffix == ".jinja" else str(json.loads(path.read_text())["chat_template"])


@pytest.mark.parametrize("name", collected() or ["absent"])
def test_real_templates_render_as_transformers_renders_them(shared_data: Path, name: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    text = template_of(shared_data / "chat-templates" / name)
    ours, rendered = ChatTemplate(text, TOKENS), 0
    for messages, begins, more in FORMS.values():
        given: dict[str, Any] = {"tools": None, "documents": None, **TOKENS, **more}
        try:
            theirs = _compile_jinja_template(text).render(messages=messages, add_generation_prompt=begins, **given)
        except Exception:
            with pytest.raises(InvalidRequest):  # what it refuses there, it refuses here
                ours.render(messages, begins, **more)
        else:
            assert ours.render(messages, begins, **more) == theirs
            rendered += 1
    assert rendered > 0


@pytest.mark.parametrize(
    "name", ["vllm/tool_chat_template_hermes.jinja", "vllm/tool_chat_template_llama3.1_json.jinja"]
)
def test_templates_show_tools_calls_and_results_as_transformers_does(shared_data: Path, name: str) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    parameters = {"type": "object", "properties": {"city": {"type": "string", "description": "Where"}}}
    function = {"name": "weather", "description": "Weather now", "parameters": parameters}
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    talk = [
        TALK[0],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]
    given: dict[str, Any] = {"tools": [{"type": "function", "function": function}], "documents": None, **TOKENS}
    text = (shared_data / "chat-templates" / name).read_text()
    ours = ChatTemplate(text, TOKENS).render(talk, tools=given["tools"])
    assert ours == _compile_jinja_template(text).render(messages=talk, add_generation_prompt=True, **given)
    assert "weather" in ours and "rain" in ours
    assert ChatTemplate(text, TOKENS).reads("tools") and not ChatTemplate("{{ messages }}", TOKENS).reads("tools")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content.upper() }}", "refused the messages"),
        ("{{ messages + 1 }}", "refused the messages"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "is unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refused the messages"),
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "ran for too long"),
        (
            "{% set l = range(9999)|list %}{% for a in l %}{% for b in l %}{% for c in l %}{% endfor %}{% endfor %}"
            "{% endfor %}",
            "ran for too long",
        ),
        ("{{ 'x' * 10**9 }}", "a repetition of more than"),
        ("{{ 10 ** (10 ** 10) }}", "a power above 64"),
    ],
)
def test_what_a_template_refuses_or_exceeds_is_the_callers_error(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        render(text)


def test_output_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 1000)
    with pytest.raises(InvalidRequest, match="wrote more than 1,000 characters"):
        render("{% for i in range(90000) %}{{ i }}{% endfor %}")


def test_a_text_that_is_no_template_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match="not valid Jinja"):
        ChatTemplate("{% for %}", {})


def test_json_is_not_escaped_for_html() -> None:
    assert render("{{ messages[0].content | tojson }}") == '"Say \\"hé <b>\\" & bye"'


def test_a_model_without_a_template_says_so(shared_data: Path) -> None:
    tokenizer = Tokenizer(shared_data / "tokenizers" / "TinyLlama_v1.1")
    with pytest.raises(InvalidRequest, match="has no chat template"):
        tokenizer.render_chat(TALK)


def test_a_given_template_replaces_the_models_own() -> None:
    tokenizer = Tokenizer(DEMO_DIRECTORY, chat_template="{{ messages | length }} {{ eos_token }}")
    assert tokenizer.render_chat(TALK) == "3 <|im_end|>"


def test_templates_in_a_tokenizer_config_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((DEMO_DIRECTORY / "tokenizer.json").read_bytes())
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert Tokenizer(tmp_path).render_chat(TALK) == "plain"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer(tmp_path).render_chat(TALK) == "file"


def test_end_tokens_come_from_all_three_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((DEMO_DIRECTORY / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    assert Tokenizer(tmp_path).eos_token_ids == {2, 7, 8, 9}


def test_sampling_defaults_of_the_model_and_without_them(tmp_path: Path) -> None:
    stored = {"temperature": 0.7, "top_k": 20, "max_new_tokens": 64, "top_p": "high", "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    assert sampling_defaults(tmp_path, "auto") == {"temperature": 0.7, "top_k": 20, "max_tokens": 64}
    assert sampling_defaults(tmp_path, "vllm") == {}


@pytest.mark.parametrize(
    "stored", [{"repetition_penalty": 0}, {"max_new_tokens": 0}, {"top_p": 1.5}, {"temperature": -1}]
)
def test_a_default_that_no_request_could_ask_for_is_refused(stored: dict[str, float], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {next(iter(stored))} is"):
        sampling_defaults(tmp_path, "auto")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path)
