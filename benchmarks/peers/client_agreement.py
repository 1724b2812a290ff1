"""headrace's client and `vllm bench serve` on one server: do they agree on what they define alike?

    python benchmarks/peers/client_agreement.py --server headrace|vllm|timed --model DIR --vllm ENVIRONMENT

Both send the same texts, of exactly `--input-len` tokens, greedy, to a server without a prefix cache, in turn with the
same constant arrivals.  An engine's own runs differ by more than clients do, so each run goes through a relay that
notes when the events passed (`tap.py`): each client is compared with what was true of its own run, and the two clients
with one another by how far each is from that.  `timed` is a server of scripted timing, fresh for each run.
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
from collections.abc import Iterator
from pathlib import Path

from compare import VLLM
from served import started
from servers import HEADRACE
from tokenizers import Tokenizer

sys.path.append(str(Path(__file__).parents[1]))

from scripted import TIMED, running
from tap import vllm_figures

KEYS = (
    *("completed", "total_input_tokens", "total_output_tokens", "duration", "request_throughput", "output_throughput"),
    *(f"{word}_{metric}_ms" for metric in ("ttft", "tpot", "itl", "e2el") for word in ("mean", "median", "p90")),
)
TOOLS = ("headrace", "vllm")
TAP = str(Path(__file__).parents[1] / "tap.py")
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
        *("--temperature", "0", "--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "90"),
        *("--save-result", "--result-dir", str(prompts.parent), "--result-filename", f"{tool}.json", "--disable-tqdm"),
    ]


def measure(tool: str, url: str, args: argparse.Namespace, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """The client's result, and the same figures from what the tap saw."""
    with tempfile.TemporaryDirectory() as name:
        where = Path(name)
        write_prompts(args, seed, where / "prompts.jsonl")
        with running(TAP, str(where / "tap.json"), url.rpartition(":")[2]) as tapped:
            command = command_of(tool, tapped, args, where / "prompts.jsonl")
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode not in (0, 4):
            sys.exit(f"{tool} ended with {done.returncode}:\n{(done.stderr or done.stdout)[-3000:]}")
        passed = sorted(json.loads((where / "tap.json").read_text()), key=lambda row: row["sent_ns"])
        # vLLM's client may try one request before.
        return json.loads((where / f"{tool}.json").read_text()), vllm_figures(passed[-args.requests :])


def rounds(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, float], dict[str, float]]]:
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        where = Path(name)
        url = "" if args.server == "timed" else stack.enter_context(served(args, where))
        if url:
            measure("headrace", url, args, 999)  # the first requests warm the server up
        for number in range(args.rounds):
            for tool in TOOLS if number % 2 == 0 else TOOLS[::-1]:
                with contextlib.nullcontext(url) if url else served(args, where) as address:
                    yield tool, *measure(tool, address, args, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=("headrace", "vllm", "timed"), required=True)
    parser.add_argument("--model", type=Path, required=True, help="of `timed` only the tokenizer is used")
    parser.add_argument("--vllm", type=Path, required=True, help="an environment with vLLM")
    parser.add_argument("--dtype", default="float32", help="of both engines")
    parser.add_argument("--eager", action="store_true", help="vLLM without its compilation, which takes minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--input-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=32)
    args = parser.parse_args()
    args.model = args.model.resolve()
    off: dict[str, dict[str, list[float]]] = {tool: {key: [] for key in KEYS} for tool in TOOLS}
    said: dict[str, list[dict[str, float]]] = {tool: [] for tool in TOOLS}
    for tool, result, true in rounds(args):
        said[tool].append(result)
        for key in KEYS:
            off[tool][key].append(result[key] / true[key] - 1)
        print(tool, {key: (round(result[key], 2), round(true[key], 2)) for key in KEYS}, flush=True)
    print(
        f"\nserver: {args.server}; {args.rounds} rounds in turn; what each client said (medians), how far that is from"
    )
    print("what passed the tap in the same run (medians, lowest to highest), and how far apart these are")
    print(f"{'':<20}{'headrace':>11}{'vllm':>11}{'headrace - tap':>29}{'vllm bench serve - tap':>29}{'apart':>10}")
    for key in KEYS:
        ours, theirs = (statistics.median(one[key] for one in said[tool]) for tool in TOOLS)
        both = [off[tool][key] for tool in TOOLS]
        shown = "".join(f"{statistics.median(x):>+11.2%} ({min(x):+.2%} to {max(x):+.2%})".rjust(29) for x in both)
        apart = statistics.median(both[0]) - statistics.median(both[1])
        print(f"{key:<20}{ours:>11.2f}{theirs:>11.2f}{shown}{apart:>+10.2%}")


if __name__ == "__main__":
    main()
