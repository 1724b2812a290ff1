"""/metrics against recorded scrapes of vLLM: the same families, types, labels and bucket bounds."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from fake_engine import CONFIG, ScriptedEngine
from prometheus_client.parser import text_string_to_metric_families
from server_harness import in_loop, serving

from headrace.core.request import FinishReason
from headrace.core.scheduler import Speculation
from headrace.engine.async_engine import EngineStats, FinishedRequest
from headrace.server.metrics import ServerMetrics, buckets_1_2_5
from headrace.server.periodic_log import line

# vLLM estimates them from the model's shape; a made-up number would be worse than none.
NOT_FILLED = {"vllm:estimated_flops_per_gpu", "vllm:estimated_read_bytes_per_gpu", "vllm:estimated_write_bytes_per_gpu"}


def scrape(metrics: ServerMetrics) -> str:
    return metrics.exposition().decode()


def bounds(text: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for name, bound in re.findall(r'^(vllm:\w+)_bucket\{.*?le="([^"]+)"', text, flags=re.MULTILINE):
        found[name].append(float(bound))
    return found


def idle_metrics(max_model_len: int = 2048) -> ServerMetrics:
    from dataclasses import replace

    engine = ScriptedEngine()
    return ServerMetrics(replace(CONFIG, max_model_len=max_model_len), "scripted", engine.stats)


def test_every_family_of_vllm_is_there_with_its_type(shared_data: Path) -> None:
    listed = (shared_data / "metrics" / "vllm_0.26.0_families.txt").read_text().splitlines()
    theirs = {tuple(row.split()) for row in listed if row.startswith("vllm:")}
    ours = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type)
        for family in text_string_to_metric_families(scrape(idle_metrics()))
    }
    missing = {row for row in theirs - ours if row[0].removesuffix("_total") not in NOT_FILLED}
    assert not missing


def test_buckets_hold_every_bound_of_vllm(shared_data: Path) -> None:
    theirs = bounds((shared_data / "metrics" / "vllm_0.25.1_idle.prom").read_text())
    ours = bounds(scrape(idle_metrics()))
    assert set(theirs) <= set(ours)
    for name, expected in theirs.items():
        extra = sorted(set(ours[name]) - set(expected))
        assert set(expected) <= set(ours[name]), name
        if name in ("vllm:inter_token_latency_seconds", "vllm:request_time_per_output_token_seconds"):
            assert extra and max(extra) < 0.01
        else:
            assert not extra, name


def test_labels_are_those_of_vllm(shared_data: Path) -> None:
    def labels(text: str) -> dict[str, set[frozenset[str]]]:
        found: dict[str, set[frozenset[str]]] = defaultdict(set)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("vllm:") and not sample.name.endswith("_created"):
                    found[sample.name].add(frozenset(sample.labels))
        return found

    theirs = labels((shared_data / "metrics" / "vllm_0.25.1_idle.prom").read_text())
    ours = labels(scrape(idle_metrics()))
    for name in set(theirs) & set(ours) - {"vllm:cache_config_info"}:
        assert theirs[name] == ours[name], name
    (cache,) = ours["vllm:cache_config_info"]
    assert cache <= next(iter(theirs["vllm:cache_config_info"]))


def test_label_values_of_vllm_are_there_from_the_start(shared_data: Path) -> None:
    pattern = r'(finished_reason|reason|source|sleep_state)="(\w+)"'
    theirs = set(re.findall(pattern, (shared_data / "metrics" / "vllm_0.25.1_idle.prom").read_text()))
    assert theirs and theirs <= set(re.findall(pattern, scrape(idle_metrics())))


def test_token_buckets_go_up_to_the_context() -> None:
    assert buckets_1_2_5(30) == (1, 2, 5, 10, 20)
    assert buckets_1_2_5(2048)[-2:] == (1000, 2000)


def test_phases_are_differences_and_missing_ones_are_not_zeros() -> None:
    metrics = idle_metrics()
    metrics.finished(FinishedRequest(FinishReason.LENGTH, 30, 10, 5, 5, 1.0, 1.5, 2.5, 4.5, 4.75))
    metrics.finished(FinishedRequest(FinishReason.ABORT, 7, 0, 0, 5, 1.0, None, None, None, 2.0))
    text = scrape(metrics)

    def value(name: str) -> float:
        (found,) = re.findall(rf"^vllm:{name}(?:\{{[^}}]*\}})? (\S+)$", text, flags=re.MULTILINE)
        return float(found)

    assert value("request_queue_time_seconds_sum") == 0.5
    assert value("request_prefill_time_seconds_sum") == 1.0
    assert value("request_decode_time_seconds_sum") == 2.0
    assert value("request_inference_time_seconds_sum") == 3.0
    assert value("request_time_per_output_token_seconds_sum") == 0.5
    assert value("e2e_request_latency_seconds_sum") == 4.75
    assert value("e2e_request_latency_seconds_count") == 2
    assert value("request_queue_time_seconds_count") == 1
    assert value("request_prefill_kv_computed_tokens_sum") == 20
    assert 'finished_reason="abort",model_name="scripted"} 1.0' in text


@in_loop
async def test_a_scrape_shows_what_was_served() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as served:
        await served.http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 5, "n": 2})
        text = (await served.http.get("/metrics")).text
    assert 'vllm:generation_tokens_total{engine="0",model_name="scripted"} 10.0' in text
    assert 'vllm:kv_cache_usage_perc{engine="0",model_name="scripted"} 0.0' in text
    assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="scripted"} 2.0' in text
    assert 'vllm:request_params_n_sum{engine="0",model_name="scripted"} 2.0' in text
    assert 'vllm:request_params_n_count{engine="0",model_name="scripted"} 1.0' in text
    assert "headrace:engine_steps_total" in text


def test_the_periodic_line_reads_as_vllms() -> None:
    before = EngineStats(0, 0, 100, 100, 0, None, 0.0, 0, 0, 0, 0, 0, 0)
    now = EngineStats(3, 2, 100, 75, 50, 1.0, 0.01, 1000, 0, 200, 0, 400, 100)
    assert line(now, before, 10.0) == (
        "Engine 000: Avg prompt throughput: 100.0 tokens/s, Avg generation throughput: 20.0 tokens/s, "
        "Running: 3 reqs, Waiting: 2 reqs, GPU KV cache usage: 25.0%, Prefix cache hit rate: 25.0%"
    )
    assert line(before, before, 10.0) is None


def test_speculation_is_counted_and_stated_where_it_is_on() -> None:
    from dataclasses import replace

    stats = replace(
        ScriptedEngine().stats(), num_drafts=3, num_draft_tokens=8, num_accepted_tokens=5, accepted_at=(3, 2)
    )
    config = replace(CONFIG, speculation=Speculation(2, 4, 2))
    text = scrape(ServerMetrics(config, "scripted", lambda: stats))
    for family, value in (("num_drafts", 3), ("num_draft_tokens", 8), ("num_accepted_tokens", 5)):
        assert re.search(rf"^vllm:spec_decode_{family}_total\{{[^}}]*\}} {value}\.0$", text, flags=re.MULTILINE)
    places = re.findall(r'^vllm:spec_decode_num_accepted_tokens_per_pos_total\{.*position="(\d)"\} (\S+)', text, re.M)
    assert places == [("0", "3.0"), ("1", "2.0")]
    stated = re.search(r"^headrace:config_info\{(.*)\} 1.0$", text, flags=re.MULTILINE)
    assert stated is not None
    for setting in ('speculative_method="ngram"', 'num_speculative_tokens="2"', 'prompt_lookup_max="4"'):
        assert setting in stated[1]
    assert "spec_decode" not in scrape(idle_metrics())


def test_the_periodic_line_tells_how_good_the_drafts_are() -> None:
    from dataclasses import replace

    before = replace(ScriptedEngine().stats(), num_running=1)
    now = replace(before, num_draft_tokens=8, num_accepted_tokens=6)
    text = line(now, before, 10.0)
    assert text is not None and text.endswith("Draft acceptance rate: 75.0%")
