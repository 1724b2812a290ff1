"""Starts headrace's own server as a process on a free loopback port, and vouches that it is the one that answers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers import probe
from headrace.lab.campaign.launchers.classify import exited
from headrace.lab.campaign.launchers.process import ProcessIdentity, ServerProcess

Json = Any

SERVE_COMMAND = (sys.executable, "-m", "headrace.cli.main", "serve")
_PORT_ATTEMPTS = 3
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready and known to be ours.  Valid until `stop`.

    model    the name to ask for
    ready_s  from the start of the process to the first good answer
    """

    process: ServerProcess
    port: int
    model: str
    ready_s: float
    version: str | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def healthy(self, *, timeout_s: float) -> bool:
        return probe.answers(self.port, timeout_s=timeout_s)

    def save_metrics(self, path: Path) -> bool:
        """Write /metrics as it is to `path`; False when the server does not offer it or does not answer."""
        try:
            status, body = probe.get(self.port, "/metrics", timeout_s=30)
        except OSError:
            return False
        if status == 200:
            path.write_bytes(body)
        return status == 200

    def stop(self, *, grace_s: float) -> int:
        """End it and all its processes, and confirm that nobody listens on the port.  Returns the exit code.

        Raises LaunchError (kind "port") when the port is still served.
        """
        code = self.process.stop(grace_s)
        if probe.answers(self.port, timeout_s=1.0):
            raise LaunchError(f"port {self.port} is still served after its server was ended", kind="port")
        return code


@dataclass(frozen=True, slots=True)
class HeadraceLauncher:
    """How to start a server for one run.

    model            a directory or a name; None: the built-in demonstration model
    served_model     the name that clients ask for
    ready_timeout_s  until /health answers 200
    command          the program before its flags
    """

    served_model: str
    model: str | None = None
    ready_timeout_s: float = 300.0
    command: tuple[str, ...] = SERVE_COMMAND
    pick_port: Callable[[], int] = probe.free_port

    def start(
        self,
        flags: Mapping[str, Json],
        *,
        log: Path,
        nonce: str,
        started: Callable[[ProcessIdentity], None] = lambda identity: None,
    ) -> Server:
        """Start a server and wait until it is ready.

        `nonce` becomes a second name of the model: who does not know it is not our server.  `started` hears of the
        process at once, so that it can be noted down before anything goes wrong.  A port that another process takes
        in between is tried anew.  Raises LaunchError, with its kind and the end of the log; nothing is left running.
        """
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = self.pick_port()
            process = ServerProcess.start(self._command_line(flags, port, nonce), log=log, nonce=nonce)
            try:
                started(process.identity)
                return self._wait_until_ready(process, port, nonce)
            except LaunchError as error:
                process.kill()
                if error.kind != "port" or attempt == _PORT_ATTEMPTS:
                    raise
            except BaseException:  # Ctrl-C: nothing may be left behind
                process.kill()
                raise
        raise AssertionError("unreachable")

    def _command_line(self, flags: Mapping[str, Json], port: int, nonce: str) -> list[str]:
        line = [*self.command, *([self.model] if self.model is not None else [])]
        for flag, value in flags.items():
            line += [f"--{flag}", str(value).lower() if isinstance(value, bool) else str(value)]
        return [*line, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", self.served_model, nonce]

    def _wait_until_ready(self, process: ServerProcess, port: int, nonce: str) -> Server:
        start = time.monotonic()
        while not probe.answers(port, timeout_s=2.0):
            code = process.exit_code()
            if code is not None:
                raise exited(code, process.log_tail(), when="before it was ready")
            if time.monotonic() - start > self.ready_timeout_s:
                raise self._not_ready(process, port)
            time.sleep(_POLL_S)
        ready_s = time.monotonic() - start
        names = probe.served_models(port)
        if nonce not in names:
            raise self._not_ours(process, port, names)
        return Server(process, port, self.served_model, ready_s, probe.version(port))

    def _not_ready(self, process: ServerProcess, port: int) -> LaunchError:
        state = (
            "listens but does not answer /health with 200"
            if probe.listens(process.identity.pid, port)
            else ("does not listen yet")
        )
        return LaunchError(
            f"the server was not ready within {self.ready_timeout_s:g} s: it {state}",
            kind="not_ready",
            log_tail=process.log_tail(),
        )

    def _not_ours(self, process: ServerProcess, port: int, names: list[str]) -> LaunchError:
        if probe.listens(process.identity.pid, port):
            return LaunchError(
                f"the server serves {', '.join(names) or 'no model'} instead of {self.served_model}",
                kind="wrong_model",
                log_tail=process.log_tail(),
            )
        return LaunchError(
            f"another server answers on port {port}: it took the port before ours did",
            kind="port",
            log_tail=process.log_tail(),
        )
