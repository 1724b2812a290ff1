"""The report in at most 30 lines for the terminal: verdict, best settings, findings, cells not as planned, where it is.

Foreign text is printed without rich's markup and without control characters (a cell's name cannot move the cursor).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.text import Text

from headrace.lab.records.results import CellStatus
from headrace.lab.report.text import plain, with_unit
from headrace.lab.report.view import StudyView

MAX_LINES = 30
_LEVEL_STYLE = {"good": "bold green", "care": "bold yellow", "bad": "bold red"}

Line = tuple[str, str]  # text, rich style


def print_summary(views: Sequence[StudyView], page: Path, *, file: IO[str] | None = None) -> None:
    """Print the summary; plain text without a terminal, no colour where NO_COLOR is set."""
    console = Console(file=file, highlight=False, soft_wrap=True, legacy_windows=False)
    width = min(console.width, 110) if console.is_terminal else 100
    for text, style in summary_lines(views, page, width):
        console.print(Text(text, style=style), overflow="ignore", crop=False)


def summary_lines(views: Sequence[StudyView], page: Path, width: int = 100) -> list[Line]:
    """The lines with their styles: at most MAX_LINES, none wider than `width`; the last says where the page is."""
    width = max(width, 40)
    closing = [("", ""), *_wrap(f"report: {page}", width, "bold", 3)]
    room = MAX_LINES - len(closing)
    lines: list[Line] = []
    # The report's own study gets the room; each one beside it two lines of its own.
    beside = [line for view in views[1:4] for line in _beside(view, width)]
    room -= len(beside)
    for view in views[:1]:
        head = [*_heading(view, width), *_best(view, width)]
        aside = _unplanned(view, width)
        lines += [*head, *_findings(view, width, room - len(head) - len(aside)), *aside]
    return [*lines[:room], *beside, *closing][:MAX_LINES]


def _wrap(text: str, width: int, style: str, most: int, indent: str = "  ") -> list[Line]:
    parts = textwrap.wrap(
        plain(text), width, subsequent_indent=indent, max_lines=most, placeholder=" …", break_on_hyphens=False
    )
    return [(part, style) for part in parts]


def _heading(view: StudyView, width: int) -> list[Line]:
    return [
        *_wrap(f"{view.title} ({view.kind})", width, "bold", 1),
        *_wrap(view.banner.headline, width, _LEVEL_STYLE[view.banner.level], 1),
    ]


def _best(view: StudyView, width: int) -> list[Line]:
    """Best and tied cells: the headline finding says it where there is one, else a line a metric."""
    headline = next((finding for finding in view.findings if finding.id == "headline"), None)
    if headline is not None:
        return _wrap(_whole_sentences(headline.claim, 4 * width), width, "", 5)
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
    """As many findings as fit, at most two lines each, one of each topic first; the last line counts the rest."""
    findings = [finding for finding in view.findings if finding.id != "headline"]
    if not findings or room < 3:
        return []
    first = {finding.topic: finding for finding in reversed(findings)}.values()
    ordered = sorted(findings, key=lambda finding: finding not in first)  # stable: the order within stays
    lines: list[Line] = [("findings", "bold")]
    for index, finding in enumerate(ordered):
        part = _wrap(f"- {_whole_sentences(finding.claim, 2 * width - 12)}", width, "", 2)
        rest = len(ordered) - index - 1
        if len(lines) + len(part) + bool(rest) > room:
            return [*lines, (f"  … {rest + 1} more in the report", "dim")]
        lines += part
    return lines


def _whole_sentences(text: str, most: int) -> str:
    """As many whole sentences as fit; the whole text where not even the first does (it is cut with an ellipsis)."""
    if len(text) <= most:
        return text
    end = text.rfind(". ", 0, most)
    return text[: end + 1] if end > 0 else text


def _unplanned(view: StudyView, width: int) -> list[Line]:
    """One line a status and rule, naming the cells: a campaign may have many illegal ones."""
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in view.unplanned:
        why = f" ({cell.rule})" if cell.rule else f" ({cell.reason})" if cell.status is CellStatus.FAILED else ""
        label = "left out of comparisons" if cell.ran and cell.left_out else cell.status_label
        groups.setdefault((label, why), []).append(cell.name)
    lines: list[Line] = []
    for (status, why), names in groups.items():
        lines += _wrap(f"{status}: {', '.join(names)}{why}", width, "yellow", 1)
    if len(lines) > 5:
        lines = [*lines[:4], (f"  … {len(groups) - 4} more groups of cells in the report", "dim")]
    return lines


def _beside(view: StudyView, width: int) -> list[Line]:
    return _wrap(f"beside: {view.title} ({view.kind}). {view.banner.headline}", width, "dim", 2)
