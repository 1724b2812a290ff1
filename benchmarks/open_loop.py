"""Does the client keep an open loop at 200 requests/s?  How late it sends, what it costs, and what it says of itself.

    python benchmarks/open_loop.py [--rate 200] [--seconds 20] [--server timed|null]

`headrace bench` sends Poisson arrivals to a server in a process of its own (`timed_server.py`: 24 tokens a request over
about half a second, and standing still for one second in ten; or the null server).  Send lag is the time from when a
request was due to when it was handed to its socket.  Requests that are due while the server stands still must be sent
all the same: that is what makes the loop open.  The bar: p99 at most 5 ms.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scripted import TIMED, running

from headrace.lab.records.schema import RequestRecord
from headrace.lab.records.store import read_run

BAR_MS = 5.0
SERVERS = {
    "timed": [TIMED, "LOG", "--no-errors"],
    "null": ["-m", "headrace.lab.client.null_server"],
}


def bench(url: str, given: argparse.Namespace, where: Path) -> None:
    """Run the client.  Its own exit code 4 says that it does not believe itself, which the table shows."""
    tokenizer = Path(__file__).parents[1] / "headrace/engine/demo"
    command = [
        *(sys.executable, "-m", "headrace.cli.main", "bench", "--base-url", url, "--model", given.server),
        *("--tokenizer", str(tokenizer), "--dataset-name", "random", "--random-input-len", "16"),
        *("--random-output-len", "24", "--num-prompts", str(round(given.rate * given.seconds))),
        *("--request-rate", str(given.rate), "--seed", str(given.seed), "--disable-tqdm", "--out", str(where)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20 * given.seconds + 120, check=False)
    if done.returncode not in (0, 4):
        sys.exit(f"the client ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def send_lags_ms(records: list[RequestRecord]) -> np.ndarray:
    return np.array([record.sent_ns - record.planned_ns for record in records if record.sent_ns]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--server", choices=SERVERS, default="timed")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        where = Path(directory)
        with running(*(part.replace("LOG", str(where / "log")) for part in SERVERS[given.server])) as url:
            bench(url, given, where / "run")
        manifest, records = read_run(where / "run")
    lags, verdict = send_lags_ms(records), manifest["verdict"]
    numbers = verdict["numbers"]
    failed = sum(not record.ok for record in records)
    span_s = (max(r.sent_ns for r in records) - min(r.sent_ns for r in records)) / 1e9
    sent = f"{len(records)} requests to the {given.server} server, {len(records) / span_s:.1f} sent a second"
    print(f"{sent}, {failed} failed")
    print(f"send lag: p50 {np.median(lags):.3f} ms, p99 {np.percentile(lags, 99):.3f} ms, max {lags.max():.2f} ms")
    print(
        f"client: {numbers['client_cpu_percent']:.0f} % of a core, p99 event-loop lag "
        f"{numbers['p99_loop_lag_ms']:.2f} ms; its verdict: {verdict['level']}"
        + "".join(f"\n  {reason}" for reason in verdict["reasons"])
    )
    met = np.percentile(lags, 99) <= BAR_MS and not failed
    print(f"p99 send lag of at most {BAR_MS:g} ms at {given.rate:g} requests/s: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
