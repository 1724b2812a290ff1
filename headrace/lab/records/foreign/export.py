"""Runs -> objects with the keys of vLLM's result JSON."""

from __future__ import annotations

import re
from typing import Any

from headrace.lab.records.results import RunResult

# Settings that vLLM writes at the top level of a result, by its names.
_TOP_LEVEL = {
    "date": "date",
    "backend": "backend",
    "model": "model_id",
    "num_prompts": "num_prompts",
    "request_rate": "request_rate",
    "burstiness": "burstiness",
    "max_concurrency": "max_concurrency",
}
_POSITION = re.compile(r"spec_decode_position_\d+_acceptance_rate$")


def to_vllm_object(run: RunResult) -> dict[str, Any]:
    """The run as one object: vLLM's keys for what the input has (nothing is invented), `source`, `settings`, and
    `warnings` where there are any."""
    found: dict[str, Any] = {"source": run.source}
    found.update({name: run.settings[key] for key, name in _TOP_LEVEL.items() if key in run.settings})
    found.update({key: value for key, value in run.metrics.items() if not _POSITION.match(key)})
    positions = [value / 100 for key, value in run.metrics.items() if _POSITION.match(key)]
    if positions:
        found["spec_decode_per_position_acceptance_rates"] = positions
    found["settings"] = dict(run.settings)
    if run.warnings:
        found["warnings"] = list(run.warnings)
    return found
