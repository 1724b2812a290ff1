"""A study as the rules see it: comparable cells, the factor that was varied, and one series a line of a chart.

Nothing here draws a conclusion; it only decides which figures may stand side by side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from headrace.lab.findings.disturbance import FOREIGN_CPU, is_disturbed, quiet
from headrace.lab.findings.restarts import by_restart
from headrace.lab.records.comparable import WORKLOAD_COUNTS, same_workload, shortfall
from headrace.lab.records.results import Cell, CellStatus, Json, RunResult, Study

CHUNKED = "enable_chunked_prefill"
# No time in ms, count or rate of a serving benchmark lies outside; what does is a damaged file, and must not overflow.
_SMALLEST, _LARGEST = 1e-9, 1e15
# How much was asked of the server, and how: another value is another experiment, not another setting.
RAMP = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
_LOAD = ("request_rate", *RAMP, "burstiness", "max_concurrency")
# What was asked, and of which model.
_WORKLOAD = ("model", "dataset", "random_input_len", "random_output_len", "num_prompts")
STRANGER = "another workload or another model"
# Settings that describe a run or its reading, not the configuration that is compared.
_ASIDE = {
    *("repeat", "run_on_server", "date", "progress_elapsed_s", "seed"),
    *("implied", "metadata", "profile", "num_prompts", FOREIGN_CPU),
}


@dataclass(frozen=True, slots=True)
class Factor:
    """A setting with ordered values.  `noun` and `unit` are how sentences call it."""

    key: str
    noun: str
    unit: str
    is_load: bool = False  # how much is asked of the server: nothing that one would recommend

    def value(self, cell: Cell) -> float | None:
        value = cell.settings.get(self.key)
        if value == "inf":
            return math.inf
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def at(self, x: float) -> str:
        """ "256" or "inf", for use after the noun."""
        return f"{x:g}"


# In the order of preference: when several vary, the first one is the factor and the others are confounders.
FACTORS = (
    Factor("max_num_batched_tokens", "budget", "tokens"),
    Factor("max_num_seqs", "max_num_seqs", "sequences"),
    Factor("request_rate", "request rate", "requests/s", is_load=True),
    Factor("max_concurrency", "concurrency", "requests", is_load=True),
)


@dataclass(frozen=True, slots=True)
class Series:
    """Cells that differ in the factor only (and in what was substituted with it), by rising x."""

    label: str
    settings: dict[str, Json]
    points: tuple[tuple[float, Cell], ...]

    @property
    def chunked(self) -> bool | None:
        value = self.settings.get(CHUNKED)
        return value if isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Table:
    """What can be compared in a study, and what cannot, with its reason.

    study        its cells have the runs that count: the INVALID ones are in `not_counted`, by the cell's name, unless
                 a cell has no others (it is then left out, and shows what it has)
    set_aside    valid runs that other processes disturbed, of cells that have undisturbed ones; they do not count
    cells        those that may be compared
    """

    study: Study
    cells: tuple[Cell, ...]
    left_out: tuple[tuple[Cell, str], ...]
    not_counted: tuple[tuple[str, RunResult], ...]
    set_aside: tuple[tuple[str, RunResult], ...]
    factor: Factor | None
    series: tuple[Series, ...]  # the longest first

    @property
    def same_load(self) -> tuple[Cell, ...]:
        """The largest group of cells that were asked for the same: only these can be ranked by their settings."""
        loads = Counter(_load(cell) for cell in self.cells)
        if not loads:
            return ()
        usual = loads.most_common(1)[0][0]
        return tuple(cell for cell in self.cells if _load(cell) == usual)


def build(study: Study) -> Table:
    """Sort out a study."""
    whole = [_whole(cell) for cell in study.cells]
    believable = [by_restart(_counted(cell)) for cell in whole]
    study = replace(study, cells=tuple(quiet(cell) for cell in believable))
    set_aside = tuple(
        (cell.name, run)
        for cell, kept in zip(believable, study.cells, strict=True)
        for run in cell.runs
        if is_disturbed(run) and run not in kept.runs
    )
    not_counted = tuple((cell.name, run) for cell in whole for run in cell.runs if run.invalid)
    cells, left_out = _comparable(study)
    factor = next((factor for factor in FACTORS if len({factor.value(cell) for cell in cells} - {None}) > 1), None)
    series = _series(cells, factor) if factor is not None else ()
    return Table(study, cells, left_out, not_counted, set_aside, factor, series)


def sample(cell: Cell, metric: str) -> tuple[float, ...]:
    """The metric's finite, non-negative value in each run that has it; what is too small to be measured is zero."""
    values = [run.metrics.get(metric) for run in cell.runs]
    usable = [float(value) for value in values if value is not None and 0 <= value <= _LARGEST]
    return tuple(value if value >= _SMALLEST else 0.0 for value in usable)


def mean(cell: Cell, metric: str) -> float | None:
    """Mean over the cell's runs; None when no run has the metric."""
    values = sample(cell, metric)
    return sum(values) / len(values) if values else None


def means(cells: Iterable[Cell], metric: str) -> list[float] | None:
    """One mean a cell, or None when a cell lacks the metric or has a zero (no ratio can be formed)."""
    found = [mean(cell, metric) for cell in cells]
    values = [value for value in found if value is not None and value > 0]
    return values if values and len(values) == len(found) else None


def varying(cells: Sequence[Cell]) -> list[str]:
    """Settings whose value is not the same in all the cells."""
    keys = dict.fromkeys(key for cell in cells for key in cell.settings if key not in _ASIDE)
    return [key for key in keys if len({repr(_setting(cell, key)) for cell in cells}) > 1]


def _setting(cell: Cell, key: str) -> Json:
    """A setting's value; of the policy only the scheduler's generation, since the rest of its name says whether
    chunked prefill is on, which is a setting of its own."""
    value = cell.settings.get(key)
    return value.partition("-")[0] if key == "policy" and isinstance(value, str) else value


def describe(cell: Cell, factor: Factor | None) -> str:
    """The cell's setting in words: "chunked prefill with a budget of 256 tokens", and on which target."""
    target = cell.settings.get("target")
    return _setting_of(cell, factor) + (f" on {target}" if isinstance(target, str) and target else "")


def _setting_of(cell: Cell, factor: Factor | None) -> str:
    chunked = cell.settings.get(CHUNKED)
    first = {True: "chunked prefill", False: "chunked prefill off"}.get(chunked) if isinstance(chunked, bool) else None
    x = factor.value(cell) if factor is not None else None
    if factor is None or x is None:
        return f"{first} ({cell.name})" if first else cell.name
    second = f"a {factor.noun} of {factor.at(x)} {factor.unit}"
    if first is None:
        return second
    return f"{first} and {second}" if chunked is False else f"{first} with {second}"


def _whole(cell: Cell) -> Cell:
    """The cell with what only its runs state (the load, a profiler): a plan's cell lists the server's flags alone."""
    stated = cell.runs[0].settings if cell.runs else {}
    return replace(cell, settings={**stated, **cell.settings})


def _counted(cell: Cell) -> Cell:
    """The cell with its believable runs only; as it is, where it has none."""
    believable = tuple(run for run in cell.runs if not run.invalid)
    return replace(cell, runs=believable) if believable else cell


def why_invalid(run: RunResult) -> str:
    """The gravest reason of an INVALID run, without its full stop."""
    return run.verdict.reasons[0].rstrip(".") if run.verdict and run.verdict.reasons else "no reason recorded"


def _comparable(study: Study) -> tuple[tuple[Cell, ...], tuple[tuple[Cell, str], ...]]:
    left_out: list[tuple[Cell, str]] = []
    measured: list[Cell] = []
    for cell in study.cells:
        if cell.status not in (CellStatus.OK, CellStatus.SUBSTITUTED):
            left_out.append((cell, cell.reason or f"status {cell.status.value}"))
        elif not cell.runs:
            left_out.append((cell, "no run"))
        elif all(run.invalid for run in cell.runs):
            every = "its run is INVALID" if len(cell.runs) == 1 else "all of its runs are INVALID"
            left_out.append((cell, f"{every}: {why_invalid(cell.runs[0])}"))
        elif any(run.metrics.get("completed") == 0 for run in cell.runs):
            left_out.append((cell, "no request was completed"))
        elif any(shortfall(run) for run in cell.runs):
            left_out.append((cell, _unserved(cell)))
        else:
            measured.append(cell)
    workloads = Counter(_workload(cell, measured) for cell in measured)
    usual = workloads.most_common(1)[0][0] if workloads else None
    cells = [cell for cell in measured if _workload(cell, measured) == usual]
    left_out += [(cell, STRANGER) for cell in measured if cell not in cells]
    return tuple(cells), tuple(left_out)


def _unserved(cell: Cell) -> str:
    served, asked = min(found for run in cell.runs if (found := shortfall(run)) is not None)
    return f"{asked - served} of {asked} requests were not served"


def _workload(cell: Cell, cells: Sequence[Cell]) -> int:
    """Index of the first cell with the same workload: a name for the group."""
    for index, other in enumerate(cells):
        same = all(cell.settings.get(key) == other.settings.get(key) for key in _WORKLOAD)
        if same and same_workload(_means(cell), _means(other)):
            return index
    return len(cells)


def _load(cell: Cell) -> tuple[str, ...]:
    return tuple(repr(cell.settings.get(key)) for key in _LOAD)


def _means(cell: Cell) -> dict[str, float | None]:
    return {key: mean(cell, key) for key in WORKLOAD_COUNTS}


def _series(cells: Sequence[Cell], factor: Factor) -> tuple[Series, ...]:
    substituted = {key for cell in cells for key in cell.substituted}
    apart = [
        key
        for key in varying(cells)
        if key == CHUNKED or (key != factor.key and key not in substituted and not _follows(cells, factor, key))
    ]
    groups: dict[tuple[str, ...], list[tuple[float, Cell]]] = {}
    for cell in cells:
        x = factor.value(cell)
        if x is not None:
            groups.setdefault(tuple(repr(_setting(cell, key)) for key in apart), []).append((x, cell))
    series = []
    for points in groups.values():
        settings = {key: _setting(points[0][1], key) for key in apart}
        chunked = points[0][1].settings.get(CHUNKED)
        if isinstance(chunked, bool):
            settings[CHUNKED] = chunked
        # two cells at one value differ in what was substituted: the one that is as planned stands
        unique = dict(sorted(points, key=lambda point: (point[0], point[1].status is CellStatus.OK)))
        series.append(Series(_label(settings, apart), settings, tuple(unique.items())))
    return tuple(sorted(series, key=lambda one: (-len(one.points), one.chunked is not True)))


def _follows(cells: Sequence[Cell], factor: Factor, key: str) -> bool:
    """The setting has one value at each value of the factor, with and without chunked prefill: it moved with the
    factor (a confounder, told as a caveat), and is not a second factor that would split the series."""
    values: dict[tuple[Json, float | None], set[str]] = {}
    for cell in cells:
        values.setdefault((cell.settings.get(CHUNKED), factor.value(cell)), set()).add(repr(_setting(cell, key)))
    return all(len(found) == 1 for found in values.values())


def _label(settings: dict[str, Json], apart: Sequence[str]) -> str:
    parts = []
    for key in apart:
        if key == CHUNKED:
            parts.append("chunked prefill on" if settings[key] else "chunked prefill off")
        else:
            parts.append(f"{key} {settings[key]}")
    return ", ".join(parts)
