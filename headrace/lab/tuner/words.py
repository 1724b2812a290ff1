"""A tuner's answer in sentences: what was chosen, over what, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def sentences(answer: Mapping[str, Any]) -> Iterator[str]:
    """One fact a line."""
    runs, cells = len(answer["runs"]), answer["cells"]
    if answer["best"] is None:
        yield f"No setting of {cells} keeps the bounds ({answer['objective']}); {runs} runs were measured."
        return
    yield f"Use {answer['best']}: {answer['score']:.4g} {answer['metric']}, measured."
    flags = " ".join(f"--{key} {_word(value)}" for key, value in answer["flags"].items())
    if flags:
        yield f"  {flags}"
    yield (
        f"Sought: {answer['objective']}, over {cells} legal cells, with {runs} measured runs "
        f"({runs / cells:.0%} of an exhaustive sweep); the others were simulated."
    )
    yield (
        f"How sure: with a chance of {answer['sure']:.0%} no cell is more than {answer['tolerance']:.0%} better; "
        f"the expected loss is {answer['expected_loss']:.1%}."
    )
    if not answer["done"]:
        yield "The allowance of runs was spent before every other cell could be ruled out; --max-runs gives more."
    if answer["ties"]:
        names = ", ".join(answer["ties"][:6]) + (" and others" if len(answer["ties"]) > 6 else "")
        yield f"May be as good: {names}."
    for number, run in enumerate(answer["runs"], start=1):
        scored = f"{run['score']:.4g}" if run["score"] else "out of bounds or failed"
        yield f"  {number}. {run['cell']}: {scored}  ({run['why']})"


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
