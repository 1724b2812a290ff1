"""What a server that is not ready yet is doing, by the words of its log."""

from __future__ import annotations

import re

# From the start of a server to its first answer; the last phase that the log has reached is where it is.  The words
# are vLLM's of both eras, SGLang's and headrace's.
_PHASES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "loading the model",
        re.compile(
            r"Starting to load model|Loading (?:safetensors|pt|model|weights)|Load weight begin|loading .*weights"
            r"|Loading weights took|Model loading took|Load weight end",
            re.IGNORECASE,
        ),
    ),
    (
        "preparing the KV cache",
        re.compile(r"KV cache size|Memory profiling|Available KV cache memory|# ?(?:GPU|CPU) blocks|KV Cache is alloc"),
    ),
    (
        "compiling",
        re.compile(
            r"torch\.compile takes|Dynamo bytecode|Compiling a graph|Start compiling|Warming up"
            r"|Captur(?:e|ing) (?:the model|[Cc][Uu][Dd][Aa] graph)"
        ),
    ),
)


def phase(log: str) -> str:
    """ "starting", "loading the model", "preparing the KV cache" or "compiling": what the log said last."""
    reached = [(found[-1].end(), name) for name, pattern in _PHASES if (found := list(pattern.finditer(log)))]
    return max(reached)[1] if reached else "starting"
