"""What a page shows, as frozen values: metrics and dashboards, cells, findings, the verdict.  `data.py` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.lab.records.results import CellStatus
from headrace.lab.report.text import percent, with_unit


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

COMPLETED = Metric("completed", "Requests completed", "completed", "", False)
FAILED = Metric("failed", "Requests failed", "failed", "")
# What a reader compares first stands where no scrolling is needed: the tails before the medians.
RESULT_COLUMNS: tuple[Metric, ...] = (
    DURATION,
    OUTPUT_RATE,
    TOTAL_RATE,
    *(metric for latency in (TTFT, TPOT, ITL) for metric in (latency[0], latency[2])),
    *(latency[1] for latency in (TTFT, TPOT, ITL)),
    Metric("request_throughput", "Request throughput", "requests", "req/s", False),
    COMPLETED,
    FAILED,
)

# What the server itself counted, where it counts: beside the client's figures, never among them.
SERVER_COLUMNS: tuple[Metric, ...] = (
    Metric("server_mean_queue_ms", "Mean time in the server's queue", "queue", "ms"),
    Metric("server_mean_prefill_ms", "Mean time from scheduling to the first token", "prefill", "ms"),
    Metric("server_mean_decode_ms", "Mean time from the first token to the end", "decode", "ms"),
    Metric("server_mean_running", "Mean sequences in the batch", "running", "mean"),
    Metric("server_max_running", "Most sequences in the batch", "running", "most"),
    Metric("server_max_waiting", "Most requests in the queue", "waiting", "most"),
    Metric("server_max_kv_use", "Largest share of the KV cache in use", "KV use", "most"),
    Metric("server_mean_step_tokens", "Mean tokens of a step", "step", "tokens"),
    Metric("server_num_steps", "Steps", "steps", ""),
    Metric("server_num_preemptions", "Preemptions", "preempted", ""),
    Metric("server_prefix_cache_hit_rate", "Share of prompt tokens found in the prefix cache", "cache hits", "share"),
    Metric("gpu_mean_power_w", "Mean power of all GPUs", "power", "W"),
    Metric("gpu_mean_sm_mhz", "Mean clock of the GPUs", "clock", "MHz"),
    Metric("gpu_mean_load", "Mean load of the GPUs", "load", "share"),
)

ROLE_WORDS = {True: ("on", "chunked prefill on"), False: ("off", "chunked prefill off")}
UNSTATED_ROLE = ("unset", "chunked prefill not stated")
ROLE_LABELS = {**dict(ROLE_WORDS.values()), UNSTATED_ROLE[0]: UNSTATED_ROLE[1]}
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

    @property
    def sample_words(self) -> str:
        """`single run` or `mean of n = 3 runs`."""
        return "single run" if self.n == 1 else f"mean of n = {self.n} runs"

    def words(self, unit: str) -> str:
        """`145.9 s, single run` or `145.9 s, mean of n = 3 runs (140.1 s to 151.2 s)`."""
        spread = f" ({with_unit(self.low, unit)} to {with_unit(self.high, unit)})" if self.n > 1 else ""
        return f"{with_unit(self.mean, unit)}, {self.sample_words}{spread}"


@dataclass(frozen=True, slots=True)
class CellView:
    """One cell.  `anchor` is its id in the page.

    comparable   it belongs on the same axis as the others; otherwise `left_out` says why not
    implied      settings that no flag stated, each with the rule that implies it
    """

    anchor: str
    name: str
    status: CellStatus
    role: str  # on, off, unset
    x: float | None  # the factor's value; inf for a rate of "inf"; None where it is not stated
    x_words: str
    comparable: bool
    left_out: str
    rule: str
    reason: str
    values: Mapping[str, Value]
    settings: Mapping[str, str]
    substituted: str
    implied: tuple[str, ...]
    warnings: tuple[str, ...]
    sources: tuple[str, ...]
    n_runs: int

    @property
    def ran(self) -> bool:
        """It has a result of its own, comparable or not."""
        return self.status in (CellStatus.OK, CellStatus.SUBSTITUTED)

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
    """The best comparable cell of one metric, and the cells tied with it: those within `within`, the allowance for
    noise, or those that the pairs of their repeats do not tell apart (then `within` is None)."""

    metric: Metric
    cell: CellView
    value: Value
    tied: tuple[CellView, ...]
    within: float | None
    basis: str

    @property
    def tie_words(self) -> str:
        """What makes a tie here: `within 4 % (single runs)`, `by paired repeats (95 %)`."""
        if self.within is None:
            return "by paired repeats (95\u00a0% interval)"
        basis = self.basis if self.basis == "single runs" else f"95\u00a0% interval, from {self.basis}"
        return f"within {percent(self.within)} ({basis})"


@dataclass(frozen=True, slots=True)
class SimulatedView:
    """One cell, measured against simulated: (measured, simulated, error, inside the interval) by metric's key."""

    cell: str
    anchor: str | None
    calibration: bool
    values: Mapping[str, tuple[float, float, float, bool]]


# What the table of measured against simulated shows.
SIMULATED_COLUMNS: tuple[Metric, ...] = (DURATION, TTFT[0], TTFT[2], TPOT[1], ITL[1])


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
    factor: str  # the setting on the horizontal axis; "" where the cells stand by name
    cells: tuple[CellView, ...]
    findings: tuple[FindingView, ...]
    best: tuple[Best, ...]
    facts: tuple[tuple[str, str], ...]
    simulated: tuple[SimulatedView, ...] = ()
    simulated_words: str = ""  # on what the simulation rests, or why there is none

    @property
    def unplanned(self) -> tuple[CellView, ...]:
        """Cells that did not run as planned or are left out of comparisons, each with its reason."""
        return tuple(cell for cell in self.cells if cell.status is not CellStatus.OK or cell.left_out)
