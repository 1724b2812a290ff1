"""Reports of GuideLLM, AIPerf and inference-perf -> runs, each figure under the key whose definition it has.

Names mislead: GuideLLM's and AIPerf's "inter-token latency" is one mean an answer, which is vLLM's TPOT; GuideLLM's
"time per output token" contains TTFT, and stays under a key of its own, as does inference-perf's normalised one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from headrace.lab.records.foreign.values import clean, figure, setting
from headrace.lab.records.results import Json, RunResult

Metrics = dict[str, float]
# Statistics by the names that the three tools give them.
_WORDS = {
    "mean": "mean", "avg": "mean", "median": "median", "p50": "median", "std_dev": "std", "std": "std", "max": "max",
    "p90": "p90", "p95": "p95", "p99": "p99", "p999": "p99.9", "p99.9": "p99.9",
}  # fmt: skip
_ZEROS = "ITL of inference-perf counts tokens of one chunk as 0 ms apart, so it is not the gap between chunks"
_GUIDE_ITL = (
    "GuideLLM's inter-token latency is one mean an answer: it stands under TPOT; its TPOT, which contains TTFT,"
)
_GUIDE_ITL += " under tpot_with_ttft"
_AIPERF_ITL = (
    "AIPerf's inter-token latency is one mean an answer: it stands under TPOT; its inter-chunk latency under ITL"
)


def read_report(item: Mapping[str, Any], source: str) -> tuple[RunResult, ...] | None:
    """The runs of a report; None when it is none of the three tools'."""
    for is_mine, read in _READERS:
        if is_mine(item):
            return read(item, source)
    return None


# -- GuideLLM --------------------------------------------------------------------------------------------------------


def _is_guidellm(item: Mapping[str, Any]) -> bool:
    benchmarks = item.get("benchmarks")
    return isinstance(benchmarks, list) and "metadata" in item and any(map(_metrics_of, benchmarks))


def _guidellm(item: Mapping[str, Any], source: str) -> tuple[RunResult, ...]:
    runs = []
    version = _at(item, "metadata", "guidellm_version")
    for number, benchmark in enumerate(item["benchmarks"], start=1):
        table = _metrics_of(benchmark)
        if not table:
            continue
        metrics: Metrics = {}
        _put(metrics, "duration", benchmark.get("duration"))
        for key, name in (("completed", "successful"), ("failed", "errored")):
            _put(metrics, key, _at(table, "request_totals", name))
        for key, name in (
            ("ttft", "time_to_first_token_ms"), ("tpot", "inter_token_latency_ms"),
            ("tpot_with_ttft", "time_per_output_token_ms"),
        ):  # fmt: skip
            _statistics(metrics, key, _successful(table, name), 1.0)
        _statistics(metrics, "e2el", _successful(table, "request_latency"), 1000.0)
        for key, name in (("total_input_tokens", "prompt_token_count"), ("total_output_tokens", "output_token_count")):
            _put(metrics, key, _at(_successful(table, name), "total_sum"))
        for key, name in (
            ("request_throughput", "requests_per_second"), ("output_throughput", "output_tokens_per_second"),
            ("total_token_throughput", "tokens_per_second"),
        ):  # fmt: skip
            _put(metrics, key, _at(_successful(table, name), "mean"))
        strategy = _at(benchmark, "config", "strategy") or _at(benchmark, "scheduler", "strategy") or {}
        settings = _settings("guidellm", version)
        model = _at(benchmark, "config", "backend", "model") or _at(benchmark, "backend", "model")
        _set(settings, "model", model)
        kind = _at(strategy, "type_")
        _set(settings, "request_rate", _at(strategy, "rate") if kind in ("constant", "poisson") else None)
        if kind == "constant":
            settings["burstiness"] = "inf"
        _set(settings, "max_concurrency", _at(strategy, "streams") if kind == "concurrent" else None)
        name = source if len(item["benchmarks"]) == 1 else f"{source}#{number}"
        runs.append(RunResult(name, settings, metrics, (_GUIDE_ITL,)))
    return tuple(runs)


def _metrics_of(benchmark: object) -> Mapping[str, Any]:
    table = benchmark.get("metrics") if isinstance(benchmark, dict) else None
    return table if isinstance(table, dict) and "time_to_first_token_ms" in table else {}


def _successful(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = _at(table, name, "successful")
    return found if isinstance(found, dict) else {}


# -- AIPerf ----------------------------------------------------------------------------------------------------------


def _is_aiperf(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("request_latency"), dict) and "request_count" in item and "input_config" in item


def _aiperf(item: Mapping[str, Any], source: str) -> tuple[RunResult, ...]:
    metrics: Metrics = {}
    for key, name in (
        ("duration", "benchmark_duration"), ("completed", "request_count"), ("failed", "error_request_count"),
        ("request_throughput", "request_throughput"), ("output_throughput", "output_token_throughput"),
        ("total_token_throughput", "total_token_throughput"), ("total_input_tokens", "total_isl"),
        ("total_output_tokens", "total_osl"), ("request_goodput", "goodput"),
    ):  # fmt: skip
        _put(metrics, key, _at(item, name, "avg"))
    metrics.setdefault("failed", 0.0)
    for key, name in (
        ("ttft", "time_to_first_token"), ("tpot", "inter_token_latency"), ("itl", "inter_chunk_latency"),
        ("e2el", "request_latency"),
    ):  # fmt: skip
        _statistics(metrics, key, item.get(name), 1.0)
    settings = _settings("aiperf", item.get("aiperf_version") or _at(item, "input_config", "cli_command"))
    names = _at(item, "input_config", "endpoint", "model_names")
    _set(settings, "model", names[0] if isinstance(names, list) and names else None)
    load = _at(item, "input_config", "loadgen") or {}
    for key, name in (
        ("request_rate", "request_rate"), ("max_concurrency", "concurrency"), ("num_prompts", "request_count"),
    ):  # fmt: skip
        _set(settings, key, _at(load, name))
    return (RunResult(source, settings, metrics, (_AIPERF_ITL,)),)


# -- inference-perf --------------------------------------------------------------------------------------------------


def _is_inference_perf(item: Mapping[str, Any]) -> bool:
    return isinstance(item.get("successes"), dict) and "load_summary" in item


def _inference_perf(item: Mapping[str, Any], source: str) -> tuple[RunResult, ...]:
    successes, summary = item["successes"], item["load_summary"]
    metrics: Metrics = {}
    warnings = []
    _put(metrics, "completed", successes.get("count"))
    _put(metrics, "failed", _at(item, "failures", "count"))
    latency, throughput = successes.get("latency"), successes.get("throughput")
    scraped = not isinstance(latency, dict)  # from the server's Prometheus, not from the client
    table = successes if scraped else latency
    for key, name in (
        ("ttft", "time_to_first_token"), ("tpot", "time_per_output_token"), ("itl", "inter_token_latency"),
        ("e2el", "request_latency"), ("ntpot", "normalized_time_per_output_token"),
    ):  # fmt: skip
        _statistics(metrics, key, table.get(name), 1000.0)
    if scraped:
        warnings.append("figures of the server's own metrics, as inference-perf scraped them; the client saw others")
        _put(metrics, "request_throughput", successes.get("rate"))
    else:
        for key, name in (
            ("request_throughput", "requests_per_sec"), ("output_throughput", "output_tokens_per_sec"),
            ("total_token_throughput", "total_tokens_per_sec"),
        ):  # fmt: skip
            _put(metrics, key, _at(throughput, name))
        warnings.append(_ZEROS)
    completed = metrics.get("completed")
    for key, name in (("total_input_tokens", "prompt_len"), ("total_output_tokens", "output_len")):
        mean = figure(_at(successes, name, "mean"))
        if mean is not None and completed and not scraped:
            metrics[key] = round(mean * completed)
    if completed and metrics.get("request_throughput"):
        metrics["duration"] = completed / metrics["request_throughput"]
    settings = _settings("inference-perf", None)
    _set(settings, "request_rate", _at(summary, "requested_rate"))
    delay = figure(_at(summary, "schedule_delay", "p99"))
    if delay is not None and delay > 0.05:
        warnings.append(f"the client sent up to {delay:.1f} s late (p99 of its schedule delay), which no latency shows")
    return (RunResult(source, settings, metrics, tuple(warnings)),)


# -- common ----------------------------------------------------------------------------------------------------------

_READERS: tuple[tuple[Callable[[Mapping[str, Any]], bool], Callable[..., tuple[RunResult, ...]]], ...] = (
    (_is_guidellm, _guidellm),
    (_is_aiperf, _aiperf),
    (_is_inference_perf, _inference_perf),
)


def _settings(client: str, version: object) -> dict[str, Json]:
    settings: dict[str, Json] = {"client": client}
    if isinstance(version, str) and len(version) < 40:
        settings["client_version"] = clean(version)
    return settings


def _at(item: object, *path: str) -> Any:
    """What stands at a path of keys; None where it breaks off."""
    for key in path:
        item = item.get(key) if isinstance(item, Mapping) else None
    return item


def _put(metrics: Metrics, key: str, value: object) -> None:
    number = figure(value)
    if number is not None:
        metrics[key] = number


def _set(settings: dict[str, Json], key: str, value: object) -> None:
    known = None if value is None else setting(key, value)
    if known is not None:
        settings[key] = known


def _statistics(metrics: Metrics, key: str, table: object, to_ms: float) -> None:
    """`mean_KEY_ms` and the like from a table of statistics; a percentile may stand in a table of its own."""
    if not isinstance(table, Mapping):
        return
    inner = table.get("percentiles")
    for name, value in {**table, **(inner if isinstance(inner, Mapping) else {})}.items():
        number = figure(value)
        if name in _WORDS and number is not None:
            metrics[f"{_WORDS[name]}_{key}_ms"] = number * to_ms
