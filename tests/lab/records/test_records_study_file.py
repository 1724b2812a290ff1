"""A study file that is not one is refused in a sentence, whatever it holds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.errors import ConfigError
from headrace.lab.records.results import study_from_json

RUN: dict[str, Any] = {"source": "s", "settings": {}, "metrics": {"completed": 5}, "warnings": []}
CELL: dict[str, Any] = {
    "name": "c", "settings": {}, "status": "ok", "runs": [RUN], "rule": None, "reason": None, "substituted": {},
}  # fmt: skip
STUDY: dict[str, Any] = {"schema_version": 1, "name": "a", "title": "t", "kind": "imported", "facts": {}}


def text(cell: dict[str, Any] | None = None, **changes: Any) -> str:
    return json.dumps({**STUDY, "cells": [{**CELL, **(cell or {})}], **changes})


def test_the_world_above_is_a_study() -> None:
    assert study_from_json(text(), source="x").cells[0].runs[0].metrics == {"completed": 5}


@pytest.mark.parametrize(
    "wrong",
    [
        "[" * 100_000,
        '{"schema_version": ' + "9" * 5000 + "}",
        "nonsense",
        text({"rule": {"x": 1}}),
        text({"reason": [1]}),
        text({"status": "fine"}),
        text({"runs": [{**RUN, "verdict": {"level": "X", "reasons": []}}]}),
        text({"runs": [{**RUN, "verdict": 3}]}),
        text(cells=None),
    ],
)
def test_what_is_no_study_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"study|JSON"):
        study_from_json(wrong, source="x")


def test_half_a_character_does_not_reach_the_report() -> None:
    study_from_json(text(title="\ud800"), source="x").title.encode()
