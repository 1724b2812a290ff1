"""`headrace size`: one answer as text and as JSON, and a sentence for what cannot be answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.main import run

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
    "max_position_embeddings": 131_072,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def test_the_json_answer_has_what_scripts_need(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size", str(model), "--gpu", "H100", "--vllm-version", "0.10", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 8_030_261_248
    assert found["weight_bytes"] == 2 * 8_030_261_248
    assert found["kv_bytes_per_token"] == 128 << 10
    assert found["kv_tokens"] == found["kv_blocks"] * 16 and 440_000 < found["kv_tokens"] < 470_000
    assert found["max_concurrency"] == pytest.approx(found["kv_tokens"] / 131_072, rel=1e-6)
    assert {each["flag"] for each in found["rules"]} >= {"--max-num-batched-tokens", "--max-num-seqs"}
    assert found["published_formula"]["overstates"] == 4


def test_the_text_says_what_costs_what(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "--memory 23.52 --vllm-version 0.25 --max-model-len 8k --max_num_batched_tokens=4096"
    command += " --no-enable-chunked-prefill"
    assert run(["size", str(model / "config.json"), *command.split()]) == 0
    out = capsys.readouterr().out
    assert "The server would not start:" in out and "R1: --max-num-batched-tokens is 4096" in out
    assert "+1024 of --max-num-batched-tokens" in out and "KV tokens" in out
    assert "4 times the truth" in out


def test_without_a_device_the_model_alone_is_sized(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size", str(model), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kv_tokens"] is None and found["kv_bytes_per_token"] == 128 << 10
    assert run(["size", str(model)]) == 0
    assert "Give --gpu NAME or --memory GiB" in capsys.readouterr().out


def test_more_devices_share_weights_and_cache(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size", str(model), "--gpu", "A100", "-tp", "2", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kv_bytes_per_token_per_device"] == 64 << 10
    assert found["weight_bytes_per_device"] == pytest.approx(found["weight_bytes"] / 2, rel=0.001)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpu", "Z80"], "--gpu Z80 is not in the table of devices"),
        (["--gpu", "H100", "--memory", "80"], "exclude each other"),
        (["--memory", "-3"], "--memory -3 must be a number of GiB above 0"),
        (["--memory", "nan"], "--memory nan must be"),
        (["-tp", "3"], "does not divide the model's 32 attention heads"),
        (["--max-model-len", "0"], "--max-model-len 0 must be at least 1"),
        (["--kv-cache-dtype", "int3"], "--kv-cache-dtype 'int3' is not known"),
        (["--kv-cache-dtype", "fp8_ds_mla"], "latent attention"),
        (["--gpu-memory-utilization", "1.5"], "above 0 and at most 1"),
        (["--vllm-version", "new"], "--vllm-version must look like"),
        (["--dtype", "int7"], "dtype 'int7' is not supported"),
        (["--max-num-seqs", "many"], "many"),
    ],
)
def test_bad_flags_are_one_sentence_and_exit_2(
    model: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run(["size", str(model), *flags]) == 2
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == "" and len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read"),
        ("[]", "does not hold a JSON object"),
        (json.dumps({**LLAMA, "architectures": ["Novel"]}), "are not known here"),
        (json.dumps({key: value for key, value in LLAMA.items() if key != "vocab_size"}), "'vocab_size' is missing"),
        (json.dumps({**LLAMA, "quantization_config": {"quant_method": "magic"}}), "'magic' is not known"),
    ],
)
def test_bad_models_are_one_sentence_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert run(["size", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["size", str(tmp_path / "nowhere")]) == 2
    assert "there is no file or directory" in capsys.readouterr().err
    assert run(["size", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
