"""The plan's own question: each cell against the baseline, or each target against the first, in the main metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.lab.findings.contrasts import RESOLUTION, Contrast, End, contrast
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.table import Table, mean
from headrace.lab.findings.words import METRIC_WORDS, listed, percent, plural, quantity
from headrace.lab.records.results import Cell, Json

# Facts of a study that the plan's author has chosen.
BASELINE, RESOLUTION_FACT = "baseline", "resolution"
TARGET = "target"
METRICS = ("output_throughput", "mean_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_itl_ms")
_MAX_QUOTED = 3


def pairs(cells: Sequence[Cell], facts: Mapping[str, Json]) -> tuple[str, list[tuple[Cell, Cell]]]:
    """(what is compared with what, in words; the pairs, the one that is compared with first).

    Where the target varies: the same settings on another target.  Else every cell against the baseline that the plan
    names; without one there is no such question.
    """
    targets = list(dict.fromkeys(cell.settings.get(TARGET) for cell in cells))
    if len(targets) > 1 and BASELINE not in facts:
        first, *others = targets
        twins = {(cell.settings.get(TARGET), _without_target(cell)): cell for cell in cells}
        found = [
            (twins[first, name], twins[other, name])
            for other in others
            for name in dict.fromkeys(_without_target(cell) for cell in cells)
            if (first, name) in twins and (other, name) in twins
        ]
        return f"{listed([str(other) for other in others])} against {first}, at equal settings", found
    base = next((cell for cell in cells if cell.name == facts.get(BASELINE)), None)
    if base is None:
        return "", []
    return f"Against {base.name}", [(base, cell) for cell in cells if cell is not base]


def comparisons(table: Table) -> list[Finding]:
    """One finding a metric: which cells are better, worse, the same, or not told apart yet.  Repeats only: single runs
    have nothing to decide with."""
    words, asked = pairs(table.same_load, table.study.facts)
    resolution = _resolution(table.study.facts)
    found: list[Finding] = []
    for metric in METRICS:
        usable = [pair for pair in asked if all(mean(cell, metric) and len(cell.runs) > 1 for cell in pair)]
        family = {"comparisons": len(usable), "metrics": len(METRICS)}
        made = [
            one
            for a, b in usable
            if (one := contrast(metric, a, b, **family, among=table.same_load, resolution=resolution))
        ]
        if made:
            found.append(_finding(table, words, metric, made))
    return found


def _finding(table: Table, words: str, metric: str, made: Sequence[Contrast]) -> Finding:
    parts = []
    for end in End:
        some = [one for one in made if one.end is end]
        if not some:
            continue
        if end is End.SAME:
            widest = max(one.largest for one in some)
            parts.append(f"no difference larger than {percent(widest)} in {_names([one.b for one in some])}")
            continue
        if len(some) > _MAX_QUOTED and end is not End.UNDECIDED:
            sizes, ends = [abs(one.change) for one in some], [abs(x) for one in some for x in (one.low, one.high)]
            which = "all" if len(some) == len(made) else f"{len(some)} of"
            parts.append(
                f"{end} in {which} {len(made)} by {percent(min(sizes))} to {percent(max(sizes))} (the intervals from "
                f"{percent(min(ends))} to {percent(max(ends))})"
            )
            continue
        said = [f"{one.b} {one.words()}" for one in some[:_MAX_QUOTED]]
        more = [f"and {len(some) - _MAX_QUOTED} more {end}"] if len(some) > _MAX_QUOTED else []
        parts.append("; ".join([*said, *more]))
    claim = f"{words}, {METRIC_WORDS[metric]}: {'; '.join(parts)}."
    cells = {cell.name: cell for cell in table.same_load}
    numbers: dict[str, Json] = {
        one.b: f"{quantity(metric, mean(cells[one.b], metric) or 0)} against "
        f"{quantity(metric, mean(cells[one.a], metric) or 0)} in {one.a}: {one.words()}"
        for one in made
    }
    caveats = [f"The intervals of all {plural(len(METRICS), 'metric')} hold together in 95 % of studies."]
    names = tuple(dict.fromkeys(name for one in made for name in (one.a, one.b)))
    return Finding(f"comparison.{metric}", "comparison", claim, numbers, names, tuple(caveats))


def _names(items: Sequence[str]) -> str:
    return listed(items) if len(items) <= _MAX_QUOTED else f"{len(items)} cells"


def _resolution(facts: Mapping[str, Json]) -> float:
    stated = facts.get(RESOLUTION_FACT)
    return float(stated) if isinstance(stated, int | float) and not isinstance(stated, bool) else RESOLUTION


def _without_target(cell: Cell) -> str:
    return cell.name.removeprefix(f"{cell.settings.get(TARGET)}").removeprefix("-")
