"""Panel -> Plotly figure as a plain dict.

Plotly reads a subset of HTML (`<b>`, `<a href>`, `<br>`, entities) in hover texts, tick labels and titles.  Every
text therefore goes through `label`, which turns markup into entities; the only tag left is our own `<br>`.
Importing plotly.graph_objects would cost half a second and adds nothing here.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from headrace.lab.report.axes import Axis, nudged
from headrace.lab.report.panels import ROLES, Mark, Panel, Series
from headrace.lab.report.text import plain

# Okabe and Ito's palette: distinct for the common colour deficiencies; the symbol differs as well.
COLOURS = {"on": "#0072b2", "off": "#d55e00", "unset": "#5b6470"}
SYMBOLS = {"on": "circle", "off": "square", "unset": "diamond"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MARK_SYMBOLS = {
    "illegal": "x",
    "failed": "star",
    "degraded": "bowtie",
    "pending": "hourglass",
    "missing": "line-ew-open",
}
MARK_COLOURS = {
    "illegal": "#7a828c",
    "failed": "#c0262d",
    "degraded": "#a86a00",
    "pending": "#7a828c",
    "missing": "#7a828c",
}
INK, MUTED, GRID, PAPER, LANE = "#1d2430", "#5a6472", "#e6e9ee", "#ffffff", "#f4f5f7"
# Light colour -> dark colour; the page's script exchanges them when the reader prefers dark.
DARK = {
    COLOURS["on"]: "#56b4e9",
    COLOURS["off"]: "#f0954a",
    COLOURS["unset"]: "#a9b2bd",
    MARK_COLOURS["illegal"]: "#8b94a0",
    MARK_COLOURS["failed"]: "#ff7b7b",
    MARK_COLOURS["degraded"]: "#e5b14c",
    INK: "#e8ebf0",
    MUTED: "#a4adb9",
    GRID: "#2b323d",
    PAPER: "#171c24",
    LANE: "#1e2530",
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_LANE_TOP, _PLOT_BOTTOM = 0.15, 0.22
PANEL_HEIGHT = 270


def label(text: str, limit: int = 400) -> str:
    """Foreign text for Plotly: markup and entities become visible characters."""
    return plain(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def hover(lines: Sequence[str]) -> str:
    """Lines of a hover text, wrapped before they are escaped so that no entity is cut."""
    wrapped = [part for line in lines for part in textwrap.wrap(plain(line, 400), 44, break_on_hyphens=False) or [""]]
    return "<br>".join(label(part) for part in wrapped)


def plotly_figure(panel: Panel) -> dict[str, Any]:
    """The figure of one panel: `data`, `layout` and `points`, the cell anchors of each trace for click-through."""
    data: list[dict[str, Any]] = []
    anchors: list[list[str]] = []
    for series in panel.series:
        repeats = _repeats_trace(series, panel.x)
        if repeats["x"]:
            data.append(repeats)
            anchors.append([point.anchor for point in series.points for _ in point.runs if len(point.runs) > 1])
        data.append(_series_trace(series, panel.x))
        anchors.append([point.anchor for point in series.points])
    for status in dict.fromkeys(mark.status for mark in panel.marks):
        marks = [mark for mark in panel.marks if mark.status == status]
        data.append(_marks_trace(status, marks))
        anchors.append([mark.anchor for mark in marks])
    return {"data": data, "layout": _layout(panel), "anchors": anchors}


def _series_trace(series: Series, axis: Axis) -> dict[str, Any]:
    colour, points = COLOURS[series.role], series.points
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(series.label),
        "x": [nudged(axis, point.x, series.role) for point in points],
        "y": [point.y for point in points],
        "hovertext": [hover(point.hover) for point in points],
        "hoverinfo": "text",
        "cliponaxis": False,
        "line": {"color": colour, "width": 1.75, "dash": DASHES[series.dash % len(DASHES)]},
        "marker": {
            "color": [PAPER if point.changed else colour for point in points],
            "symbol": SYMBOLS[series.role],
            "size": 9,
            "line": {"color": colour, "width": 1.75},
        },
    }
    if any(len(point.runs) > 1 for point in points):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [point.high - point.y for point in points],
            "arrayminus": [point.y - point.low for point in points],
            "color": colour,
            "thickness": 1.5,
            "width": 4,
        }
    return trace


def _repeats_trace(series: Series, axis: Axis) -> dict[str, Any]:
    pairs = [(point.x, run) for point in series.points if len(point.runs) > 1 for run in point.runs]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [nudged(axis, x, series.role) for x, _ in pairs],
        "y": [y for _, y in pairs],
        "hoverinfo": "skip",
        "marker": {"color": COLOURS[series.role], "symbol": SYMBOLS[series.role], "size": 5, "opacity": 0.45},
    }


def _marks_trace(status: str, marks: Sequence[Mark]) -> dict[str, Any]:
    colour = MARK_COLOURS[status]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": status,
        "xaxis": "x",
        "yaxis": "y2",
        "x": [mark.x for mark in marks],
        "y": [mark.role for mark in marks],
        "hovertext": [hover(mark.hover) for mark in marks],
        "hoverinfo": "text",
        "cliponaxis": False,
        "marker": {"symbol": MARK_SYMBOLS[status], "size": 9, "color": colour, "line": {"color": colour, "width": 1}},
    }


def lane_roles(panel: Panel) -> list[str]:
    """The rows of the lane for cells without a comparable value, top first; empty when there is no lane."""
    used = {mark.role for mark in panel.marks}
    return [role for role in ROLES if role in used]


def _layout(panel: Panel) -> dict[str, Any]:
    lane = lane_roles(panel)
    bottom = _PLOT_BOTTOM if lane else 0.0
    common = {"zeroline": False, "fixedrange": False, "tickfont": {"size": 10.5, "color": MUTED}}
    x = {
        **common,
        **_scale(panel.x),
        "showgrid": True,
        "gridcolor": GRID,
        "ticks": "",
        "anchor": "y2" if lane else "y",
        "tickangle": -35 if panel.x.kind == "category" else 0,
        "title": {"text": label(panel.x.title), "font": {"size": 11, "color": MUTED}, "standoff": 8},
    }
    y = {
        **common,
        **_scale(panel.y),
        "gridcolor": GRID,
        "domain": [bottom, 1],
        "title": {"text": label(panel.y.title), "font": {"size": 11, "color": MUTED}, "standoff": 6},
    }
    layout: dict[str, Any] = {
        "height": PANEL_HEIGHT + (30 if panel.x.kind == "category" else 0),
        "margin": {"l": 56, "r": 12, "t": 10, "b": 78 if panel.x.kind == "category" else 46},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "font": {"family": FONT, "size": 12, "color": INK},
        "showlegend": False,
        "hovermode": "closest",
        "hoverlabel": {
            "align": "left",
            "bgcolor": PAPER,
            "bordercolor": MUTED,
            "font": {"family": FONT, "size": 12, "color": INK},
        },
        "xaxis": x,
        "yaxis": y,
    }
    if lane:
        layout["yaxis2"] = {
            **common,
            "type": "category",
            "domain": [0, _LANE_TOP],
            "categoryorder": "array",
            "categoryarray": lane[::-1],
            "range": [-0.6, len(lane) - 0.4],
            "tickvals": lane,
            "ticktext": ["n/s" if role == "unset" else role for role in lane],
            "showgrid": False,
            "fixedrange": True,
        }
        layout["shapes"] = [
            {
                "type": "rect",
                "xref": "paper",
                "yref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 0,
                "y1": _LANE_TOP,
                "fillcolor": LANE,
                "line": {"width": 0},
                "layer": "below",
            }
        ]
    return layout


def _scale(axis: Axis) -> dict[str, Any]:
    if axis.kind in ("log", "log2"):
        scale: dict[str, Any] = {"type": "log", "range": [math.log10(axis.low), math.log10(axis.high)]}
    else:
        scale = {"type": "linear", "range": [axis.low, axis.high]}
    return {**scale, "tickvals": list(axis.ticks), "ticktext": [label(text) for text in axis.labels]}
