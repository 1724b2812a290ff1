"""What a person sees while a campaign runs: bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from headrace.lab.client.load import Progress as LoadProgress

_LINE_EVERY_S = 15.0


class Reporter(Protocol):
    """Hears of a campaign's course.  `label` names a run, as in "off-512 run 2"."""

    def begin(self, runs: int, kept: int) -> None: ...
    def note(self, text: str) -> None: ...
    def starting(self, label: str, number: int) -> None: ...
    def waiting(self, label: str, phase: str) -> None: ...
    def measuring(self, label: str, ready_s: float) -> None: ...
    def progress(self, label: str, progress: LoadProgress) -> None: ...
    def ended(self, label: str, text: str, *, good: bool) -> None: ...
    def close(self) -> None: ...


def reporter_for(console: Console) -> Reporter:
    return BarReporter(console) if console.is_terminal else LineReporter(console)


class LineReporter:
    """One line an event, and one now and then while a run lasts: for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._runs = 0
        self._last_line = time.monotonic()

    def begin(self, runs: int, kept: int) -> None:
        self._runs = runs
        if kept:
            self.note(f"{kept} of {runs} runs are there already and are kept")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def starting(self, label: str, number: int) -> None:
        self._last_line = time.monotonic()
        self.note(f"[{number}/{self._runs}] {label}: starting the server")

    def waiting(self, label: str, phase: str) -> None:
        if phase != "starting":
            self.note(f"  {label}: {phase}")

    def measuring(self, label: str, ready_s: float) -> None:
        self.note(f"  {label}: ready after {ready_s:.1f} s, measuring")

    def progress(self, label: str, progress: LoadProgress) -> None:
        if time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.note(f"  {label}: {progress.done}/{progress.total} requests after {progress.elapsed_s:.0f} s")

    def ended(self, label: str, text: str, *, good: bool) -> None:
        self.note(f"  {label}: {text}")

    def close(self) -> None:
        pass


class BarReporter(LineReporter):
    """A bar for the campaign and one for the run, with the finished runs above them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=2,  # the machine is busy with what is being measured
        )
        self._campaign: TaskID | None = None
        self._run: TaskID | None = None

    def begin(self, runs: int, kept: int) -> None:
        super().begin(runs, kept)
        self._campaign = self._bars.add_task("runs", total=runs, completed=kept)
        self._bars.start()

    def starting(self, label: str, number: int) -> None:
        self._run = self._bars.add_task(f"{label}: starting the server", total=None)

    def waiting(self, label: str, phase: str) -> None:
        if self._run is not None:
            self._bars.update(self._run, description=f"{label}: {phase}")

    def measuring(self, label: str, ready_s: float) -> None:
        if self._run is not None:
            self._bars.update(self._run, description=label)

    def progress(self, label: str, progress: LoadProgress) -> None:
        if self._run is not None:
            self._bars.update(self._run, completed=progress.done, total=progress.total)

    def ended(self, label: str, text: str, *, good: bool) -> None:
        if self._run is not None:
            self._bars.remove_task(self._run)
            self._run = None
        if self._campaign is not None:
            self._bars.advance(self._campaign)
        self._console.print(f"{'ok  ' if good else 'FAIL'} {label}: {text}", markup=False, highlight=False)

    def close(self) -> None:
        self._bars.stop()
