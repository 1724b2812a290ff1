"""`--speculative-config`: vLLM's JSON for speculative decoding, of which the method "ngram" is served."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from headrace.core.scheduler import Speculation
from headrace.errors import ConfigError

DEFAULT_LOOKUP = 5  # vLLM's, when neither end of the range is given
_EXAMPLE = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4, "prompt_lookup_min": 2}'
_NUMBERS = ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")
_METHODS = ("ngram", "[ngram]")  # the brackets are those of vLLM before 0.8


def read_speculative_config(
    given: str | Mapping[str, Any] | None, *, max_num_batched_tokens: int, max_model_len: int
) -> Speculation | None:
    """How to speculate; None when nothing was given.  Raises ConfigError that names the key and an accepted value."""
    if given is None:
        return None
    fields = _fields(given)
    if unknown := [key for key in fields if key not in ("method", "model", *_NUMBERS)]:
        near = difflib.get_close_matches(unknown[0], ["method", *_NUMBERS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use method, {', '.join(_NUMBERS)}"
        raise ConfigError(f"--speculative-config: {unknown[0]!r} is not known; {hint}")
    method, model = fields.get("method"), fields.get("model")
    if method not in (None, *_METHODS) or model not in (None, *_METHODS) or method is model is None:
        wrong = (
            f'"method" is {method!r}' if method not in _METHODS and (method or not model) else f'"model" is {model!r}'
        )
        raise ConfigError(
            f'--speculative-config: {wrong}, but drafts come from n-grams only, not from a model; use "method": "ngram"'
        )
    numbers = {name: fields.get(name) for name in _NUMBERS}
    for name, value in numbers.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f'--speculative-config: "{name}" must be a whole number of at least 1, not {value!r}')
    drafts, most, least = numbers.values()
    if drafts is None:
        raise ConfigError(f'--speculative-config: "num_speculative_tokens" is missing; write it like {_EXAMPLE}')
    if drafts >= max_num_batched_tokens:
        raise ConfigError(
            f'--speculative-config: "num_speculative_tokens" is {drafts}; a token and its drafts must fit into a step '
            f"of {max_num_batched_tokens} tokens (--max-num-batched-tokens): at most {max_num_batched_tokens - 1}"
        )
    most = most or least or DEFAULT_LOOKUP
    least = least or most
    if least > most:
        raise ConfigError(
            f'--speculative-config: "prompt_lookup_min" ({least}) must be at most "prompt_lookup_max" ({most})'
        )
    if most >= max_model_len:
        raise ConfigError(
            f'--speculative-config: "prompt_lookup_max" ({most}) must be below max_model_len ({max_model_len})'
        )
    return Speculation(drafts, most, least)


def describe(speculation: Speculation) -> str:
    """One line for the log."""
    least, most = speculation.prompt_lookup_min, speculation.prompt_lookup_max
    lengths = f"{most}" if least == most else f"{least} to {most}"
    return f"ngram, at most {speculation.num_speculative_tokens} drafts a step, after the last {lengths} tokens"


def _fields(given: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    try:
        fields = json.loads(given)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError(f"--speculative-config {given!r} is no JSON object; write it like '{_EXAMPLE}'")
    return fields
