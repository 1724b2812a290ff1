"""docs/plans.md names exactly the keys that a plan accepts, with their defaults, and examples that work."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from headrace.lab.campaign.flags import SERVE_FLAGS
from headrace.lab.campaign.plan import Plan, RunTable, TargetTable, parse_plan
from headrace.lab.workload.spec import WorkloadSpec

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "plans.md").read_text()
ROWS = {
    cells[0].strip("`"): tuple(cells[1:])
    for line in PAGE.splitlines()
    # The table of keys has four columns; that of the kinds of a target has three.
    if line.startswith("| `") and len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 4
}


# key of [target] -> the kind of target that it is for, and what this needs besides
OTHER_KINDS = {
    "command": ['kind = "command"\n'],
    "url": ['kind = "url"\n'],
    "image": ['kind = "docker"\nmodel = "owner/name"\n'],
    "docker-args": ['kind = "docker"\nmodel = "owner/name"\nimage = "image"\n'],
    "container-port": ['kind = "docker"\nmodel = "owner/name"\nimage = "image"\n'],
}


def dashed(name: str) -> str:
    return name.replace("_", "-")


def defaults() -> dict[str, Any]:
    """Key -> default; None where there is none or where the server has the last word."""
    found: dict[str, Any] = {name: None for name in Plan.model_fields if name in ("name", "title")}
    for name, field in TargetTable.model_fields.items():
        value = [] if field.default == () else field.default
        found[f"[target] {dashed(name)}"] = value
    found["[targets.NAME]"] = None
    found |= {f"[serve] {flag}": None for flag in SERVE_FLAGS} | {"[[sweep]]": None}
    for field in fields(WorkloadSpec):
        value = field.default if field.default is not MISSING else {}
        name = dashed(field.name).replace("dataset-name", "dataset")
        found[f"[workload] {name}"] = "inf" if value == math.inf else value
    del found["[workload] warmup-requests"]  # [run] warmup
    return found | {f"[run] {dashed(name)}": field.default for name, field in RunTable.model_fields.items()}


def test_the_table_names_every_key_of_a_plan_and_no_other() -> None:
    assert list(ROWS) == list(dict.fromkeys(ROWS)) and set(ROWS) == set(defaults())
    tables = {"target": TargetTable, "run": RunTable}
    assert set(Plan.model_fields) == {"name", "title", "targets", "serve", "sweep", "workload", *tables}


@pytest.mark.parametrize("key", [key for key, value in defaults().items() if value is not None])
def test_the_default_in_the_table_is_the_plans(key: str) -> None:
    written = ROWS[key][1]
    assert written.startswith("`"), "a default that the lab itself has stands in code quotes"
    assert tomllib.loads(f"x = {written.strip('`')}")["x"] == defaults()[key]


@pytest.mark.parametrize("key", ROWS)
def test_the_example_in_the_table_is_accepted(key: str, tmp_path: Path) -> None:
    (tmp_path / "talk.json").write_text("[]")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    example = ROWS[key][2].strip("`")
    table, _, name = key.rpartition(" ")
    assert example.startswith(f"{name} = ") or key in ("[[sweep]]", "[targets.NAME]")
    head = {"name": 'name = "n"\n', "title": 'title = "t"\n'}
    head.pop(key, None)
    lines = [*head.values(), f"{table or (key if key.startswith('[') else '')}\n"]
    if table == "[target]":
        lines += OTHER_KINDS.get(name, [])
    if key == "[targets.NAME]":
        example = f'{example}\nmodel = "owner/name"\n[[sweep]]\ntarget = ["NAME"]'
    if "sharegpt" in name or "dataset-path" in name:
        lines += ['dataset = "sharegpt"\n', *(['dataset-path = "talk.json"\n'] if name != "dataset-path" else [])]
    if name == "time-scale":
        lines.append('arrivals-path = "talk.json"\n')
    if name.startswith("ramp-up"):  # the three go together
        ramp = ("ramp-up-strategy = 'linear'\n", "ramp-up-start-rps = 1\n", "ramp-up-end-rps = 8\n")
        lines += [line for line in ramp if not line.startswith(name)]
    parse_plan("".join(lines) + example, source="plan.toml", directory=tmp_path)


def test_the_example_at_the_top_is_a_plan(tmp_path: Path) -> None:
    text, *_ = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert parse_plan(text, source="plan.toml", directory=tmp_path).name == "budgets"
