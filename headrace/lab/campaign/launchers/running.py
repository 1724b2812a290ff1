"""A server that runs already: somebody else's, reached by its address, asked who it is, and never stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers import probe
from headrace.lab.campaign.launchers.server import Server
from headrace.lab.campaign.launchers.start import Launcher, Leftover, ProcessLauncher
from headrace.lab.campaign.target import TargetTable
from headrace.lab.http import base_of

Json = Any

_POLL_S = 0.5
_MODELS = "/v1/models"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """The target's own address; what a plan's cells set must be settings of the requests."""

    target: TargetTable

    def start(
        self,
        flags: Mapping[str, Json],
        *,
        log: Path,
        nonce: str,
        started: Callable[[Leftover], None] = lambda leftover: None,
        waiting: Callable[[str], None] = lambda phase: None,
    ) -> Server:
        """Wait until it answers.  Raises LaunchError (not_ready, wrong_model)."""
        url = base_of(self.target.url or "")
        start = time.monotonic()
        # Not every server has /health; each has the list of its models.
        while (path := self._answering(url)) is None:
            if time.monotonic() - start > self.target.ready_timeout_s:
                raise LaunchError(
                    f"nobody answers {self.target.health_path} or {_MODELS} at {url} with 200 within "
                    f"{self.target.ready_timeout_s:g} s",
                    kind="not_ready",
                )
            time.sleep(_POLL_S)
        names = probe.served_models(url)
        wanted = self.target.name_of_model
        if not names or (wanted is not None and wanted not in names):
            raise LaunchError(
                f"{url} serves {', '.join(names) or 'no model'} instead of {wanted or 'one'}", kind="wrong_model"
            )
        return Server(url, wanted or names[0], 0.0, probe.version(url), None, path)

    def _answering(self, url: str) -> str | None:
        pages = (self.target.health_path, _MODELS)
        return next((page for page in pages if probe.answers(url, page, timeout_s=5.0)), None)


def launcher_for(target: TargetTable, served_model: str) -> Launcher:
    """How to come by a server of this target."""
    return RunningServer(target) if target.kind == "url" else ProcessLauncher(target, served_model)
