"""What the lab compares with a plan is what the real server states: no scripted server in between."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from headrace.engine.async_engine import EngineStats
from headrace.engine.config import EngineArgs, EngineConfig, resolve
from headrace.lab.campaign.flags import SERVE_FLAGS
from headrace.lab.campaign.result import _RESOLVED
from headrace.lab.campaign.server_metrics import server_metrics
from headrace.lab.campaign.stated import stated_settings
from headrace.lab.campaign.study import STATED
from headrace.server.metrics import ServerMetrics

GIVEN: dict[str, tuple[Any, Any]] = {
    "block_size": (8, 32),
    "dtype": ("bfloat16", "float32"),
    "enable_chunked_prefill": (False, True),
    "enable_prefix_caching": (False, True),
    "generation_config": ("vllm", "auto"),
    "load_format": ("dummy", "dummy"),
    "long_prefill_token_threshold": (0, 24),
    "max_model_len": (256, 320),
    "max_num_batched_tokens": (512, 96),
    "max_num_seqs": (7, 9),
    "num_gpu_blocks_override": (640, 480),
    "scheduler_version": ("v0", "v1"),
    "scheduling_policy": ("fcfs", "priority"),
    "seed": (3, 4),
}


def resolved(**flags: Any) -> EngineConfig:
    return resolve(EngineArgs(**flags), environ={}, free_memory_bytes=64 << 30, native_bf16=True)[0]


def exposition(config: EngineConfig, **counted: int) -> str:
    counts = {field.name: counted.get(field.name, 0) for field in fields(EngineStats)}
    return ServerMetrics(config, "demo", lambda: EngineStats(**counts)).exposition().decode()


@pytest.mark.parametrize("case", [0, 1])
def test_the_server_states_every_flag_that_the_lab_compares(case: int) -> None:
    flags = {name: values[case] for name, values in GIVEN.items()}
    assert (
        set(flags)
        == set(STATED)
        == {flag.replace("-", "_") for flag in SERVE_FLAGS}
        - {
            "gpu_memory_utilization",
            "tokenizer",
        }
    )
    stated = stated_settings(exposition(resolved(**flags)))
    assert {name: stated.get(STATED[name]) for name in flags} == flags


def test_the_server_states_what_becomes_of_auto_and_of_what_is_left_out() -> None:
    stated = stated_settings(exposition(resolved(dtype="auto", max_model_len="auto", load_format="auto")))
    assert set(_RESOLVED) <= set(stated) and stated["quantization"] == "none"
    assert "auto" not in {stated.get(name) for name in _RESOLVED} and stated["policy"] == "v1"
    assert not {"model", "tokenizer", "chat_template"} & set(stated)


def test_the_lab_finds_the_servers_counters() -> None:
    config = resolved()
    before = exposition(config, num_preemptions=1, prefix_cache_queries=10, prefix_cache_hits=5)
    after = exposition(config, num_preemptions=3, prefix_cache_queries=30, prefix_cache_hits=10)
    found = server_metrics(before, after)
    assert found["server_num_preemptions"] == 2 and found["server_prefix_cache_hit_rate"] == 0.25
