"""What the noise hides, in one finding."""

from __future__ import annotations

from headrace.lab.findings.chunking import PAIRED_METRICS, PAIRED_TAIL, hidden, matched, ratios
from headrace.lab.findings.compare import OUTCOMES, TOPICS, named, seen_over
from headrace.lab.findings.finding import Finding
from headrace.lab.findings.stats import is_tail
from headrace.lab.findings.table import Table
from headrace.lab.findings.words import METRIC_WORDS, listed, noise
from headrace.lab.records.results import Json


def undecided(table: Table) -> list[Finding]:
    """One finding for all that the noise hides: never "no difference" where a difference would not have shown."""
    if table.factor is None:
        return []
    factor = table.factor
    metrics = [metric for metric, *_ in OUTCOMES if metric != "duration" or not factor.is_load] + list(TOPICS)
    trends = [seen for metric in metrics if (seen := seen_over(table, metric)) and seen.shape.flat and seen.noisy]
    pairs = [
        (metric, row)
        for _, common in matched(table)
        for metric in (*PAIRED_METRICS, PAIRED_TAIL)
        for row in ratios(metric, common)
        if hidden(metric, row)
    ]
    if not trends and not pairs:
        return []
    sizes: dict[str, float] = {seen.metric: seen.noise for seen in trends}
    for metric, row in pairs:
        sizes[metric] = max(sizes.get(metric, 0.0), row[3].noise)
    questions: list[str] = []
    if trends:
        first, last = (factor.at(trends[0].series.points[index][0]) for index in (0, -1))
        questions.append(
            f"how {listed([METRIC_WORDS[seen.metric] for seen in trends])} depend on the {factor.noun} between {first} "
            f"and {last} {factor.unit}"
        )
    if pairs:
        at = listed([factor.at(x) for x in sorted({row[0] for _, row in pairs})])
        what = listed([METRIC_WORDS[metric] for metric in dict.fromkeys(metric for metric, _ in pairs)])
        questions.append(f"whether chunked prefill on or off changes {what} at {at} {factor.unit}")
    claim = f"Cannot be decided: {' and '.join(questions)}. Run-to-run noise is {_noises(sizes)}."
    cells = [cell.name for seen in trends for cell in seen.cells]
    cells += [cell.name for _, (_, on, off, _) in pairs for cell in (on, off)]
    numbers: dict[str, Json] = {"noise": {metric: round(size, 4) for metric, size in sizes.items()}}
    identity = named("budget-undecided", factor)
    return [Finding(identity, "comparability", claim, numbers, tuple(dict.fromkeys(cells)))]


def _noises(sizes: dict[str, float]) -> str:
    """The largest of the means and medians, and of the tails."""
    body = [size for metric, size in sizes.items() if not is_tail(metric)]
    tails = [size for metric, size in sizes.items() if is_tail(metric)]
    largest = [noise(max(some)) for some in (body, tails) if some]
    reach = "up to " if len(body) > 1 and "more" not in largest[0] else ""
    if len(largest) == 1 or largest[0] == largest[1]:
        return reach + largest[0]
    what = listed([METRIC_WORDS[metric] for metric in sizes if is_tail(metric)])
    return f"{reach}{largest[0]} and {largest[1]} in {what}"
