"""Recorded arrivals: when real users sent their requests, and how long they were, out of five public forms.

Azure's LLM traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens), BurstGPT's (CSV: Timestamp, Request tokens,
Response tokens; and the JSON of its replays), Mooncake's (JSON lines: timestamp in ms, lengths, a hash a block of 512),
AIBrix's (JSON lines: timestamp in ms, requests with their prompts) and vLLM's timed traces (JSON lines: timestamp,
input_length or prompt, output_length).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError

NS = 1_000_000_000
MOONCAKE_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Arrival:
    """One recorded request: nanoseconds since the first, lengths in tokens, the text where it was recorded.

    blocks  ids of the prompt's 512-token blocks: prompts that begin with the same ids begin with the same tokens
    """

    due_ns: int
    input_tokens: int
    output_tokens: int
    prompt: str | None = None
    blocks: tuple[int, ...] = ()


def read_trace(path: Path, *, limit: int | None = None) -> list[Arrival]:
    """The first `limit` arrivals of a file, in order of time.  Raises ConfigError when it is none of the forms."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the trace {path} cannot be read: {error}") from None
    try:
        rows = _csv(text) if not text.lstrip().startswith(("{", "[")) else _json(text)
        arrivals = [arrival for row in rows for arrival in _arrivals(row)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"the trace {path} is none of the known forms (Azure, BurstGPT, Mooncake, AIBrix, vLLM): {error!r}"
        ) from None
    if not arrivals:
        raise ConfigError(f"the trace {path} holds no request")
    arrivals.sort(key=lambda arrival: arrival.due_ns)
    first = arrivals[0].due_ns
    return [
        Arrival(one.due_ns - first, one.input_tokens, one.output_tokens, one.prompt, one.blocks)
        for one in arrivals[:limit]
    ]


def replay_schedule(arrivals: Sequence[Arrival], *, time_scale: float) -> tuple[int, ...]:
    """Due times in nanoseconds; `time_scale` multiplies the recorded times: 0.5 replays twice as fast."""
    return tuple(round(arrival.due_ns * time_scale) for arrival in arrivals)


def _csv(text: str) -> list[dict[str, Any]]:
    return [
        {str(key).strip().lower(): value for key, value in row.items()} for row in csv.DictReader(text.splitlines())
    ]


def _json(text: str) -> list[Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(data, dict) and all(isinstance(value, dict) for value in data.values()):
        return list(data.values())  # objects keyed by number
    return data if isinstance(data, list) else [data]


def _arrivals(row: Mapping[str, Any]) -> list[Arrival]:
    if "contexttokens" in row:
        return [Arrival(_azure_ns(row["timestamp"]), _count(row["contexttokens"]), _count(row["generatedtokens"]))]
    if "request tokens" in row:
        due_ns = round(float(row["timestamp"]) * NS)
        return [Arrival(due_ns, _count(row["request tokens"]), _count(row["response tokens"]))]
    if "record_time" in row:  # written when the answer had ended
        due_ns = round((row["record_time"] - row.get("total_chunk_time", 0.0)) * NS)
        return [Arrival(due_ns, _count(row["in_len"]), _count(row["out_len"]))]
    due_ns = round(float(row["timestamp"]) * 1e6)
    if "requests" in row:
        return [
            Arrival(due_ns, _count(one["Prompt Length"]), _count(one["Output Length"]), one.get("prompt"))
            for one in row["requests"]
        ]
    prompt = row.get("prompt", row.get("text_input"))
    length = row["input_length"] if prompt is None else row.get("input_length", 0)
    blocks = tuple(map(int, row.get("hash_ids") or ()))
    return [Arrival(due_ns, _count(length), _count(row["output_length"]), prompt, blocks)]


def _azure_ns(text: str) -> int:
    """`2023-11-16 18:15:46.6805900`: seven decimals, one more than datetime reads."""
    whole, _, fraction = text.strip().partition(".")
    fraction = fraction.partition("+")[0].rstrip("Z")
    return round(datetime.fromisoformat(whole + "+00:00").timestamp()) * NS + int(fraction.ljust(9, "0")[:9] or 0)


def _count(value: Any) -> int:
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"not a number of tokens: {value!r}")
    return int(number)
