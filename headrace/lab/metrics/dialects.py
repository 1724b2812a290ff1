"""vLLM's printed block and result file, in the current form and in that of its 2025 script, byte for byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from headrace.errors import ConfigError
from headrace.lab.metrics.vllm import METRICS, VllmMetrics, percentile_word

DIALECTS = ("vllm", "vllm-2025")

_SECTIONS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}

# Arrays that only `--save-detailed` keeps; `latencies` and `queue_times` stay either way.
_DETAILS = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What the block and the file say about the client.  `metadata` pairs become keys of the file, and so do the
    three keys of `ramp_up`, where there is one."""

    backend: str
    model_id: str
    tokenizer_id: str
    num_prompts: int
    request_rate: float = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    ramp_up: Mapping[str, str | float] = field(default_factory=dict)
    label: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("ttft", "tpot", "itl")
    percentiles: tuple[float, ...] = (99.0,)

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if metric not in METRICS:
                raise ConfigError(f"--percentile-metrics takes {', '.join(METRICS)}, not {metric!r}")
        for p in self.percentiles:
            if not 0 <= p <= 100:
                raise ConfigError(f"--metric-percentiles takes numbers from 0 to 100, not {p:g}")


def result_block(metrics: VllmMetrics, settings: BenchSettings, *, dialect: str = "vllm") -> str:
    """The block from ` Serving Benchmark Result ` to the closing line, without a line end after it."""
    new = dialect == "vllm"
    rows = ["{s:{c}^{n}}".format(s=" Serving Benchmark Result ", n=50, c="=")]
    rows.append(_count("Successful requests:", metrics.completed))
    if new:
        rows.append(_count("Failed requests:", metrics.failed))
        if settings.max_concurrency is not None:
            rows.append(_count("Maximum request concurrency:", settings.max_concurrency))
        if math.isfinite(settings.request_rate):
            rows.append(_number("Request rate configured (RPS):", settings.request_rate))
    rows.append(_number("Benchmark duration (s):", metrics.duration_s))
    rows.append(_count("Total input tokens:", metrics.total_input))
    rows.append(_count("Total generated tokens:", metrics.total_output))
    rows.append(_number("Request throughput (req/s):", metrics.request_throughput))
    if metrics.request_goodput is not None:
        rows.append(_number("Request goodput (req/s):", metrics.request_goodput))
    rows.append(_number("Output token throughput (tok/s):", metrics.output_throughput))
    if new:
        rows.append(_number("Peak output token throughput (tok/s):", metrics.max_output_tokens_per_s))
        rows.append(_number("Peak concurrent requests:", metrics.max_concurrent_requests))
    total_label = "Total token throughput (tok/s):" if new else "Total Token throughput (tok/s):"
    rows.append(_number(total_label, metrics.total_token_throughput))
    for metric in METRICS:
        if metric in settings.metrics:
            rows += _section(metrics, metric, settings.percentiles)
    rows.append("=" * 50)
    return "\n".join(rows)


def result_json(
    metrics: VllmMetrics, settings: BenchSettings, date: datetime, *, dialect: str = "vllm", detailed: bool = False
) -> dict[str, Any]:
    """The result file's object, keys in vLLM's order: arrays in seconds, aggregates in milliseconds."""
    new = dialect == "vllm"
    outputs = metrics.outputs
    result: dict[str, Any] = {"date": date.strftime("%Y%m%d-%H%M%S")}
    if new:
        result["endpoint_type"] = settings.backend
    result["backend"] = settings.backend
    if new:
        result["label"] = settings.label
    result |= {
        "model_id": settings.model_id,
        "tokenizer_id": settings.tokenizer_id,
        "num_prompts": settings.num_prompts,
        **settings.metadata,
        "request_rate": settings.request_rate if math.isfinite(settings.request_rate) else "inf",
        "burstiness": settings.burstiness if math.isfinite(settings.burstiness) else "inf",
        "max_concurrency": settings.max_concurrency,
        **settings.ramp_up,
        "duration": metrics.duration_s,
        "completed": metrics.completed,
    }
    if new:
        result["failed"] = metrics.failed
    result |= {
        "total_input_tokens": metrics.total_input,
        "total_output_tokens": metrics.total_output,
        "request_throughput": metrics.request_throughput,
        # The 2025 script's key has a colon in it.
        "request_goodput" if new else "request_goodput:": metrics.request_goodput,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_token_throughput,
        "input_lens": [output.prompt_len for output in outputs],
        "output_lens": [output.output_len for output in outputs],
        "ttfts": [output.ttft_s for output in outputs],
        "itls": [list(output.itl_s) for output in outputs],
    }
    if new:
        result |= {
            "latencies": [output.latency_s for output in outputs],
            "start_times": [output.start_s for output in outputs],
            "queue_times": [output.queue_time_s for output in outputs],
        }
    result |= {
        "generated_texts": [output.text for output in outputs],
        "errors": [output.error for output in outputs],
    }
    if new:
        result |= {
            "max_output_tokens_per_s": metrics.max_output_tokens_per_s,
            "max_concurrent_requests": metrics.max_concurrent_requests,
            "rtfx": 0.0,
        }
    for metric in METRICS:
        if metric in settings.metrics:
            result |= metrics.statistics_ms(metric, settings.percentiles)
    # The 2025 script stripped the details before it merged them in again, so its files always have them.
    if new and not detailed:
        for key in _DETAILS:
            del result[key]
    return result


def result_file_name(settings: BenchSettings, date: datetime) -> str:
    """`{label or backend}-{rate}qps[-concurrency{N}]-{model's last part}-{date}.json`; on a ramp the rate is
    `ramp-up-{strategy}-{start}qps-{end}`."""
    rate = str(settings.request_rate) if math.isfinite(settings.request_rate) else "inf"
    if settings.ramp_up:
        ends = (f"{settings.ramp_up[f'ramp_up_{end}_rps']:g}" for end in ("start", "end"))
        rate = f"ramp-up-{settings.ramp_up['ramp_up_strategy']}-{'qps-'.join(ends)}"
    limit = f"-concurrency{settings.max_concurrency}" if settings.max_concurrency is not None else ""
    model = settings.model_id.rstrip("/").split("/")[-1]
    label = settings.label or settings.backend
    return f"{label}-{rate}qps{limit}-{model}-{date.strftime('%Y%m%d-%H%M%S')}.json"


def _section(metrics: VllmMetrics, metric: str, percentiles: Sequence[float]) -> list[str]:
    name, header = _SECTIONS[metric]
    values = metrics.statistics_ms(metric, percentiles)
    return [
        "{s:{c}^{n}}".format(s=header, n=50, c="-"),
        _number(f"Mean {name} (ms):", values[f"mean_{metric}_ms"]),
        _number(f"Median {name} (ms):", values[f"median_{metric}_ms"]),
        *(
            _number(f"P{percentile_word(p)} {name} (ms):", values[f"p{percentile_word(p)}_{metric}_ms"])
            for p in percentiles
        ),
    ]


def _count(label: str, value: int) -> str:
    return f"{label:<40} {value:<10}"


def _number(label: str, value: float) -> str:
    return f"{label:<40} {value:<10.2f}"
