"""Bytes of stored weights: formats by hand, whole checkpoints against their published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.sizing.architectures import describe
from headrace.sizing.modules import Module, Role
from headrace.sizing.weights import Storage, StoredWeights, model_dtype, read_storage

WEIGHT = Module("layers.0.mlp.up_proj", Role.MLP, outputs=512, inputs=1024)
HEAD = Module("lm_head", Role.HEAD, 32_000, 1024)
TABLE = Module("embed_tokens", Role.EMBEDDING, 32_000, 1024, linear=False)


def storage(section: dict[str, Any], **more: Any) -> Storage:
    return read_storage({"quantization_config": section, **more}, "bfloat16")


@pytest.mark.parametrize(
    ("section", "size"),
    [
        # packed integers, 16-bit scales, packed zero points, and the group of each input (4.16 bits a weight)
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
            512 * 1024 // 2 + 8 * 512 * 2 + 8 * 512 // 2 + 1024 * 4,
        ),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 512 * 1024 + 512 * 2 + 512 + 1024 * 4),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 512 * 1024 // 2 + 8 * 512 * 2 + 8 * 512 // 2),
        ({"quant_method": "fp8"}, 512 * 1024 + 4),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 512 * 1024 + 4 * 8 * 4),
        ({"quant_method": "mxfp4"}, 512 * 1024 // 2 + 512 * 1024 // 32),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 512 * 1024 // 2 + 512 * 1024 // 16 + 8),
    ],
)
def test_one_matrix_by_hand(section: dict[str, Any], size: int) -> None:
    stored = storage(section)
    assert stored.module_bytes(WEIGHT) == size
    assert stored.module_bytes(HEAD) == stored.module_bytes(TABLE) == 32_000 * 1024 * 2  # never by default


def test_groups_of_compressed_tensors() -> None:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}
    section = {"quant_method": "compressed-tensors", "config_groups": {"all": {"weights": weights}}}
    assert storage(section).module_bytes(WEIGHT) == 512 * 1024 // 2 + 8 * 512 * 2  # 4.125 bits


@pytest.mark.parametrize(
    "pattern", ["model.layers.0.mlp.up_proj", "model.layers.0.mlp", "*.mlp.*", "layers.0*", "up_proj", "re:.*up_proj$"]
)
def test_what_is_listed_stays_in_16_bits(pattern: str) -> None:
    section = {"quant_method": "fp8", "modules_to_not_convert": [pattern]}
    assert storage(section).module_bytes(WEIGHT) == 2 * 512 * 1024


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("openai--gpt-oss-120b", 65.25),  # metadata.total_size of its index
        ("moonshotai--Kimi-K2-Instruct", 1029.2),
        ("Qwen--Qwen3-8B", 16.38),
        ("meta-llama--Meta-Llama-3.1-405B", 811.7),
    ],
)
def test_whole_checkpoints(shared_data: Path, name: str, gigabytes: float) -> None:
    config = json.loads((shared_data / "model-configs" / name / "config.json").read_text())
    stored = StoredWeights(describe(config, name), read_storage(config, "bfloat16", name))
    assert stored.per_rank() / 1e9 == pytest.approx(gigabytes, rel=0.0005)


def test_the_published_campaigns_model_is_38_8_gib_and_a_seventh_above_the_naive_half_byte() -> None:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 29_696,
        "vocab_size": 152_064,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    }
    model = describe(config)
    stored = StoredWeights(model, read_storage(config, "float16"))
    assert stored.per_rank() / 2**30 == pytest.approx(38.76, abs=0.03)


def test_ranks_share_what_can_be_divided(shared_data: Path) -> None:
    config = json.loads((shared_data / "model-configs" / "deepseek-ai--DeepSeek-V3" / "config.json").read_text())
    stored = StoredWeights(describe(config), read_storage(config, "bfloat16"))
    assert stored.per_rank() / 8 < stored.per_rank(8) < stored.per_rank() / 8 * 1.05  # latent projections are copied


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"quant_method": "magic"}, "quant_method 'magic' is not known; known: gptq"),
        ({"quant_method": "gptq", "bits": 4}, "group_size must be"),
        ({"quant_method": "modelopt", "quant_algo": "W1"}, "quant_algo 'W1' is not known"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "weight_block_size must be two numbers"),
    ],
)
def test_what_is_not_known_is_refused(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        storage(section)


def test_a_dtype_that_is_not_stated_is_an_error_here() -> None:
    with pytest.raises(ConfigError, match="'dtype'"):
        model_dtype({}, "config.json")
    assert model_dtype({"text_config": {"torch_dtype": "float16"}}, "config.json") == "float16"
