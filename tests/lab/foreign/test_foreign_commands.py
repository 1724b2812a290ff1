"""What launch commands and the client's own lines say about the configuration."""

from __future__ import annotations

from headrace.lab.records.foreign.commands import Context, read_context


def settings(text: str) -> dict:
    return read_context(text.splitlines(), Context()).settings()


def test_docker_launch_over_several_lines() -> None:
    found = settings(
        """\
$ docker run --gpus all \\
  -e VLLM_TORCH_PROFILER_DIR=/traces \\
  vllm/vllm-openai:v0.6.1 \\
  --model /data/M \\
  --max-model-len 2048 --max-num-batched-tokens=512 \\
  --enable-chunked-prefill false
$ python3 benchmarks/benchmark_serving.py --backend vllm --model /data/M --dataset D.json --profile
Starting profiler...
Traffic request rate: inf
100%|####| 1000/1000 [01:06:43<00:00,  2.48it/s]
"""
    )
    assert found == {
        "backend": "vllm",
        "model": "/data/M",
        "version": "0.6.1",
        "dataset": "D.json",
        "request_rate": "inf",
        "max_model_len": 2048,
        "max_num_batched_tokens": 512,
        "enable_chunked_prefill": False,
        "num_prompts": 1000,
        "progress_elapsed_s": 4003,
        "profile": True,
        "max_num_seqs": 256,
        "policy": "v0",
        "implied": found["implied"],
    }
    assert set(found["implied"]) == {"max_num_seqs", "policy"}  # each with the rule that implies it
    assert all("V0" in why for why in found["implied"].values())


def test_v0_chunks_by_itself_above_32768_tokens() -> None:
    launch = "docker run vllm/vllm-openai --model M --max-model-len {}\nTraffic request rate: inf"
    long, short = settings(launch.format(32769)), settings(launch.format(32768))
    assert (long["enable_chunked_prefill"], short["enable_chunked_prefill"]) == (True, False)
    assert "32768" in long["implied"]["enable_chunked_prefill"]


def test_nothing_is_implied_for_a_client_of_today() -> None:
    found = settings(
        "vllm serve M --max-num-seqs 8 --no-enable-chunked-prefill\n"
        "Traffic request rate: inf\nBurstiness factor: 1.0 (Poisson process)\n"
    )
    assert found == {
        "model": "M",
        "max_num_seqs": 8,
        "enable_chunked_prefill": False,
        "request_rate": "inf",
        "burstiness": 1.0,
    }


def test_the_clients_argument_dump_is_exact() -> None:
    found = settings(
        "Namespace(subparser='bench', dispatch_function=<function C.cmd at 0x7a>, num_prompts=200, "
        "dataset_name='random', random_input_len=1024, random_output_len=256, backend='openai', max_concurrency=None, "
        "model='m/x', request_rate=inf, seed=7, profile=False)"
    )
    assert found == {
        "num_prompts": 200,
        "dataset": "random",
        "random_input_len": 1024,
        "random_output_len": 256,
        "backend": "openai",
        "model": "m/x",
        "request_rate": "inf",
        "seed": 7,
    }


def test_the_server_stays_and_the_client_goes() -> None:
    first = read_context(["vllm serve M --max-num-seqs 8", "vllm bench serve --num-prompts 5"], Context())
    second = read_context(["vllm bench serve --request-rate 2"], first)
    assert second.settings() == {"model": "M", "max_num_seqs": 8, "request_rate": 2.0}


def test_a_command_in_prose_is_no_command() -> None:
    assert settings("Once the `vllm serve --max-num-seqs 3` runs, use `vllm bench serve --num-prompts 9`.") == {}


def test_a_shell_variable_has_no_value() -> None:
    assert settings("vllm serve M --max-model-len $LEN --max-num-seqs 4") == {"model": "M", "max_num_seqs": 4}


def test_the_servers_own_lines_state_what_is_in_force() -> None:
    found = settings(
        "(APIServer pid=1) INFO 09-02 [api_server.py] vLLM API server version 0.10.1.1\n"
        "INFO non-default args: {'model': 'M', 'max_model_len': 4096, 'host': 'h'}\n"
        "INFO Chunked prefill is enabled with max_num_batched_tokens=8192.\n"
    )
    assert found == {
        "version": "0.10.1.1",
        "model": "M",
        "max_model_len": 4096,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 8192,
    }


def test_bars_of_other_work_are_not_the_run() -> None:
    bars = "Test request: 100%|##| 1/1 [00:03<00:00]\nGenerating prompts: 100%|##| 64/64 [00:03<00:00]\n"
    assert settings(bars) == {}
