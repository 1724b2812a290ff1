"""Schemathesis against `headrace serve` and its own description: bodies that fit it, and bodies that do not.

Nothing is a 5xx or takes longer than its limit, statuses, headers and bodies are as described, good requests in between
all succeed, and nothing is left behind.  Found again with the seed that a failure prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from server_process import ServerProcess, served_process

HERE = Path(__file__).parent
KEY = "k"
# Small limits, so that the largest body which is allowed is answered in seconds.
LIMITS = ["--max-model-len", "128", "--max-num-seqs", "64", "--max-num-queued-reqs", "256"]
SERVER = [
    *(*LIMITS, "--kv-cache-memory-bytes", "16M", "--api-key", KEY),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3"),
]
OPTIONS = [
    *("-H", f"Authorization: Bearer {KEY}", "--no-color", "--continue-on-failure", "--request-timeout", "120"),
    *("--max-response-time", "60", "--generation-database", "none"),
    # Instead of it: schema_hooks.py, which knows that a valid body may ask for more than there is.
    *("--exclude-checks", "positive_data_acceptance"),
]


@contextmanager
def good_requests(server: ServerProcess) -> Iterator[list[int]]:
    """Their statuses; one request after the other, as long as the block lasts."""
    statuses: list[int] = []
    done = threading.Event()

    def work() -> None:
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as http:
            while not done.wait(0.25):  # beside the others, not instead of them
                answer = http.post("/v1/completions", json={"prompt": "Water turns", "max_tokens": 4})
                statuses.append(answer.status_code)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield statuses
    finally:
        done.set()
        thread.join()


def run(server: ServerProcess, directory: Path, *arguments: str) -> int:
    """Run Schemathesis; the number of cases.  Fails with its report when it found anything."""
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", *OPTIONS, *arguments],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}", "SCHEMATHESIS_HOOKS": "schema_hooks"},
        capture_output=True,
        text=True,
        cwd=directory,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated is not None, done.stdout
    return int(generated[1])


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        (("--phases", "fuzzing,stateful", "-n", "3", "--seed", "1"), 40),
        pytest.param(("-n", "600"), 10_000, marks=pytest.mark.slow),
    ],
    ids=["bounded", "all"],
)
def test_the_server_is_what_its_description_says(
    arguments: tuple[str, ...], least: int, model_directory: Path, tmp_path: Path
) -> None:
    traces = f'{{"profiler": "torch", "torch_profiler_dir": "{tmp_path}/traces", "max_steps": 8}}'
    with served_process(model_directory, *SERVER, "--profiler-config", traces) as server:
        with good_requests(server) as statuses:
            assert run(server, tmp_path, *arguments) >= least
        assert statuses and set(statuses) == {200}
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
            metrics = http.get("/metrics").text
            assert http.get("/load").json() == {"server_load": 0}
        free, total = (
            float(re.search(rf"^headrace:{name}\{{.*\}} (\S+)", metrics, re.MULTILINE)[1])  # type: ignore[index]
            for name in ("kv_blocks_free", "kv_blocks")
        )
        assert free == total
        assert server.popen.poll() is None
        assert not [line for line in server.log if "Traceback" in line]
