"""A server that is ready, ours or not: what a campaign asks of it, and how it ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers import probe
from headrace.lab.campaign.launchers.classify import exited
from headrace.lab.campaign.launchers.process import ServerProcess
from headrace.lab.files import write_durably
from headrace.lab.http import Peer

Json = Any

# What servers say of themselves, beside /metrics: vLLM's (the second in its development mode), SGLang's, anybody's.
_SELF_DESCRIPTIONS = ("/version", "/v1/models", "/server_info?config_format=json", "/get_server_info")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready and known to be the one that was meant.  Valid until `stop`.

    model    the name to ask for
    ready_s  from the start of the process to the first good answer; 0 for one that ran already
    process  None for a server that is not ours: it is asked, and never ended
    """

    url: str
    model: str
    ready_s: float
    version: str | None
    process: ServerProcess | None = None
    health_path: str = "/health"

    def healthy(self, *, timeout_s: float) -> bool:
        return probe.answers(self.url, self.health_path, timeout_s=timeout_s)

    def scrape(self, *, timeout_s: float = 30) -> str | None:
        """/metrics as it is; None when the server does not offer it or does not answer."""
        try:
            status, body = probe.get(self.url, "/metrics", timeout_s=timeout_s)
        except OSError:
            return None
        return body.decode("utf-8", "replace") if status == 200 else None

    def save_metrics(self, path: Path) -> bool:
        """Write /metrics as it is to `path`; False when there is nothing to write."""
        text = self.scrape()
        if text is not None:
            write_durably(path, text)
        return text is not None

    def save_description(self, path: Path) -> None:
        """Write what the server says of itself (path -> JSON answer), as it is."""
        found: dict[str, Json] = {}
        with Peer(self.url, timeout_s=30) as peer:
            for page in _SELF_DESCRIPTIONS:
                try:
                    status, body = peer.get(page)
                    if status == 200:
                        found[page] = json.loads(body)
                except (OSError, ValueError, RecursionError):
                    continue  # a server without this page, which most have not
        write_durably(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    def ended(self, *, when: str) -> LaunchError | None:
        """Why its process is no more; None while it lives, and for a server that is not ours."""
        code = self.process.exit_code() if self.process is not None else None
        if self.process is None or code is None:
            return None
        return exited(code, self.process.log_text(), when=when)

    def log_tail(self) -> str:
        return self.process.log_tail() if self.process is not None else ""

    def stop(self, *, grace_s: float) -> int | None:
        """End it and all its processes, and confirm that nobody listens on the port.  Returns the exit code.

        A server that is not ours is left as it is.  Raises LaunchError (kind "port") when the port is still served.
        """
        if self.process is None:
            return None
        code = self.process.stop(grace_s)
        if probe.answers(self.url, self.health_path, timeout_s=1.0):
            raise LaunchError(f"{self.url} is still served after its server was ended", kind="port")
        return code
