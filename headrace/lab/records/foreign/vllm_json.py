"""Result JSONs of `vllm bench serve` and its relatives -> runs.

Read: one object a file; one object a line (`--append-result`, SGLang's client); a list of runs (`summary.json` of
`vllm bench sweep`); the keys of 2025's script, with its misspelt `"request_goodput:"`; SGLang's keys; the bare words
`Infinity` and `NaN`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from headrace.errors import ConfigError
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
    "burstiness": "burstiness",
    "max_concurrency": "max_concurrency",
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
    (("benchmarks", "metadata"), "a GuideLLM report"),
    (("input_config", "request_count"), "an AIPerf summary"),
    (("load_summary", "successes"), "an inference-perf report"),
    (("traceEvents",), "a profiler trace"),
    (("capacity_by_slo_ms",), "an author's summary of a rate sweep, not a result of one run"),
)


def read_json(text: str, source: str) -> tuple[RunResult, ...]:
    """Every run in one JSON file.  Raises ConfigError with the reason when it holds none."""
    objects = _objects(text)
    runs: list[RunResult] = []
    reason = ""
    for number, item in enumerate(objects, start=1):
        if isinstance(item, dict) and all(_is_number(item.get(key)) for key in _REQUIRED):
            runs.append(_run(item, source if len(objects) == 1 else f"{source}#{number}"))
        elif not reason:
            reason = _why_not(item)
    if not runs:
        raise ConfigError(reason or "an empty JSON file")
    return tuple(runs)


def _objects(text: str) -> list[Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as whole:
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
    except RecursionError:
        raise ConfigError("JSON nested too deeply") from None
    return data if isinstance(data, list) else [data]


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
            if _is_number(value) and math.isfinite(value):
                metrics[key] = value
            else:
                warnings.append(f"{raw} is not a finite number ({value!r})")
        elif key == _SPEC_POSITIONS and isinstance(value, list):
            for position, fraction in enumerate(value):
                metrics[f"spec_decode_position_{position}_acceptance_rate"] = 100 * fraction
        elif key == "request_rate":
            settings[key] = _rate(value)
        elif key in _SETTINGS:
            settings[_SETTINGS[key]] = value
        elif isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
            metadata[key] = value  # `--metadata` pairs and a sweep's overrides stand among the other keys
    if metadata:
        settings["metadata"] = metadata
    if metrics.get("completed") == 0:
        warnings.append("no request was completed: the zeros below are not measurements")
    return RunResult(source, settings, metrics, tuple(warnings))


def _rate(value: Any) -> Json:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return "inf" if math.isinf(number) else number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _why_not(item: Any) -> str:
    if not isinstance(item, dict):
        return f"JSON, but a {type(item).__name__} where a result object was expected"
    for keys, tool in _OTHER_TOOLS:
        if all(key in item for key in keys):
            return f"{tool}; only results of `vllm bench serve` and SGLang's client are read"
    missing = [key for key in _REQUIRED if not _is_number(item.get(key))]
    return f"JSON, but not a result of `vllm bench serve`: no {', '.join(missing)}"
