"""The table that `headrace import` prints: a row a run, as many columns as the terminal is wide."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from headrace.lab.records.foreign.repeats import APART
from headrace.lab.records.results import RunResult, Study

_COLUMNS = (
    ("completed", "served", "{:.0f}"),
    ("duration", "duration s", "{:.2f}"),
    ("request_throughput", "req/s", "{:.2f}"),
    ("output_throughput", "out tok/s", "{:.2f}"),
    ("total_token_throughput", "total tok/s", "{:.2f}"),
    ("mean_ttft_ms", "mean TTFT ms", "{:.2f}"),
    ("mean_tpot_ms", "mean TPOT ms", "{:.2f}"),
    ("p99_tpot_ms", "p99 TPOT ms", "{:.2f}"),
    ("mean_itl_ms", "mean ITL ms", "{:.2f}"),
)
# Of a terminal whose width is not known: a pipe, a log.  COLUMNS sets it.
_WIDTH = 100
# Names longer than this are folded when the columns need the room.
_NAME = 32
_GAP = 2
_MAX_DUPLICATES = 10


def counted(number: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def print_study(study: Study, duplicates: Sequence[str]) -> None:
    """Print the table, and below it what a reader must know: columns left out, cells that are not whole, runs that
    were not pooled, and the sources of exact `duplicates`, which are in no cell."""
    width = max(shutil.get_terminal_size((_WIDTH, 24)).columns, 40)
    for line in table(study, width):
        print(line)
    for cell in study.cells:
        if cell.reason:
            print(printable(f"{cell.name}: {f'{cell.rule}: ' if cell.rule else ''}{cell.reason}"))
        for warning in dict.fromkeys(text for run in cell.runs for text in run.warnings if text.startswith(APART)):
            print(printable(f"{cell.name}: {warning}"))
    if duplicates:
        names = ", ".join(duplicates[:_MAX_DUPLICATES])
        more = f" and {len(duplicates) - _MAX_DUPLICATES} more" if len(duplicates) > _MAX_DUPLICATES else ""
        print(printable(f"not counted, exact duplicates: {names}{more}"))


def table(study: Study, width: int) -> list[str]:
    """The table in lines of at most `width` characters; columns that do not fit are left out from the right."""
    rows = [(printable(cell.name), cell.status.value, run) for cell in study.cells for run in cell.runs]
    shown = [column for column in _COLUMNS if any(column[0] in run.metrics for _, _, run in rows)]
    columns = [["status", *(status for _, status, _ in rows)]]
    columns += [[heading, *(_value(run, key, form) for _, _, run in rows)] for key, heading, form in shown]
    widths = [max(map(len, column)) + _GAP for column in columns]
    longest = max([len("cell"), *(len(name) for name, _, _ in rows)])
    kept = len(columns)
    while kept > 2 and sum(widths[:kept]) + min(longest, _NAME) > width:
        kept -= 1
    room = max(min(longest, width - sum(widths[:kept])), 8)
    runs = f"{counted(len(rows), 'run')} in {counted(len(study.cells), 'cell')}"
    lines = [runs]
    for index, name in enumerate(["cell", *(name for name, _, _ in rows)]):
        first, *rest = fold(name, room)
        cells = [columns[0][index].ljust(widths[0] - _GAP)]
        cells += [
            column[index].rjust(size - _GAP) for column, size in zip(columns[1:kept], widths[1:kept], strict=True)
        ]
        lines.append((" " * _GAP).join([first.ljust(room), *cells]).rstrip())
        lines += [f"  {line}" for line in rest]
        if index == 0:
            lines.append("-" * min(width, room + sum(widths[:kept])))
    if kept < len(columns):
        lines.append(f"{counted(len(columns) - kept, 'more column')} in --json")
    return lines


def fold(name: str, width: int) -> list[str]:
    """The name in lines of at most `width` characters (those after the first are printed two to the right), broken
    after a hyphen, a slash or a blank where one is near."""
    lines = [""]
    for part in re.findall(r"[^-/ ]*[-/ ]|[^-/ ]+", name):
        room = width if len(lines) == 1 else width - 2
        if len(lines[-1]) + len(part.rstrip()) > room and lines[-1]:
            lines.append("")
            room = width - 2
        while len(part.rstrip()) > room:
            lines[-1], part = part[:room], part[room:]
            lines.append("")
            room = width - 2
        lines[-1] += part
    return [line.rstrip() for line in lines]


def printable(text: str) -> str:
    """The text without control characters: a name from a file must not steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _value(run: RunResult, key: str, form: str) -> str:
    return form.format(run.metrics[key]) if key in run.metrics else ""
