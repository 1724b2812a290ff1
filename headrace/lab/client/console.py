"""Progress on a terminal: a bar where there is one, a plain line every ten seconds elsewhere.

Drawn at most once a second, from the client's own tick: a bar that refreshes itself would take the interpreter away
from the time stamps.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.lab.client.load import Progress

PLAIN_LINE_S = 10.0


@contextmanager
def console_progress(*, enabled: bool = True) -> Iterator[Callable[[Progress], None] | None]:
    """A callback for `measure` that draws on stderr; None when not enabled."""
    if not enabled:
        yield None
    elif sys.stderr.isatty():
        with _bar() as callback:
            yield callback
    else:
        yield _PlainLines()


class _PlainLines:
    def __init__(self) -> None:
        self._last_s = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.elapsed_s - self._last_s >= PLAIN_LINE_S:
            self._last_s = progress.elapsed_s
            failed = f", {progress.failed} failed" if progress.failed else ""
            print(
                f"{progress.done}/{progress.total} done{failed}, {progress.issued} sent, {progress.elapsed_s:.0f} s",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[dim]{task.fields[in_flight]} in flight{task.fields[failed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("requests", total=None, in_flight=0, failed="")

        def draw(progress: Progress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            in_flight = progress.issued - progress.done
            bar.update(task, total=progress.total, completed=progress.done, in_flight=in_flight, failed=failed)
            bar.refresh()

        yield draw
