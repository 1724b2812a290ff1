"""KV tokens against real start-up logs and published cases; legal ranges and prices follow from the same plan."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.sizing.answer import Question, answer
from headrace.sizing.architectures import describe
from headrace.sizing.deployment import Deployment, judged, start_up
from headrace.sizing.hardware import DEVICES, GIB, find_device
from headrace.sizing.limits import limits, prices
from headrace.sizing.rules import errors
from headrace.sizing.settings import ServeSettings
from headrace.sizing.vllm import version_of
from headrace.sizing.weights import StoredWeights, read_storage


def llama(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    """A plain decoder as its public config.json describes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 131_072,
        **more,
    }


FALCON_7B = {
    "architectures": ["FalconForCausalLM"],
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "vocab_size": 65_024,
    "multi_query": True,
    "parallel_attn": True,
}
CONFIGS: dict[str, dict[str, Any] | str] = {
    "openai/gpt-oss-120b": "openai--gpt-oss-120b",
    "Qwen/Qwen2-7B-Instruct": "qwen2.5-7b-instruct",  # the same shape
    "tiiuae/falcon-7b": FALCON_7B,
    "meta-llama/Llama-2-7b-hf": "llama-2-7b-hf",
    "meta-llama/Llama-3.2-3B": llama(3072, 8192, 28, 24, 8, 128_256, head_dim=128, tie_word_embeddings=True),
    "Qwen/Qwen1.5-0.5B": "qwen2-0_5b",
    "Qwen/Qwen1.5-7B": llama(4096, 11_008, 32, 32, 32, 151_936, architectures=["Qwen2ForCausalLM"]),
    "01-ai/Yi-6B": llama(4096, 11_008, 32, 32, 4, 64_000),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": "meta-llama--Meta-Llama-3.1-8B",
    "ibm-granite/granite-3.3-8b-instruct": llama(4096, 12_800, 40, 32, 8, 49_159, tie_word_embeddings=True),
}
LLAMA_8B = llama(4096, 14_336, 32, 32, 8, 128_256)
QWEN3_8B = llama(4096, 12_288, 36, 32, 8, 151_936, architectures=["Qwen3ForCausalLM"], head_dim=128)
QWEN25_72B_INT4 = llama(
    8192,
    29_696,
    80,
    64,
    8,
    152_064,
    architectures=["Qwen2ForCausalLM"],
    quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128},
)


def deployment(
    config: dict[str, Any], settings: ServeSettings, version: str | None, gib: float, **more: Any
) -> Deployment:
    model = describe(config)
    stored = StoredWeights(model, read_storage(config, "bfloat16"))
    return Deployment(model, stored, settings, version_of(version), int(gib * GIB), **more)


def rows(shared_data: Path) -> list[dict[str, str]]:
    path = shared_data / "memory-truth.csv"
    return list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))


def test_kv_tokens_of_every_regular_start_up_log(shared_data: Path) -> None:
    """Within 0.2 % where the log gives the device's total; 4 % where only the card's name is known, on one node."""
    seen = 0
    for row in rows(shared_data):
        if row["regular"] != "yes":
            continue
        config = CONFIGS[row["model_guess"]]
        if isinstance(config, str):
            config = json.loads((shared_data / "model-configs" / config / "config.json").read_text())
        named = {"A100 80GB": 79.15, "A100 40GB": 39.49}.get(row["gpu"])
        server = deployment(
            config,
            ServeSettings(int(row["max_num_batched_tokens"]), 256, int(row["max_model_len"])),
            row["vllm_version"],
            float(row["total_gib"]) if row["total_gib"] else named or 0,
            utilization=float(row["gpu_memory_utilization"]),
            tensor_parallel=int(row["tensor_parallel"]),
        )
        started, truth = start_up(server), int(row["kv_tokens"])
        across_nodes = "7B-2gpuA10040GB" in row["server_log"]  # communication over a network takes 0.6 GiB more
        allowed = 0.002 if row["total_gib"] else 0.06 if across_nodes else 0.04
        assert started.kv_tokens == pytest.approx(truth, rel=allowed), row["server_log"]
        assert server.token_bytes == pytest.approx(float(row["kv_bytes_per_token"]), rel=0.001), row["server_log"]
        if row["total_gib"]:
            assert started.low <= truth * 1.001 and truth * 0.999 <= started.high, row["server_log"]
            # vLLM's "Maximum concurrency", windows included; falcon-7b's is in whole thousands.
            assert started.sequences == pytest.approx(float(row["max_concurrency"]), rel=0.01), row["server_log"]
        seen += 1
    assert seen == 19


def test_windows_raise_the_concurrency_that_vllm_prints(shared_data: Path) -> None:
    """gpt-oss-120b: 2,640,144 tokens, printed concurrency 284.25 at 16,384 tokens (flat division would say 161)."""
    config = json.loads((shared_data / "model-configs" / "openai--gpt-oss-120b" / "config.json").read_text())
    server = deployment(config, ServeSettings(2048, 256, 16_384), "0.10.1", 79.15, tensor_parallel=4, blocks=165_009)
    assert start_up(server).sequences == pytest.approx(284.25, abs=0.01)


@pytest.mark.parametrize(
    ("name", "config", "tokens", "seqs", "version", "gib", "truth"),
    [
        ("RTX 4090, vLLM 0.19", LLAMA_8B, 2048, 256, "0.19", 23.52, 41_408),
        ("RTX 4090, vllm#48322", QWEN3_8B, 2048, 256, "0.25", 23.52, 40_464),
        ("RTX 4090, vllm#48322, larger steps", QWEN3_8B, 8192, 256, "0.25", 23.52, 36_720),
        ("the published campaign, 2048", QWEN25_72B_INT4, 2048, 256, "0.6", 79.15, 102_000),
        ("the published campaign, 4096", QWEN25_72B_INT4, 4096, 256, "0.6", 79.15, 100_928),
        ("the published campaign, 8192", QWEN25_72B_INT4, 8192, 256, "0.6", 79.15, 98_832),
    ],
)
def test_published_pools(
    name: str, config: dict[str, Any], tokens: int, seqs: int, version: str, gib: float, truth: int
) -> None:
    server = deployment(config, ServeSettings(tokens, seqs, 8192), version, gib)
    assert start_up(server).kv_tokens == pytest.approx(truth, rel=0.04), name


def server_24_gib(**changes: Any) -> Deployment:
    return deployment(QWEN3_8B, ServeSettings(2048, 256, 8192, **changes), "0.25", 23.52)


def test_every_edge_of_a_legal_range_is_where_the_rules_change() -> None:
    server = server_24_gib()
    found = {each.flag: each for each in limits(server)}
    for flag, name in (
        ("--max-num-batched-tokens", "max_num_batched_tokens"),
        ("--max-num-seqs", "max_num_seqs"),
        ("--max-model-len", "max_model_len"),
    ):
        limit = found[flag]
        assert limit.least is not None and limit.most is not None

        def broken(value: float, name: str = name) -> set[str]:
            settings = replace(server.settings, **{name: int(value)})
            return {each.rule for each in errors(judged(replace(server, settings=settings)))}

        assert not broken(limit.least) and not broken(limit.most), flag
        assert limit.below is not None and limit.below[0] in broken(limit.least - 1), flag
        assert limit.above is not None and limit.above[0] in broken(limit.most + 1), flag
    assert found["--max-num-batched-tokens"].below == ("R2", "must be at least 256 (the value of --max-num-seqs)")
    assert found["--max-model-len"].above is not None and found["--max-model-len"].above[0] == "R10"


def test_without_chunks_the_budget_starts_at_the_longest_prompt() -> None:
    found = {each.flag: each for each in limits(server_24_gib(enable_chunked_prefill=False))}
    budget = found["--max-num-batched-tokens"]
    assert (budget.least, budget.below and budget.below[0]) == (8192, "R1")


def test_knobs_cost_what_the_plan_says_they_cost() -> None:
    server = server_24_gib()
    found = {each.change: each.kv_tokens for each in prices(server)}
    more = replace(server, settings=replace(server.settings, max_num_batched_tokens=3072))
    assert found["+1024 of --max-num-batched-tokens"] == start_up(more).kv_tokens - start_up(server).kv_tokens
    assert found["+0.01 of --gpu-memory-utilization"] == pytest.approx(0.01 * 23.52 * GIB / (144 * 1024), abs=16)
    assert found["--max-num-seqs 512 instead of 256"] <= 0 <= found["--max-num-seqs 128 instead of 256"]
    assert found["--kv-cache-dtype fp8"] == pytest.approx(start_up(server).kv_tokens, abs=16)
    assert found["--tensor-parallel-size 2"] > 0


def test_a_version_that_is_not_known_gives_a_range_over_all_that_are() -> None:
    server = replace(server_24_gib(), version=version_of(None))
    wide, narrow = start_up(server), start_up(server_24_gib())
    assert wide.low < narrow.kv_tokens < wide.high
    with pytest.raises(ConfigError, match=r"nothing is known before 0\.6"):
        version_of("0.5.4")


def test_every_number_of_a_device_has_a_source() -> None:
    for device in DEVICES:
        for figure in (device.memory, device.bandwidth, device.link, *(peak for _, peak in device.peaks)):
            assert figure is None or (figure.value > 0 and len(figure.source) > 10), device.name


def test_a_device_is_found_by_any_spelling_and_never_guessed() -> None:
    assert find_device("nvidia a100 80gb").name == "A100-80GB"
    assert find_device("4090") is find_device("RTX-4090")
    with pytest.raises(ConfigError, match="--gpu A101 is not in the table of devices"):
        find_device("A101")


def test_ceilings_are_never_below_measured_steps() -> None:
    """Llama-3.1-8B on an RTX 4090: the fitted floor of measured steps is 14.5 ms + 3.9 (LLMServingSim's runs)."""
    asked = Question("x", LLAMA_8B, gpu="RTX-4090", dtype="bfloat16", max_model_len=8192)
    first = answer(asked)["roofline"]["ceilings"][0]
    assert 0.0140 < first["seconds"] < 0.0149 + 0.0039
