"""A page in headless Chromium, driven over the debugging protocol's pipe: no port, no package, one process."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

BINARY = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """One page.  `events` holds every event of the domains that are switched on, in order."""

    def __init__(self, profile: Path, *flags: str) -> None:
        assert BINARY is not None
        from_browser, to_us = os.pipe()
        to_browser_end, to_browser = os.pipe()
        # The browser reads file descriptor 3 and writes 4; only a shell can place ours there.
        script = f'exec "$0" "$@" 3<&{to_browser_end} 4>&{to_us}'
        arguments = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            *flags,
        )
        self._process = subprocess.Popen(
            ["bash", "-c", script, BINARY, *arguments],
            pass_fds=(to_browser_end, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser_end)
        os.close(to_us)
        self._read, self._write = from_browser, to_browser
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()  # ours alone: its children end with the pipe
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and return its result; events that arrive meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            reply = self._next(deadline)
            if reply.get("id") == self._number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                result: dict[str, Any] = reply["result"]
                return result
            if "method" in reply:
                self.events.append(reply)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is awaited."""
        reply = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def open(self, page: Path) -> None:
        """Open a file and wait until its script says that it has drawn (or could not)."""
        self.call("Page.navigate", url=page.as_uri())
        self.evaluate(
            """new Promise((done) => {
              const look = () => document.readyState === "complete" && document.documentElement.dataset.state
                ? done() : setTimeout(look, 20);
              look();
            })"""
        )

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(deadline - time.monotonic(), 0))
            assert ready, "chromium did not answer in time"
            data = os.read(self._read, 1 << 20)
            assert data, "chromium ended"
            self._buffer += data
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        return message
