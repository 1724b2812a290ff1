"""Asks a server and its GPUs how they are, again and again while a run is measured, and writes the answers down."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TextIO

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers.server import Server
from headrace.lab.campaign.result import RunFiles
from headrace.lab.campaign.server_metrics import Scrape, scrape
from headrace.lab.campaign.telemetry import Gpus

# A server that takes long to answer is asked less often: the questions must stay a small part of its work.
_MOST_OF_ITS_TIME = 0.1
# But never so seldom that a server which computes could be taken for one that does not (`watch.py`).
_LONGEST_WAIT_S = 10.0
_TIMEOUT_S = 10.0


class Sampler:
    """A context: a thread that scrapes about every `every_s` seconds.  The files are there only where something was
    read."""

    def __init__(self, server: Server, files: RunFiles, *, every_s: float, gpus: Gpus | None = None) -> None:
        self._server = server
        self._files = files
        self._every_s = every_s
        self._gpus = gpus
        self._over = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._sample, name="server-sampler", daemon=True)
        self.last: Scrape | None = None

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LaunchError (kind "disk") when a file could not be written."""
        self._over.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise LaunchError(f"{self._files.during} cannot be written: {self._error.strerror}", kind="disk")

    def _sample(self) -> None:
        try:
            self._until_over()
        except OSError as error:
            self._error = error

    def _until_over(self) -> None:
        opened: dict[Path, TextIO] = {}

        def write(path: Path, line: str) -> None:
            if path not in opened:
                opened[path] = path.open("w", encoding="utf-8")
            opened[path].write(line)

        try:
            while True:
                start = time.perf_counter()
                text = self._server.scrape(timeout_s=_TIMEOUT_S)
                took_s = time.perf_counter() - start
                if text is not None:
                    self.last = scrape(text, time.perf_counter_ns())
                    if self.last.values:
                        write(self._files.during, self.last.to_line())
                for reading in self._gpus.read(time.perf_counter_ns()) if self._gpus is not None else ():
                    write(self._files.gpu, reading.to_line())
                pause_s = max(self._every_s - took_s, min(took_s / _MOST_OF_ITS_TIME, _LONGEST_WAIT_S))
                if self._over.wait(pause_s):
                    return
        finally:
            for file in opened.values():
                file.close()
