"""From a dead server's log and exit code to a class of failure, and to the rule when it refused its settings."""

from __future__ import annotations

import re

from headrace import exit_codes
from headrace.errors import LaunchError

_OOM = re.compile(
    r"out of memory|cannot allocate memory|MemoryError|can't allocate|No available memory for the cache blocks"
    r"|OutOfMemoryError|Not enough memory",
    re.IGNORECASE,
)
# First match wins.  The words are those of Python, torch, uvicorn, docker and the kernel.
_KINDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("port", re.compile(r"address already in use|\[Errno 98\]|port is already allocated", re.IGNORECASE)),
    ("disk", re.compile(r"no space left on device|\[Errno 28\]|disk quota exceeded", re.IGNORECASE)),
    ("oom", _OOM),
    # How vLLM's and SGLang's argument parsers and configuration classes turn down what they are given.
    ("refused", re.compile(r"validation errors? for \w|error: (?:unrecognized arguments|argument |invalid choice)")),
)

# What is said of an engine that is no more, while the process that answers requests waits for it.
_GIVEN_UP = re.compile(r"EngineCore failed to start|EngineCore encountered a fatal error|Scheduler hit an exception")
# What a launcher of workers says when one of them has said more.
_SECOND_HAND = re.compile(r"Engine core initialization failed|Engine process failed to start|SystemExit|See root cause")
# vLLM puts the process, the time and the place before each line of a worker's traceback.
_PREFIX = re.compile(r"^\s*(?:\([\w ]+pid=\d+\)\s*)?(?:(?:ERROR|INFO|WARNING) [\d-]+ [\d:]+ \[[\w.]+:\d+\]\s*)?")
_ERROR_LINE = re.compile(r"^(?:Value error, .+|(?:[\w.]+\.)?\w*(?:Error|Exception|Killed)\b: .+)")
_PYDANTIC_TAIL = re.compile(r" \[type=\w+, input_value=.*$")

_KEPT_LINES = 20

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


def exited(code: int, log: str, *, when: str) -> LaunchError:
    """The failure of a server that exited with `code`; its text is one sentence with the line that explains it.

    `log` is the end of what it wrote, long enough for the traceback of a worker; the error keeps its last lines.
    """
    kind = _kind(log) or ("refused" if code == exit_codes.USAGE else "crash")
    how = f"was ended by signal {-code}" if code < 0 else f"exited with code {code}"
    if code == -9 and kind == "crash":
        how += " (the kernel does so when memory runs out)"
    return _failure(f"the server {how} {when}", kind, log)


def gave_up(log: str) -> LaunchError | None:
    """The failure of a server whose log says that it will never be ready, though its process lives; None without.

    Seen in vLLM 0.32: the engine's process ends with its reason, and the API server waits ten minutes for it.
    """
    if broken_rule(log) is None and not _GIVEN_UP.search(log):
        return None
    return _failure("the server gave up before it was ready, and did not exit", _kind(log) or "crash", log)


def _kind(log: str) -> str | None:
    kind = next((kind for kind, pattern in _KINDS if pattern.search(log)), None)
    return "refused" if broken_rule(log) is not None and kind != "port" else kind


def _failure(what: str, kind: str, log: str) -> LaunchError:
    tail = "\n".join(log.splitlines()[-_KEPT_LINES:])
    return LaunchError(f"{what}{_last_words(log)}", kind=kind, log_tail=tail)


def out_of_memory(log: str) -> bool:
    """The log says so, whatever became of the server since."""
    return _OOM.search(log) is not None


def broken_rule(log: str) -> str | None:
    """The rule that the server says its settings break, None when it says nothing of the kind."""
    return next((rule for rule, pattern in _RULES if pattern.search(log)), None)


def _last_words(log: str) -> str:
    """The line that explains most: of a broken rule, else the last error that is not about another process's, else
    the last line that says something."""
    lines = [text for line in log.splitlines() if (text := _PREFIX.sub("", line).strip())]
    ruled = [line for line in lines if broken_rule(line)]
    errors = [line for line in lines if _ERROR_LINE.match(line) and not _SECOND_HAND.search(line)]
    told = (ruled or errors or lines)[-1:]
    if not told:
        return " and left no log"
    return f": {_PYDANTIC_TAIL.sub('', told[0]).removeprefix('Value error, ')[:500]}"
