"""Request fields that the server knows but does not act on: which are harmless, which are refused, and why.

The rule: a field that provably changes nothing is accepted, a field that would change the answer is refused by name
unless it holds the value that means "off", and a field nobody knows is refused too.  `null` always means "not given".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.errors import InvalidRequest

# name -> why any value is harmless
NO_EFFECT: dict[str, str] = {
    "user": "names the end user, for abuse reports; the answer does not depend on it",
    "safety_identifier": "the same, under its newer name",
    "metadata": "labels for a stored answer; answers are never stored here",
    "prompt_cache_key": "a routing hint for a fleet; one server has one prefix cache",
    "include_reasoning": "leaves reasoning out of a chat's answer; completions are text as it is",
    "guided_decoding_backend": "names a library; whichever one follows a grammar, the answer follows it",
    "parallel_tool_calls": "limits tool calls; completions make none",
}

# name -> (values that mean "off", why any other value is refused)
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "functions": (([],), "this older form is not read; use `tools`"),
    "function_call": (("none", "auto"), "this older form is not read; use `tool_choice`"),
    "guided_whitespace_pattern": ((), "white space in JSON is bounded as it is"),
    "structural_tag": ((), "this older form is not read; use `structured_outputs`"),
    "logits_processors": (([],), "custom logits processors are not supported"),
    "suffix": (("",), "insertion before a suffix is not supported"),
    "use_beam_search": ((False,), "beam search is not supported"),
    "length_penalty": ((1, 1.0), "beam search is not supported"),
    "early_stopping": ((False,), "beam search is not supported"),
    "continue_final_message": ((False,), "only a chat has messages"),
    "chat_template": ((), "templates from clients are not rendered, for safety; start the server with --chat-template"),
    "chat_template_kwargs": (({},), "only a chat is rendered"),
    "documents": (([],), "only a chat is rendered"),
    "reasoning_effort": ((), "only a chat is rendered"),
    "reasoning": ((), "this form is not read; use `reasoning_effort`"),
    "detokenize": ((True,), "answers of this API are texts; `return_token_ids` adds their ids"),
    "output_kind": ((), "`stream` says whether an answer comes in pieces"),
    "flat_logprobs": ((False,), "log-probabilities have OpenAI's form"),
    "verbosity": ((), "the length of answers cannot be set by this field; use `max_tokens`"),
    "modalities": ((["text"],), "only text is generated"),
    "audio": ((), "only text is generated"),
    "prediction": ((), "predicted outputs are not supported"),
    "web_search_options": ((), "there is no web search"),
    "mm_processor_kwargs": (({},), "only text is read"),
    "store": ((False,), "answers are never stored"),
    "service_tier": (("auto", "default"), "there is one service tier"),
    "return_token_ids": ((False,), "only generated answers have them"),
    "return_token_strs": ((False,), "token strings are returned by /tokenize only"),
    "session_id": ((), "requests have no session"),
    "kv_transfer_params": ((), "there is no K/V transfer"),
    "vllm_xargs": (({},), "extra arguments are not supported"),
    "image": ((), "only text is read"),
}


def known_fields(body: Mapping[str, Any], fields: Iterable[str]) -> dict[str, Any]:
    """The part of `body` that the server acts on, without nulls.  Raises InvalidRequest naming another field."""
    known = frozenset(fields)
    kept: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or (name in NO_EFFECT and name not in known):
            continue
        if name in known:
            kept[name] = value
        elif name in REFUSED:
            off, reason = REFUSED[name]
            if not any(type(value) is type(harmless) and value == harmless for harmless in off):
                raise InvalidRequest(f"`{name}` is not supported: {reason}.", param=name, code="unsupported_parameter")
        else:
            near = difflib.get_close_matches(name[:64], known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise InvalidRequest(f"Unknown field `{name[:64]}`.{hint}", param=name[:64], code="unknown_parameter")
    return kept
