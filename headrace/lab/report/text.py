"""Numbers and foreign text, made safe and short for people: the one place where the report formats anything."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ELLIPSIS = "…"
# Bidirectional overrides can make a line read as something else than it says.
_BIDI = {chr(code) for code in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def plain(value: object, limit: int = 2000) -> str:
    """One line of visible text: control and bidirectional characters become U+FFFD, long text is cut."""
    text = value if isinstance(value, str) else show(value)
    text = text[: limit + 1]
    text = "".join(
        " " if char in "\t\r\n" else "\ufffd" if unicodedata.category(char) in ("Cc", "Cs") or char in _BIDI else char
        for char in text
    )
    return text if len(text) <= limit else text[: max(limit - 1, 0)] + ELLIPSIS


def number(value: object) -> float | None:
    """The value as a finite float, or None: input files may hold NaN, Infinity, text or nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def figure(value: float) -> str:
    """A figure for reading: four significant digits where it is small, whole numbers from 1000 on."""
    size = abs(value)
    if size >= 1000 or value == int(value):
        return f"{value:,.0f}"
    if size >= 100:
        return f"{value:.1f}"
    if size >= 10:
        return f"{value:.2f}"
    return f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def decimals(values: Iterable[float]) -> int:
    """How many decimals a column of figures gets, so that all of them have the same: what its largest figure needs,
    and one where that would leave few digits of its smallest."""
    sizes = [abs(value) for value in values if value != 0]
    if not sizes or all(size == int(size) for size in sizes):
        return 0
    small, large = _own_decimals(min(sizes)), _own_decimals(max(sizes))
    return min(small, large or (1 if min(sizes) < 100 and max(sizes) < 100_000 else 0))


def _own_decimals(size: float) -> int:
    return next((places for floor, places in ((1000, 0), (100, 1), (1, 2)) if size >= floor), 3)


def with_unit(value: float, unit: str) -> str:
    """`220.1 s`, `68.3 ms`, `1,065 tok/s`: figure and unit with a no-break space; ms from 10 s on is shown in s."""
    if unit == "ms" and abs(value) >= 10_000:
        value, unit = value / 1000, "s"
    return f"{figure(value)}\u00a0{unit}" if unit else figure(value)


def percent(share: float) -> str:
    """0.04 -> `4 %`, 0.0123 -> `1.2 %`, 1.54 -> `154 %`."""
    value = 100 * share
    return f"{value:.0f}\u00a0%" if abs(value) >= 9.95 else f"{value:.1f}".removesuffix(".0") + "\u00a0%"


def show(value: Any) -> str:
    """A setting, fact or figure of any JSON type as short text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {show(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(show(item) for item in value)
    return str(value)


def fact(name: str, text: str) -> tuple[str, str]:
    """A fact for reading: `memory_bytes`, 25276510208 -> `memory`, 23.5 GiB."""
    if name.endswith("_bytes") and text.isascii() and text.isdigit() and len(text) <= 18:
        return name.removesuffix("_bytes"), gibibytes(int(text))
    return name, text


def gibibytes(size: int) -> str:
    """25276510208 -> `23.5 GiB`, 5242880 -> `5 MiB`."""
    unit, scale = next(
        (pair for pair in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if size >= pair[1]), ("bytes", 1)
    )
    return f"{size / scale:.1f}".removesuffix(".0") + f"\u00a0{unit}"


def without_shared_start(names: Sequence[str]) -> list[str]:
    """Names without the start that all of them share, cut after a separator: `…in-128-rate-2`.  As they are where
    they are few or share little."""
    first, last = min(names, default=""), max(names, default="")  # what these two share, all names share
    start = first[
        : next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    ]
    start = start[: max(start.rfind(mark) for mark in "-_/ .") + 1]
    if len(names) < 2 or len(start) < 12 or any(len(name) == len(start) for name in names):
        return list(names)
    return [ELLIPSIS + name[len(start) :] for name in names]


# What breaks at its hyphens although it is one word to its reader: flags, names of cells, values like v0-chunked.
_WORD = re.compile(r"(?<![\w.-])(?:--?)?[A-Za-z0-9][\w.]*(?:-[\w.]+)+(?![\w-])|(?<![\w-])--[A-Za-z]\w*(?![\w-])")


def unbroken(text: str) -> str:
    """The text as HTML, escaped, with flags and hyphenated values kept whole at line ends (short ones: a long name
    must be able to break)."""
    parts: list[str] = []
    end = 0
    for word in _WORD.finditer(text):
        if len(word[0]) <= 36:
            parts += [html.escape(text[end : word.start()]), f"<span class=nb>{html.escape(word[0])}</span>"]
            end = word.end()
    return "".join([*parts, html.escape(text[end:])])


def joined_units(text: str) -> str:
    """A no-break space between a figure and its unit, so that no line ends in between."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|tok/s|requests/s|tokens)(?![\w/]))", "\u00a0", text)


def flatten(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted name, text) pairs, in their own order."""
    pairs: list[tuple[str, str]] = []
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs.extend(flatten(value, f"{name}."))
        else:
            pairs.append((name, show(value)))
    return pairs


def count(amount: int, singular: str, plural: str | None = None) -> str:
    """`1 run`, `3 runs`."""
    return f"{amount} {singular if amount == 1 else plural or singular + 's'}"
