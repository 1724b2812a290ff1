"""A finding: a claim with its numbers, the cells it rests on, and its caveats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim that code derived from a study.

    id        stable name of the rule that made it, e.g. "budget-threshold.duration"
    topic     "throughput", "ttft", "itl", "tpot", "chunking", "comparability", "queueing", "step-time", "caveat"
    claim     one or two plain sentences, numbers with units included
    numbers   the figures behind the claim, by name (units in the names)
    cells     names of the cells that it rests on
    caveats   what weakens it, each one sentence
    """

    id: str
    topic: str
    claim: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    cells: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
