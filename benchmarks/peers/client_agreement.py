"""headrace's client and `vllm bench serve` on one server: do they agree on what they define alike?

    python benchmarks/peers/client_agreement.py --server headrace|vllm|timed --model DIR --vllm ENVIRONMENT
        [--together --rate inf --max-concurrency 2]

Both send the same texts, of exactly `--input-len` tokens, to a server without a prefix cache, in turn with the same
constant arrivals; printed are the medians of each metric over the rounds, and their difference.
`timed` is a server of scripted timing, fresh for each run: an engine's own runs differ by more than clients do.
`--together` runs both at the same time on one server, so that they meet the same seconds of it: with `--rate inf
--max-concurrency N` each is N users, and neither can be favoured by a slow spell of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from compare import VLLM
from served import started
from servers import HEADRACE
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).parents[1]))

from scripted import TIMED, running

KEYS = (
    *("completed", "total_input_tokens", "total_output_tokens", "duration", "request_throughput", "output_throughput"),
    *(f"{word}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for word in ("mean", "median", "p90")),
)
TOOLS = ("headrace", "vllm")
HEAD_START_S = 14.0  # for vLLM's client, whose imports take a core for so long: nobody should measure meanwhile
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # vLLM leaves a core to others by default
FLAGS = ("--max-model-len", "2048", "--max-num-batched-tokens", "512", "--max-num-seqs", "64")


@contextlib.contextmanager
def served(args: argparse.Namespace, where: Path) -> Iterator[str]:
    """The server's address."""
    if args.server == "timed":
        with running(TIMED, str(where / "log"), "--no-errors") as url:
            yield url
        return
    flags = (*FLAGS, "--dtype", args.dtype, "--no-enable-prefix-caching", *(("--enforce-eager",) if args.eager else ()))
    program, environ = (HEADRACE, ONE_THREAD) if args.server == "headrace" else ((str(args.vllm / "bin/vllm"),), VLLM)
    with started(args.server, args.model, program, environ, flags) as server:
        yield server.url


def write_prompts(args: argparse.Namespace, seed: int, path: Path) -> None:
    """JSON lines, a text of `--input-len` tokens each."""
    rng = random.Random(seed)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    with path.open("w", encoding="utf-8") as out:
        for _ in range(args.requests):
            text = ""
            while (size := len(tokenizer.encode(text).ids)) != args.input_len:
                word = " " + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 6)))
                text = text + word if size < args.input_len else text[: rng.randrange(len(text))]
            out.write(json.dumps({"prompt": text}) + "\n")


def command_of(tool: str, url: str, args: argparse.Namespace, prompts: Path) -> list[str]:
    """The client's command; it writes its result to TOOL.json beside the prompts."""
    vllm = [str(args.vllm / "bin/vllm"), "bench", "serve", "--backend", "openai", "--skip-chat-template"]
    ours = [sys.executable, "-m", "headrace.cli.main", "bench"]
    return [
        *(vllm if tool == "vllm" else ours),
        *("--base-url", url, "--model", str(args.model), "--dataset-name", "custom", "--dataset-path", str(prompts)),
        *("--custom-output-len", str(args.output_len), "--ignore-eos", "--num-prompts", str(args.requests)),
        # vLLM's parser has no word for a constant rate; a narrow gamma is one.
        *("--request-rate", str(args.rate), "--burstiness", "1e9" if tool == "vllm" else "inf"),
        *(("--max-concurrency", str(args.max_concurrency)) if args.max_concurrency else ()),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "90"),
        *("--save-result", "--result-dir", str(prompts.parent), "--result-filename", f"{tool}.json", "--disable-tqdm"),
    ]


def measure(tools: Sequence[str], url: str, args: argparse.Namespace, seed: int) -> list[dict[str, float]]:
    """Each client's result; more than one run at the same time."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        where = Path(name)
        write_prompts(args, seed, where / "prompts.jsonl")
        logs = {tool: stack.enter_context((where / f"{tool}.log").open("w+")) for tool in tools}
        processes: dict[str, subprocess.Popen[bytes]] = {}
        for tool in sorted(tools, reverse=True):  # vLLM's first
            time.sleep(HEAD_START_S if processes else 0)
            command = command_of(tool, url, args, where / "prompts.jsonl")
            processes[tool] = subprocess.Popen(command, stdout=logs[tool], stderr=logs[tool])
        for tool, process in processes.items():
            if process.wait(timeout=900) not in (0, 4):
                logs[tool].seek(0)
                sys.exit(f"{tool} ended with {process.returncode}:\n{logs[tool].read()[-3000:]}")
        return [json.loads((where / f"{tool}.json").read_text()) for tool in tools]


def rounds(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        where = Path(name)
        url = "" if args.server == "timed" else stack.enter_context(served(args, where))
        if url:
            measure(["headrace"], url, args, 999)  # the first requests warm the server up
        for number in range(args.rounds):
            order = TOOLS if number % 2 == 0 else TOOLS[::-1]
            if args.together:
                yield from zip(order, measure(order, url, args, number), strict=True)
                continue
            for tool in order:
                with contextlib.nullcontext(url) if url else served(args, where) as address:
                    yield tool, measure([tool], address, args, number)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("headrace", "vllm", "timed"), required=True)
    parser.add_argument("--model", type=Path, required=True, help="of `timed` only the tokenizer is used")
    parser.add_argument("--vllm", type=Path, required=True, help="an environment with vLLM")
    parser.add_argument("--dtype", default="float32", help="of both engines")
    parser.add_argument("--eager", action="store_true", help="vLLM without its compilation, which takes minutes")
    parser.add_argument("--together", action="store_true", help="both clients at the same time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--max-concurrency", type=int, help="with --rate inf: a closed loop of so many users")
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=32)
    args = parser.parse_args()
    args.model = args.model.resolve()
    if args.together and args.server == "timed":
        parser.error("--together needs one server for both: --server headrace or vllm")
    found: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    for tool, result in rounds(args):
        found[tool].append(result)
        print(tool, {key: round(result[key], 2) for key in KEYS}, flush=True)
    how = "together" if args.together else "in turn"
    print(f"\nserver: {args.server}; {args.rounds} rounds {how}, medians (lowest to highest)")
    print(f"{'':<24} {'headrace':>30} {'vllm bench serve':>30} {'difference':>11}")
    for key in KEYS:
        values = [[one[key] for one in found[tool]] for tool in TOOLS]
        ours, theirs = map(statistics.median, values)
        shown = [f"{statistics.median(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in values]
        print(f"{key:<24} {shown[0]:>30} {shown[1]:>30} {(ours - theirs) / theirs:>+11.1%}")


if __name__ == "__main__":
    main()
