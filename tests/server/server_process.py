"""`headrace serve` as a process, for the length of a `with` block."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class ServerProcess:
    url: str
    popen: subprocess.Popen[str]
    log: list[str]  # lines of stderr so far

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def status(self, name: str) -> int:
        """A number of /proc/PID/status, such as VmRSS in KiB."""
        text = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:")))


@contextmanager
def served_process(model: Path, *flags: str) -> Iterator[ServerProcess]:
    """Start it with random weights on a free port and wait until it is ready; killed at the end if it still runs."""
    common = ["--load-format", "dummy", "--served-model-name", "tiny", "--port", "0", "--num-threads", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "headrace.cli.main", "serve", str(model), *common, "--no-startup-probe", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as popen:
        assert popen.stdout is not None and popen.stderr is not None
        log: list[str] = []
        reader = threading.Thread(target=log.extend, args=(popen.stderr,), daemon=True)
        reader.start()
        try:
            ready = popen.stdout.readline()
            assert ready.startswith("headrace is ready on http://127.0.0.1:"), log
            yield ServerProcess(ready.split()[-1], popen, log)
        finally:
            popen.kill()
            popen.wait()
            reader.join()
