"""Prometheus metrics under vLLM's names, labels and buckets.

Histograms are filled as the engine reports (`ServerMetrics` is its Observer); gauges and counters are read from the
engine's snapshot when somebody scrapes.  Neither makes the step loop wait.

Left out, because they would be invented: vLLM's `estimated_*_per_gpu`.  Families of things that do not exist here
(sleeping, external caches, multimodal caches) are printed with the zeros that are true of them, so that dashboards made
for vLLM find every panel's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from headrace.core.request import FinishReason
from headrace.engine.async_engine import EngineStats, FinishedRequest
from headrace.engine.config import EngineConfig

ENGINE_LABEL = "0"
LABELS = ("model_name", "engine")
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")

TTFT_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
# vLLM starts at 10 ms, where a small model on a GPU puts every gap into one bucket.  All its bounds are kept.
BELOW_10_MS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008)
ITL_BUCKETS = (
    *BELOW_10_MS,
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
STEP_TOKENS_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
N_BUCKETS = (1, 2, 5, 10, 20)

# Of the configuration, what is the user's: names, paths and texts.
_PRIVATE = ("model", "tokenizer", "chat_template")


def buckets_1_2_5(largest: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, … up to and including `largest` at most (vLLM's buckets for token counts)."""
    bounds: list[int] = []
    decade = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * decade > largest:
                return tuple(bounds)
            bounds.append(mantissa * decade)
        decade *= 10


class ServerMetrics:
    """One registry per server; told about steps, tokens and ended requests on the event loop's thread."""

    def __init__(
        self,
        config: EngineConfig,
        model_name: str,
        stats: Callable[[], EngineStats],
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self.registry = CollectorRegistry()
        self._model_name = model_name
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(_SnapshotCollector(config, model_name, stats, dict(limits or {})))

        tokens = buckets_1_2_5(config.max_model_len)
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "Time from arrival to the first token", TTFT_BUCKETS
        )
        self._itl = self._histogram("inter_token_latency_seconds", "Time between two tokens of a request", ITL_BUCKETS)
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, per request", ITL_BUCKETS
        )
        self._e2e = self._latency("e2e_request_latency_seconds", "Time from arrival to the end")
        self._queue = self._latency("request_queue_time_seconds", "Time from arrival to the first scheduling")
        self._prefill = self._latency("request_prefill_time_seconds", "Time from first scheduling to first token")
        self._decode = self._latency("request_decode_time_seconds", "Time from the first token to the last")
        self._inference = self._latency("request_inference_time_seconds", "Time from first scheduling to last token")
        self._prompt = self._histogram("request_prompt_tokens", "Prompt tokens per request", tokens)
        self._generated = self._histogram("request_generation_tokens", "Generated tokens per request", tokens)
        self._max_generated = self._histogram(
            "request_max_num_generation_tokens", "Longest of the n sequences of a request, in tokens", tokens
        )
        self._n = self._histogram("request_params_n", "The parameter n of requests", N_BUCKETS)
        self._max_tokens = self._histogram("request_params_max_tokens", "The parameter max_tokens of requests", tokens)
        self._computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens computed and not taken from the prefix cache", tokens
        )
        self._step_tokens = self._histogram("iteration_tokens_total", "Tokens per engine step", STEP_TOKENS_BUCKETS)
        success = Counter(
            "vllm:request_success", "Requests ended, by reason", (*LABELS, "finished_reason"), registry=self.registry
        )
        self._ended = {reason: success.labels(model_name, ENGINE_LABEL, reason) for reason in FINISH_REASONS}

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(f"vllm:{name}", f"{text}.", LABELS, buckets=buckets, registry=self.registry)
        return family.labels(self._model_name, ENGINE_LABEL)

    def _latency(self, name: str, text: str) -> Histogram:
        return self._histogram(name, f"{text}, in seconds", LATENCY_BUCKETS)

    def step(self, num_tokens: int) -> None:
        self._step_tokens.observe(num_tokens)

    def first_token(self, seconds_since_arrival: float) -> None:
        self._ttft.observe(seconds_since_arrival)

    def next_token(self, seconds_since_previous: float) -> None:
        self._itl.observe(seconds_since_previous)

    def finished(self, request: FinishedRequest) -> None:
        """One sequence ended.  Phases that it never reached are not counted, and never counted as zero."""
        self._ended[request.finish_reason.value].inc()
        self._e2e.observe(request.finished_s - request.arrived_s)
        self._prompt.observe(request.num_prompt_tokens)
        self._generated.observe(request.num_output_tokens)
        self._max_tokens.observe(request.max_tokens)
        if request.first_scheduled_s is None:
            return
        self._queue.observe(request.first_scheduled_s - request.arrived_s)
        self._computed.observe(request.num_prompt_tokens - request.num_cached_tokens)
        if request.first_token_s is None or request.last_token_s is None:
            return
        self._prefill.observe(request.first_token_s - request.first_scheduled_s)
        decode_s = request.last_token_s - request.first_token_s
        self._decode.observe(decode_s)
        self._inference.observe(request.last_token_s - request.first_scheduled_s)
        if request.num_output_tokens > 1:
            self._tpot.observe(decode_s / (request.num_output_tokens - 1))

    def answered(self, n: int, longest_tokens: int) -> None:
        """One prompt with its n sequences has ended, normally or not."""
        self._n.observe(n)
        self._max_generated.observe(longest_tokens)

    def exposition(self) -> bytes:
        """The scrape's body, in Prometheus' text format.  Safe in any thread."""
        return generate_latest(self.registry)


class _SnapshotCollector(Collector):
    """Gauges and counters, read from one snapshot per scrape."""

    def __init__(
        self, config: EngineConfig, model_name: str, stats: Callable[[], EngineStats], limits: Mapping[str, int]
    ) -> None:
        self._config = config
        self._limits = limits
        self._labels = [model_name, ENGINE_LABEL]
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._stats()
        used = stats.kv_blocks_total - stats.kv_blocks_free
        computed = stats.prompt_tokens - stats.prompt_tokens_cached

        yield self._gauge("num_requests_running", "Sequences in the running batch", stats.num_running)
        yield self._gauge("num_requests_waiting", "Sequences that wait to be scheduled", stats.num_waiting)
        yield self._by(
            GaugeMetricFamily,
            "num_requests_waiting_by_reason",
            "Waiting sequences by reason",
            "reason",
            {"capacity": stats.num_waiting, "deferred": 0},
        )
        yield self._gauge(
            "kv_cache_usage_perc", "Share of KV cache blocks in use, 1 is all", used / max(1, stats.kv_blocks_total)
        )
        yield self._by(
            GaugeMetricFamily,
            "engine_sleep_state",
            "Sleep state (this engine never sleeps)",
            "sleep_state",
            {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
        )
        yield self._cache_config()
        yield self._resolved_config()

        yield self._counter("prompt_tokens", "Prompt tokens processed", stats.prompt_tokens)
        yield self._counter("prompt_tokens_cached", "Prompt tokens from the prefix cache", stats.prompt_tokens_cached)
        yield self._by(
            CounterMetricFamily,
            "prompt_tokens_by_source",
            "Prompt tokens by source",
            "source",
            {"local_compute": computed, "local_cache_hit": stats.prompt_tokens_cached, "external_kv_transfer": 0},
        )
        yield self._counter("generation_tokens", "Tokens generated", stats.generation_tokens)
        yield self._counter("num_preemptions", "Sequences preempted", stats.num_preemptions)
        yield self._counter("prefix_cache_queries", "Tokens looked up in the prefix cache", stats.prefix_cache_queries)
        yield self._counter("prefix_cache_hits", "Tokens found in the prefix cache", stats.prefix_cache_hits)
        for cache in ("external_prefix_cache", "mm_cache"):
            yield self._counter(f"{cache}_queries", "There is no such cache", 0)
            yield self._counter(f"{cache}_hits", "There is no such cache", 0)
        if self._config.speculation is not None:
            yield from self._speculation(stats)
        yield self._counter("engine_steps", "Steps of the engine's loop", stats.num_steps, prefix="headrace")
        yield self._gauge(
            "step_seconds_p99", "99th percentile of recent step times", stats.step_seconds_p99, prefix="headrace"
        )
        yield self._gauge("kv_blocks", "Blocks of the KV cache", stats.kv_blocks_total, prefix="headrace")
        yield self._gauge("kv_blocks_free", "Free blocks of the KV cache", stats.kv_blocks_free, prefix="headrace")
        if self._limits:
            limits = GaugeMetricFamily(
                "headrace:request_limit",
                "What a request may ask for, and how much may wait.",
                labels=(*LABELS, "limit"),
            )
            for name, value in self._limits.items():
                limits.add_metric([*self._labels, name], value)
            yield limits

    def _speculation(self, stats: EngineStats) -> Iterator[CounterMetricFamily]:
        yield self._counter("spec_decode_num_drafts", "Decodes that were computed with drafts", stats.num_drafts)
        yield self._counter("spec_decode_num_draft_tokens", "Drafts", stats.num_draft_tokens)
        yield self._counter("spec_decode_num_accepted_tokens", "Drafts that were right", stats.num_accepted_tokens)
        family = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Drafts that were right, by their place behind the token.",
            labels=(*LABELS, "position"),
        )
        for place, count in enumerate(stats.accepted_at):
            family.add_metric([*self._labels, str(place)], count)
        yield family

    def _gauge(self, name: str, text: str, value: float, prefix: str = "vllm") -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"{prefix}:{name}", f"{text}.", labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float, prefix: str = "vllm") -> CounterMetricFamily:
        family = CounterMetricFamily(f"{prefix}:{name}", f"{text}.", labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _by(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        label: str,
        values: dict[str, float],
    ) -> GaugeMetricFamily | CounterMetricFamily:
        family = kind(f"vllm:{name}", f"{text}.", labels=(*LABELS, label))
        for key, value in values.items():
            family.add_metric([*self._labels, key], value)
        return family

    def _cache_config(self) -> GaugeMetricFamily:
        config = self._config
        size = config.num_kv_blocks * config.block_size
        settings = {
            "block_size": str(config.block_size),
            "cache_dtype": config.dtype,
            "enable_prefix_caching": str(config.enable_prefix_caching),
            "engine": ENGINE_LABEL,
            "kv_cache_max_concurrency": str(size / config.max_model_len),
            "kv_cache_size_tokens": str(size),
            "num_cpu_blocks": "None",
            "num_gpu_blocks": str(config.num_kv_blocks),  # vLLM's name for the usable blocks on any device
            "sliding_window": "None",
        }
        family = GaugeMetricFamily("vllm:cache_config_info", "Settings of the KV cache.", labels=list(settings))
        family.add_metric(list(settings.values()), 1)
        return family

    def _resolved_config(self) -> GaugeMetricFamily:
        """All of the resolved configuration that is a number, a switch or a word: whoever measures this server can see
        what it runs with, new settings included."""
        values = {field.name: getattr(self._config, field.name) for field in fields(self._config)}
        speculation = self._config.speculation
        drafts = dict.fromkeys(("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"), 0)
        if speculation is not None:
            drafts = {name: getattr(speculation, name) for name in drafts}
        method = "none" if speculation is None else "ngram"
        values |= {"policy": self._config.policy, "speculative_method": method, **drafts}
        settings = {
            name: str(value)
            for name, value in values.items()
            if isinstance(value, bool | int | float | str) and name not in _PRIVATE
        }
        family = GaugeMetricFamily("headrace:config_info", "The resolved configuration.", labels=(*LABELS, *settings))
        family.add_metric([*self._labels, *settings.values()], 1)
        return family


assert {reason.value for reason in FinishReason} <= set(FINISH_REASONS)
