"""When two runs were asked for the same, and when a run served less than it was asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headrace.lab.records.results import RunResult

# A tokenizer, a chat template or a request that failed may shift a count by a token a request; another data set
# shifts it by far more.
SAME_WORKLOAD = 0.02
# What tells two workloads apart where no setting does: result files do not say everything about their prompts.
WORKLOAD_COUNTS = ("completed", "total_input_tokens")


def same_workload(one: Mapping[str, float | None], other: Mapping[str, float | None]) -> bool:
    """The counts of two runs' (or cells') metrics agree; a count that either lacks tells nothing."""
    for key in WORKLOAD_COUNTS:
        a, b = one.get(key), other.get(key)
        if a is not None and b is not None and abs(a - b) > SAME_WORKLOAD * max(a, b):
            return False
    return True


def shortfall(run: RunResult) -> tuple[int, int] | None:
    """(served, asked) of a run that served less than was asked, else None.

    Old clients print no line for failed requests: what is missing shows only against the number of prompts.
    """
    served = run.metrics.get("completed")
    if served is None or not math.isfinite(served):
        return None
    asked = run.settings.get("num_prompts")
    if isinstance(asked, int) and served < asked:
        return int(served), asked
    failed = run.metrics.get("failed", 0)
    return (int(served), int(served + failed)) if 0 < failed < math.inf else None
