"""`headrace bench` as a user types it: vLLM's flags, its block and file, and one sentence for bad input."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lab" / "client"))
from scripted_server import Answer, ScriptedServer, Seen, as_json, model_server

from headrace.cli.main import run
from headrace.lab.client.control import BoundedProfile
from headrace.lab.records.store import read_run

SMALL = ["--num-prompts", "6", "--scale", "0.1", "--disable-tqdm"]


@pytest.fixture
def server() -> object:
    with ScriptedServer() as running:
        yield running


def bench(server: ScriptedServer, *arguments: str) -> int:
    return run(["bench", "--base-url", server.url, *SMALL, *arguments])


def test_it_prints_vllms_block(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server) == 0
    out, err = capsys.readouterr()
    assert (
        "Traffic request rate: inf\nBurstiness factor: 1.0 (Poisson process)\nMaximum request concurrency: None\n"
        in out
    )
    lines = out.splitlines()
    assert lines[-1] == "=" * 50 and "============ Serving Benchmark Result ============" in lines
    assert f"{'Successful requests:':<40} {6:<10}" in lines
    assert "client: " in err and "Traceback" not in err
    assert server.completions()[0]["model"] == "tiny"  # what /v1/models says


def test_underscores_and_the_word_serve_are_accepted(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "serve", "--base_url", server.url, "--num_prompts=3", "--random_input_len", "8"]
    arguments += ["--random-output-len=2", "--dataset_name=random", "--disable_tqdm"]
    assert run(arguments) == 0
    assert [len(body["prompt"]) for body in server.completions()] == [8, 8, 8]
    assert "Total generated tokens:                  6" in capsys.readouterr().out


def test_the_published_client_command(server: ScriptedServer, tmp_path: Path) -> None:
    data = [{"conversations": [{"value": f"question {i}"}, {"value": "an answer"}]} for i in range(9)]
    (tmp_path / "sharegpt.json").write_text(json.dumps(data))
    command = f"bench --backend vllm --model some/model --dataset {tmp_path}/sharegpt.json --num-prompts 5"
    code = run([*command.split(), "--base-url", server.url, "--disable-tqdm"])
    assert code == 0
    for body in server.completions():
        assert body["model"] == "some/model" and body["prompt"].startswith("question") and body["max_tokens"] == 9
        assert "ignore_eos" not in body and "temperature" not in body


def test_a_ramp_a_prefix_and_vllms_other_flags(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset-name", "random", "--input-len", "8", "--output-len", "2", "--random-prefix-len", "5"]
    arguments += ["--num-prompts", "6", "--disable-tqdm", "--ramp-up-strategy", "linear", "--ramp-up-start-rps", "50"]
    arguments += ["--ramp_up_end_rps=100", "--burstiness", "inf", "--save-result", "--result-dir", str(tmp_path)]
    arguments += ["--trust-remote-code", "--request-id-prefix", "mine-", "--plot-timeline", "false", "--best_of=1"]
    assert run(["bench", "--base-url", server.url, *arguments]) == 0
    prompts = [body["prompt"] for body in server.completions()]
    assert len({tuple(prompt[:5]) for prompt in prompts}) == 1 and len({tuple(prompt) for prompt in prompts}) == 6
    assert {(len(body["prompt"]), body["max_tokens"]) for body in server.completions()} == {(13, 2)}
    out, err = capsys.readouterr()
    assert "Traffic ramp-up strategy: linear.\nWill increase RPS from 50 to 100 RPS" in out
    assert "note: --request-id-prefix mine-: accepted, no effect" in err and err.count("accepted, no effect") == 4
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("openai-ramp-up-linear-50qps-100qps-tiny-")
    result = json.loads(path.read_text())
    names = list(result)
    place = names.index("max_concurrency")
    assert names[place + 1 : place + 4] == ["ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps"]
    assert result["request_rate"] == "inf" and result["ramp_up_end_rps"] == 100


def test_sampling_options_headers_and_extra_body_reach_the_server(server: ScriptedServer) -> None:
    options = ["--temperature", "0", "--top-k", "5", "--no-ignore-eos", "--header", "X-A=1", "X-B=2"]
    assert bench(server, *options, "--extra-body", '{"min_tokens": 2}') == 0
    body = server.completions()[0]
    assert (body["temperature"], body["top_k"], body["min_tokens"]) == (0.0, 5, 2) and "ignore_eos" not in body
    headers = next(seen.headers for seen in server.seen if seen.path == "/v1/completions")
    assert (headers["x-a"], headers["x-b"]) == ("1", "2")


def test_the_key_is_sent_and_stored_nowhere(
    server: ScriptedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sekret")
    assert bench(server, "--out", str(tmp_path / "run")) == 0
    assert all(seen.headers["authorization"] == "Bearer sekret" for seen in server.seen)
    assert "sekret" not in "".join(path.read_text() for path in (tmp_path / "run").iterdir())


def test_the_result_file(server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = bench(
        server,
        *("--save-result", "--save-detailed", "--result-dir", str(tmp_path / "results"), "--label", "mine"),
        *("--metadata", "gpu=none", "tp=1", "--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50,99.9"),
        *("--goodput", "ttft:10000", "e2el:60000"),
    )
    assert code == 0
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.startswith("mine-infqps-tiny-") and path.name.endswith(".json")
    result = json.loads(path.read_text())
    assert "\n" not in path.read_text()
    assert result["completed"] == 6 and result["request_rate"] == "inf" and result["gpu"] == "none"
    assert len(result["ttfts"]) == 6 and result["request_goodput"] > 0
    assert "p99.9_e2el_ms" in result and "mean_tpot_ms" not in result
    assert "P99.9 E2EL (ms):" in capsys.readouterr().out


def test_results_can_be_appended_one_a_line(server: ScriptedServer, tmp_path: Path) -> None:
    for _ in range(2):
        flags = ["--append-result", "--save-result", "--result-dir", str(tmp_path), "--result-filename", "all.jsonl"]
        assert bench(server, *flags) == 0
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert [json.loads(line)["completed"] for line in lines] == [6, 6]


def test_the_block_of_2025(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(server, "--dialect", "vllm-2025") == 0
    out = capsys.readouterr().out
    assert "Total Token throughput" in out and "Failed requests" not in out


def test_raw_records_are_kept_on_request(server: ScriptedServer, tmp_path: Path) -> None:
    assert bench(server, "--out", str(tmp_path / "run"), "--backend", "openai-chat") == 0
    manifest, records = read_run(tmp_path / "run")
    assert len(records) == 6 and manifest["settings"]["backend"] == "openai-chat"
    assert bench(server, "--out", str(tmp_path / "run")) == 2


def test_when_every_request_failed_the_exit_code_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    def dead(seen: Seen) -> Answer:
        return as_json({"detail": "engine died"}, 500) if "completions" in seen.path else model_server(seen)

    with ScriptedServer(dead) as server:
        assert bench(server) == 1
    out, err = capsys.readouterr()
    assert "Failed requests:                         6" in out and "engine died" in err and "INVALID" in err


def test_a_run_of_which_a_third_failed_is_not_believed(capsys: pytest.CaptureFixture[str]) -> None:
    def refuses_some(seen: Seen) -> Answer:
        if "completions" in seen.path and seen.body and len(seen.body["prompt"]) > 10:
            return as_json({"error": {"message": "too long"}}, 400)
        return model_server(seen)

    with ScriptedServer(refuses_some) as server:
        assert bench(server) == 4
    assert "requests failed" in capsys.readouterr().err


def test_a_profiled_run_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def with_profiler(seen: Seen) -> Answer:
        return Answer() if seen.path.endswith("_profile") else model_server(seen)

    with ScriptedServer(with_profiler) as server:
        assert bench(server, "--profile", "--out", str(tmp_path / "run")) == 0
        order = [seen.path for seen in server.seen if seen.method == "POST"]
    assert "/start_profile" in order and order[-1] == "/stop_profile"
    assert "Starting profiler..." in capsys.readouterr().out
    manifest, _ = read_run(tmp_path / "run")
    assert manifest["settings"]["profile"] is True and "profiler" in manifest["warnings"][0]


def test_a_profiler_that_does_not_stop_costs_a_warning_and_not_the_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks_at_the_end(seen: Seen) -> Answer:
        if seen.path == "/stop_profile":
            return as_json({"error": {"message": "no trace"}}, 500)
        return Answer() if seen.path.endswith("_profile") else model_server(seen)

    with ScriptedServer(breaks_at_the_end) as server:
        assert bench(server, "--profile", "--out", str(tmp_path / "run")) == 0
    out, err = capsys.readouterr()
    assert f"{'Successful requests:':<40} {6:<10}" in out.splitlines()
    manifest, records = read_run(tmp_path / "run")
    assert len(records) == 6 and "the profiler could not be stopped" in manifest["warnings"][-1]
    assert "note: the profiler could not be stopped" in err


def test_a_reader_that_leaves_costs_neither_the_measurement_nor_its_exit_code(
    server: ScriptedServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "headrace.cli.main", "bench", "--base-url", server.url, *SMALL]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0
    assert len(read_run(tmp_path / "run")[1]) == 6


def test_a_result_that_cannot_be_written_is_shown_all_the_same(
    server: ScriptedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "taken").mkdir()
    assert bench(server, "--save-result", "--result-dir", str(tmp_path / "results"), "--result-filename", "taken") == 3
    out, err = capsys.readouterr()
    assert "Serving Benchmark Result" in out and "cannot be written" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--request-rate", "0"], "request_rate"),
        (["--backend", "tgi"], "--backend must be one of"),
        (["--endpoint", "/v1/chat/completions"], "openai-chat"),
        (["--dataset-name", "poems"], "dataset_name"),
        (["--dataset-name", "sharegpt"], "dataset_path"),
        (["--dataset", "a.json", "--dataset-name", "random"], "--dataset"),
        (["--dataset", "nowhere.json"], "nowhere.json"),
        (["--goodput", "speed:1"], "--goodput"),
        (["--metadata", "novalue"], "--metadata"),
        (["--header", "novalue"], "--header"),
        (["--extra-body", "{"], "--extra-body"),
        (["--extra-body", "[]"], "--extra-body"),
        (["--metric-percentiles", "high"], "--metric-percentiles"),
        (["--percentile-metrics", "speed"], "--percentile-metrics"),
        (["--dialect", "sglang"], "--dialect"),
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--profile"], "no profiler"),
        (["--no-such-flag"], "no-such-flag"),
        (["--num-prompts", "many"], "many"),
        (["--base-url", "localhost:8000"], "http://"),
        (["--base-url", "http://localhost:abc"], "abc"),
        (["--base-url", "http://localhost:99999"], "99999"),
        (["--base-url", "http://"], "must be like http://127.0.0.1:8000"),
        (["--base-url", "http://local host:80"], "must be like http://127.0.0.1:8000"),
        (["--base-url", "http://[::1"], "[::1"),
        (["--base-url", f"http://{'a' * 70}.test:80"], "is not an address"),
        (["--ramp-up-strategy", "linear"], "ramp_up_start_rps must be a number above 0"),
        (["--ramp-up-start-rps", "1"], "needs a ramp_up_strategy: linear or exponential"),
        (["--ramp-up-strategy", "steps"], "ramp_up_strategy must be one of linear, exponential"),
        (
            ["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1", "--ramp-up-end-rps", "2", "--request-rate=3"],
            "request_rate must be inf with a ramp",
        ),
        (["--input-len", "8"], "--input-len is for --dataset-name random, not conversation"),
        (["--plot-timeline"], "--plot-timeline is not supported: one run is not drawn"),
        (["--tokenizer-mode", "mistral"], "use auto, hf, or leave it out"),
        (["--hf-split"], "--hf-split requires an argument"),
        (["--port", "99999"], "--port must be from 1 to 65535"),
        (["--port=-5"], "--port must be from 1 to 65535"),
        (["--port", "-5"], "--port must be from 1 to 65535"),
        (["--header", "X-A=1\n2"], "cannot be sent"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    base = [] if "--base-url" in arguments else ["--base-url", server.url]
    assert run(["bench", *base, *arguments]) == 2
    err = capsys.readouterr().err.strip()
    assert words in err and len(err.splitlines()) == 1
    assert server.completions() == []


def test_no_server_is_the_environments_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer() as gone:
        url = gone.url
    assert run(["bench", "--base-url", url]) == 3
    assert "no server answers" in capsys.readouterr().err


def test_something_else_on_the_port_is_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)

        def speaks_no_http() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9\r\n")

        thread = threading.Thread(target=speaks_no_http)
        thread.start()
        assert run(["bench", "--port", str(listener.getsockname()[1])]) == 3
        thread.join(60)
    assert "not HTTP: BadStatusLine" in capsys.readouterr().err


def test_a_server_that_is_still_loading_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    def loads_twice(seen: Seen) -> Answer:
        loading = seen.path == "/v1/models" and len(server.seen) <= 2
        return as_json({"error": {"message": "loading"}}, 503) if loading else model_server(seen)

    with ScriptedServer(loads_twice) as server:
        assert bench(server, "--ready-check-timeout-sec", "30") == 0
    with ScriptedServer(lambda seen: as_json({"error": {"message": "loading"}}, 503)) as server:
        assert bench(server) == 3
    assert "loading" in capsys.readouterr().err


def test_ctrl_c_prints_and_keeps_what_was_measured(tmp_path: Path) -> None:
    answered = threading.Event()

    def answers_two_then_hangs(seen: Seen) -> Answer:
        if "/v1/completions" not in seen.path:
            return model_server(seen)
        if len(server.completions()) <= 2:
            return model_server(seen)
        answered.set()
        return Answer(hang=True)

    with ScriptedServer(answers_two_then_hangs) as server:
        command = [sys.executable, "-m", "headrace.cli.main", "bench", "--base-url", server.url, *SMALL]
        command += ["--max-concurrency", "1", "--out", str(tmp_path / "run")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert answered.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"{'Successful requests:':<40} {2:<10}" in out.splitlines()
    assert "only 3 of 6 requests were sent" in err and "Traceback" not in err
    lines = (tmp_path / "run" / "requests.jsonl").read_text().splitlines()
    assert [json.loads(line)["error_class"] for line in lines] == [None, None, "cancelled"]
    assert (tmp_path / "run" / "interrupted.json").is_file()


def test_help_is_without_torch() -> None:
    code = "import sys; from headrace.cli.main import run; run(['bench', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "--request-rate" in done.stdout


def test_users_see_their_own_latencies_and_what_is_certified(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--goodput", "ttft:60000") == 0
    err = capsys.readouterr().err
    assert "from the planned start, ms" in err and "(n = 6, needs 662)" in err
    assert "100.0% of the issued requests met every goal" in err


def test_prompts_that_the_server_knew_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    def caching(seen: Seen) -> Answer:
        answer = model_server(seen)
        pieces = tuple(
            piece.replace(b'"usage": {', b'"usage": {"prompt_tokens_details": {"cached_tokens": 4}, ')
            for piece in answer.pieces
        )
        return Answer(pieces, answer.status, answer.content_type)

    with ScriptedServer(caching) as server:
        assert bench(server) == 0
    assert "came from the server's prefix cache" in capsys.readouterr().err


def test_a_profile_is_bounded() -> None:
    stopped = threading.Event()

    def profiled(seen: Seen) -> Answer:
        if seen.path == "/stop_profile":
            stopped.set()
        return as_json({})

    with ScriptedServer(profiled) as server:
        profile = BoundedProfile(server.url, {}, max_s=0.01)
        assert stopped.wait(60) and profile.stop()  # it had been stopped before
        early = BoundedProfile(server.url, {}, max_s=600)
        assert not early.stop()
    assert [seen.path for seen in server.seen] == ["/start_profile", "/stop_profile"] * 2


@pytest.mark.parametrize("text", ["0", "many", "-1", "2000"])
def test_client_processes_are_a_number_or_auto(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert bench(server, f"--client-processes={text}") == 2
    assert "--client-processes takes a number from 1 to 1024, or auto" in capsys.readouterr().err
