"""Result JSONs of `vllm bench serve` and its relatives -> runs.

Read: one object a file; one object a line (`--append-result`, SGLang's client); a list of runs (`summary.json` of
`vllm bench sweep`); the keys of 2025's script, with its misspelt `"request_goodput:"`; SGLang's keys; the bare words
`Infinity` and `NaN`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.records.foreign.other_tools import read_report
from headrace.lab.records.foreign.values import clean, figure, setting, shown
from headrace.lab.records.results import Json, RunResult

# What every generation writes, and no other tool's file has together.
_REQUIRED = ("duration", "completed", "request_throughput")
_METRICS = {
    "duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput",
    "request_goodput", "output_throughput", "total_token_throughput", "max_output_tokens_per_s",
    "max_concurrent_requests", "rtfx", "input_throughput", "total_input_text_tokens", "total_input_vision_tokens",
    "total_output_tokens_retokenized", "concurrency", "accept_length", "spec_decode_acceptance_rate",
    "spec_decode_acceptance_length", "spec_decode_num_drafts", "spec_decode_draft_tokens",
    "spec_decode_accepted_tokens", "probe_completed", "probe_failed",
}  # fmt: skip
_LATENCY = re.compile(
    r"(?:mean|median|std|max|p\d+(?:\.\d+)?)_(?:ttft|tpot|itl|e2el|client_queue_time|e2el_including_client_queue"
    r"|probe_e2el)_ms$|probe_(?:median|p99|max)_e2el_ms$"
)
_RENAMED = {"request_goodput:": "request_goodput", "total_throughput": "total_token_throughput"}
_SETTINGS = {
    "model_id": "model",
    "model": "model",
    "backend": "backend",
    "num_prompts": "num_prompts",
    "request_rate": "request_rate",
    "burstiness": "burstiness",
    "max_concurrency": "max_concurrency",
    "ramp_up_strategy": "ramp_up_strategy",
    "ramp_up_start_rps": "ramp_up_start_rps",
    "ramp_up_end_rps": "ramp_up_end_rps",
    "dataset_name": "dataset",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "max_model_len": "max_model_len",
    "enable_chunked_prefill": "enable_chunked_prefill",
    "enable_prefix_caching": "enable_prefix_caching",
    "enable-prefix-caching": "enable_prefix_caching",
    "run_number": "repeat",
    "date": "date",
    "random_input_len": "random_input_len",
    "random_output_len": "random_output_len",
}
_DROPPED = {"tokenizer_id", "endpoint_type", "label", "server_info", "sharegpt_output_len", "random_range_ratio"}
_SPEC_POSITIONS = "spec_decode_per_position_acceptance_rates"
# How the results of tools that are not read yet can be told; (what must be there, the tool's name).
_OTHER_TOOLS = (
    (("benchmarks", "metadata"), "a GuideLLM report without figures"),
    (("traceEvents",), "a profiler trace"),
    (("schema_version", "cells", "kind"), "a study of headrace, which `headrace report` reads"),
    (("capacity_by_slo_ms",), "an author's summary of a rate sweep, not a result of one run"),
)


def read_json(text: str, source: str) -> tuple[RunResult, ...]:
    """Every run in one JSON file.  Raises ConfigError with the reason when it holds none."""
    objects = _objects(text)
    runs: list[RunResult] = []
    reason = ""
    for number, item in enumerate(objects, start=1):
        name = source if len(objects) == 1 else f"{source}#{number}"
        if isinstance(item, dict) and all(_is_number(item.get(key)) for key in _REQUIRED):
            runs.append(_run(item, name))
        elif isinstance(item, dict) and (report := read_report(item, name)) is not None:
            runs += report
        elif not reason:
            reason = _why_not(item)
    if not runs:
        raise ConfigError(reason or "an empty JSON file")
    return tuple(runs)


def _objects(text: str) -> list[Any]:
    try:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as whole:
            return _lines(text, whole)
        return data if isinstance(data, list) else [data]
    except RecursionError:
        raise ConfigError("JSON nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"not JSON that can be read ({error})") from None


def _lines(text: str, whole: json.JSONDecodeError) -> list[Any]:
    """One object a line; `whole` says why the text is not one object."""
    items: list[Any] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            items.append(json.loads(line))
        except json.JSONDecodeError as error:
            why = whole if number == 1 else f"line {number}: {error}"
            raise ConfigError(f"not JSON ({why})") from None
    return items


def _run(item: Mapping[str, Any], source: str) -> RunResult:
    metrics: dict[str, float] = {}
    settings: dict[str, Json] = {}
    metadata: dict[str, Json] = {}
    warnings: list[str] = []
    for raw, value in item.items():
        key = _RENAMED.get(raw, raw).replace("_e2e_latency_ms", "_e2el_ms")
        if value is None or key in _DROPPED:
            continue
        if key in _METRICS or _LATENCY.match(key):
            number = figure(value) if _is_number(value) else None
            if number is not None:
                metrics[key] = number
            else:
                warnings.append(f"{raw} is not a finite number ({shown(value)})")
        elif key == _SPEC_POSITIONS:
            warnings += _positions(value, metrics)
        elif key in _SETTINGS:
            known = setting(_SETTINGS[key], value)
            if known is not None:
                settings[_SETTINGS[key]] = known
            else:
                warnings.append(f"{raw} is not what it should be ({shown(value)}), so it counts as unknown")
        elif isinstance(value, str | bool):
            metadata[clean(key)] = clean(value) if isinstance(value, str) else value
        elif (number := figure(value)) is not None:
            metadata[clean(key)] = number  # `--metadata` pairs and a sweep's overrides stand among the other keys
    if metadata:
        settings["metadata"] = metadata
    if metrics.get("completed") == 0:
        warnings.append("no request was completed: the zeros below are not measurements")
    return RunResult(source, settings, metrics, tuple(warnings))


def _positions(value: Any, metrics: dict[str, float]) -> list[str]:
    """Acceptance by position, fractions as per cent, into `metrics`; a warning for what is none."""
    fractions = [figure(item) if _is_number(item) else None for item in value] if isinstance(value, list) else [None]
    for position, fraction in enumerate(fractions):
        if fraction is not None:
            metrics[f"spec_decode_position_{position}_acceptance_rate"] = 100 * fraction
    return [f"{_SPEC_POSITIONS} is not a list of numbers ({shown(value)})"] if None in fractions else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _why_not(item: Any) -> str:
    if not isinstance(item, dict):
        return f"JSON, but a {type(item).__name__} where a result object was expected"
    for keys, tool in _OTHER_TOOLS:
        if all(key in item for key in keys):
            return f"{tool}; results of vLLM, SGLang, GuideLLM, AIPerf and inference-perf are read"
    missing = [key for key in _REQUIRED if not _is_number(item.get(key))]
    return f"JSON, but not a result of `vllm bench serve`: no {', '.join(missing)}"
