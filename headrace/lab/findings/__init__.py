"""Claims derived by code: `explain(study)` -> findings, the most useful first.

disturbance  which runs other processes slowed down
trust        which cells may be compared, and what weakens every claim
run_warnings what is said about single runs
compare      a metric over an ordered factor
chunking     chunked prefill on against off
undecided    what the noise hides
contrasts    one cell against another: better, worse, the same, or so many more repeats
experiment   the plan's own question: against its baseline, or one target against another
restarts     noise between restarts and within one server
causes       Little's law, and the cost of a token
where_time_goes  TTFT in client, network, queue and prefill; what the server did in long gaps
best         the best cell of a metric and its ties
simulated    measured against simulated
headline     which setting, why, and how sure
"""

from __future__ import annotations

from dataclasses import replace

from headrace.lab.findings import causes, chunking, compare, experiment, restarts, trust, where_time_goes
from headrace.lab.findings.best import BestCells, best_cells
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.headline import choose, headline
from headrace.lab.findings.run_warnings import with_disturbance
from headrace.lab.findings.simulated import simulated
from headrace.lab.findings.table import Table, build
from headrace.lab.findings.undecided import undecided
from headrace.lab.records.results import Study

__all__ = ["BestCells", "Finding", "best_cells", "explain"]


def explain(study: Study) -> tuple[Finding, ...]:
    """Every claim that the study's figures carry, the headline first and the general caveats last.

    Pure: the same study gives the same findings.  Never raises on missing metrics, failed or illegal cells; a rule
    that lacks what it needs says nothing.
    """
    table = build(study)
    targets = list(dict.fromkeys(cell.settings.get(experiment.TARGET) for cell in table.cells))
    claims = (headline(table), *experiment.comparisons(table))
    if len(targets) < 2:
        claims += _of_one_target(table)
    for target in targets if len(targets) > 1 else ():
        # What a setting does is a question to one server at a time.
        cells = tuple(cell for cell in study.cells if cell.settings.get(experiment.TARGET) == target)
        of_target = _of_one_target(build(replace(study, cells=cells)))
        claims += tuple(replace(one, id=f"{one.id}.{target}", claim=f"On {target}: {one.claim}") for one in of_target)
    return (
        *with_disturbance(table, claims),
        *restarts.levels(study.cells),
        *simulated(study),
        *trust.left_out(table),
        *trust.not_measured(table),
        *trust.caveats(table),
    )


def _of_one_target(table: Table) -> tuple[Finding, ...]:
    choice = choose(table)
    return (
        *compare.thresholds(table),
        *causes.step_time(table),
        *causes.queueing(table, choice.cell if choice is not None else None),
        *where_time_goes.time_split(table, choice.cell if choice is not None else None),
        *where_time_goes.long_gaps(table, choice.cell if choice is not None else None),
        *compare.trends(table),
        *compare.step_mix(table),
        *chunking.on_off(table),
        *undecided(table),
    )
