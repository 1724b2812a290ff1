"""Panel -> inline SVG: what a reader without script sees, and what stands there until the script has drawn.

Colours come from the page's style sheet through classes (a strict content policy forbids style attributes).
"""

from __future__ import annotations

import html
import math

from headrace.lab.report.axes import Axis, nudged
from headrace.lab.report.charts import lane_roles
from headrace.lab.report.panels import Panel

WIDTH, HEIGHT = 360.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 348.0, 10.0, 224.0
_LANE_ROW = 16.0


def panel_svg(panel: Panel) -> str:
    """The panel as one `<svg>` element; every text is escaped."""
    lane = lane_roles(panel)
    floor = _BOTTOM - (len(lane) * _LANE_ROW + 12 if lane else 0)
    rows = {role: floor + 12 + (index + 0.5) * _LANE_ROW for index, role in enumerate(lane)}
    parts = [*_y_grid(panel.y, floor), *_x_grid(panel.x)]
    if lane:
        parts.append(_rect(_LEFT, floor + 12, _RIGHT - _LEFT, len(lane) * _LANE_ROW))
        parts += [_text(_LEFT - 6, y + 3.5, "n/s" if role == "unset" else role, "end") for role, y in rows.items()]
    for series in panel.series:
        spots = [
            (
                _scaled(panel.x, nudged(panel.x, point.x, series.role), _LEFT, _RIGHT),
                _scaled(panel.y, point.y, floor, _TOP),
                point,
            )
            for point in series.points
        ]
        path = " ".join(f"{'M' if index == 0 else 'L'}{x:.1f} {y:.1f}" for index, (x, y, _) in enumerate(spots))
        dash = f" dash{series.dash % 5}" if series.dash else ""
        parts.append(f'<path class="line {series.role}{dash}" d="{path}"/>')
        for x, y, point in spots:
            if len(point.runs) > 1:
                low, high = (_scaled(panel.y, bound, floor, _TOP) for bound in (point.low, point.high))
                parts.append(f'<path class="line {series.role}" d="M{x:.1f} {low:.1f}V{high:.1f}"/>')
            parts.append(_symbol(series.role, f"{series.role}{' open' if point.changed else ''}", x, y, point.hover))
    for mark in panel.marks:
        parts.append(
            _symbol(
                mark.status, f"mark {mark.status}", _scaled(panel.x, mark.x, _LEFT, _RIGHT), rows[mark.role], mark.hover
            )
        )
    return f'<svg class="still" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}">{"".join(parts)}</svg>'


def _scaled(axis: Axis, value: float, start: float, end: float) -> float:
    if axis.kind in ("log", "log2"):
        share = math.log(value / axis.low) / math.log(axis.high / axis.low)
    else:
        share = (value - axis.low) / (axis.high - axis.low)
    return start + (end - start) * share


def _y_grid(axis: Axis, floor: float) -> list[str]:
    parts = []
    for tick, text in zip(axis.ticks, axis.labels, strict=True):
        y = _scaled(axis, tick, floor, _TOP)
        parts += [f'<path class="grid" d="M{_LEFT} {y:.1f}H{_RIGHT}"/>', _text(_LEFT - 6, y + 3.5, text, "end")]
    middle = (floor + _TOP) / 2
    parts.append(
        f'<text x="12" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 12 {middle:.1f})">'
        f"{html.escape(axis.title)}</text>"
    )
    return parts


def _x_grid(axis: Axis) -> list[str]:
    parts = []
    for tick, text in zip(axis.ticks, axis.labels, strict=True):
        x = _scaled(axis, tick, _LEFT, _RIGHT)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{_BOTTOM}"/>')
        parts.append(_text(x, _BOTTOM + 15, text if axis.kind == "log2" else text[:6]))
    parts.append(_text((_LEFT + _RIGHT) / 2, HEIGHT - 10, axis.title))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="lane" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


# Outlines around (0, 0), about 9 px across; the same shapes as Plotly's symbols in charts.py.
SHAPES = {
    "on": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0Z",
    "off": "M-4.2 -4.2H4.2V4.2H-4.2Z",
    "unset": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
    "illegal": "M-4.5 -2.5L-2.5 -4.5L0 -2L2.5 -4.5L4.5 -2.5L2 0L4.5 2.5L2.5 4.5L0 2L-2.5 4.5L-4.5 2.5L-2 0Z",
    "failed": "M0 -5.5L1.5 -1.8L5.4 -1.7L2.3 0.7L3.4 4.5L0 2.3L-3.4 4.5L-2.3 0.7L-5.4 -1.7L-1.5 -1.8Z",
    "degraded": "M-4.5 -4.5V4.5L4.5 -4.5V4.5Z",
    "pending": "M-4.5 -4.5H4.5L-4.5 4.5H4.5Z",
    "missing": "M-4.5 -0.8H4.5V0.8H-4.5Z",
}


def _symbol(shape: str, classes: str, x: float, y: float, hover: tuple[str, ...]) -> str:
    title = html.escape("\n".join(hover))
    return (
        f'<path class="symbol {classes}" d="{SHAPES[shape]}" transform="translate({x:.1f} {y:.1f})">'
        f"<title>{title}</title></path>"
    )


def key_symbol(shape: str, classes: str) -> str:
    """A symbol for the legend, decorative: the words stand beside it."""
    return (
        f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">'
        f'<path class="symbol {classes}" d="{SHAPES[shape]}"/></svg>'
    )
