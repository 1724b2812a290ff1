"""Starts a server as a process on a free loopback port, and vouches that it is the one that answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers import probe
from headrace.lab.campaign.launchers.classify import exited, gave_up, out_of_memory
from headrace.lab.campaign.launchers.lines import LINES, Start, container_end
from headrace.lab.campaign.launchers.phases import phase
from headrace.lab.campaign.launchers.process import ProcessIdentity, ServerProcess, processes_with
from headrace.lab.campaign.launchers.server import Server
from headrace.lab.campaign.target import TargetTable
from headrace.lab.metrics.result import STEPS
from headrace.lab.procfs import listeners

Json = Any

_PORT_ATTEMPTS = 3
_POLL_S = 0.1
# A log is read for its phase now and then, not at every question.
_PHASE_EVERY_S = 1.0

# A server that has given up may still exit by itself, with a code and its last words.
_LAST_WORDS_S = 5.0

# vLLM tells its whole configuration under /server_info in this mode only.  The server is ours, listens on loopback and
# lives for a run; a plan's `env` has the last word.
_DEVELOPMENT_MODE = {"VLLM_SERVER_DEV_MODE": "1"}


@dataclass(frozen=True, slots=True)
class Leftover:
    """What must be ended should the lab die: the server's process, and the command that ends its container."""

    process: ProcessIdentity
    container_end: tuple[str, ...] = ()


class Launcher(Protocol):
    """How a campaign comes by a server: one method, for a process of ours as for a server that runs already."""

    def start(
        self,
        flags: Mapping[str, Json],
        *,
        log: Path,
        nonce: str,
        started: Callable[[Leftover], None] = ...,
        waiting: Callable[[str], None] = ...,
    ) -> Server: ...


@dataclass(frozen=True, slots=True)
class ProcessLauncher:
    """Starts a target's server for one run.

    target        its kind makes the command line
    served_model  the name that clients ask for
    """

    target: TargetTable
    served_model: str
    pick_port: Callable[[], int] = probe.free_port

    def start(
        self,
        flags: Mapping[str, Json],
        *,
        log: Path,
        nonce: str,
        started: Callable[[Leftover], None] = lambda leftover: None,
        waiting: Callable[[str], None] = lambda phase: None,
    ) -> Server:
        """Start a server and wait until it is ready.

        `nonce` becomes a second name of the model where the server takes one, and marks its processes.  `started`
        hears of the process at once, so that it can be noted down before anything goes wrong; `waiting` of each phase
        of its start.  A port that another process takes in between is tried anew.  Raises LaunchError, with its kind
        and the end of the log; nothing is left running.
        """
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = self.pick_port()
            line = LINES[self.target.kind](self.target, Start(flags, port, self.served_model, nonce))
            line = [*line, *_step_log(self.target, flags, log)]
            end = container_end(self.target, nonce)
            process = ServerProcess.start(line, log=log, nonce=nonce, extra_env=self._variables(), container_end=end)
            try:
                started(Leftover(process.identity, end))
                return self._wait_until_ready(process, port, nonce, waiting)
            except LaunchError as error:
                process.kill()
                if error.kind != "port" or attempt == _PORT_ATTEMPTS:
                    raise
            except BaseException:  # Ctrl-C: nothing may be left behind
                process.kill()
                raise
        raise AssertionError("unreachable")

    def _variables(self) -> dict[str, str]:
        if self.target.kind == "docker":
            return {}  # the container's are on its command line
        return {**(_DEVELOPMENT_MODE if self.target.kind == "vllm" else {}), **self.target.env}

    def _wait_until_ready(
        self, process: ServerProcess, port: int, nonce: str, waiting: Callable[[str], None]
    ) -> Server:
        start = time.monotonic()
        url, path = f"http://127.0.0.1:{port}", self.target.health_path
        said, next_phase, hopeless_since = "", start, start
        while not probe.answers(url, path, timeout_s=2.0):
            code = process.exit_code()
            if code is not None:
                raise exited(code, process.log_text(), when="before it was ready")
            now = time.monotonic()
            if now >= next_phase:
                next_phase = now + _PHASE_EVERY_S
                log = process.log_text()
                if (found := phase(log)) != said:
                    said = found
                    waiting(said)
                hopeless = gave_up(log)
                if hopeless is None:
                    hopeless_since = now
                elif now - hopeless_since > _LAST_WORDS_S:
                    raise hopeless
            if now - start > self.target.ready_timeout_s:
                raise self._not_ready(process, port)
            time.sleep(_POLL_S)
        ready_s = time.monotonic() - start
        self._prove_identity(process, url, port, nonce)
        return Server(url, self.served_model, ready_s, probe.version(url), process, path)

    def _prove_identity(self, process: ServerProcess, url: str, port: int, nonce: str) -> None:
        """Raises LaunchError unless our server answers on the port, and serves the model.

        A server that took the nonce as a name proves itself.  Of another one a process of ours must hold the port's
        socket.  A container's engine holds it, and would have failed had it been taken.
        """
        names = probe.served_models(url)
        if nonce in names:
            return
        ours = self.target.kind == "docker" or bool(listeners(port, processes_with(nonce)))
        if not ours:
            raise LaunchError(
                f"another server answers on port {port}: it took the port before ours did",
                kind="port",
                log_tail=process.log_tail(),
            )
        if self.served_model not in names:
            raise LaunchError(
                f"the server serves {', '.join(names) or 'no model'} instead of {self.served_model}",
                kind="wrong_model",
                log_tail=process.log_tail(),
            )

    def _not_ready(self, process: ServerProcess, port: int) -> LaunchError:
        log = process.log_text()
        after = f"the server was not ready within {self.target.ready_timeout_s:g} s"
        if out_of_memory(log):  # some servers hang when a worker has run out of it
            return LaunchError(f"{after}: it ran out of memory", kind="oom", log_tail=process.log_tail())
        listens = listeners(port, processes_with(process.nonce))
        state = f"listens but does not answer {self.target.health_path} with 200" if listens else "does not listen yet"
        doing = phase(log)
        was = f" (its log: still {doing})" if doing != "starting" else ""
        return LaunchError(f"{after}: it {state}{was}", kind="not_ready", log_tail=process.log_tail())


def _step_log(target: TargetTable, flags: Mapping[str, Json], log: Path) -> tuple[str, ...]:
    """headrace's own server says what each step computed: that splits every TTFT and explains every long gap.

    It costs up to 43 us of a step (docs/serving.md).  A plan that asks for a step log of its own keeps it.
    """
    if target.kind != "headrace" or target.command or "step-log" in flags:
        return ()
    return ("--step-log", str(log.with_name(STEPS)), "--step-log-requests")
