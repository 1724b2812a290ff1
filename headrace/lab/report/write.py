"""Files in, files out: the edges of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.files import write_where_asked
from headrace.lab.findings.finding import Finding
from headrace.lab.records.results import Study
from headrace.lab.report.data import as_json, study_view
from headrace.lab.report.page import page_html
from headrace.lab.report.panels import dashboards
from headrace.lab.report.studies import TWIN_KIND, remembered
from headrace.lab.report.view import StudyView

TWIN_VERSION = 1


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """What was written, and the views it was written from (for the terminal's summary)."""

    html: Path
    json: Path
    views: tuple[StudyView, ...]


def write_report(
    directory: Path,
    studies: Sequence[Study],
    findings_by_study: Sequence[Sequence[Finding]],
    out: Path | None = None,
    beside: Sequence[str] = (),
) -> ReportPaths:
    """Write the page (default `directory`/report.html) and its JSON twin (same name, .json).

    studies            the report's own study first, then those to stand beside it
    findings_by_study  the findings of each study, in the same order
    beside             what those beside were called; the twin keeps it for the next report of `directory`

    The same input gives the same bytes.  Raises ConfigError for a place that cannot be written.
    """
    views = tuple(
        study_view(study, findings, index)
        for index, (study, findings) in enumerate(zip(studies, findings_by_study, strict=True))
    )
    page = out if out is not None else directory / "report.html"
    twin = page.with_suffix(".json")
    if twin == page or twin.name == "study.json":
        raise ConfigError(
            f"--out {page}: the report's JSON twin would overwrite it or the study; use a name like report.html"
        )
    write_where_asked(page, page_html(views), what=f"the report {page}")
    write_where_asked(
        twin,
        twin_json(studies, findings_by_study, views, remembered(beside, directory)),
        what=f"the report's twin {twin}",
    )
    return ReportPaths(page, twin, views)


def twin_json(
    studies: Sequence[Study],
    findings_by_study: Sequence[Sequence[Finding]],
    views: Sequence[StudyView],
    beside: Sequence[str],
) -> str:
    """The report as JSON: each study and its findings as they came in, and what the charts show."""
    entries = [
        {
            "study": asdict(study),
            "findings": [asdict(finding) for finding in findings],
            "charts": [asdict(board) for board in boards],
        }
        for study, findings, boards in zip(studies, findings_by_study, dashboards(views), strict=True)
    ]
    twin = as_json({"schema_version": TWIN_VERSION, "kind": TWIN_KIND, "beside": list(beside), "studies": entries})
    return json.dumps(twin, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
