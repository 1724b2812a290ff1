"""Where a request's time went, in a sentence: for the terminal, and for findings."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.lab.findings.words import listed, milliseconds, percent
from headrace.lab.metrics.breakdown import CAUSES, PARTS

_CAUSE_WORDS = {
    "prefill": "steps that computed prompts",
    "decode": "steps of decodes alone",
    "preempted": "being preempted",
    "left_out": "decode steps without the request",
    "no_step": "no step at all (text held back, or the server stood still)",
}
EXACT = "exact, from the server's step log"
MEANS = "means of the server's own histograms; network is what is left, its front end included"


def split_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Mean milliseconds of TTFT by part; empty where nothing explains it."""
    keys = {part: f"mean_ttft_{part}_ms" for part in PARTS}
    return {part: metrics[key] for part, key in keys.items()} if all(key in metrics for key in keys.values()) else {}


def how_known(metrics: Mapping[str, float]) -> str:
    """Exactly or as aggregates."""
    return EXACT if "explained_share" in metrics else MEANS


def split_words(metrics: Mapping[str, float]) -> str | None:
    """ "83 % queue, 15 % prefill, 1 % network, 1 % client"; None where nothing explains it."""
    split = split_of(metrics)
    total = sum(split.values())
    if total <= 0:
        return None
    ordered = sorted(split.items(), key=lambda item: -item[1])
    return ", ".join(f"{percent(value / total)} {part}" for part, value in ordered)


def split_line(metrics: Mapping[str, float]) -> str | None:
    """One line on the run's TTFT."""
    words = split_words(metrics)
    if words is None:
        return None
    parts = " + ".join(f"{part} {milliseconds(value)}" for part, value in split_of(metrics).items())
    total = milliseconds(sum(split_of(metrics).values()))
    return f"mean TTFT from the planned start {total} = {parts} ({how_known(metrics)})"


def gap_words(metrics: Mapping[str, float]) -> str | None:
    """What the time in long gaps went to, the largest first; None without long gaps."""
    shares = {cause: metrics.get(f"long_gap_{cause}_share", 0.0) for cause in CAUSES}
    told = [(cause, share) for cause, share in sorted(shares.items(), key=lambda item: -item[1]) if share >= 0.005]
    if not metrics.get("long_gaps") or not told:
        return None
    return listed([f"{percent(share)} {_CAUSE_WORDS[cause]}" for cause, share in told])


def gap_line(metrics: Mapping[str, float]) -> str | None:
    """One line on the run's long gaps."""
    words = gap_words(metrics)
    return None if words is None else f"{metrics['long_gaps']:.0f} long gaps between tokens: {words} ({EXACT})"
