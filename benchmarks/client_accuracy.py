"""Each client against a server whose timing is known: what it reports, and what was true.

    python benchmarks/client_accuracy.py --tokenizer DIRECTORY [--vllm EXE] [--guidellm EXE] [--aiperf EXE]

All send the same constant arrivals to a fresh `timed_server.py`.  Truth is what users waited for: from the moment a
request was due (the schedule, placed by the earliest arrival) to the server's own time of writing.  Requests that the
server broke off are in no latency.  The server stands still for 1 s: requests that were due then waited, whatever a
client says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scripted import TIMED, running

PERCENTILES = (50, 90, 99)
Figures = dict[str, list[float]]


def statistics(ttft: list[float], tpot: list[float], end: list[float]) -> Figures:
    named = {"TTFT": ttft, "TPOT": tpot, "end to end": end}
    return {name: [float(x) for x in np.percentile(values, PERCENTILES)] for name, values in named.items() if values}


def truth(log: Path, rate: float, requests: int) -> tuple[Figures, int]:
    """Of the last `requests` requests (a client may send some before), and how many of them the server broke off."""
    rows = sorted(json.loads(log.read_text()), key=lambda row: row["arrived_ns"])[-requests:]
    gap_ns = 1e9 / rate
    start_ns = min(row["arrived_ns"] - i * gap_ns for i, row in enumerate(rows))
    ttft, tpot, end = [], [], []
    for i, row in enumerate(rows):
        if not row["failed"]:
            due_ns, stamps = start_ns + i * gap_ns, row["stamps_ns"]
            ttft.append((stamps[0] - due_ns) / 1e6)
            end.append((stamps[-1] - due_ns) / 1e6)
            tpot.append((stamps[-1] - stamps[0]) / 1e6 / (row["tokens"] - 1))
    return statistics(ttft, tpot, end), sum(row["failed"] for row in rows)


def headrace(args: argparse.Namespace, url: str, where: Path) -> tuple[Figures, int]:
    from headrace.lab.metrics.user_view import user_view
    from headrace.lab.records.store import read_run

    limit = ["--max-concurrency", str(args.max_concurrency)] if args.max_concurrency else []
    run(
        [
            *(
                sys.executable,
                "-m",
                "headrace.cli.main",
                "bench",
                *vllm_flags(args, url),
                *limit,
                "--out",
                str(where / "run"),
            ),
            *("--burstiness", "inf"),
        ]
    )
    _, records = read_run(where / "run")
    rows = {row.name: [quantile.value for quantile in row.quantiles] for row in user_view(records)}
    return {name: rows[name] for name in ("TTFT", "TPOT", "end to end")}, sum(not record.ok for record in records)


def vllm_flags(args: argparse.Namespace, url: str) -> list[str]:
    return [
        *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", url, "--model", "timed"),
        *("--tokenizer", args.tokenizer, "--dataset-name", "random", "--random-input-len", "16"),
        *("--random-output-len", "24", "--num-prompts", str(args.requests), "--request-rate", str(args.rate)),
        "--disable-tqdm",
    ]


def vllm(args: argparse.Namespace, url: str, where: Path) -> tuple[Figures, int]:
    limit = ["--max-concurrency", str(args.max_concurrency)] if args.max_concurrency else []
    flags = [*vllm_flags(args, url), *limit, "--burstiness", "1e9", "--percentile-metrics", "ttft,tpot,e2el"]
    flags += ["--metric-percentiles", "50,90,99"]
    run(
        [
            args.vllm,
            "bench",
            "serve",
            *flags,
            "--save-result",
            "--result-dir",
            str(where),
            "--result-filename",
            "v.json",
        ]
    )
    result = json.loads((where / "v.json").read_text())
    names = {"TTFT": "ttft", "TPOT": "tpot", "end to end": "e2el"}
    return {name: [result[f"p{p}_{key}_ms"] for p in PERCENTILES] for name, key in names.items()}, result["failed"]


def guidellm(args: argparse.Namespace, url: str, where: Path) -> tuple[Figures, int]:
    run(
        [
            *(args.guidellm, "run", "--profile", f"kind=constant,rate={args.rate}", "--disable-console"),
            *("--backend", f"kind=openai_http,target={url},model=timed,request_format=/v1/chat/completions"),
            *("--constraint", f"kind=max_requests,count={args.requests}"),
            *("--tokenizer", f"kind=hf_auto,model={args.tokenizer}"),
            *("--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=24"),
            *("--output", f"kind=json,path={where / 'g.json'}"),
        ]
    )
    metrics = json.loads((where / "g.json").read_text())["benchmarks"][0]["metrics"]

    def row(name: str, scale: float = 1.0) -> list[float]:
        table = metrics[name]["successful"]["percentiles"]
        return [table[f"p{p}"] * scale for p in PERCENTILES]

    figures = {
        "TTFT": row("time_to_first_token_ms"), "TPOT": row("inter_token_latency_ms"),
        "end to end": row("request_latency", 1e3),
    }  # fmt: skip
    return figures, metrics["request_totals"]["errored"]


def aiperf(args: argparse.Namespace, url: str, where: Path) -> tuple[Figures, int]:
    run(
        [
            *(args.aiperf, "profile", "--model", "timed", "--url", url, "--endpoint-type", "chat", "--streaming"),
            *("--tokenizer", args.tokenizer, "--request-rate", str(args.rate), "--request-rate-mode", "constant"),
            *("--request-count", str(args.requests), "--synthetic-input-tokens-mean", "16", "--ui", "none"),
            *("--output-tokens-mean", "24", "--output-artifact-dir", str(where / "a")),
        ]
    )
    result = json.loads(next((where / "a").rglob("profile_export_aiperf.json")).read_text())
    names = {"TTFT": "time_to_first_token", "TPOT": "inter_token_latency", "end to end": "request_latency"}
    errors = (result.get("error_request_count") or {}).get("avg", 0)
    return {name: [result[key][f"p{p}"] for p in PERCENTILES] for name, key in names.items()}, round(errors)


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    if done.returncode not in (0, 4):
        raise RuntimeError(
            f"{Path(command[0]).name} ended with {done.returncode}: {(done.stderr or done.stdout)[-1500:]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--max-concurrency", type=int)
    for name in ("vllm", "guidellm", "aiperf"):
        parser.add_argument(f"--{name}", help=f"the {name} executable")
    args = parser.parse_args()
    tools: dict[str, Callable[..., tuple[Figures, int]]] = {"headrace": headrace}
    tools |= {
        name: tool for name, tool in (("vllm", vllm), ("guidellm", guidellm), ("aiperf", aiperf)) if getattr(args, name)
    }
    limit = f", at most {args.max_concurrency} in flight" if args.max_concurrency else ""
    print(f"{args.requests} requests, {args.rate:g}/s constant{limit}; reported (truth), milliseconds")
    for name, tool in tools.items():
        with tempfile.TemporaryDirectory() as directory:
            where = Path(directory)
            failure = ""
            with running(TIMED, str(where / "log.json")) as url:
                try:
                    figures, failed = tool(args, url, where)
                except (RuntimeError, OSError, KeyError, StopIteration) as error:
                    failure = " ".join(str(error).split())[-400:]
            if failure:
                print(f"{name:<10} could not be run: {failure}", flush=True)
                continue
            true, broken = truth(where / "log.json", args.rate, args.requests)
            for figure, values in figures.items():
                cells, worst = [], True
                for p, value, right in zip(PERCENTILES, values, true[figure], strict=True):
                    good = abs(value - right) <= max(2.0, 0.02 * right)
                    worst = worst and good
                    cells.append(f"p{p} {value:8.1f} ({right:8.1f})")
                print(f"{name:<10} {figure:<11} {'  '.join(cells)}  {'within' if worst else 'OUTSIDE'} 2 % or 2 ms")
            print(f"{name:<10} failed      {failed} ({broken})", flush=True)


if __name__ == "__main__":
    main()
