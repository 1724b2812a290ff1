"""What users waited for, counted from the planned start: means with intervals, percentiles with what certifies them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.lab.metrics.certify import Interval, certified, mean_interval, percentile_interval, smallest_sample
from headrace.lab.metrics.latency import RequestLatency, request_latency
from headrace.lab.records.schema import RequestRecord

PERCENTILES = (50.0, 90.0, 99.0)


@dataclass(frozen=True, slots=True)
class Quantile:
    """One percentile: its value, the interval of 95 %, the bound that holds with 99 %, how many samples that needs.

    Without enough samples `bound` is None, and the value describes this sample only.
    """

    percentile: float
    value: float
    interval: Interval | None
    bound: float | None
    needs: int


@dataclass(frozen=True, slots=True)
class Row:
    """One latency over the successful requests, milliseconds."""

    name: str
    samples: int
    mean: float
    interval: Interval | None
    quantiles: tuple[Quantile, ...]


def user_view(records: Sequence[RequestRecord]) -> list[Row]:
    """TTFT and the end from the planned start, TPOT, the longest gap; a latency without values has no row."""
    in_order = sorted((record for record in records if record.ok), key=lambda record: record.sent_ns)
    latencies = [request_latency(record) for record in in_order]
    columns = {
        "TTFT": [x.ttft_s for x in latencies],
        "TPOT": [x.tpot_s for x in latencies],
        "longest gap": [x.stall_s for x in latencies],
        "end to end": [x.e2e_s for x in latencies],
    }
    rows = []
    for name, column in columns.items():
        values = [1e3 * value for value in column if value is not None]
        if values:
            quantiles = tuple(
                Quantile(
                    p,
                    float(np.percentile(values, p)),
                    percentile_interval(values, p),
                    certified(values, p),
                    smallest_sample(p),
                )
                for p in PERCENTILES
            )
            rows.append(Row(name, len(values), float(np.mean(values)), mean_interval(values), quantiles))
    return rows


def goodput_share(records: Sequence[RequestRecord], goals_ms: Mapping[str, float]) -> float | None:
    """Share of the *issued* requests, failures included, that met every goal from the planned start; None for none.

    Goals are those of `--goodput`: ttft, tpot, e2el.  A request without a TPOT meets every goal for it.
    """
    if not records:
        return None
    return sum(record.ok and _meets(request_latency(record), goals_ms) for record in records) / len(records)


def _meets(latency: RequestLatency, goals_ms: Mapping[str, float]) -> bool:
    values = {"ttft": latency.ttft_s, "tpot": latency.tpot_s or 0.0, "e2el": latency.e2e_s}
    return all((value := values[name]) is not None and 1e3 * value <= goal for name, goal in goals_ms.items())
