"""A study and its findings -> what a page shows.  Frozen values, no HTML, no Plotly.

Nothing is judged here: claims come from findings, statuses from the study.  This module only picks, groups and
words them, and states n everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.lab.findings.finding import Finding
from headrace.lab.records.results import Cell, CellStatus, Study
from headrace.lab.report.text import count, flatten, number, plain, show, with_unit

BUDGET, CHUNKED = "max_num_batched_tokens", "enable_chunked_prefill"
# Settings that say where a cell's run came from, not how the server was set.
_INCIDENTAL = ("repeat", "source", "seed")


@dataclass(frozen=True, slots=True)
class Metric:
    """One column: vLLM's JSON key, the words for people, the unit, and which direction is better."""

    key: str
    label: str
    short: str
    unit: str
    lower_is_better: bool = True


def _latency(key: str, name: str) -> tuple[Metric, ...]:
    return tuple(
        Metric(f"{stat}_{key}_ms", f"{word} {name}", f"{name} {short}", "ms")
        for stat, word, short in (
            ("mean", "Mean", "mean"),
            ("median", "Median", "median"),
            ("p99", "99th percentile", "p99"),
        )
    )


DURATION = Metric("duration", "Benchmark duration", "duration", "s")
OUTPUT_RATE = Metric("output_throughput", "Output throughput", "output", "tok/s", False)
TOTAL_RATE = Metric("total_token_throughput", "Total throughput", "total", "tok/s", False)
TTFT, TPOT, ITL = _latency("ttft", "TTFT"), _latency("tpot", "TPOT"), _latency("itl", "ITL")

# The published campaign's four dashboards: (id, title, what it shows, its panels).
DASHBOARDS: tuple[tuple[str, str, str, tuple[Metric, ...]], ...] = (
    (
        "duration",
        "Duration and throughput",
        "How long the whole workload took, and how many tokens a second came out and passed through in all.",
        (DURATION, OUTPUT_RATE, TOTAL_RATE),
    ),
    (
        "ttft",
        "TTFT: time to first token",
        "From sending a request to its first token. Includes the wait in the server's queue.",
        TTFT,
    ),
    (
        "tpot",
        "TPOT: time per output token",
        "One figure a request: generation time after the first token, divided by the tokens after the first.",
        TPOT,
    ),
    (
        "itl",
        "ITL: inter-token latency",
        "One figure a gap: the time between two chunks of the same answer. Stalls of single steps show here.",
        ITL,
    ),
)

RESULT_COLUMNS: tuple[Metric, ...] = (
    Metric("completed", "Requests completed", "completed", "", False),
    Metric("failed", "Requests failed", "failed", ""),
    DURATION,
    Metric("request_throughput", "Request throughput", "requests", "req/s", False),
    OUTPUT_RATE,
    TOTAL_RATE,
    *TTFT,
    *TPOT,
    *ITL,
)

_ROLE_WORDS = {True: ("on", "chunked prefill on"), False: ("off", "chunked prefill off")}
_UNSTATED_ROLE = ("unset", "chunked prefill not stated")
ROLE_LABELS = {**dict(_ROLE_WORDS.values()), _UNSTATED_ROLE[0]: _UNSTATED_ROLE[1]}
STATUS_LABELS = {
    CellStatus.OK: "measured",
    CellStatus.SUBSTITUTED: "substituted",
    CellStatus.DEGRADED: "degraded",
    CellStatus.ILLEGAL: "illegal",
    CellStatus.FAILED: "failed",
    CellStatus.PENDING: "not run yet",
}


@dataclass(frozen=True, slots=True)
class Value:
    """A metric of one cell: the repeats' values, their mean, and the lowest and highest of them."""

    mean: float
    low: float
    high: float
    runs: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.runs)

    def words(self, unit: str) -> str:
        """`145.9 s, single run` or `145.9 s, mean of n = 3 runs (140.1 s to 151.2 s)`."""
        if self.n == 1:
            return f"{with_unit(self.mean, unit)}, single run"
        spread = f"{with_unit(self.low, unit)} to {with_unit(self.high, unit)}"
        return f"{with_unit(self.mean, unit)}, mean of n = {self.n} runs ({spread})"


@dataclass(frozen=True, slots=True)
class CellView:
    """One cell.  `anchor` is its id in the page; `comparable` says that it belongs on the same axis as the others."""

    anchor: str
    name: str
    status: CellStatus
    role: str  # on, off, unset
    budget: float | None
    comparable: bool
    rule: str
    reason: str
    values: Mapping[str, Value]
    settings: Mapping[str, str]
    substituted: str
    warnings: tuple[str, ...]
    sources: tuple[str, ...]
    n_runs: int

    @property
    def status_label(self) -> str:
        return STATUS_LABELS[self.status]


@dataclass(frozen=True, slots=True)
class FindingView:
    """One finding; cells are (name, anchor or None where the study has no such cell)."""

    id: str
    topic: str
    claim: str
    numbers: tuple[tuple[str, str], ...]
    cells: tuple[tuple[str, str | None], ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Banner:
    """May the cells be compared?  level: good, care or bad."""

    level: str
    headline: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Best:
    """The best comparable cell of one metric, and those whose value lies within `share` of it (a fact, not a verdict)."""

    metric: Metric
    cell: CellView
    value: Value
    near: tuple[CellView, ...]
    share: float


@dataclass(frozen=True, slots=True)
class StudyView:
    """Everything the page says about one study, in the order in which it says it."""

    anchor: str
    name: str
    title: str
    kind: str
    banner: Banner
    common: tuple[tuple[str, str], ...]
    varying: tuple[str, ...]
    cells: tuple[CellView, ...]
    findings: tuple[FindingView, ...]
    best: tuple[Best, ...]
    facts: tuple[tuple[str, str], ...]

    @property
    def set_aside(self) -> tuple[CellView, ...]:
        """Cells with no comparable result, each with a rule or a reason."""
        return tuple(cell for cell in self.cells if cell.status is not CellStatus.OK)


def study_view(study: Study, findings: Sequence[Finding], index: int = 0) -> StudyView:
    """The view of one study; `index` keeps the anchors of several studies in one page apart."""
    cells = tuple(_cell_view(cell, f"s{index}c{number_}") for number_, cell in enumerate(study.cells))
    anchors: dict[str, str] = {}
    for cell in cells:
        anchors.setdefault(cell.name, cell.anchor)
    common, varying = _split_settings(study.cells)
    return StudyView(
        anchor=f"s{index}",
        name=plain(study.name, 120),
        title=plain(study.title or study.name, 200),
        kind=plain(study.kind, 40),
        banner=_banner(study, cells, findings),
        common=common,
        varying=varying,
        cells=cells,
        findings=tuple(_finding_view(finding, anchors) for finding in findings),
        best=tuple(best for metric in (TOTAL_RATE, TTFT[0], TPOT[1], ITL[2]) if (best := _best(metric, cells))),
        facts=tuple((plain(name, 200), plain(text)) for name, text in flatten(study.facts)),
    )


def _cell_view(cell: Cell, anchor: str) -> CellView:
    chunked = cell.settings.get(CHUNKED)
    role = _ROLE_WORDS[chunked][0] if isinstance(chunked, bool) else _UNSTATED_ROLE[0]
    budget = number(cell.settings.get(BUDGET))
    keys = dict.fromkeys(key for run in cell.runs for key in run.metrics)
    values = {key: value for key in keys if (value := _value(cell, key))}
    return CellView(
        anchor=anchor,
        name=plain(cell.name, 120),
        status=cell.status,
        role=role,
        budget=budget if budget is not None and budget > 0 else None,
        comparable=cell.status in (CellStatus.OK, CellStatus.SUBSTITUTED) and bool(values),
        rule=plain(cell.rule or "", 40),
        reason=plain(cell.reason or ""),
        values=values,
        settings={plain(key, 80): plain(value, 400) for key, value in cell.settings.items()},
        substituted=plain(
            "; ".join(f"{flag}: {show(wanted)} → {show(used)}" for flag, (wanted, used) in cell.substituted.items())
        ),
        warnings=tuple(dict.fromkeys(plain(text) for run in cell.runs for text in run.warnings)),
        sources=tuple(plain(run.source, 400) for run in cell.runs),
        n_runs=len(cell.runs),
    )


def _value(cell: Cell, key: str) -> Value | None:
    runs = tuple(value for run in cell.runs if (value := number(run.metrics.get(key))) is not None)
    return Value(sum(runs) / len(runs), min(runs), max(runs), runs) if runs else None


def _finding_view(finding: Finding, anchors: Mapping[str, str]) -> FindingView:
    return FindingView(
        id=plain(finding.id, 120),
        topic=plain(finding.topic, 40),
        claim=plain(finding.claim),
        numbers=tuple((plain(name, 200), plain(text)) for name, text in flatten(finding.numbers)),
        cells=tuple((plain(name, 120), anchors.get(plain(name, 120))) for name in finding.cells),
        caveats=tuple(plain(caveat) for caveat in finding.caveats),
    )


def _split_settings(cells: Sequence[Cell]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Settings that all cells share (name, text), and the names of those that differ or are not stated everywhere."""
    names = dict.fromkeys(key for cell in cells for key in cell.settings if key not in _INCIDENTAL)
    common, varying = [], []
    for name in names:
        texts = {plain(cell.settings[name], 400) if name in cell.settings else None for cell in cells}
        if len(texts) == 1 and len(cells) > 1:
            common.append((plain(name, 80), str(texts.pop())))
        else:
            varying.append(plain(name, 80))
    return tuple(common), tuple(varying)


def _banner(study: Study, cells: Sequence[CellView], findings: Sequence[Finding]) -> Banner:
    tally = {status: sum(cell.status is status for cell in cells) for status in CellStatus}
    comparable = [cell for cell in cells if cell.comparable]
    reasons: list[str] = []
    if tally[CellStatus.FAILED]:
        reasons.append(f"{count(tally[CellStatus.FAILED], 'cell')} failed.")
    if tally[CellStatus.DEGRADED]:
        reasons.append(
            f"{count(tally[CellStatus.DEGRADED], 'cell')} served less than the whole workload and "
            f"{'is' if tally[CellStatus.DEGRADED] == 1 else 'are'} left out of comparisons."
        )
    if tally[CellStatus.SUBSTITUTED]:
        reasons.append(f"{count(tally[CellStatus.SUBSTITUTED], 'cell')} ran with other settings changed as well.")
    if tally[CellStatus.PENDING]:
        reasons.append(f"{count(tally[CellStatus.PENDING], 'cell')} not run yet.")
    if comparable and all(cell.n_runs == 1 for cell in comparable):
        reasons.append("One run a cell: differences of a few per cent cannot be told from noise.")
    elif any(cell.n_runs == 1 for cell in comparable):
        reasons.append("Some cells have a single run: their spread is unknown.")
    warned = sum(bool(cell.warnings) for cell in cells)
    if warned:
        reasons.append(f"{count(warned, 'cell')} carr{'ies' if warned == 1 else 'y'} a warning, listed below.")
    claims = [plain(finding.claim, 300) for finding in findings if finding.topic == "comparability"]
    if not comparable:
        headline = "Nothing to compare" if cells else "No cells"
        return Banner("bad", headline, (*reasons, *claims) or ("The study holds no measured cell.",))
    if tally[CellStatus.ILLEGAL]:
        reasons.append(f"{count(tally[CellStatus.ILLEGAL], 'illegal cell')} marked with the rule that forbids it.")
    careful = len(reasons) - bool(tally[CellStatus.ILLEGAL]) > 0 or bool(claims)
    shown = f"{len(comparable)} of {count(len(cells), 'cell')} comparable"
    if careful:
        return Banner("care", f"Read with care: {shown}", (*reasons, *claims))
    return Banner("good", f"Comparable: {shown}", tuple(reasons))


def _best(metric: Metric, cells: Sequence[CellView], share: float = 0.04) -> Best | None:
    found = [(cell, cell.values[metric.key]) for cell in cells if cell.comparable and metric.key in cell.values]
    if len(found) < 2:
        return None
    cell, value = (min if metric.lower_is_better else max)(found, key=lambda pair: pair[1].mean)
    near = tuple(
        other
        for other, at in found
        if other is not cell and abs(at.mean - value.mean) <= share * max(abs(value.mean), abs(at.mean))
    )
    return Best(metric, cell, value, near, share)


def as_json(value: Any) -> Any:
    """A JSON value without NaN or Infinity (which strict parsers refuse): they become null."""
    if isinstance(value, float) and number(value) is None:
        return None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return value
