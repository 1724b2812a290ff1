"""Every configuration of the collection: parameters as transformers counts them, KV bytes from sums made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.sizing import memory
from headrace.sizing.architectures import Model, describe

# name: (parameters of the language model by transformers 5.23, numbers a token writes into the KV cache, summed by hand
# from the published shapes: layers * (keys + values) * key-value heads * head size)
KV_LLAMA_8B, KV_QWEN3_8B = 32 * 2 * 8 * 128, 36 * 2 * 8 * 128
MLA = 512 + 64
MODELS: dict[str, tuple[int, int]] = {
    "MiniMaxAI--MiniMax-M2.5": (228_689_748_992, 62 * 2 * 8 * 128),
    "Qwen--Qwen3-0.6B": (596_049_920, 28 * 2 * 8 * 128),
    "Qwen--Qwen3-235B-A22B-FP8": (235_093_634_560, 94 * 2 * 4 * 128),
    "Qwen--Qwen3-30B-A3B": (30_532_122_624, 48 * 2 * 4 * 128),
    "Qwen--Qwen3-32B-FP8": (32_762_123_264, 64 * 2 * 8 * 128),
    "Qwen--Qwen3-8B": (8_190_735_360, KV_QWEN3_8B),
    "Qwen--Qwen3-VL-2B-Instruct": (2_127_532_032 - 406_957_056, 28 * 2 * 8 * 128),
    "Qwen--Qwen3-VL-30B-A3B-Instruct": (31_070_754_032 - 538_631_408, 48 * 2 * 4 * 128),
    "Qwen--Qwen3-VL-8B-Instruct": (8_767_123_696 - 576_388_336, KV_QWEN3_8B),
    "Qwen--Qwen3.5-122B-A10B": (122_111_526_912, 12 * 2 * 2 * 256),  # a quarter of 48 layers
    "Qwen--Qwen3.5-27B": (26_895_998_464, 16 * 2 * 4 * 256),
    "XiaomiMiMo--MiMo-V2-Flash": (308_778_768_832, (9 * 4 + 39 * 8) * (192 + 128)),  # values narrower than keys
    "deepseek-ai--DeepSeek-V3": (671_026_404_352, 61 * MLA),
    # A key that is its own value in each layer; an entry for every 4 tokens in 21 layers, for every 128 in 20.
    "deepseek-ai--DeepSeek-V4-Flash": (284_332_230_231, 43 * 512 + 21 * 512 // 4 + 20 * 512 // 128),
    "falcon-180b": (178_557_088_768, 80 * 2 * 8 * 64),
    "glm-5.2-fp8-short": (743_911_199_232, 78 * MLA),
    "google--gemma-4-26B-A4B": (25_805_933_872 - 572_792_112, 25 * 2 * 8 * 256 + 5 * 2 * 2 * 512),
    "llama-2-7b-hf": (6_738_415_616, 32 * 2 * 32 * 128),
    "llama-3-8b": (8_030_261_248, KV_LLAMA_8B),
    "llama-4-scout-17b-16e-instruct-fp8-dynamic": (107_769_861_120, 48 * 2 * 8 * 128),
    "meta-llama--Llama-4-Maverick-17B-128E-Instruct": (400_711_848_960, 48 * 2 * 8 * 128),
    "meta-llama--Meta-Llama-3.1-405B": (405_853_388_800, 126 * 2 * 8 * 128),
    "meta-llama--Meta-Llama-3.1-8B": (8_030_261_248, KV_LLAMA_8B),
    "mistral-nemo-instruct-2407": (12_247_782_400, 40 * 2 * 8 * 128),
    "mistralai--Mixtral-8x7B-v0.1": (46_702_792_704, KV_LLAMA_8B),
    "moonshotai--Kimi-K2-Instruct": (1_026_879_353_328 - 471_143_920, 61 * MLA),  # as Kimi K2.5 without its vision
    "nvidia--DeepSeek-V3.1-NVFP4": (671_026_404_352, 61 * MLA),
    "nvidia--DeepSeek-V4-Pro-NVFP4": (1_572_997_179_491, 61 * 512 + 30 * 512 // 4 + 31 * 512 // 128),
    "nvidia--GLM-5.1-NVFP4": (743_911_199_232, 78 * MLA),
    "nvidia--Kimi-K2.5-NVFP4": (1_026_879_353_328 - 471_143_920, 61 * MLA),
    "nvidia--Kimi-K2.7-Code-NVFP4": (1_026_879_353_328 - 471_143_920, 61 * MLA),
    "nvidia--Llama-3.1-70B-Instruct-FP8": (70_553_706_496, 80 * 2 * 8 * 128),
    "nvidia--MiniMax-M2.7-NVFP4": (228_689_748_992, 62 * 2 * 8 * 128),
    "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31_577_937_344, 6 * 2 * 2 * 128),  # 6 of 52 layers attend
    "nvidia--NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": (120_668_687_360, 8 * 2 * 2 * 128),
    "nvidia--NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (549_308_968_960, 12 * 2 * 2 * 128),
    "nvidia--Nemotron-H-56B-Base-8K": (56_324_350_464, 10 * 2 * 8 * 128),
    "nvidia--Qwen3-235B-A22B-NVFP4": (235_093_634_560, 94 * 2 * 4 * 128),
    "nvidia--Qwen3.5-397B-A17B-NVFP4": (396_346_350_336, 15 * 2 * 2 * 256),
    "nvidia--Qwen3.6-27B-NVFP4": (26_895_998_464, 16 * 2 * 4 * 256),
    "openai--gpt-oss-120b": (116_829_156_672, 36 * 2 * 8 * 64),
    "qwen2-0_5b": (463_987_712, 24 * 2 * 16 * 64),
    "qwen2-14b": (14_770_033_664, 48 * 2 * 8 * 128),
    "qwen2.5-7b-instruct": (7_615_616_512, 28 * 2 * 4 * 128),
    "qwen3-4b": (4_022_468_096, KV_QWEN3_8B),
    "seed-oss-36b": (36_151_104_512, 64 * 2 * 8 * 128),
    "sgl-project--DeepSeek-V4-Flash-FP8": (284_332_230_231, 43 * 512 + 21 * 512 // 4 + 20 * 512 // 128),
    # transformers was given another vocabulary (128,815): 81 rows of the embedding and of the head more.
    "stepfun-ai--Step-3.7-Flash": (197_824_847_872 - 1_981_014_784 + 81 * 4096 * 2 + 0, 45 * 2 * 8 * 128),
    "yi-34b": (34_388_917_248, 60 * 2 * 8 * 128),
    "zai-org--GLM-5": (743_911_199_232, 78 * MLA),
    "zai-org--GLM-5.1-FP8": (743_911_199_232, 78 * MLA),
    "zai-org--GLM-5.2": (743_377_000_704, 78 * MLA),
}


def config_of(shared_data: Path, name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((shared_data / "model-configs" / name / "config.json").read_text())
    return config


def model_of(shared_data: Path, name: str) -> Model:
    return describe(config_of(shared_data, name), name)


def test_no_configuration_is_left_out(shared_data: Path) -> None:
    assert {path.name for path in (shared_data / "model-configs").iterdir()} == set(MODELS)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_parameters_and_kv_bytes_are_exact(shared_data: Path, name: str) -> None:
    parameters, kv_numbers = MODELS[name]
    model = model_of(shared_data, name)
    assert memory.parameters(model).total == parameters
    assert memory.kv_bytes_per_token(model, 2) == 2 * kv_numbers
    assert memory.kv_bytes_per_token(model, 1) == kv_numbers


def test_windows_cap_what_a_sequence_holds(shared_data: Path) -> None:
    gemma, gpt = model_of(shared_data, "google--gemma-4-26B-A4B"), model_of(shared_data, "openai--gpt-oss-120b")
    assert memory.far_bytes_per_token(gemma, 2) == 20 << 10  # 5 full layers of 2 heads
    assert memory.far_bytes_per_token(gpt, 2) == 36 << 10  # every second layer
    flat = 131_072 * memory.kv_bytes_per_token(gpt, 2)
    assert flat / memory.sequence_bytes(gpt, 131_072, 2) == pytest.approx(2.0, abs=0.01)


def test_states_do_not_grow(shared_data: Path) -> None:
    nemotron = model_of(shared_data, "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16")
    one, two = (memory.sequence_bytes(nemotron, length, 2) for length in (1600, 3200))
    assert two - one == 1600 * memory.kv_bytes_per_token(nemotron, 2)
    # 23 Mamba layers: 64 heads of 64 * 128 float32 numbers, and 3 columns of a convolution over 6,144 channels.
    assert memory.state_bytes_per_sequence(nemotron) == 23 * (64 * 64 * 128 * 4 + 3 * 6144 * 2)


def test_latent_vectors_are_on_every_rank_and_each_rank_keeps_a_head(shared_data: Path) -> None:
    deepseek, qwen = model_of(shared_data, "deepseek-ai--DeepSeek-V3"), model_of(shared_data, "Qwen--Qwen3-30B-A3B")
    assert memory.kv_bytes_per_token(deepseek, 2, 8) == memory.kv_bytes_per_token(deepseek, 2)
    whole = memory.kv_bytes_per_token(qwen, 2)
    assert [memory.kv_bytes_per_token(qwen, 2, ranks) for ranks in (2, 4, 8)] == [whole // 2, whole // 4, whole // 4]


def test_an_indexer_keeps_its_own_keys_and_shared_layers_none(shared_data: Path) -> None:
    assert memory.indexer_bytes_per_token(model_of(shared_data, "zai-org--GLM-5")) == 78 * (128 + 4)
    assert memory.indexer_bytes_per_token(model_of(shared_data, "zai-org--GLM-5.2")) == 21 * (128 + 4)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("deepseek-ai--DeepSeek-V3", "kv_lora_rank"),
        ("openai--gpt-oss-120b", "layer_types"),
        ("openai--gpt-oss-120b", "sliding_window"),
        ("nvidia--Nemotron-H-56B-Base-8K", "hybrid_override_pattern"),
        ("deepseek-ai--DeepSeek-V4-Flash", "compress_ratios"),
        ("XiaomiMiMo--MiMo-V2-Flash", "swa_num_key_value_heads"),
        ("MiniMaxAI--MiniMax-M2.5", "num_local_experts"),
    ],
)
def test_a_missing_key_is_an_error(shared_data: Path, name: str, key: str) -> None:
    config = config_of(shared_data, name)
    del config[key]
    with pytest.raises(ConfigError, match=key):
        describe(config, "config.json")
