"""The report in at most 30 lines for the terminal: verdict, best settings, findings, cells not as planned, where it is.

Foreign text is printed without rich's markup and without control characters (a cell's name cannot move the cursor).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

from headrace.lab.records.results import CellStatus
from headrace.lab.report.text import plain, with_unit
from headrace.lab.report.view import FindingView, StudyView

MAX_LINES = 30
_LEVEL_STYLE = {"good": "bold green", "care": "bold yellow", "bad": "bold red"}

Line = tuple[str, str]  # text, rich style


def print_summary(views: Sequence[StudyView], page: Path, *, file: IO[str] | None = None) -> None:
    """Print the summary; plain text without a terminal, no colour where NO_COLOR is set."""
    console = Console(file=file, highlight=False, soft_wrap=True, legacy_windows=False)
    width = min(console.width, 110) if console.is_terminal else 80
    for text, style in summary_lines(views, page, width):
        console.print(Text(text, style=style), overflow="ignore", crop=False)


def summary_lines(views: Sequence[StudyView], page: Path, width: int = 100) -> list[Line]:
    """The lines with their styles: at most MAX_LINES, none wider than `width`; the last says where the page is."""
    width = max(width, 40)
    closing = [("", ""), *_wrap(f"report: {page}", width, "bold", 3)]
    room = MAX_LINES - len(closing)
    lines: list[Line] = []
    # The report's own study gets the room; each one beside it up to three lines of its own.
    beside = [line for view in views[1:4] for line in _beside(view, width)]
    room -= len(beside)
    for view in views[:1]:
        head = [*_heading(view, width), *_best(view, width)]
        aside = _unplanned(view, width)
        lines += [*head, *_findings(view, width, room - len(head) - len(aside)), *aside]
    return [*lines[:room], *beside, *closing][:MAX_LINES]


def _wrap(text: str, width: int, style: str, most: int | None, indent: str = "  ") -> list[Line]:
    parts = textwrap.wrap(
        plain(text), width, subsequent_indent=indent, max_lines=most, placeholder=" …", break_on_hyphens=False
    )
    return [(part, style) for part in parts]


def _heading(view: StudyView, width: int) -> list[Line]:
    return [
        *_wrap(f"{view.title} ({view.kind})", width, "bold", 3),
        *_wrap(view.banner.headline, width, _LEVEL_STYLE[view.banner.level], 2),
    ]


def _best(view: StudyView, width: int) -> list[Line]:
    """Best and tied cells: the headline finding says it where there is one, else a line a metric."""
    headline = next((finding for finding in view.findings if finding.id == "headline"), None)
    if headline is not None:
        return _claim(headline.claim, width, 5) or _wrap(headline.claim, width, "", 5)
    lines: list[Line] = []
    for best in view.best:
        n = "single run" if best.value.n == 1 else f"mean of {best.value.n}"
        names = ", ".join(cell.name for cell in best.tied) or "none"
        text = (
            f"best {best.metric.label}: {best.cell.name}, {with_unit(best.value.mean, best.metric.unit)} ({n}); "
            f"tied {best.tie_words}: {names}"
        )
        lines += _wrap(text, width, "", 2)
    return lines


def _findings(view: StudyView, width: int, room: int) -> list[Line]:
    """As many findings as fit, one of each topic first; the last line counts the rest.

    Four lines each at most, or fewer where that says more of them.
    """
    findings = [finding for finding in view.findings if finding.id != "headline"]
    if not findings or room < 3:
        return []
    first = {finding.topic: finding for finding in reversed(findings)}.values()
    ordered = sorted(findings, key=lambda finding: finding not in first)  # stable: the order within stays
    lines, unsaid = min((_fitting(ordered, width, room, most) for most in (4, 3, 2)), key=lambda found: found[1])
    more = [(f"  {unsaid} more in the report", "dim")] if unsaid else []
    return [("findings", "bold"), *lines, *more]


def _fitting(findings: Sequence[FindingView], width: int, room: int, most: int) -> tuple[list[Line], int]:
    """The claims that fit below a heading and above a closing line, and how many do not."""
    lines: list[Line] = []
    said = 0
    for finding in findings:
        part = _claim(f"- {finding.claim}", width, most)
        if part and len(lines) + len(part) <= room - 2:
            lines += part
            said += 1
    return lines, len(findings) - said


def _claim(text: str, width: int, most: int) -> list[Line]:
    """The claim in at most `most` lines: whole, else to the end of its last sentence or clause that fits; nothing
    where not even its first clause does."""
    text = plain(text)
    ends = [match for match in _CLAUSE_END.finditer(text) if not _inside_brackets(text[: match.start()])]
    sentences = [match for match in ends if match[0] == "."]
    for match in (None, *reversed(sentences), *reversed(ends)):
        part = text if match is None else text[: match.start()] + "."
        lines = _wrap(part, width, "", None)
        if len(lines) <= most:
            return lines
    return []


# What follows a comma or a colon may be needed ("if a, b"), so only these end a clause.
_CLAUSE_END = re.compile(r"\.(?= )|;(?= )|,(?= (?:and|so|because|which|at|best|more) )")


def _inside_brackets(text: str) -> bool:
    return text.count("(") != text.count(")")


def _unplanned(view: StudyView, width: int) -> list[Line]:
    """One line a status and rule, naming the cells: a campaign may have many illegal ones."""
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in view.unplanned:
        why = f" ({cell.rule})" if cell.rule else f" ({cell.reason})" if cell.status is CellStatus.FAILED else ""
        label = "left out of comparisons" if cell.ran and cell.left_out else cell.status_label
        groups.setdefault((label, why), []).append(cell.name)
    lines: list[Line] = []
    for (status, why), names in groups.items():
        lines += _wrap(_named(status, names, why, width), width, "yellow", 1)
    if len(lines) > 5:
        lines = [*lines[:4], (f"  {len(groups) - 4} more groups of cells in the report", "dim")]
    return lines


def _named(status: str, names: Sequence[str], why: str, width: int) -> str:
    """One line with as many names as fit, and how many more there are."""
    for shown in range(len(names), 0, -1):
        more = f" and {len(names) - shown} more" if shown < len(names) else ""
        line = f"{status}: {', '.join(names[:shown])}{more}{why}"
        if len(line) <= width:
            return line
    return f"{status}: {', '.join(names)}{why}" if len(names) == 1 else f"{status}: {len(names)} cells{why}"


def _beside(view: StudyView, width: int) -> list[Line]:
    return _wrap(f"beside: {view.title} ({view.kind}). {view.banner.headline}", width, "dim", 3)
