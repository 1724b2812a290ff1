"""What `headrace bench` says beside vLLM's block: why requests failed, where their time went."""

from __future__ import annotations

import json
import shutil
import sys
import time
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
