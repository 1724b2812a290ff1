"""`headrace serve` as a user types it: vLLM's spellings, refusals by name, and one real start."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import serve, spelling, vllm_flags
from headrace.cli.main import run
from headrace.engine.config import EngineArgs
from headrace.engine.demo import DEMO_DIRECTORY
from headrace.errors import ConfigError


def parsed(*argv: str) -> dict[str, Any]:
    """What the command is called with."""
    _, bound, _ = serve.app.parse_args(serve.prepare(argv), exit_on_error=False, print_error=False)
    return dict(bound.arguments)


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    assert run(["serve", *argv]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("headrace serve: ")
    return err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["demo"], {"model": "demo"}),
        (["--model", "demo"], {"model": "demo"}),
        (["--max-num-seqs", "64"], {"max_num_seqs": 64}),
        (["--speculative-config", '{"method": "ngram"}'], {"speculative_config": '{"method": "ngram"}'}),
        (
            ["--speculative-model", "[ngram]", "--num-speculative-tokens=5", "--ngram-prompt-lookup-max", "4"],
            {
                "speculative_config": '{"model": "[ngram]", "num_speculative_tokens": 5, "prompt_lookup_max": 4, '
                '"prompt_lookup_min": 1}'
            },
        ),
        (["--max_num_seqs=64"], {"max_num_seqs": 64}),
        (["--max-model-len", "4k"], {"max_model_len": "4k"}),
        (["--max-model-len", "-1"], {"max_model_len": "-1"}),
        (["--max-model-len", "auto"], {"max_model_len": "auto"}),
        (["--enable-chunked-prefill"], {"enable_chunked_prefill": True}),
        (["--enable-chunked-prefill", "false"], {"enable_chunked_prefill": False}),
        (["--enable-chunked-prefill", "True", "demo"], {"enable_chunked_prefill": True, "model": "demo"}),
        (["--enable_chunked_prefill=False"], {"enable_chunked_prefill": False}),
        (["--no-enable-chunked-prefill"], {"enable_chunked_prefill": False}),
        (["--no-enable-prefix-caching", "demo"], {"enable_prefix_caching": False, "model": "demo"}),
        (["--disable-log-requests"], {"enable_log_requests": False}),
        (["--enable-log-requests"], {"enable_log_requests": True}),
        (["--served-model-name", "a", "b", "--port", "0"], {"served_model_name": ["a", "b"], "port": 0}),
        (["--api-key", "a", "--api-key", "b"], {"api_key": ["a", "b"]}),
        (["--gpu-memory-utilization", ".5"], {"gpu_memory_utilization": 0.5}),
        (["--swap-space", "16"], {"swap_space": 16.0}),
    ],
)
def test_spellings(argv: list[str], expected: dict[str, Any]) -> None:
    assert parsed(*argv) == expected


def test_every_engine_option_is_a_flag() -> None:
    parameters = set(serve.serve.__annotations__)
    assert {field.name for field in dataclasses.fields(EngineArgs)} <= parameters


def test_what_vllm_knows_and_we_need_not_is_accepted_with_a_reason() -> None:
    argv = [
        "--tensor-parallel-size",
        "1",
        "--trust-remote-code",
        "-O3",
        "--enforce-eager",
        "demo",
    ]
    assert parsed(*argv) == {
        "model": "demo",
        "accepted_flag": [
            "--tensor-parallel-size 1: accepted, no effect: there is one device",
            "--trust-remote-code true: accepted, no effect: code from a model's directory is never run",
            "--compilation-config 3: accepted, no effect: nothing is compiled",
            "--enforce-eager true: accepted, no effect: steps are never captured as graphs",
        ],
    }


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("-tp 4", "--tensor-parallel-size 4 is not supported: there is one device; use 1, or leave it out"),
        ("--quantization gptq", "--quantization gptq: the model's weights are not quantised"),
        ("--kv_cache_dtype fp8", "--kv-cache-dtype fp8 is not supported"),
        ("--enable-lora", "--enable-lora is not supported: there are no LoRA adapters; leave it out"),
        ("--speculative-model x --num-speculative-tokens 2", "\"model\" is 'x', but drafts come from n-grams only"),
        ("--num-speculative-tokens 2", '--num-speculative-tokens needs --speculative-model "[ngram]"'),
        ("--speculative-config {} --ngram-prompt-lookup-max 2", "say the same thing; give only the second"),
        ("--speculative-config ngram", "'ngram' is no JSON object"),
        ("--gpus all", "--gpus is an option of `docker run`, not of the server"),
        ("--ipc=host", "--ipc is an option of `docker run`"),
        ("-v /a:/b", "-v is an option of `docker run`"),
        ("--enable-chunked-prefill=maybe", "--enable-chunked-prefill 'maybe' is neither true nor false"),
        ("--tensor-parallel-size", "--tensor-parallel-size needs a value"),
        ("--max-num-seqs many", "many"),
        ("--no-such-flag 3", "--no-such-flag"),
        ("--max-num-batched-tokens 64 --max-num-seqs 128 --port 0", "R2: --max-num-batched-tokens is 64"),
        ("--model /no/such/model --port 0", "--model /no/such/model is not a directory on this machine"),
        ("--port 70000", "--port 70000 must be between 0 and 65535"),
        ("--uvicorn-log-level loud", "--uvicorn-log-level 'loud' is not known"),
        ("--shutdown-timeout=-1", "--shutdown-timeout -1 must be at least 0"),
        ("--tool-call-parser magic", "--tool-call-parser 'magic' is not known; use hermes or llama3_json"),
        ("--reasoning-parser magic", "--reasoning-parser 'magic' is not known; use deepseek_r1 or qwen3"),
        ("--enable-auto-tool-choice", "--enable-auto-tool-choice needs --tool-call-parser"),
        ("--max-model-len 4x --port 0", "--max-model-len '4x' is not a number"),
    ],
)
def test_refusals_are_one_sentence_that_names_the_flag(
    capsys: pytest.CaptureFixture[str], argv: str, words: str
) -> None:
    assert words in refused(capsys, *argv.split())


def test_every_foreign_flag_is_accepted_or_refused_in_one_sentence() -> None:
    for flag, foreign in vllm_flags.FOREIGN.items():
        if foreign.neutral is not spelling.ANY:
            with pytest.raises(ConfigError, match=f"^{flag}.* is not supported: .*leave it out$"):
                spelling.accept(flag, foreign, "true" if foreign.switch else "something else")
        if foreign.neutral != ():
            value = (foreign.neutral or ("x",))[0]
            assert spelling.accept(flag, foreign, value).startswith(f"{flag} {value}: accepted, no effect: ")


def test_a_taken_port_is_said_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in refused(capsys, "--port", str(port), "--model", "/no/such/model", code=3)


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from headrace.cli.main import run; code = run(['serve', '--help']);"
        "sys.exit(code or 'torch' in sys.modules or 'fastapi' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert "--max-num-batched-tokens" in done.stdout


# -- one real start ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The demonstration model, shrunk until it loads at once."""
    model = tmp_path / "tiny"
    shutil.copytree(DEMO_DIRECTORY, model, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    config = json.loads((model / "config.json").read_text())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    (model / "config.json").write_text(json.dumps({**config, **shape, "num_key_value_heads": 1, "head_dim": 16}))
    return model


def test_a_published_command_starts_answers_and_drains(tiny: Path) -> None:
    pytest.importorskip("torch")
    argv = (
        f"serve --model {tiny} --load-format dummy --max-model-len 256 --max-num-batched-tokens 256 "
        "--enable-chunked-prefill false --tensor-parallel-size 1 --served-model-name m --port 0 --num-threads 1"
    ).split()
    traces = tiny.parent / "traces"
    environ = {
        **os.environ,
        "VLLM_TORCH_PROFILER_DIR": str(traces),
        "VLLM_API_KEY": "secret",
        "OPENAI_API_KEY": "secret",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli.main", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
    )
    try:
        assert server.stdout is not None
        ready = server.stdout.readline()
        assert ready.startswith("headrace is ready on http://127.0.0.1:"), server.communicate()[1]
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "ignore_eos": True}
        call = urllib.request.Request(
            ready.split()[-1] + "/v1/chat/completions",
            json.dumps(body).encode(),
            {"Authorization": "Bearer secret", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(call, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
        bench = f"bench --base-url {ready.split()[-1]} --tokenizer {tiny} --dataset-name random --num-prompts 2"
        command = [sys.executable, "-m", "headrace.cli.main", *bench.split(), "--profile", "--out", f"{tiny}-run"]
        lengths = ["--random-input-len", "8", "--random-output-len", "3"]
        done = subprocess.run([*command, *lengths], env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, 4), done.stderr  # 4: two prompts are too few to be a valid run
    finally:
        server.send_signal(signal.SIGTERM)
        out, log = server.communicate(timeout=60)
    assert server.returncode == 0
    assert out == ""  # the ready line was all
    for line in (
        "load_format = dummy: given; random weights, so the answers mean nothing",
        "max_num_seqs = 128: default",
        "--tensor-parallel-size 1: accepted, no effect: there is one device",
        f"profiler = torch, at most 64 steps into {traces}: VLLM_TORCH_PROFILER_DIR, which is deprecated",
        "scheduling: policy v1-whole, 256 tokens a step, 128 sequences, 256 tokens a sequence",
        "KV cache: 2,048 blocks of 16 = 32,768 tokens",
        "Maximum concurrency for 256 tokens per request: 128.00x",
    ):
        assert line in log
    assert "Traceback" not in log
    (trace,) = traces.iterdir()  # of the published flow: bench --profile, and the run says so
    with gzip.open(trace) as file:
        assert any(str(event.get("name")).startswith("aten::") for event in json.load(file)["traceEvents"])
    manifest = json.loads((Path(f"{tiny}-run") / "manifest.json").read_text())
    assert manifest["settings"]["profile"] is True and "profiler" in manifest["warnings"][0]


@pytest.mark.parametrize("argv", [["--api-key"], ["--api-key", "--port", "1"]])
def test_a_key_that_is_missing_does_not_start_an_open_server(argv: list[str]) -> None:
    """As an unquoted empty $KEY in a script leaves it."""
    with pytest.raises(ConfigError, match="--api-key needs a value"):
        serve.prepare(argv)
