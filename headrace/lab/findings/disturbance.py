"""Runs that other processes disturbed: how much these took of the processor, and which repeats can do without them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from headrace.lab.records.results import Cell, RunResult

# Share of the machine, 0 to 1, that went to other processes during a run; stated where it was enough to matter.
FOREIGN_CPU = "foreign_cpu_share"
# From here on a run counts as disturbed: what is missing of the machine is more than settings commonly differ by.
DISTURBED_SHARE = 0.10
# A share of one would leave nothing to measure with; what says so is rounded.
_MOST = 0.95
_SAID = re.compile(r"other processes used (\d+(?:\.\d+)?) ?%")


def foreign_share(run: RunResult) -> float:
    """What others took, 0 to 1, as the run's settings state it or a warning says it; 0 where neither does."""
    stated = run.settings.get(FOREIGN_CPU)
    if isinstance(stated, int | float) and not isinstance(stated, bool) and stated >= 0:
        return min(float(stated), _MOST)
    said = [float(match[1]) / 100 for warning in run.warnings if (match := _SAID.search(warning))]
    return min(max(said, default=0.0), _MOST)


def is_disturbed(run: RunResult) -> bool:
    return foreign_share(run) > DISTURBED_SHARE


def tells_of_others(warning: str) -> bool:
    """The warning says what `foreign_share` reads."""
    return _SAID.search(warning) is not None


def taken(cells: Iterable[Cell]) -> float:
    """The largest share that others took of a disturbed run of these cells; 0 where none was disturbed."""
    return max((foreign_share(run) for cell in cells for run in cell.runs if is_disturbed(run)), default=0.0)


def quiet(cell: Cell) -> Cell:
    """The cell with its undisturbed runs only; as it is, where it has none.

    One undisturbed run is enough: its stated allowance is a few per cent, while a disturbed run may be slower by
    1/(1 - share), which is 11 % at least.
    """
    runs = tuple(run for run in cell.runs if not is_disturbed(run))
    return replace(cell, runs=runs) if runs else cell
