"""The best cell of a metric, and the cells that noise cannot tell from it: one rule for the headline and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.lab.findings.stats import allowance, ratio, too_noisy
from headrace.lab.findings.table import Table, mean
from headrace.lab.records.results import Cell

MORE_IS_BETTER = ("output_throughput", "total_token_throughput", "request_throughput", "request_goodput")
PAIRED = "paired repeats"


@dataclass(frozen=True, slots=True)
class BestCells:
    """`tied` are without `best`, in the study's order.

    within   relative difference up to which a cell counts as tied; None where pairs of repeats decide for each cell
    basis    "single runs", "repeats" or "paired repeats"
    noise    relative difference that noise can make between two of the cells
    """

    metric: str
    best: Cell
    tied: tuple[Cell, ...]
    within: float | None
    basis: str
    noise: float

    @property
    def undecided(self) -> bool:
        """The tied cells may be far apart: the noise hides which is best."""
        return bool(self.tied) and too_noisy(self.metric, self.noise)


def best_cells(table: Table, metric: str) -> BestCells | None:
    """Rank the cells that carried the same load; None when there are not two of them with the metric."""
    cells = [cell for cell in table.same_load if mean(cell, metric) is not None]
    if len(cells) < 2:
        return None
    choose = max if metric in MORE_IS_BETTER else min
    best = choose(cells, key=lambda cell: mean(cell, metric) or 0.0)
    within = allowance(metric, cells)
    found = [(cell, _behind(metric, cell, best, within, cells)) for cell in cells if cell is not best]
    paired = all(by_pairs for _, (_, by_pairs) in found)
    basis = PAIRED if paired else "single runs" if min(len(cell.runs) for cell in cells) < 2 else "repeats"
    tied = tuple(cell for cell, (behind, _) in found if not behind)
    return BestCells(metric, best, tied, None if paired else within, basis, within)


def _behind(metric: str, cell: Cell, best: Cell, within: float, cells: Sequence[Cell]) -> tuple[bool, bool]:
    """(the cell is worse than the best by more than noise, pairs of repeats decided it)."""
    more = metric in MORE_IS_BETTER
    found = ratio(metric, cell, best, len(cells) - 1, cells)
    if found is not None and found.basis == PAIRED:
        return found.distinct and (found.value > 1) is more, True
    low, high = sorted((mean(cell, metric) or 0.0, mean(best, metric) or 0.0))
    return high > low * (1 + within), False
