"""headrace's client and `vllm bench serve` in turn on one server: do they agree on what they define alike?

    python benchmarks/client_agreement.py --server headrace --model DIRECTORY --client /path/to/vllm
    python benchmarks/client_agreement.py --server vllm --model DIRECTORY --client /path/to/vllm
    python benchmarks/client_agreement.py --server timed --model DIRECTORY --client /path/to/vllm

Starts the server, runs both clients in turn on the same constant arrivals and lengths, and prints the median of each
metric over the rounds for both, with their difference.  Prompts are texts of exactly `--input-len` tokens from a file
(each client's own random token ids come back from text as other numbers of tokens), and none comes twice.
`timed` is a server of scripted timing, fresh for each run: an engine's own runs differ by more than clients do.
`--together` runs both at the same time on one server, so that they meet the same seconds of it: with `--rate inf
--max-concurrency N` each is N users, and neither can be favoured by a slow spell of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

KEYS = (
    *("completed", "total_input_tokens", "total_output_tokens", "duration", "request_throughput", "output_throughput"),
    *(f"{word}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for word in ("mean", "median", "p90")),
)
PORT = 18753


def start(args: argparse.Namespace, log: Path) -> subprocess.Popen[bytes]:
    common = ["--port", str(PORT), "--host", "127.0.0.1", "--max-model-len", "2048"]
    eager = ["--enforce-eager"] if args.eager else []
    if args.server == "headrace":
        command = [sys.executable, "-m", "headrace.cli.main", "serve", args.model, *common]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    else:
        command = [
            args.client,
            "serve",
            args.model,
            *common,
            "--max-num-batched-tokens",
            "512",
            "--max-num-seqs",
            "64",
            *eager,
        ]
        environment = {
            **os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=2):
                return process
        except OSError:
            time.sleep(1)
    os.killpg(process.pid, signal.SIGTERM)
    raise SystemExit("the server did not become ready")


def measure_timed(tool: str, args: argparse.Namespace, seed: int, where: Path) -> dict[str, float]:
    """One run on a fresh server of scripted timing; only the tokenizer of the model is used."""
    command = [sys.executable, str(Path(__file__).with_name("timed_server.py")), str(where / "log"), "--no-errors"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None and server.stdout is not None
    args.port = int(server.stdout.readline())
    try:
        return measure(tool, args, seed, where)
    finally:
        server.stdin.close()
        server.wait(20)


def prompts(args: argparse.Namespace, seed: int, where: Path) -> Path:
    """A file of JSON lines, a text of `--input-len` tokens each."""
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(Path(args.model) / "tokenizer.json"))
    path = where / f"prompts-{seed}.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for _ in range(args.requests):
            text = ""
            while (size := len(tokenizer.encode(text).ids)) != args.input_len:
                word = " " + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 6)))
                text = text + word if size < args.input_len else text[: rng.randrange(len(text))]
            out.write(json.dumps({"prompt": text}) + "\n")
    return path


def command_of(tool: str, args: argparse.Namespace, seed: int, where: Path) -> list[str]:
    """The client's command; it writes its result to `where`/TOOL-SEED.json."""
    vllm = [args.client, "bench", "serve", "--backend", "openai"]
    ours = [sys.executable, "-m", "headrace.cli.main", "bench"]
    # vLLM's parser has no word for a constant rate; a narrow gamma is one.
    constant = "1e9" if tool == "vllm" else "inf"
    return [
        *(vllm if tool == "vllm" else ours),
        *("--base-url", f"http://127.0.0.1:{args.port}", "--model", args.model, "--dataset-name", "custom"),
        *(
            "--dataset-path",
            str(prompts(args, seed, where)),
            "--custom-output-len",
            str(args.output_len),
            "--ignore-eos",
        ),
        *(("--skip-chat-template",) if tool == "vllm" else ()),
        *("--num-prompts", str(args.requests), "--request-rate", str(args.rate), "--burstiness", constant),
        *(("--max-concurrency", str(args.max_concurrency)) if args.max_concurrency else ()),
        *("--seed", str(seed), "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "90"),
        *("--save-result", "--result-dir", str(where), "--result-filename", f"{tool}-{seed}.json", "--disable-tqdm"),
    ]


def measure_all(tools: Sequence[str], args: argparse.Namespace, seed: int, where: Path) -> list[dict[str, float]]:
    """Each client's result; more than one client run at the same time."""
    seeds = {tool: seed + (tool == "vllm") for tool in tools}
    logs = {tool: (where / f"{tool}-{seeds[tool]}.log").open("w+") for tool in tools}
    running = {
        tool: subprocess.Popen(command_of(tool, args, seeds[tool], where), stdout=logs[tool], stderr=logs[tool])
        for tool in tools
    }
    results = []
    for tool, process in running.items():
        if process.wait(timeout=600) not in (0, 4):
            logs[tool].seek(0)
            raise SystemExit(f"{tool} ended with {process.returncode}:\n{logs[tool].read()[-3000:]}")
        logs[tool].close()
        results.append(json.loads((where / f"{tool}-{seeds[tool]}.json").read_text()))
    return results


def measure(tool: str, args: argparse.Namespace, seed: int, where: Path) -> dict[str, float]:
    return measure_all([tool], args, seed, where)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=("headrace", "vllm", "timed"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--client", required=True, help="the vllm executable")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--running", action="store_true", help="the server listens on --port already: only measure")
    parser.add_argument("--eager", action="store_true", help="vLLM without its compilation, which takes minutes")
    parser.add_argument("--together", action="store_true", help="both clients at the same time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--max-concurrency", type=int, help="with --rate inf: a closed loop of so many users")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=32)
    args = parser.parse_args()
    if args.together and args.server == "timed":
        parser.error("--together needs one server for both: --server headrace or vllm")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        server = None if args.running or args.server == "timed" else start(args, directory / "server.log")
        found: dict[str, list[dict[str, float]]] = {"headrace": [], "vllm": []}
        try:
            run = measure_timed if args.server == "timed" else measure
            if args.server != "timed":
                run("headrace", args, 999, directory)  # the first requests warm the server up
            for number in range(args.rounds):
                order = ["headrace", "vllm"] if number % 2 == 0 else ["vllm", "headrace"]
                both = measure_all(order, args, 2 * number, directory) if args.together else []
                for index, tool in enumerate(order):
                    found[tool].append(both[index] if both else run(tool, args, 2 * number, directory))
                    print(tool, {key: round(found[tool][-1][key], 2) for key in KEYS}, flush=True)
        finally:
            if server is not None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(60)
    print(f"\nserver: {args.server}; {args.rounds} rounds in turn, medians (lowest to highest)")
    print(f"{'':<24} {'headrace':>30} {'vllm bench serve':>30} {'difference':>11}")
    for key in KEYS:
        a, b = ([one[key] for one in found[tool]] for tool in ("headrace", "vllm"))
        ours, theirs = statistics.median(a), statistics.median(b)
        shown = [
            f"{statistics.median(x):.2f} ({min(x):.2f} to {max(x):.2f})" if len(x) > 1 else f"{x[0]:.2f}"
            for x in (a, b)
        ]
        print(f"{key:<24} {shown[0]:>30} {shown[1]:>30} {(ours - theirs) / theirs:>+11.1%}")


if __name__ == "__main__":
    main()
