"""Looks after a server while it is measured: dead, frozen and endless runs end, each with its own name."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers.classify import exited
from headrace.lab.campaign.launchers.headrace import Server

_TICK_S = 0.25
_PROBE_S = 5.0


class Watch:
    """A context: a thread asks /health now and then, and ends a server that does not deserve more patience.

    frozen_after_s  without a single good answer; a server at its limit answers late, so be generous
    timeout_s       for the whole run
    Ending the server ends the client's requests, so a measurement never hangs on a server that does.
    """

    def __init__(self, server: Server, *, frozen_after_s: float, timeout_s: float) -> None:
        self._server = server
        self._frozen_after_s = frozen_after_s
        self._timeout_s = timeout_s
        self._over = threading.Event()
        self._failure: LaunchError | None = None
        self._thread = threading.Thread(target=self._watch, name="server-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def failure(self) -> LaunchError | None:
        """What became of the server while it was watched; None when it is still alive.  Ask after the context."""
        if self._failure is not None:
            return self._failure
        process = self._server.process
        code = process.exit_code()
        return None if code is None else exited(code, process.log_tail(), when="while it was measured")

    def _watch(self) -> None:
        process = self._server.process
        start = last_sign = time.monotonic()
        next_probe = start + _PROBE_S
        while not self._over.wait(_TICK_S) and process.exit_code() is None:
            now = time.monotonic()
            if now - start > self._timeout_s:
                return self._end("timeout", f"the run took longer than {self._timeout_s:g} s")
            if now >= min(next_probe, last_sign + self._frozen_after_s):
                if self._server.healthy(timeout_s=min(_PROBE_S, self._frozen_after_s)):
                    last_sign = time.monotonic()
                elif time.monotonic() - last_sign > self._frozen_after_s and process.exit_code() is None:
                    return self._end("frozen", f"the server left /health unanswered for {self._frozen_after_s:g} s")
                next_probe = time.monotonic() + _PROBE_S
        return None

    def _end(self, kind: str, message: str) -> None:
        self._failure = LaunchError(message, kind=kind, log_tail=self._server.process.log_tail())
        self._server.process.kill()
