"""Two sides, each a study or a part of one, compared cell by cell: what `headrace compare` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.findings.best import MORE_IS_BETTER
from headrace.lab.findings.contrasts import contrast
from headrace.lab.findings.gate import Condition, Judged, judge, renumbered
from headrace.lab.findings.table import Table, build, mean
from headrace.lab.findings.words import names, plural, quantity
from headrace.lab.records.comparable import SAME_WORKLOAD, same_workload
from headrace.lab.records.foreign import read_paths
from headrace.lab.records.foreign.study import study_from_runs
from headrace.lab.records.results import Cell, Study, study_from_json

METRICS = (
    *("output_throughput", "total_token_throughput", "request_throughput", "mean_ttft_ms", "median_ttft_ms"),
    *("p99_ttft_ms", "mean_tpot_ms", "median_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "p99_itl_ms", "mean_e2el_ms"),
)
_COUNTS = ("completed", "total_input_tokens", "total_output_tokens")


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: its study, and the cell that was asked for (None: all of them)."""

    name: str
    study: Study
    cell: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of one pair, in words with units; `change`, `low` and `high` are fractions of A."""

    metric: str
    a: str
    b: str
    words: str
    end: str
    change: float
    low: float
    high: float
    basis: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """`pairs` by title, `judged` conditions, and `notes`: what a reader must know of the comparison as a whole."""

    pairs: dict[str, list[Row]] = field(default_factory=dict)
    judged: list[Judged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_side(text: str) -> Side:
    """`DIR`, `DIR:CELL`, a study.json, a run's directory, or a result file.  Raises ConfigError."""
    path, cell = Path(text), None
    if not path.exists() and ":" in text:
        head, _, cell = text.rpartition(":")
        path = Path(head)
    if not path.exists():
        raise ConfigError(f"{text} does not exist (a cell of a campaign is DIR:CELL)")
    study = _study(path)
    if cell is not None and cell not in [one.name for one in study.cells]:
        raise ConfigError(f"{path} has no cell {cell!r} (it has {names([one.name for one in study.cells])})")
    return Side(text, study, cell)


def compare_studies(
    a: Side,
    b: Side,
    conditions: Sequence[Condition] = (),
    *,
    metrics: Sequence[str] | None = None,
    resolution: float,
    same: bool = False,
) -> Comparison:
    """Cells of one name are a pair; so are the only cells of both sides.

    same  both sides were called the same: there is nothing to compare
    Raises ConfigError for that, and for a metric that no run has.
    """
    if same:
        raise ConfigError(f"A and B are the same ({a.name}): name two campaigns, or two cells as DIR:CELL")
    tables = build(a.study), build(b.study)
    paired = a.study == b.study
    left, right = _cells(tables[0], a), _cells(tables[1], b)
    matched = _matched(left, right)
    notes = [
        f"{side.name}: {cell.name} is left out: {why.rstrip('.')}"
        for side, table in zip((a, b), tables, strict=True)
        for cell, why in table.left_out
        if side.cell in (None, cell.name)
    ]
    if not matched:
        told = f"A has {names(list(left)) or 'none'}, B has {names(list(right)) or 'none'}"
        return Comparison(notes=[*notes, f"nothing to compare: no cell of the same name ({told})"])
    notes += _notes(matched, paired=paired)
    wanted = list(metrics) if metrics else [*METRICS, *dict.fromkeys(condition.metric for condition in conditions)]
    _check_metrics([*(metrics or ()), *(condition.metric for condition in conditions)], matched)
    pairs = {
        one.name if one.name == other.name else f"{one.name} against {other.name}": _rows(
            dict.fromkeys(wanted), one, other, resolution, paired=paired
        )
        for one, other in matched
    }
    return Comparison(pairs, judge(conditions, matched, paired=paired), notes)


def _study(path: Path) -> Study:
    file = path / "study.json" if path.is_dir() else path
    if file.name == "study.json" and file.is_file():
        return study_from_json(file.read_text(encoding="utf-8"), source=str(file))
    imported = read_paths([path])
    if not imported.runs:
        why = f": {imported.skipped[0][1]}" if imported.skipped else ""
        raise ConfigError(f"{path} holds no measurement that could be read{why}")
    return study_from_runs(imported.runs, path.name, path.name)


def _cells(table: Table, side: Side) -> dict[str, Cell]:
    return {cell.name: cell for cell in table.cells if side.cell in (None, cell.name)}


def _matched(left: dict[str, Cell], right: dict[str, Cell]) -> list[tuple[Cell, Cell]]:
    if len(left) == len(right) == 1:
        return [(next(iter(left.values())), next(iter(right.values())))]
    return [(cell, right[name]) for name, cell in left.items() if name in right]


def _notes(matched: Sequence[tuple[Cell, Cell]], *, paired: bool) -> list[str]:
    notes = []
    for a, b in matched:
        counts = [{key: mean(cell, key) for key in _COUNTS} for cell in (a, b)]
        outputs = [count["total_output_tokens"] for count in counts]
        if not same_workload(*counts):
            notes.append(f"{a.name}: A and B were not asked for the same: requests or prompt tokens differ")
        elif all(outputs) and abs((outputs[1] or 1) / (outputs[0] or 1) - 1) > SAME_WORKLOAD:
            notes.append(
                f"{a.name}: the answers' lengths differ ({outputs[0]:.0f} and {outputs[1]:.0f} tokens in all), so "
                "durations and throughputs are of different work; ignore-eos forces the lengths"
            )
    single = [a.name for a, b in matched if min(len(a.runs), len(b.runs)) < 2]
    if single:
        which = "" if len(single) == len(matched) else f" in {names(single)}"
        notes.append(f"one run each{which}: the noise is an assumption (see docs/statistics.md), not a measurement")
    elif not paired:
        notes.append(
            "A and B were not measured in turn: a drift of the machine between them is not in the intervals (one plan "
            "with both as cells takes it out)"
        )
    repeats = sorted({min(len(a.runs), len(b.runs)) for a, b in matched})
    if repeats[-1] > 1:
        span = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}"
        notes.append(
            f"{span} repeats of each; 95 % intervals, each metric for itself over {plural(len(matched), 'pair')}"
        )
    return notes


def _check_metrics(asked: Sequence[str], matched: Sequence[tuple[Cell, Cell]]) -> None:
    known = {key for pair in matched for cell in pair for run in cell.runs for key in run.metrics}
    for metric in asked:
        if metric not in known:
            raise ConfigError(f"no run has the metric {metric!r} (they have {', '.join(sorted(known))})")


def _rows(metrics: Sequence[str] | dict[str, None], a: Cell, b: Cell, resolution: float, *, paired: bool) -> list[Row]:
    other = b if paired else renumbered(b)
    rows = []
    for metric in metrics:
        found = contrast(metric, a, other, resolution=resolution)
        if found is not None:
            first, second = (quantity(metric, mean(cell, metric) or 0.0) for cell in (a, b))
            words = found.words()
            if metric not in _JUDGED:
                words = words.replace("better by", "differs by").replace("worse by", "differs by")
            rows.append(
                Row(metric, first, second, words, found.end.value, found.change, found.low, found.high, found.basis)
            )
    return rows


# Of other metrics (counts, batch sizes) nobody can say which direction is better.
_JUDGED = {*METRICS, *MORE_IS_BETTER}
