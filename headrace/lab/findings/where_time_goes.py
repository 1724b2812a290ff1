"""TTFT in four parts and long gaps with their causes, told for the chosen cell and checked over all of them."""

from __future__ import annotations

from headrace.lab.findings.finding import Finding
from headrace.lab.findings.table import Table, mean
from headrace.lab.findings.words import milliseconds, number, percent
from headrace.lab.findings.words_of_time import EXACT, gap_words, how_known, split_of, split_words
from headrace.lab.metrics.breakdown import CAUSES, PARTS
from headrace.lab.records.results import Cell

# A cause that takes less of the long gaps' time explains nothing.
_MAIN_CAUSE = 0.5


def _means(cell: Cell) -> dict[str, float]:
    keys = [
        *(f"mean_ttft_{part}_ms" for part in PARTS),
        *("explained_share", "long_gaps"),
        *(f"long_gap_{cause}_share" for cause in CAUSES),
    ]
    return {key: value for key in keys if (value := mean(cell, key)) is not None}


def time_split(table: Table, chosen: Cell | None) -> list[Finding]:
    """Where the mean TTFT went, for `chosen` or the first cell that is explained; the range over all cells."""
    explained = {cell.name: (cell, _means(cell)) for cell in table.cells}
    explained = {name: pair for name, pair in explained.items() if split_of(pair[1])}
    if not explained:
        return []
    name = chosen.name if chosen is not None and chosen.name in explained else next(iter(explained))
    _, metrics = explained[name]
    split = split_of(metrics)
    words = split_words(metrics)
    if words is None:
        return []
    total = sum(split.values())
    claim = f"Of the mean TTFT of {name} ({milliseconds(total)} from the planned start) {words}."
    main = max(split, key=lambda part: split[part])
    if len(explained) > 1:
        shares = [
            of[main] / sum(of.values()) for of in (split_of(m) for _, m in explained.values()) if sum(of.values())
        ]
        claim += f" Over {number(len(explained))} cells the {main} is {percent(min(shares))} to {percent(max(shares))}."
    numbers = {f"{cell}.{key}": round(value, 4) for cell, (_, m) in explained.items() for key, value in m.items()}
    caveats = () if how_known(metrics) == EXACT else (f"The parts are {how_known(metrics)}.",)
    return [Finding("ttft.parts", "ttft", claim, numbers, tuple(explained), caveats)]


def long_gaps(table: Table, chosen: Cell | None) -> list[Finding]:
    """What the server did in long gaps between tokens, where one cause is most of it."""
    told = {cell.name: metrics for cell in table.cells if (metrics := _means(cell)).get("long_gaps")}
    if not told:
        return []
    name = chosen.name if chosen is not None and chosen.name in told else next(iter(told))
    metrics = told[name]
    words = gap_words(metrics)
    if words is None or max(metrics.get(f"long_gap_{cause}_share", 0.0) for cause in CAUSES) < _MAIN_CAUSE:
        return []
    claim = f"In {name} {number(metrics['long_gaps'])} gaps between tokens are long; their time is {words}."
    numbers = {f"{cell}.{key}": round(value, 4) for cell, m in told.items() for key, value in m.items() if "gap" in key}
    return [Finding("itl.long-gaps", "itl", claim, numbers, tuple(told))]
