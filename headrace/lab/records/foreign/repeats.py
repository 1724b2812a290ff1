"""Which imported runs are repeats of one measurement.

Equal settings are no proof: a client's log does not say what the server ran on, nor with which flags.  So runs are
pooled only where somebody numbered them as repeats in one directory, and their figures do not contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from headrace.lab.records.comparable import WORKLOAD_COUNTS, same_workload
from headrace.lab.records.foreign.places import place
from headrace.lab.records.results import Json, RunResult

# Repeats of a serving benchmark on a quiet machine differ by a few per cent; beyond this something else changed.
_SAME_FIGURES = 0.30
_FIGURES = {
    "duration": ("duration", "s"),
    "request_throughput": ("throughput", "requests/s"),
    "output_throughput": ("output throughput", "tokens/s"),
}
APART = "not averaged with "


def group_repeats(runs: Sequence[RunResult], identities: Sequence[tuple[Json, ...]]) -> list[list[RunResult]]:
    """Runs -> one list a cell, in the order in which their settings first appear.

    identities   what must be equal for two runs to be repeats, one for each run

    An exact duplicate is dropped, and named in a warning of the run that stays.  What is numbered as a repeat but has
    other figures gets a cell of its own, and a warning with both figures.
    """
    alike: dict[tuple[Json, ...], list[list[RunResult]]] = {}
    for run, identity in zip(runs, identities, strict=True):
        groups = alike.setdefault(identity, [])
        if not _drop_copy(run, groups):
            _add(run, groups)
    return [group for groups in alike.values() for group in groups]


def _drop_copy(run: RunResult, groups: list[list[RunResult]]) -> bool:
    for group in groups:
        for index, other in enumerate(group):
            if _is_copy(run, other):
                note = f"the same figures stand in {run.source}: counted once"
                group[index] = replace(other, warnings=(*other.warnings, note))
                return True
    return False


def _is_copy(run: RunResult, other: RunResult) -> bool:
    """The same run in two files, such as a sweep's run and its summary: no second measurement."""
    if run.metrics != other.metrics or not (run.metrics.get("completed") or "date" in run.settings):
        return False  # the zeros of two failures prove nothing
    return all(run.settings.get(key) == other.settings.get(key) for key in ("repeat", "date"))


def _add(run: RunResult, groups: list[list[RunResult]]) -> None:
    """Put the run into the group that it is a repeat of, or into a new one."""
    series, number = _numbered(run)
    apart: list[tuple[list[RunResult], int, str]] = []
    for group in groups if number is not None else []:
        others = [_numbered(other) for other in group]
        if others[0][0] != series or number in [taken for _, taken in others]:
            continue
        found = next(((i, why) for i, other in enumerate(group) if (why := _difference(other, run))), None)
        if found is None:
            group.append(run)
            return
        apart.append((group, *found))
    new = run
    for group, index, why in apart:
        other, there = group[index], f"{APART}{PurePath(run.source).name}, which is numbered as a repeat of it: {why}"
        here = f"{APART}{PurePath(other.source).name}, which is numbered as a repeat of it: {_difference(run, other)}"
        group[index] = replace(other, warnings=(*other.warnings, there))
        new = replace(new, warnings=(*new.warnings, here))
    groups.append([new])


def _numbered(run: RunResult) -> tuple[tuple[Json, ...], Json]:
    """The series that a run belongs to and its number in it; the number is None where nobody numbered it.

    A date in the name is no number: vLLM's client puts one into every file that it saves, and between two of them the
    server may have been started with other flags.
    """
    where = place(run.source)
    if where.index is not None:
        return (where.directories, where.series), where.index
    return (where.directories, None), run.settings.get("repeat")


def _difference(one: RunResult, other: RunResult) -> str | None:
    """The figure that two repeats cannot both have, or None: "duration 1.37 s here, 0.64 s there"."""
    for key in WORKLOAD_COUNTS:
        if not same_workload({key: one.metrics.get(key)}, {key: other.metrics.get(key)}):
            return f"{key} {one.metrics[key]:g} here, {other.metrics[key]:g} there"
    for key, (noun, unit) in _FIGURES.items():
        a, b = one.metrics.get(key), other.metrics.get(key)
        if a is not None and b is not None and max(a, b) > (1 + _SAME_FIGURES) * min(a, b):
            return f"{noun} {a:.4g} {unit} here, {b:.4g} {unit} there"
    return None
