"""Declared flags -> resolved settings: defaults, forms, refusals.  No weights are loaded, torch is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.engine.config import EngineArgs, EngineConfig, parse_tokens, resolve
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.errors import ConfigError

GIB = 1 << 30


def resolved(
    free: int = 64 * GIB, environ: dict[str, str] | None = None, native_bf16: bool = True, **args: Any
) -> EngineConfig:
    return resolve(EngineArgs(**args), environ=environ or {}, free_memory_bytes=free, native_bf16=native_bf16)[0]


def reasons(free: int = 64 * GIB, environ: dict[str, str] | None = None, **args: Any) -> str:
    return "\n".join(resolve(EngineArgs(**args), environ=environ or {}, free_memory_bytes=free)[1])


def refusal(free: int = 64 * GIB, environ: dict[str, str] | None = None, **args: Any) -> str:
    with pytest.raises(ConfigError) as error:
        resolved(free, environ, **args)
    text = str(error.value)
    assert "\n" not in text and "Traceback" not in text
    return text


def demo_copy(directory: Path, **changes: Any) -> Path:
    """A model directory of the demonstration model's shape, with another config.json."""
    directory.mkdir(exist_ok=True)
    config = json.loads((DEMO_DIRECTORY / "config.json").read_text())
    config.update(changes)
    (directory / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    (directory / "tokenizer.json").write_bytes((DEMO_DIRECTORY / "tokenizer.json").read_bytes())
    return directory


@pytest.mark.parametrize(
    ("args", "policy", "budget", "seats", "length", "prefix"),
    [
        ({}, "v1", 2048, 128, 131072, True),
        ({"max_model_len": 512}, "v1", 2048, 128, 512, True),
        ({"max_model_len": 8, "max_num_seqs": 64}, "v1", 512, 64, 8, True),  # more than S * L is of no use
        ({"max_num_batched_tokens": 64}, "v1", 64, 64, 131072, True),  # a defaulted S is clamped
        ({"max_num_seqs": 4096}, "v1", 4096, 4096, 131072, True),  # a defaulted T is raised
        ({"enable_chunked_prefill": False}, "v1-whole", 131072, 128, 131072, True),
        ({"enable_chunked_prefill": False, "max_model_len": 512}, "v1-whole", 2048, 128, 512, True),
        ({"scheduler_version": "v0", "max_model_len": 512}, "v0-chunked", 2048, 128, 512, False),
        (
            {"scheduler_version": "v0", "enable_chunked_prefill": False, "max_model_len": 4096},
            "v0",
            4096,
            128,
            4096,
            False,
        ),
        # The published campaign's launches.
        ({"max_model_len": 102000, "max_num_batched_tokens": 64, "max_num_seqs": 64}, "v1", 64, 64, 102000, True),
        ({"max_model_len": 102000, "max_num_batched_tokens": 256}, "v1", 256, 128, 102000, True),
        (
            {"max_model_len": 256, "max_num_batched_tokens": 256, "enable_chunked_prefill": False},
            "v1-whole",
            256,
            128,
            256,
            True,
        ),
    ],
)
def test_defaults_follow_from_what_is_given(
    args: dict[str, Any], policy: str, budget: int, seats: int, length: int, prefix: bool
) -> None:
    config = resolved(**args)
    assert (config.policy, config.max_num_batched_tokens, config.max_num_seqs) == (policy, budget, seats)
    assert (config.max_model_len, config.enable_prefix_caching, config.block_size) == (length, prefix, 16)


def test_the_built_in_model_needs_no_flags() -> None:
    config = resolved()
    assert (config.model, config.load_format, config.dtype) == ("demo", "dummy", "bfloat16")
    assert (config.model_path, config.served_model_names) == (DEMO_DIRECTORY, ("demo",))
    assert resolved(model="demo") == config


@pytest.mark.parametrize(
    ("written", "tokens"),
    [("4096", 4096), (4096, 4096), ("4k", 4000), ("4K", 4096), ("1.5k", 1500), ("25.6k", 25600), ("2m", 2_000_000)],
)
def test_sizes_are_read_as_vllm_reads_them(written: str | int, tokens: int) -> None:
    assert parse_tokens("--max-model-len", written) == tokens


@pytest.mark.parametrize("written", ["", "k", "4 k", "4x", "1.5", "1e3", "0x10", "1.0001k"])
def test_other_sizes_are_refused_by_name(written: str) -> None:
    with pytest.raises(ConfigError, match="--max-model-len"):
        parse_tokens("--max-model-len", written)


@pytest.mark.parametrize("auto", ["auto", -1, "-1"])
def test_an_automatic_length_fits_the_kv_cache(auto: str | int) -> None:
    assert resolved(max_model_len=auto, num_gpu_blocks_override=100).max_model_len == 1600
    assert resolved(max_model_len=auto).max_model_len == 131072


def test_a_length_nobody_gave_fits_a_small_machine() -> None:
    config = resolved(free=GIB // 2)
    assert config.max_model_len == config.kv_tokens < 131072
    assert "what the KV cache holds; the model would allow 131072" in reasons(free=GIB // 2)


# -- memory -------------------------------------------------------------------------------------------------------

TOKEN_BYTES = 4096  # of the demonstration model in bfloat16


def test_the_kv_cache_is_no_larger_than_the_sequences_can_use() -> None:
    config = resolved(max_model_len=100, max_num_seqs=8)
    assert config.num_kv_blocks == 8 * 7  # 7 blocks of 16 hold 100 tokens


def test_the_kv_cache_is_modest_unless_asked() -> None:
    assert resolved().kv_tokens * TOKEN_BYTES == 2 * GIB
    asked = resolved(gpu_memory_utilization=0.5).kv_tokens * TOKEN_BYTES
    assert 31 * GIB < asked < 32 * GIB


def test_one_long_sequence_may_need_more_than_the_modest_size() -> None:
    config = resolved(dtype="float32", max_model_len=131072, max_num_seqs=1)
    assert config.kv_tokens == 131072
    big = resolved(environ={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}, max_model_len=1 << 20, max_num_seqs=2)
    assert big.kv_tokens == 1 << 20


def test_the_kv_cache_can_be_given_in_blocks_in_bytes_and_by_vllms_variable() -> None:
    assert resolved(num_gpu_blocks_override=8192, kv_cache_memory_bytes="1G").num_kv_blocks == 8192
    assert resolved(kv_cache_memory_bytes="1G").kv_tokens * TOKEN_BYTES == GIB
    assert resolved(environ={"VLLM_CPU_KVCACHE_SPACE": "3"}).kv_tokens * TOKEN_BYTES == 3 * GIB


def test_the_memory_line_adds_up() -> None:
    assert "memory: 64.00 GiB free * 0.9 = weights 0.11 GiB + activations 0.06 GiB + KV cache 2.00 GiB" in reasons()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"num_gpu_blocks_override": 10, "max_model_len": 512}, "R10: --max-model-len is 512 but must be at most 160"),
        (
            {"num_gpu_blocks_override": 10, "max_model_len": 512, "scheduler_version": "v0"},
            "R9: --max-model-len is 512 but must be at most 160",
        ),
        ({"gpu_memory_utilization": 0.001}, "raise --gpu-memory-utilization from 0.001 to at least 0.03"),
        ({"max_num_batched_tokens": 1 << 20}, "lower --max-num-batched-tokens to at most "),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization 1.5 must be above 0 and at most 1"),
        ({"kv_cache_memory_bytes": "100G"}, "lower --kv-cache-memory-bytes to at most "),
        ({"kv_cache_memory_bytes": "10"}, "--kv-cache-memory-bytes 10 must be at least 65536 (one block)"),
        ({"num_gpu_blocks_override": 1 << 30}, "lower --num-gpu-blocks-override to at most "),
        ({"num_gpu_blocks_override": 0}, "--num-gpu-blocks-override 0 must be at least 1"),
    ],
)
def test_memory_that_is_not_there_is_refused_with_a_bound(args: dict[str, Any], words: str) -> None:
    assert words in refusal(free=8 * GIB, **args)


def test_what_a_refusal_proposes_works() -> None:
    assert resolved(free=8 * GIB, gpu_memory_utilization=0.03, max_model_len=16).num_kv_blocks > 0
    most_bytes = int(refusal(free=8 * GIB, kv_cache_memory_bytes="100G").split()[-1])
    assert resolved(free=8 * GIB, kv_cache_memory_bytes=most_bytes).kv_tokens * TOKEN_BYTES == most_bytes
    words = refusal(free=8 * GIB, max_num_batched_tokens=1 << 20, gpu_memory_utilization=1.0).split()
    tokens, seats = (int(words[words.index("most", start) + 1]) for start in (0, words.index("--max-num-seqs")))
    limits = {"free": 8 * GIB, "gpu_memory_utilization": 1.0, "max_model_len": 16}
    assert resolved(**limits, max_num_batched_tokens=tokens, max_num_seqs=seats).num_kv_blocks > 0
    most = int(refusal(free=8 * GIB, num_gpu_blocks_override=1 << 30).split()[-1])
    assert resolved(free=8 * GIB, num_gpu_blocks_override=most).num_kv_blocks == most
    assert f"at most {most}" in refusal(free=8 * GIB, num_gpu_blocks_override=most + 1)


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            {"max_model_len": 512, "max_num_batched_tokens": 256, "enable_chunked_prefill": False},
            "R1: --max-num-batched-tokens is 256 but must be at least 512",
        ),
        (
            {"max_num_batched_tokens": 256, "enable_chunked_prefill": False},
            "R1: --max-num-batched-tokens is 256 but must be at least 131072",
        ),
        ({"max_num_batched_tokens": 64, "max_num_seqs": 65}, "R2: --max-num-batched-tokens is 64"),
        (
            {"scheduler_version": "v0", "enable_prefix_caching": True, "max_num_batched_tokens": 100},
            "R4: --max-num-batched-tokens is 100 but must be a multiple of 16",
        ),
        ({"max_model_len": 100, "long_prefill_token_threshold": 101}, "R6: --long-prefill-token-threshold is 101"),
        ({"max_num_batched_tokens": 0}, "R7: --max-num-batched-tokens is 0 but must be at least 1"),
        ({"max_num_seqs": 0}, "R7: --max-num-seqs is 0"),
        ({"block_size": 0}, "R7: --block-size is 0"),
        ({"max_model_len": 0}, "R7: --max-model-len is 0"),
        ({"scheduling_policy": "lifo"}, "R8: --scheduling-policy is lifo but must be one of fcfs, priority"),
        ({"scheduler_version": "v2"}, "R8: --scheduler-version is v2 but must be one of v0, v1"),
        ({"dtype": "half"}, "use --dtype bfloat16 (the same size) or --dtype float32"),
        ({"dtype": "int4"}, "--dtype 'int4' is not known; use one of auto, bfloat16, float32"),
        ({"load_format": "pt"}, "--load-format 'pt' is not known; use one of auto, safetensors, dummy"),
        ({"load_format": "safetensors"}, "the built-in model has no weight files"),
        ({"seed": -1}, "--seed -1 must be between 0"),
        ({"num_threads": 0}, "--num-threads 0 must be between 1"),
        ({"max_num_queued_reqs": 0}, "--max-num-queued-reqs 0 must be at least 1"),
        ({"generation_config": "other"}, "use one of auto, vllm"),
        ({"chat_template": "/no/such/file.jinja"}, "--chat-template /no/such/file.jinja cannot be read"),
        ({"model": "/no/such/model"}, "--model /no/such/model is not a directory on this machine"),
        ({"tokenizer": "/no/such/model"}, "/no/such/model is not a directory on this machine"),
    ],
)
def test_refusals_name_the_flag_and_an_accepted_value(args: dict[str, Any], words: str) -> None:
    assert words in refusal(**args)


def test_the_rules_speak_vllms_words_too() -> None:
    text = refusal(max_num_batched_tokens=64, max_num_seqs=128)
    assert "max_num_batched_tokens (64) must be greater than or equal to max_num_seqs (128)." in text


def test_a_length_beyond_the_model_needs_vllms_variable() -> None:
    text = refusal(max_model_len=200_000)
    assert "User-specified max_model_len (200000) is greater than the derived max_model_len" in text
    assert resolved(environ={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}, max_model_len=200_000).max_model_len == 200_000


def test_what_only_warns_is_said() -> None:
    assert "warning: R3: --max-num-batched-tokens is 4096" in reasons(max_num_batched_tokens=4096, max_model_len=16)


def test_threads_come_from_the_flag_then_the_environment() -> None:
    assert resolved(environ={"OMP_NUM_THREADS": "3"}).num_threads == 3
    assert resolved(environ={"OMP_NUM_THREADS": "3"}, num_threads=2).num_threads == 2


def test_swap_space_is_accepted_because_it_changes_nothing() -> None:
    assert "swap_space = 4: accepted, no effect" in reasons(swap_space=4.0)
    assert resolved(swap_space=4.0) == resolved()


# -- model directories --------------------------------------------------------------------------------------------


def test_a_directory_without_weights_says_what_it_has(tmp_path: Path) -> None:
    model = demo_copy(tmp_path / "m")
    assert "has no weights; this engine reads *.safetensors files only" in refusal(model=str(model))
    (model / "pytorch_model.bin").touch()
    assert "has only .bin weights" in refusal(model=str(model))
    assert resolved(model=str(model), load_format="dummy").load_format == "dummy"


def test_an_incomplete_download_names_the_missing_file(tmp_path: Path) -> None:
    model = demo_copy(tmp_path / "m")
    header = b'{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    (model / "model-1.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "the first is model-2.safetensors" in refusal(model=str(model))


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (1 << 60).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"]
)
def test_a_broken_weight_file_is_named(tmp_path: Path, content: bytes) -> None:
    model = demo_copy(tmp_path / "m")
    (model / "model.safetensors").write_bytes(content)
    assert "model.safetensors is not a whole safetensors file" in refusal(model=str(model))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported: LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "exl2"}}, "quant_method 'exl2' is not supported; supported: gptq"),
        ({"hidden_size": "big"}, "hidden_size must be a positive integer"),
        ({"vocab_size": ...}, "key 'vocab_size' is missing"),
    ],
)
def test_a_model_that_cannot_be_run_is_refused_before_torch(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(model=str(demo_copy(tmp_path / "m", **changes)), load_format="dummy")


@pytest.mark.parametrize(("own", "used"), [("float32", "float32"), ("float16", "bfloat16"), (..., "float32")])
def test_auto_takes_the_checkpoints_dtype_where_it_can(tmp_path: Path, own: Any, used: str) -> None:
    assert resolved(model=str(demo_copy(tmp_path / "m", torch_dtype=own)), load_format="dummy").dtype == used


@pytest.mark.parametrize("own", ["bfloat16", "float16", "float32"])
def test_auto_does_not_emulate_bfloat16(tmp_path: Path, own: str) -> None:
    model = str(demo_copy(tmp_path / "m", torch_dtype=own))
    assert resolved(model=model, load_format="dummy", native_bf16=False).dtype == "float32"
    assert resolved(model=model, load_format="dummy", native_bf16=False, dtype="bfloat16").dtype == "bfloat16"


def test_an_int8_cache_holds_nearly_twice_the_tokens(tmp_path: Path) -> None:
    """Sized by what it takes: a byte a number and an fp32 scale for each vector of a head."""
    model = str(demo_copy(tmp_path / "m"))
    room = {"model": model, "load_format": "dummy", "dtype": "bfloat16", "kv_cache_memory_bytes": "64M"}
    half, small = resolved(**room), resolved(**room, kv_cache_dtype="int8")
    assert (half.kv_cache_dtype, small.kv_cache_dtype) == ("bfloat16", "int8")
    head_dim = json.loads((tmp_path / "m" / "config.json").read_text())["head_dim"]
    assert small.kv_tokens / half.kv_tokens == pytest.approx(2 * head_dim / (head_dim + 4), rel=0.01)
    assert "--kv-cache-dtype fp8 is not supported; use auto" in refusal(**room, kv_cache_dtype="fp8")


def test_config_json_that_is_no_json_is_named(tmp_path: Path) -> None:
    model = demo_copy(tmp_path / "m")
    (model / "config.json").write_text("{")
    assert "config.json cannot be read as JSON" in refusal(model=str(model))


def test_a_template_may_be_a_file_or_the_text_itself(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert resolved(chat_template=str(tmp_path / "t.jinja")).chat_template == "{{ messages }}"
    assert resolved(chat_template="{{ messages[0] }}").chat_template == "{{ messages[0] }}"


def test_resolving_does_not_import_torch() -> None:
    code = (
        "import sys; from headrace.engine.config import EngineArgs, resolve; resolve(EngineArgs());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_hub_name_is_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--small"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    demo_copy(repository / "snapshots" / commit)
    config = resolved(model="someone/small", download_dir=str(tmp_path), load_format="dummy")
    assert config.model_path == repository / "snapshots" / commit
    assert config.served_model_names == ("someone/small",)
    assert "neither a directory here, nor in the local Hugging Face cache" in refusal(
        model="someone/other", download_dir=str(tmp_path)
    )
