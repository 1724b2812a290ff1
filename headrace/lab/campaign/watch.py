"""Looks after a server while it is measured: dead, frozen and endless runs end, each with its own name."""

from __future__ import annotations

import signal
import threading
import time
from types import TracebackType

from headrace.errors import LaunchError
from headrace.lab.campaign.launchers.server import Server
from headrace.lab.campaign.sampling import Sampler
from headrace.lab.campaign.server_metrics import tokens_counted

_TICK_S = 0.25
_PROBE_S = 5.0


class Watch:
    """A context: a thread asks /health now and then, and ends a server that does not deserve more patience.

    sampler         what the server counts: health says that the process lives, tokens say that it computes
    frozen_after_s  without a single good answer; a server at its limit answers late, so be generous
    timeout_s       for the whole run
    Ending the server ends the client's requests, so a measurement never hangs on a server that does.  A server that is
    not ours cannot be ended: then the measurement is interrupted, as by Ctrl-C.
    """

    def __init__(self, server: Server, sampler: Sampler, *, frozen_after_s: float, timeout_s: float) -> None:
        self._server = server
        self._sampler = sampler
        self._frozen_after_s = frozen_after_s
        self._timeout_s = timeout_s
        self._over = threading.Event()
        self._failure: LaunchError | None = None
        self._deaf = False
        self._seen: tuple[int, float | None] = (0, None)
        self._last_progress = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="server-watch", daemon=True)

    def __enter__(self) -> Watch:
        # A lab in the background of a script ignores Ctrl-C; what interrupts a run must reach it all the same.
        self._deaf = self._server.process is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if self._deaf:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def in_flight(self, requests: int, done: int) -> None:
        """What the client knows: requests without an end, and those that have ended.  Call it about once a second."""
        scrape = self._sampler.last
        tokens = tokens_counted(scrape.values) if scrape is not None else None
        # Without a count of tokens only the run's own limit ends a silence: one long answer may last for minutes.
        if requests == 0 or tokens is None or (done, tokens) != self._seen:
            self._seen = (done, tokens)
            self._last_progress = time.monotonic()

    def failure(self) -> LaunchError | None:
        """What became of the server while it was watched; None when it is still alive.  Ask after the context."""
        return self._failure or self._server.ended(when="while it was measured")

    def _watch(self) -> None:
        start = last_sign = self._last_progress = time.monotonic()
        next_probe = start + _PROBE_S
        while not self._over.wait(_TICK_S) and self._server.ended(when="") is None:
            now = time.monotonic()
            if now - start > self._timeout_s:
                return self._end("timeout", f"the run took longer than {self._timeout_s:g} s")
            if now - self._last_progress > self._frozen_after_s:
                if not self._server.healthy(timeout_s=min(_PROBE_S, self._frozen_after_s)):
                    return self._silent()
                return self._end(
                    "frozen",
                    f"the server has requests, and for {self._frozen_after_s:g} s has neither ended one nor counted a "
                    "token, though it answers /health",
                )
            if now >= min(next_probe, last_sign + self._frozen_after_s):
                if self._server.healthy(timeout_s=min(_PROBE_S, self._frozen_after_s)):
                    last_sign = time.monotonic()
                elif time.monotonic() - last_sign > self._frozen_after_s and self._server.ended(when="") is None:
                    return self._silent()
                next_probe = time.monotonic() + _PROBE_S
        return None

    def _silent(self) -> None:
        if self._server.ended(when="") is None:
            self._end("frozen", f"the server left /health unanswered for {self._frozen_after_s:g} s")

    def _end(self, kind: str, message: str) -> None:
        if self._over.is_set():
            return
        self._failure = LaunchError(message, kind=kind, log_tail=self._server.log_tail())
        if self._server.process is not None:
            self._server.process.kill()
        else:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
