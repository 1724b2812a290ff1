"""Files in, files out: the edges of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from headrace.errors import ConfigError
from headrace.lab.files import write_where_asked
from headrace.lab.findings.finding import Finding
from headrace.lab.records.results import Study, study_from_json
from headrace.lab.report.data import as_json, study_view
from headrace.lab.report.page import page_html
from headrace.lab.report.panels import dashboards
from headrace.lab.report.view import StudyView

TWIN_VERSION = 1


@dataclass(frozen=True, slots=True)
class ReportPaths:
    """What was written, and the views it was written from (for the terminal's summary)."""

    html: Path
    json: Path
    views: tuple[StudyView, ...]


def load_study(path: Path) -> Study:
    """The study in `path`: a study.json, or a directory with one.  Raises ConfigError with what was expected."""
    file = path / "study.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        where = f"{path} has no study.json" if path.is_dir() else f"{path} does not exist"
        raise ConfigError(
            f"{where}; give a directory that `headrace run` or `headrace import --out` has written"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    return study_from_json(text, source=str(file))


def write_report(
    directory: Path,
    studies: Sequence[Study],
    findings_by_study: Sequence[Sequence[Finding]],
    out: Path | None = None,
) -> ReportPaths:
    """Write the page (default `directory`/report.html) and its JSON twin (same name, .json).

    studies            the report's own study first, then those to stand beside it
    findings_by_study  the findings of each study, in the same order

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
    write_where_asked(twin, twin_json(studies, findings_by_study, views), what=f"the report's twin {twin}")
    return ReportPaths(page, twin, views)


def twin_json(
    studies: Sequence[Study], findings_by_study: Sequence[Sequence[Finding]], views: Sequence[StudyView]
) -> str:
    """The report as JSON: each study and its findings as they came in, and what the charts show."""
    entries = [
        {
            "study": asdict(study),
            "findings": [asdict(finding) for finding in findings],
            "charts": [asdict(board) for board in dashboards(view)],
        }
        for study, findings, view in zip(studies, findings_by_study, views, strict=True)
    ]
    twin = as_json({"schema_version": TWIN_VERSION, "kind": "headrace report", "studies": entries})
    return json.dumps(twin, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
