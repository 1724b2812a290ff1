"""The settings that a server really runs with, read back from itself: a flag says what was wanted.

Where a server tells most, that counts: vLLM's /server_info (its development mode), else its log; the labels of
`*config_info` under /metrics; the list of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.lab.campaign.exposition import config_labels, typed

Json = Any

# (part of vLLM's configuration, its name there) -> our name
_VLLM = {
    ("scheduler_config", "max_num_batched_tokens"): "max_num_batched_tokens",
    ("scheduler_config", "max_num_seqs"): "max_num_seqs",
    ("scheduler_config", "enable_chunked_prefill"): "enable_chunked_prefill",
    ("scheduler_config", "long_prefill_token_threshold"): "long_prefill_token_threshold",
    ("scheduler_config", "policy"): "scheduling_policy",
    ("model_config", "max_model_len"): "max_model_len",
    ("model_config", "dtype"): "dtype",
    ("model_config", "seed"): "seed",
    ("model_config", "quantization"): "quantization",
    ("model_config", "enforce_eager"): "enforce_eager",
    ("model_config", "generation_config"): "generation_config",
    ("cache_config", "block_size"): "block_size",
    ("cache_config", "enable_prefix_caching"): "enable_prefix_caching",
    ("cache_config", "num_gpu_blocks"): "num_gpu_blocks",
    ("cache_config", "cache_dtype"): "cache_dtype",
    ("parallel_config", "tensor_parallel_size"): "tensor_parallel_size",
}
_SGLANG = {
    "chunked_prefill_size": "max_num_batched_tokens",
    "max_running_requests": "max_num_seqs",
    "context_length": "max_model_len",
    "page_size": "block_size",
    "dtype": "dtype",
    "mem_fraction_static": "gpu_memory_utilization",
    "random_seed": "seed",
    "tp_size": "tensor_parallel_size",
}
# What vLLM writes to its log, of both eras.
_LOG: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("max_num_batched_tokens", re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")),
    ("max_model_len", re.compile(r"\bmax_seq_len=(\d+)")),
    ("enable_prefix_caching", re.compile(r"\benable_prefix_caching=(True|False)")),
    ("enable_chunked_prefill", re.compile(r"\b(?:chunked_prefill_enabled|enable_chunked_prefill)=(True|False)")),
    ("dtype", re.compile(r"\bdtype=torch\.(\w+)")),
    ("seed", re.compile(r"\bseed=(\d+), served_model_name")),
    ("num_gpu_blocks", re.compile(r"# (?:GPU|CPU|cpu|gpu|\w+) blocks: (\d+)")),
    ("kv_cache_tokens", re.compile(r"KV cache size: ([\d,]+) tokens")),
)


def stated_settings(exposition: str, description: Mapping[str, Json] | None = None, log: str = "") -> dict[str, Json]:
    """Settings by our names (those of other servers' labels by theirs); the better source has the last word.

    description  what `Server.save_description` wrote: page -> JSON answer
    """
    return {**_from_log(log), **config_labels(exposition), **_described(description or {})}


def read_description(path: Path) -> dict[str, Json]:
    """Empty where a server said nothing, or nothing that can be read."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _from_log(log: str) -> dict[str, Json]:
    found = {}
    for name, pattern in _LOG:
        match = pattern.search(log)
        if match:
            found[name] = typed(match[1].replace(",", ""))
    return found


def _described(pages: Mapping[str, Json]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    models = pages.get("/v1/models")
    entries = models.get("data") if isinstance(models, dict) else None
    if isinstance(entries, list) and entries and isinstance(entries[0], dict):
        length = entries[0].get("max_model_len")
        found |= {"max_model_len": length} if isinstance(length, int) else {}
    info = pages.get("/server_info?config_format=json")
    sglang = pages.get("/get_server_info", info)  # its newer versions have the shorter name, as vLLM has
    if isinstance(sglang, dict) and "vllm_config" not in sglang:
        found |= {ours: sglang[theirs] for theirs, ours in _SGLANG.items() if sglang.get(theirs) is not None}
        if isinstance(off := sglang.get("disable_radix_cache"), bool):
            found["enable_prefix_caching"] = not off
    config = info.get("vllm_config") if isinstance(info, dict) else None
    if isinstance(config, dict):
        for (part, theirs), ours in _VLLM.items():
            values = config.get(part)
            if isinstance(values, dict) and values.get(theirs) is not None:
                found[ours] = values[theirs]
    if isinstance(dtype := found.get("dtype"), str):
        found["dtype"] = dtype.removeprefix("torch.")
    return found
