"""What a server says of itself: under /metrics, in its description, in its log."""

from __future__ import annotations

import pytest

from headrace.lab.campaign.launchers.classify import broken_rule, exited, gave_up
from headrace.lab.campaign.server_metrics import Scrape, scrape, server_metrics
from headrace.lab.campaign.stated import stated_settings


def test_settings_that_a_server_states_in_its_metrics() -> None:
    text = (
        "# TYPE vllm:cache_config_info gauge\n"
        'vllm:cache_config_info{block_size="16",enable_prefix_caching="False",gpu_memory_utilization="0.9",'
        'num_gpu_blocks_override="None",cache_dtype="auto",odd="a \\"b\\", c=1"} 1.0\n'
        'headrace:config_info{max_num_seqs="8",dtype="float32"} 1.0\n'
        'vllm:num_requests_running{model_name="m"} 3.0\n'
    )
    assert stated_settings(text) == {
        "block_size": 16,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.9,
        "num_gpu_blocks_override": None,
        "cache_dtype": "auto",
        "odd": 'a \\"b\\", c=1',
        "max_num_seqs": 8,
        "dtype": "float32",
    }


def counters(preemptions: int, queries: int, hits: int) -> str:
    return "".join(
        f'vllm:{name}_total{{model_name="a b",engine="{engine}"}} {value}.0\n'
        for engine in (0, 1)
        for name, value in (
            ("num_preemptions", preemptions),
            ("prefix_cache_queries", queries),
            ("prefix_cache_hits", hits),
        )
    )


def test_counters_are_of_the_run_and_of_all_engines() -> None:
    assert server_metrics(counters(1, 100, 10), counters(4, 300, 60)) == {
        "server_num_preemptions": 6,
        "server_prefix_cache_hit_rate": 0.25,
    }


def test_what_a_server_does_not_count_is_absent() -> None:
    assert server_metrics("", counters(1, 1, 1)) == {}
    assert server_metrics(counters(0, 0, 0), counters(0, 0, 0)) == {"server_num_preemptions": 0}


V0_ERA = """
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_waiting{model_name="m"} 2.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:time_in_queue_requests_sum{model_name="m"} 8.0
vllm:time_in_queue_requests_count{model_name="m"} 4.0
vllm:time_per_output_token_seconds_sum{model_name="m"} 1.0
vllm:time_per_output_token_seconds_count{model_name="m"} 20.0
vllm:iteration_tokens_total_sum{model_name="m"} 600.0
vllm:iteration_tokens_total_count{model_name="m"} 6.0
vllm:iteration_tokens_total_bucket{le="8.0",model_name="m"} 6.0
"""
V1_ERA = (
    V0_ERA.replace("gpu_cache_usage_perc", "kv_cache_usage_perc")
    .replace("time_in_queue_requests", "request_queue_time_seconds")
    .replace("time_per_output_token", "inter_token_latency")
)
SGLANG = """
sglang:num_running_reqs{model_name="m"} 3.0
sglang:num_queue_reqs{model_name="m"} 2.0
sglang:token_usage{model_name="m"} 0.5
sglang:queue_time_seconds_sum{model_name="m"} 8.0
sglang:queue_time_seconds_count{model_name="m"} 4.0
sglang:inter_token_latency_seconds_sum{model_name="m"} 1.0
sglang:inter_token_latency_seconds_count{model_name="m"} 20.0
"""


def zeros(text: str) -> str:
    return "\n".join(line.rpartition(" ")[0] + " 0.0" if line else "" for line in text.splitlines())


@pytest.mark.parametrize("text", [V0_ERA, V1_ERA, SGLANG], ids=["V0", "V1", "SGLang"])
def test_every_era_has_its_names_and_the_result_has_one(text: str) -> None:
    during = [scrape(zeros(text), 5), scrape(text, 20), scrape(zeros(text), 30)]
    found = server_metrics(zeros(text), text, during, (10, 40))
    assert found["server_mean_queue_ms"] == 2000 and found["server_mean_itl_ms"] == 50
    assert (found["server_mean_running"], found["server_max_running"]) == (1.5, 3)
    assert (found["server_max_waiting"], found["server_max_kv_use"]) == (2, 0.5)
    if text is not SGLANG:
        assert (found["server_mean_step_tokens"], found["server_num_steps"]) == (100, 6)


def test_the_warm_up_is_left_out_where_a_look_fell_between() -> None:
    """Ten tokens before the run, as the last look before it saw them: the run counted the other thirty."""
    name = "vllm:generation_tokens_total"
    found = server_metrics(f"{name} 0", f"{name} 40", [Scrape(5, {name: 10.0}), Scrape(20, {name: 25.0})], (7, 30))
    assert found["server_generation_tokens"] == 30


def test_the_fullest_of_several_engines_counts() -> None:
    text = 'vllm:kv_cache_usage_perc{engine="0"} 0.25\nvllm:kv_cache_usage_perc{engine="1"} 0.75\n'
    assert server_metrics("", "", [scrape(text, 1)], (0, 2)) == {"server_mean_kv_use": 0.75, "server_max_kv_use": 0.75}


VLLM_INFO = {
    "/v1/models": {"data": [{"id": "m", "max_model_len": 512}]},
    "/server_info?config_format=json": {
        "vllm_config": {
            "model_config": {"dtype": "torch.bfloat16", "max_model_len": 512, "enforce_eager": True},
            "cache_config": {"block_size": 128, "num_gpu_blocks": 10922, "enable_prefix_caching": True},
            "scheduler_config": {"max_num_batched_tokens": 512, "max_num_seqs": 64, "enable_chunked_prefill": True},
        }
    },
}


def test_vllm_tells_its_settings_in_its_description_and_else_in_its_log() -> None:
    log = (
        "INFO [scheduler.py:307] Chunked prefill is enabled with max_num_batched_tokens=2048.\n"
        "INFO [core.py:99] Initializing a V1 LLM engine (v0.11.0) with config: model='m', dtype=torch.float16, "
        "max_seq_len=4096, seed=0, served_model_name=m, enable_prefix_caching=False, chunked_prefill_enabled=True\n"
        "INFO [kv_cache_utils.py:1] GPU KV cache size: 123,456 tokens\n"
    )
    read = stated_settings("", {}, log)
    assert (read["max_num_batched_tokens"], read["max_model_len"], read["dtype"]) == (2048, 4096, "float16")
    assert (read["enable_prefix_caching"], read["kv_cache_tokens"]) == (False, 123456)
    better = stated_settings("", VLLM_INFO, log)
    assert (better["max_num_batched_tokens"], better["max_num_seqs"], better["dtype"]) == (512, 64, "bfloat16")
    assert (better["block_size"], better["enforce_eager"], better["max_model_len"]) == (128, True, 512)


@pytest.mark.parametrize("page", ["/get_server_info", "/server_info?config_format=json"], ids=["older", "newer"])
def test_sglang_tells_its_settings_under_its_own_names(page: str) -> None:
    info = {page: {"max_running_requests": 8, "disable_radix_cache": True, "chunked_prefill_size": 512}}
    assert stated_settings("", info) == {
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 512,
    }


# The last lines of vLLM 0.32 on a CPU, started with settings that it does not take.
REFUSED = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for SchedulerConfig
  Value error, max_num_batched_tokens (32) must be greater than or equal to max_num_seqs (64). [type=value_error, \
input_value=ArgsKwargs((), {'runner_t..., 'stream_interval': 1}), input_type=ArgsKwargs]
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
ENGINE_DIED = """\
(EngineCore pid=2004) ERROR 11-25 13:07:21 [core.py:1510]     raise ValueError(
(EngineCore pid=2004) ERROR 11-25 13:07:21 [core.py:1510] ValueError: To serve at least one request with the model's \
max seq len (512), (0.0 GiB KV cache is needed, which is larger than the available KV cache memory (0.0 GiB).
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_what_vllm_refuses_is_told_by_the_line_that_explains_it() -> None:
    error = exited(1, REFUSED, when="before it was ready")
    assert error.kind == "refused" and broken_rule(REFUSED) == "R2"
    assert str(error) == (
        "the server exited with code 1 before it was ready: "
        "max_num_batched_tokens (32) must be greater than or equal to max_num_seqs (64)."
    )
    died = exited(1, ENGINE_DIED, when="before it was ready")
    assert died.kind == "refused" and broken_rule(ENGINE_DIED) == "R10"
    assert "ValueError: To serve at least one request" in str(died)


def test_a_server_whose_engine_has_died_is_not_waited_for() -> None:
    """vLLM 0.32 was seen to wait ten minutes for an engine that had ended with its reason."""
    hopeless = gave_up(ENGINE_DIED.rpartition("RuntimeError")[0])
    assert hopeless is not None and hopeless.kind == "refused"
    assert gave_up("INFO 11-25 12:57:07 [model.py:2152] Using max model len 512") is None
