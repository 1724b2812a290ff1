"""Was it the client?  Each run says how late its own sends and stamps were, and whether it may be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.lab.client.calibration import Calibration
from headrace.lab.metrics.latency import Percentile, percentile
from headrace.lab.records.results import Level
from headrace.lab.records.schema import RequestRecord

MAX_CLOCK_DRIFT_NS = 50_000_000
MIN_SEND_LAG_NS = 5_000_000
MAX_LAG_SHARE_OF_TTFT = 0.05
# With fewer requests the 99th percentile is the largest value: one hiccup of the machine.
MIN_LAGS_FOR_P99 = 100
MAX_FAILURE_SHARE = 0.10
MAX_CLIENT_CPU = 0.90
MAX_OTHERS_SHARE = 0.10


@dataclass(frozen=True, slots=True)
class ClientCost:
    """What the client cost during the run.

    loop_lags_ns    how late the event loop woke a timer, every 50 ms: no stamp can be later than that by our fault
    cpu_s, wall_s   processor time of the busiest client process (all threads) and the run's length
    drift_ns        wall clock minus monotonic clock, end against start
    others_share    of the machine's processors, used by neither client nor server; None where it cannot be told
    calibration     the client against the null server at this run's rate; None where it was not measured
    """

    loop_lags_ns: Sequence[int]
    cpu_s: float
    wall_s: float
    drift_ns: int
    others_share: float | None = None
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` are sentences that say what is wrong and what to change; `numbers` are what they rest on."""

    level: Level
    reasons: tuple[str, ...]
    numbers: dict[str, float | None]

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level.value, "reasons": list(self.reasons), "numbers": self.numbers}

    def line(self) -> str:
        """One line for the terminal: the verdict and the error bar that the client puts on the latencies."""
        numbers = self.numbers
        parts = [
            f"{label} {numbers[key]:.1f} {unit}"
            for label, key, unit in (
                ("p99 send lag", "p99_send_lag_ms", "ms"),
                ("p99 event-loop lag", "p99_loop_lag_ms", "ms"),
                ("client CPU", "client_cpu_percent", "%"),
                ("others' CPU", "others_cpu_percent", "%"),
                ("stamps late by at most p99", "null_server_p99_lag_ms", "ms"),
            )
            if numbers.get(key) is not None
        ]
        return f"client: {self.level.value} ({', '.join(parts)})"


def judge(records: Sequence[RequestRecord], cost: ClientCost, *, paced: bool) -> Verdict:
    """The verdict on a run.

    The bar for a paced run: p99 send lag at most max(5 ms, 5 % of the median TTFT).  When all requests are due at once
    the lag is the time it takes to send them all, which no client can avoid: over the bar it is a warning.  So it is
    with fewer than 100 requests, unless their median is over the bar too.
    """
    lags = [record.sent_ns - record.admitted_ns for record in records]
    ttfts = [record.chunks[0].t_ns - record.sent_ns for record in records if record.ok and record.chunks]
    p99_lag, p99_loop = percentile(lags, 99), percentile(cost.loop_lags_ns, 99)
    failed = sum(not record.ok for record in records)
    numbers: dict[str, float | None] = {
        "p99_send_lag_ms": _ms(p99_lag),
        "p99_loop_lag_ms": _ms(p99_loop),
        "max_loop_lag_ms": _ms(max(cost.loop_lags_ns, default=None)),
        "client_cpu_percent": 100 * cost.cpu_s / cost.wall_s if cost.wall_s > 0 else None,
        "clock_drift_ms": cost.drift_ns / 1e6,
        "others_cpu_percent": None if cost.others_share is None else 100 * cost.others_share,
        "null_server_p50_lag_ms": None if cost.calibration is None else cost.calibration.p50_ms,
        "null_server_p99_lag_ms": None if cost.calibration is None else cost.calibration.p99_ms,
        "null_server_events_per_s": None if cost.calibration is None else cost.calibration.load.events_per_s,
        "failure_share": failed / len(records) if records else None,
    }
    invalid: list[str] = []
    warn: list[str] = []
    if not records or failed == len(records):
        invalid.append("no request succeeded, so there is nothing to measure: see the errors")
    elif failed / len(records) > MAX_FAILURE_SHARE:
        invalid.append(f"{failed} of {len(records)} requests failed: the figures describe the survivors only")
    elif failed:
        warn.append(f"{failed} of {len(records)} requests failed and are in no latency")
    if p99_lag is not None and ttfts:
        bar_ns = max(MIN_SEND_LAG_NS, MAX_LAG_SHARE_OF_TTFT * float(np.median(ttfts)))
        if p99_lag > bar_ns:
            text = f"p99 send lag {p99_lag / 1e6:.1f} ms exceeds {bar_ns / 1e6:.1f} ms"
            if paced and len(lags) < MIN_LAGS_FOR_P99 and float(np.median(lags)) <= bar_ns:
                warn.append(f"{text}, but of {len(lags)} requests that is a single late one or two")
            elif paced:
                invalid.append(f"{text}: the client could not keep the schedule; lower the rate or free a core for it")
            else:
                warn.append(f"{text}: sending all requests at once took a visible share of TTFT")
    if p99_loop is not None and p99_loop > 10 * MIN_SEND_LAG_NS:
        warn.append(f"p99 event-loop lag {p99_loop / 1e6:.1f} ms: stamps may be this late; free a core for the client")
    cpu = numbers["client_cpu_percent"]
    if cpu is not None and cpu > 100 * MAX_CLIENT_CPU:
        warn.append(f"the client used {cpu:.0f} % of a core: it may have been the bottleneck")
    if cost.others_share is not None and cost.others_share > MAX_OTHERS_SHARE:
        warn.append(
            f"other processes used {cost.others_share:.0%} of the machine's processors, beside client and server: the "
            "figures are slower than they would be alone"
        )
    if cost.calibration is not None and cost.calibration.p99_ms > MIN_SEND_LAG_NS / 1e6:
        warn.append(
            f"against a server that does nothing, at this run's {cost.calibration.load.events_per_s:.0f} events/s, the "
            f"client stamps up to {cost.calibration.p99_ms:.1f} ms late (p99): add client processes or free a core"
        )
    if abs(cost.drift_ns) > MAX_CLOCK_DRIFT_NS:
        invalid.append(f"the wall clock moved {cost.drift_ns / 1e6:.0f} ms against the monotonic one during the run")
    level = Level.INVALID if invalid else Level.WARN if warn else Level.VALID
    return Verdict(level, tuple(invalid + warn), numbers)


def _ms(value_ns: Percentile) -> float | None:
    return None if value_ns is None else value_ns / 1e6
