"""Records -> the RunResult that findings and reports read, with vLLM's keys and our own beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.lab.metrics.breakdown import aggregate_split, explain_run, read_steps
from headrace.lab.metrics.latency import latency_summary
from headrace.lab.metrics.vllm import METRICS, vllm_metrics
from headrace.lab.records.results import Level, RunResult, RunVerdict
from headrace.lab.records.schema import RequestRecord
from headrace.lab.records.store import read_run

# A server's step log, where one is kept beside a run.
STEPS = "steps.jsonl"
PERCENTILES = (90.0, 95.0, 99.0)

# Fewer chunks than tokens: the gaps between chunks are not the times between tokens.
_BUNDLED = 1.05


def run_result_from_records(
    records: Sequence[RequestRecord],
    *,
    source: str,
    settings: Mapping[str, Any],
    duration_s: float,
    warnings: Sequence[str] = (),
    verdict: RunVerdict | None = None,
) -> RunResult:
    """Compute a run's metrics anew.  The verdict's reasons are warnings too.

    vLLM's JSON keys with vLLM's definitions, and the keys of `latency_summary`.  A metric without values (no request
    succeeded, no answer had two tokens) is absent, never zero.
    """
    totals = vllm_metrics(records, duration_s)
    metrics: dict[str, float] = {"duration": duration_s, "completed": totals.completed, "failed": totals.failed}
    notes = [*_said(verdict), *warnings]
    if totals.completed:
        metrics |= {
            "total_input_tokens": totals.total_input,
            "total_output_tokens": totals.total_output,
            "request_throughput": totals.request_throughput,
            "output_throughput": totals.output_throughput,
            "total_token_throughput": totals.total_token_throughput,
            "max_output_tokens_per_s": totals.max_output_tokens_per_s,
            "max_concurrent_requests": totals.max_concurrent_requests,
        }
    for metric in METRICS:
        if totals.values_s[metric]:
            metrics |= totals.statistics_ms(metric, PERCENTILES)
    ours = latency_summary(records)
    metrics |= ours
    bundle = ours.get("mean_tokens_per_chunk", 1.0)
    if bundle > _BUNDLED:
        notes.append(f"a chunk carries {bundle:.1f} tokens on average, so ITL is the time between chunks, not tokens")
    notes += _length_warnings(records)
    return RunResult(source, dict(settings), metrics, tuple(notes), verdict)


def _length_warnings(records: Sequence[RequestRecord]) -> list[str]:
    """Lengths that are not what was asked for make two runs incomparable, so they are said aloud."""
    notes = []
    good = [record for record in records if record.ok]
    short = sum(
        record.max_tokens is not None and (record.output_tokens_server or record.max_tokens) < record.max_tokens
        for record in good
    )
    if short:
        notes.append(f"{short} of {len(good)} answers are shorter than asked for: output totals differ between runs")
    uncounted = sum(record.output_tokens_server is None for record in good)
    if uncounted:
        notes.append(f"the server sent no token count for {uncounted} of {len(good)} answers: counted by the client")
    return notes


def run_result_from_directory(directory: Path) -> RunResult:
    """A stored run's metrics, computed anew.  Raises ConfigError when the run is not finished or damaged."""
    manifest, records = read_run(directory)
    verdict = manifest["verdict"]
    result = run_result_from_records(
        records,
        source=str(directory),
        settings=manifest["settings"],
        duration_s=(manifest["end_ns"] - manifest["start_ns"]) / 1e9,
        warnings=manifest["warnings"],
        verdict=RunVerdict(Level(verdict["level"]), tuple(verdict["reasons"])),
    )
    explained = explained_metrics(manifest, records, (directory / STEPS, directory.parent / STEPS))
    return replace(result, metrics={**result.metrics, **explained}) if explained else result


def explained_metrics(
    manifest: Mapping[str, Any], records: Sequence[RequestRecord], step_logs: Sequence[Path]
) -> dict[str, float]:
    """Where TTFT and long gaps went: exactly, from the first step log that is there; else means from the server's own
    histograms, then without `explained_share`; empty where there is neither."""
    for path in step_logs:
        if path.is_file():
            pair = manifest["clock_pairs"][0]
            steps = read_steps(path, pair["wall_ns"] - pair["monotonic_ns"])
            explanation = explain_run(records, steps)
            return explanation.metrics() if explanation.splits else {}
    return aggregate_split(records, manifest.get("server") or {})


def _said(verdict: RunVerdict | None) -> tuple[str, ...]:
    if verdict is None or verdict.level is not Level.INVALID:
        return verdict.reasons if verdict is not None else ()
    return ("INVALID: this run should not be compared with others", *verdict.reasons)
