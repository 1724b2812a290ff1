"""A finished run's result, computed anew from what the run left: the client's raw records, what the server said.

Nothing here is stored with the run: a metric's definition may change, and the next study has it, without measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.lab.campaign.interference import interference_warning
from headrace.lab.campaign.resume import Seal
from headrace.lab.campaign.server_metrics import read_scrapes, server_metrics
from headrace.lab.campaign.stated import read_description, stated_settings
from headrace.lab.campaign.telemetry import gpu_metrics, read_readings
from headrace.lab.metrics.result import run_result_from_directory
from headrace.lab.records.results import RunResult
from headrace.lab.records.store import read_run_times

Json = Any

# Beside the seal: the server's log, and what it says of itself.
LOG, DESCRIPTION = "server.log", "server-info.json"
# A server's start fills the beginning of its log; what it says of its settings is there.
_LOG_BYTES = 1 << 20

# What the server states -> the key in RunResult.settings, where the plan may have left it to the server.
_RESOLVED = {
    "block_size": "block_size",
    "dtype": "dtype",
    "enable_chunked_prefill": "enable_chunked_prefill",
    "enable_prefix_caching": "enable_prefix_caching",
    "max_model_len": "max_model_len",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "num_gpu_blocks": "num_blocks",
    "num_threads": "num_threads",
    "quantization": "quantization",
}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Where one run on a server keeps what it left: the client's records, /metrics as it was before and after, what
    was counted on the way, and the GPUs' readings."""

    client: Path
    before: Path
    after: Path
    during: Path
    gpu: Path


def run_files(directory: Path, number: int) -> RunFiles:
    """The files of the `number`-th run on one server, from 1."""
    tail = "" if number == 1 else f"-{number}"
    return RunFiles(
        directory / f"client{tail}",
        directory / f"metrics-before{tail}.txt",
        directory / f"metrics-after{tail}.txt",
        directory / f"metrics-during{tail}.jsonl",
        directory / f"gpu{tail}.jsonl",
    )


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A sealed run: one server's life.

    results  one of each measured run on it; empty for a failed one
    stated   the settings that its server stated, under the server's own names
    """

    seal: Seal
    results: tuple[RunResult, ...] = ()
    stated: Mapping[str, Json] = field(default_factory=dict)


def finished_run(campaign: Path, directory: Path, seal: Seal) -> FinishedRun:
    """Compute a sealed run's results.  Raises ConfigError when its records cannot be read."""
    if seal.failure is not None:
        return FinishedRun(seal)
    log = _text(directory / LOG, _LOG_BYTES)
    stated = stated_settings(_text(run_files(directory, 1).before), read_description(directory / DESCRIPTION), log)
    facts = seal.server.get("runs", [{}])
    results = [_result(campaign, directory, number, stated, used) for number, used in enumerate(facts, 1)]
    if len(results) > 1:
        results = [
            replace(one, settings={**one.settings, "run_on_server": number}) for number, one in enumerate(results, 1)
        ]
    return FinishedRun(seal, tuple(results), stated)


def _result(
    campaign: Path, directory: Path, number: int, stated: Mapping[str, Json], used: Mapping[str, Json]
) -> RunResult:
    files = run_files(directory, number)
    result = run_result_from_directory(files.client)
    window_ns = read_run_times(files.client)
    scrapes = read_scrapes(files.during)
    counted = server_metrics(_text(files.before), _text(files.after), scrapes, window_ns)
    of_gpus, warnings = gpu_metrics(read_readings(files.gpu), window_ns)
    resolved = {key: stated[name] for name, key in _RESOLVED.items() if stated.get(name) is not None}
    share = used.get("foreign_cpu_share", 0.0)
    warning = interference_warning(share)
    source = directory.relative_to(campaign)
    return replace(
        result,
        source=str(source if number == 1 else source / files.client.name),
        settings={**result.settings, **resolved, **({"foreign_cpu_share": share} if warning else {})},
        metrics={**result.metrics, **counted, **of_gpus},
        warnings=(*result.warnings, *([warning] if warning else []), *warnings),
    )


def _text(path: Path, most_bytes: int = -1) -> str:
    """Empty when there is nothing, as where a server offered no metrics."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return file.read(most_bytes).decode("utf-8", "replace")
