"""What `headrace bench` says beside vLLM's block: why requests failed, where their time went."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.lab.client import MeasuredRun


def explain(run: MeasuredRun, step_log: str | None) -> None:
    """Where TTFT went, and the long gaps: a line each on stderr."""
    from headrace.lab.findings.words_of_time import gap_line, split_line
    from headrace.lab.metrics.result import explained_metrics

    if step_log is not None:
        time.sleep(1.0)  # the server's writer writes twice a second
    found = explained_metrics(run.manifest, run.records, [Path(step_log)] if step_log else [])
    for line in (split_line(found), gap_line(found)):
        if line:
            print(line, file=sys.stderr)


def user_table(run: MeasuredRun, goals_ms: Mapping[str, float]) -> None:
    """The run as its users saw it, on stderr: from the planned start, with intervals and what is certified."""
    from headrace.lab.metrics.user_view import goodput_share, user_view

    rows = user_view(run.records)
    if rows:
        print("from the planned start, ms (mean with its 95 % interval):", file=sys.stderr)
    for row in rows:
        mean = f"{row.mean:.1f}"
        if row.interval is not None:
            mean += f" [{row.interval.low:.1f}, {row.interval.high:.1f}]"
        cells = []
        for one in row.quantiles:
            proof = f"<= {one.bound:.1f}" if one.bound is not None else f"n = {row.samples}, needs {one.needs}"
            cells.append(f"p{one.percentile:g} {one.value:.1f} ({proof})")
        print(f"  {row.name:<12} {mean:<26} {'  '.join(cells)}", file=sys.stderr)
    if goals_ms and (share := goodput_share(run.records, goals_ms)) is not None:
        print(f"{share:.1%} of the issued requests met every goal, from the planned start", file=sys.stderr)


def keep_steps(step_log: Path, out: Path) -> None:
    """A copy beside the records: the next report computes the explanation again."""
    from headrace.lab.metrics.result import STEPS

    time.sleep(1.0)
    for name in (step_log.with_name(step_log.name + ".1"), step_log):
        if name.is_file():
            shutil.copyfile(name, out / (STEPS + name.name.removeprefix(step_log.name)))


def message(error: str | None) -> str:
    """The sentence inside an OpenAI error body, or the start of what there is."""
    try:
        body = json.loads(error or "")
        text = str(body.get("error", body)["message"])
    except (ValueError, TypeError, KeyError, AttributeError):
        text = error or "no reason given"
    return " ".join(text.split())[:300]
