"""From a dead server's log and exit code to a class of failure, and to the rule when it refused its settings."""

from __future__ import annotations

import re

from headrace import exit_codes
from headrace.errors import LaunchError

# First match wins.  The words are those of Python, torch, uvicorn and the kernel.
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("port", re.compile(r"address already in use|\[Errno 98\]", re.IGNORECASE)),
    ("disk", re.compile(r"no space left on device|\[Errno 28\]|disk quota exceeded", re.IGNORECASE)),
    ("oom", re.compile(r"out of memory|cannot allocate memory|MemoryError|can't allocate", re.IGNORECASE)),
)

# What a server says when it refuses settings that could not be judged before it knew the model and the memory.
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("R1", re.compile(r"max_num_batched_tokens \(\d+\) is smaller than max_model_len")),
    ("R2", re.compile(r"max_num_batched_tokens \(\d+\) must be greater than or equal to max_num_seqs")),
    ("R4", re.compile(r"must be dividable by block size")),
    ("R5", re.compile(r"Chunked prefill must be enabled to set max_num_partial_prefills")),
    (
        "R6",
        re.compile(r"long_prefill_token_threshold \(\d+\) cannot be greater|max_long_partial_prefills \(\d+\) must"),
    ),
    ("R8", re.compile(r"Unknown scheduling policy")),
    ("R9", re.compile(r"is larger than the maximum number of tokens that can be stored in KV cache")),
    ("R10", re.compile(r"To serve at least one request with the model's max seq len")),
    ("R11", re.compile(r"No available memory for the cache blocks")),
    ("R12", re.compile(r"is less than desired GPU memory utilization")),
)


def exited(code: int, log_tail: str, *, when: str) -> LaunchError:
    """The failure of a server that exited with `code`; its text is one sentence with the line that explains it."""
    kind = next((kind for kind, pattern in _KINDS if pattern.search(log_tail)), None)
    if kind is None:
        kind = "refused" if code == exit_codes.USAGE else "crash"
    how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
    if code == -9 and kind == "crash":
        how += " (the kernel does so when memory runs out)"
    return LaunchError(f"the server {how} {when}{_last_words(log_tail)}", kind=kind, log_tail=log_tail)


def broken_rule(log_tail: str) -> str | None:
    """The rule that the server says its settings break, None when it says nothing of the kind."""
    return next((rule for rule, pattern in _RULES if pattern.search(log_tail)), None)


def _last_words(log_tail: str) -> str:
    """The last line that says something: a Python traceback, too, ends with its cause."""
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    return f": {lines[-1][:500]}" if lines else " and left no log"
