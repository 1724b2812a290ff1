"""The client against a server that does nothing, at the rate that a run had: what the client itself adds to a stamp."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.lab.client.shard import Item, Job, run_job, run_to_the_end
from headrace.lab.records.schema import RequestRecord

# Of the time that the null server writes into each event.
STAMP_DIGITS = 18
SECONDS = 1.0
# A shorter run is over before calibrating it would be.
MIN_RUN_S = 3.0
MAX_STREAMS = 512
_TEXT = STAMP_DIGITS + 1  # characters of an event's text


@dataclass(frozen=True, slots=True)
class Load:
    """What one client process had to do at a run's busiest: streams at once, events per second."""

    streams: int
    events_per_s: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Lag of the client's stamps behind the server's writes, in milliseconds, under `load`."""

    load: Load
    events: int
    p50_ms: float
    p99_ms: float


def busiest(records: Sequence[RequestRecord], processes: int) -> Load | None:
    """The load of a run's busiest second, for one of its processes; None when nothing was streamed."""
    stamps = np.array([chunk.t_ns for record in records for chunk in record.chunks])
    if not len(stamps):
        return None
    seconds = (stamps - stamps.min()) // 1_000_000_000
    most = int(np.bincount(seconds).max())
    edges = sorted(
        [(record.sent_ns, 1) for record in records if record.chunks]
        + [(record.done_ns, -1) for record in records if record.chunks]
    )
    running = at_once = 0
    for _, change in edges:
        running += change
        at_once = max(at_once, running)
    streams = max(1, min(at_once // processes, MAX_STREAMS))
    return Load(streams, max(most / processes, streams / SECONDS))


def calibrate(load: Load) -> Calibration | None:
    """Stream `load` from the null server for a second; None when the server does not start."""
    gap_us = round(load.streams * 1e6 / load.events_per_s)
    events = max(2, round(SECONDS * 1e6 / gap_us))
    server = subprocess.Popen(
        # Its package has imported the module by then, of which runpy would warn.
        [sys.executable, "-W", "ignore::RuntimeWarning:runpy", "-m", "headrace.lab.client.null_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    try:
        port = server.stdout.readline().strip()
        if not port:
            return None
        body = json.dumps({"max_tokens": events, "null_gap_us": gap_us, "null_first_us": 50_000})
        items = tuple(Item(index, body, 0) for index in range(load.streams))
        job = Job(f"http://127.0.0.1:{port}/v1/completions", {}, 30.0, None, items)
        outcome = run_to_the_end(run_job(job))
        if outcome.interrupted:
            raise KeyboardInterrupt
    finally:
        server.stdin.close()
        server.stdout.close()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    lags = stamp_lags_ms(outcome.records)
    if not len(lags):
        return None
    p50, p99 = np.percentile(lags, [50, 99])
    return Calibration(load, len(lags), float(p50), float(p99))


def stamp_lags_ms(records: Sequence[RequestRecord]) -> np.ndarray:
    """How much later than the null server's own stamp each event was stamped here; the first tenth, while all streams
    begin, is left out."""
    parts = [np.empty(0)]
    for record in records:
        text = record.output_text or ""
        if not record.ok or not text:
            continue
        sent = np.array([int(text[i : i + _TEXT]) for i in range(0, len(text) - _TEXT + 1, _TEXT)])
        stamps = np.array([chunk.t_ns for chunk in record.chunks[: len(sent)]])
        parts.append((stamps - sent)[len(sent) // 10 :] / 1e6)
    return np.concatenate(parts)
