"""Figures and settings out of other tools' files: total conversions, None for whatever is not what it should be.

Files hold `nan`, `Infinity`, numbers of a thousand digits, lists where a number belongs and halves of surrogate pairs.
A value that passes here is finite, of its setting's type, and can be written as JSON and as UTF-8.
"""

from __future__ import annotations

import math

from headrace.lab.records.results import Json

# No count, time or rate of a benchmark is larger; beyond it integers do not become floats without loss.
_LARGEST = 1e15
# Whole numbers are read from text up to so many digits: Python itself refuses thousands of them with an error.
_MAX_DIGITS = 40

# The types of the settings in RunResult; a setting that is not here is text.
KINDS: dict[str, type] = {
    "max_model_len": int,
    "max_num_batched_tokens": int,
    "max_num_seqs": int,
    "max_concurrency": int,
    "tensor_parallel_size": int,
    "num_prompts": int,
    "random_input_len": int,
    "random_output_len": int,
    "seed": int,
    "repeat": int,
    "gpu_memory_utilization": float,
    "request_rate": float,
    "ramp_up_start_rps": float,
    "ramp_up_end_rps": float,
    "burstiness": float,
    "enable_chunked_prefill": bool,
    "enable_prefix_caching": bool,
    "enforce_eager": bool,
}
# Where infinity means something: all at once, and evenly spaced.
_MAY_BE_INFINITE = ("request_rate", "burstiness")
_WORDS = {"true": True, "false": False}


def figure(value: object) -> float | None:
    """A finite number of plausible size; whole numbers stay whole.  Text is read as a number."""
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -_LARGEST <= value <= _LARGEST else None  # false for NaN, too


def setting(key: str, value: object) -> Json | None:
    """The value of a setting in its own type (infinity as "inf"), or None when it is none of it."""
    kind = KINDS.get(key, str)
    if kind is str:
        return clean(value) if isinstance(value, str) else None
    if kind is bool:
        return _WORDS.get(value.lower()) if isinstance(value, str) else value if isinstance(value, bool) else None
    if key in _MAY_BE_INFINITE and _is_infinite(value):
        return "inf"
    number = figure(value)
    if number is None or kind is float:
        return None if number is None else float(number)
    return int(number) if number == int(number) else None


def clean(text: str) -> str:
    """The text without half characters, which no file could hold."""
    return text.encode("utf-8", "replace").decode()


def shown(value: object) -> str:
    """A refused value for a warning: short, one line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer or a nesting that Python will not write out
        text = type(value).__name__
    text = clean(" ".join(text.split()))
    return text if len(text) <= 60 else text[:57] + "..."


def _from_text(text: str) -> float | None:
    text = text.strip().replace(",", "")
    try:
        if len(text) <= _MAX_DIGITS and text.lstrip("+-").isdecimal():
            return int(text)
        return float(text)
    except ValueError:
        return None


def _is_infinite(value: object) -> bool:
    if isinstance(value, str):
        value = _from_text(value)
    return isinstance(value, float) and value == math.inf
