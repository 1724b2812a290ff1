"""Why two tools' figures for one run differ: by definition, and by how much where the raw records are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.lab.metrics.definitions import FIGURES, figures, tool
from headrace.lab.records.schema import RequestRecord

NAMES = {
    "ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL", "total_output_tokens": "output tokens",
    "output_throughput": "output tok/s",
}  # fmt: skip
# Which parts of a tool's definitions each figure rests on.
_PARTS = {
    "ttft": ("start", "event"),
    "tpot": ("tpot", "event", "end", "tokens"),
    "itl": ("itl", "event"),
    "e2el": ("start", "end"),
    "total_output_tokens": ("tokens",),
    "output_throughput": ("tokens", "span"),
}
_SAID = {
    "start": "the clock starts when", "event": "the first token is", "end": "an answer ends with",
    "tokens": "tokens are", "tpot": "TPOT is", "itl": "ITL is", "span": "the time divided by is",
}  # fmt: skip
# Differences below this share are the noise of reading two clocks.
SAME = 0.005


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: a name to show, the tool that counted, its figures by vLLM's keys, raw records where kept."""

    name: str
    tool: str
    metrics: Mapping[str, float]
    records: Sequence[RequestRecord] | None = None
    duration_s: float = 0.0

    def as_counted_by(self, name: str) -> dict[str, float] | None:
        """This side's own records in another tool's terms; None without records."""
        if self.records is None:
            return None
        return figures(name, self.records, self.duration_s).metrics()


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of both sides.

    reasons          the parts of the definitions that differ, a sentence each
    by_definition    the share of A's figure that the definitions alone make, from the records of one side; None without
    left             the share that is left for other causes; None without records
    """

    key: str
    label: str
    a: float | None
    b: float | None
    reasons: tuple[str, ...]
    by_definition: float | None = None
    left: float | None = None

    @property
    def total(self) -> float | None:
        return (self.b - self.a) / self.a if self.a and self.b is not None else None


def differences(a: Side, b: Side, statistics: Sequence[str] = ("mean", "p99")) -> list[Difference]:
    """A difference for every figure that one of both has, in the order of the usual tables."""
    first, second = tool(a.tool), tool(b.tool)
    found: list[Difference] = []
    for figure in (*FIGURES, "total_output_tokens", "output_throughput"):
        keys = [f"{word}_{figure}_ms" for word in statistics] if figure in FIGURES else [figure]
        reasons = tuple(
            f"{_SAID[part]} {_part(getattr(first, part))} in {a.tool}, {_part(getattr(second, part))} in {b.tool}"
            for part in _PARTS[figure]
            if getattr(first, part) != getattr(second, part)
        )
        for key in keys:
            left_value, right_value = a.metrics.get(key), b.metrics.get(key)
            if left_value is None and right_value is None:
                continue
            label = f"{key.split('_')[0]} {NAMES[figure]} (ms)" if figure in FIGURES else NAMES[figure]
            found.append(_measured(Difference(key, label, left_value, right_value, reasons), a, b))
    return found


def _part(text: str) -> str:
    return text.replace(": what others call TPOT", "")


def _measured(difference: Difference, a: Side, b: Side) -> Difference:
    """The difference with the part that is of definition, from the records that there are."""
    for side, other, sign in ((a, b, 1), (b, a, -1)):
        own, translated = side.as_counted_by(side.tool), side.as_counted_by(other.tool)
        if own is None or translated is None or difference.a is None or difference.b is None:
            continue
        mine, theirs = own.get(difference.key), translated.get(difference.key)
        if not mine or theirs is None or not difference.a:
            continue
        share = (theirs - mine) / mine if sign == 1 else (mine - theirs) / theirs if theirs else 0.0
        total = difference.total or 0.0
        left = (1 + total) / (1 + share) - 1 if share > -1 else None
        return Difference(difference.key, difference.label, difference.a, difference.b, difference.reasons, share, left)
    return difference


def verdict(found: Sequence[Difference], a: Side, b: Side) -> str:
    """One sentence over all: definitions, or something else."""
    compared = [one for one in found if one.total is not None]
    apart = [one for one in compared if abs(one.total or 0.0) > SAME]
    if not compared:
        return "The two have no figure in common."
    if not apart:
        return f"All {len(compared)} figures that both report agree within {SAME:.1%}."
    defined = [one for one in apart if one.reasons]
    text = f"{len(apart)} of {len(compared)} figures differ by more than {SAME:.1%}; "
    if a.tool == b.tool:
        return text + f"both count as {a.tool} does, so none of it is a matter of definition: the runs differ."
    text += f"in {len(defined)} of them the tools define the figure differently"
    measured = [one for one in apart if one.left is not None]
    if measured:
        worst = max(measured, key=lambda one: abs(one.left or 0.0))
        text += (
            f". After translating one side's raw records into the other's terms at most {abs(worst.left or 0.0):.1%} "
            f"is left ({worst.label}): that part is not of definition"
        )
    else:
        text += "; neither side kept raw records, so how much of it is definition cannot be computed"
    return text + "."
