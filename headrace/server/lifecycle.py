"""One server process: bind, load, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator

import uvicorn

from headrace import exit_codes
from headrace.errors import LaunchError
from headrace.server.app import create_app
from headrace.server.limits import request_limits
from headrace.server.logs import configure_logging
from headrace.server.options import ServerOptions
from headrace.server.state import ServedEngine, Service

logger = logging.getLogger("headrace.server")

KEEP_ALIVE_S = 75  # longer than the 60 s of common clients: the side that waits longer avoids resets between requests
AFTER_DRAIN_S = 10  # for clients that read the end of their stream slowly or not at all, on a machine that is busy


def serve(engine_factory: Callable[[], ServedEngine], options: ServerOptions) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code.

    The socket is bound before `engine_factory` runs (in a thread of its own), so a taken port fails at once, and
    /health answers 503 "loading" until the one ready line is printed.  Exit codes: 0 after a drain, 130 when a second
    signal cut the drain short.  Raises LaunchError for the address, and whatever `engine_factory` raises.
    """
    configure_logging(options.log_level, options.log_format)
    listener = bind(options.host, options.port)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_Process(engine_factory, options, listener).run())


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.  Raises LaunchError (kind "port") with the address."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
        return listener
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        message = f"cannot listen on {host}:{port}: {reason}; choose another --host or --port"
        raise LaunchError(message, kind="port") from None


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: here a signal first drains the engine."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _Process:
    def __init__(
        self, engine_factory: Callable[[], ServedEngine], options: ServerOptions, listener: socket.socket
    ) -> None:
        self._engine_factory = engine_factory
        self._options = options
        self._listener = listener
        app = create_app(None, options)
        self._service: Service = app.state.service
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=options.enable_log_requests,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=AFTER_DRAIN_S,
                server_header=False,
                ws="none",
            )
        )
        self._engine: ServedEngine | None = None
        self._stop = asyncio.Event()
        self._signals = 0
        self._drain: asyncio.Task[None] | None = None

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        try:
            await self._load_unless_stopped(serving)
            await serving
        finally:
            self._server.should_exit = True
            await serving
            if self._drain is not None:
                await self._drain
            if self._engine is not None:
                self._engine.close()
        return exit_codes.INTERRUPTED if self._signals > 1 else exit_codes.OK

    async def _load_unless_stopped(self, serving: asyncio.Task[None]) -> None:
        loading = _in_thread(self._engine_factory)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((loading, stopped, serving), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not loading.done():
            loading.cancel()
            return
        self._engine = loading.result()
        self._service.attach(self._engine)
        limits = request_limits(self._engine.config, self._options)
        logger.info("limits of requests: %s", ", ".join(f"{name} {value:,}" for name, value in limits.items()))
        print(f"headrace is ready on {_url(self._listener)}", flush=True)

    def _on_signal(self, number: int) -> None:
        self._signals += 1
        self._service.draining = True
        self._stop.set()
        if self._signals > 2:
            return
        timeout_s = self._options.shutdown_timeout_s if self._signals == 1 else 0.0
        if self._drain is not None:
            self._drain.cancel()
        name = signal.Signals(number).name
        logger.info("%s: no new requests, up to %.0f s for %d in flight", name, timeout_s, self._service.in_flight)
        self._drain = asyncio.get_running_loop().create_task(self._drain_then_exit(timeout_s))

    async def _drain_then_exit(self, timeout_s: float) -> None:
        """End what is in flight, then let uvicorn send the last events and close."""
        try:
            if self._engine is not None:
                # The engine keeps to the timeout unless it is stuck in a step; the process must end even then.
                await asyncio.wait_for(self._engine.drain(timeout_s), timeout_s + AFTER_DRAIN_S)
        except TimeoutError:
            logger.error("The engine did not drain within %.0f s", timeout_s + AFTER_DRAIN_S)
        except asyncio.CancelledError:
            return  # a second signal took over
        self._server.should_exit = True


def _in_thread(work: Callable[[], ServedEngine]) -> asyncio.Future[ServedEngine]:
    """Run `work` in a daemon thread, which a signal need not wait for (an executor's threads are joined at exit)."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[ServedEngine] = loop.create_future()

    def settle(result: ServedEngine | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def target() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=target, name="load", daemon=True).start()
    return future


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
