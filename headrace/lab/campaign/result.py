"""A finished run's result, computed anew from what the run left: the client's raw records, two scrapes of the server.

Nothing here is stored with the run: a metric's definition may change, and the next study has it, without measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.lab.campaign.exposition import server_metrics, stated_settings
from headrace.lab.campaign.interference import interference_warning
from headrace.lab.campaign.resume import Seal
from headrace.lab.metrics.result import run_result_from_directory
from headrace.lab.records.results import RunResult

Json = Any

# Beside the seal: the run's records as the load client stores them, and /metrics as it was.
CLIENT, BEFORE, AFTER = "client", "metrics-before.txt", "metrics-after.txt"

# What the server states -> the key in RunResult.settings, where the plan may have left it to the server.
_RESOLVED = {
    "block_size": "block_size",
    "dtype": "dtype",
    "enable_prefix_caching": "enable_prefix_caching",
    "max_model_len": "max_model_len",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "num_gpu_blocks": "num_blocks",
    "num_threads": "num_threads",
}


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """A sealed run.

    result  None for a failed one
    stated  the settings that its server stated, under the server's own names
    """

    seal: Seal
    result: RunResult | None
    stated: Mapping[str, Json] = field(default_factory=dict)


def finished_run(campaign: Path, directory: Path, seal: Seal) -> FinishedRun:
    """Compute a sealed run's result.  Raises ConfigError when its records cannot be read."""
    if seal.failure is not None:
        return FinishedRun(seal, None)
    before, after = _text(directory / BEFORE), _text(directory / AFTER)
    stated = stated_settings(before)
    result = run_result_from_directory(directory / CLIENT)
    resolved = {key: stated[name] for name, key in _RESOLVED.items() if stated.get(name) is not None}
    share = seal.server.get("foreign_cpu_share", 0.0)
    warning = interference_warning(share)
    result = replace(
        result,
        source=str(directory.relative_to(campaign)),
        settings={**result.settings, **resolved, **({"foreign_cpu_share": share} if warning else {})},
        metrics={**result.metrics, **server_metrics(before, after)},
        warnings=(*result.warnings, *([warning] if warning else [])),
    )
    return FinishedRun(seal, result, stated)


def _text(path: Path) -> str:
    """Empty when the server offered no metrics."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
