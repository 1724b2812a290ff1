"""What a server says of itself under /metrics."""

from __future__ import annotations

from headrace.lab.campaign.exposition import server_metrics, stated_settings


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
