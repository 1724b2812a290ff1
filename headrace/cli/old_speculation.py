"""vLLM's flags for speculation before 0.8 (`--speculative-model [ngram]` and its numbers) as `--speculative-config`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from headrace.cli.spelling import split
from headrace.errors import ConfigError

_KEYS = {
    "--speculative-model": "model",
    "--num-speculative-tokens": "num_speculative_tokens",
    "--ngram-prompt-lookup-max": "prompt_lookup_max",
    "--ngram-prompt-lookup-min": "prompt_lookup_min",
}


def modernize(argv: Sequence[str]) -> list[str]:
    """`argv` with the older flags put together as one `--speculative-config`.  Raises ConfigError."""
    tokens: list[str] = []
    found: dict[str, object] = {}
    names: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        name, equals, value = split(token)
        if name not in _KEYS:
            tokens.append(token)
            continue
        if not equals:
            if not rest:
                raise ConfigError(f"{name} needs a value")
            value = rest.pop(0)
        names.append(name)
        found[_KEYS[name]] = value if name == "--speculative-model" or not value.isdecimal() else int(value)
    if not found:
        return tokens
    if any(split(token)[0] == "--speculative-config" for token in tokens):
        raise ConfigError(f"{names[0]} and --speculative-config say the same thing; give only the second")
    if "model" not in found:
        raise ConfigError(f'{names[0]} needs --speculative-model "[ngram]"')
    # The default of that time: up to the given length, from a single token on.
    found.setdefault("prompt_lookup_min", 1)
    return [*tokens, f"--speculative-config={json.dumps(found)}"]
