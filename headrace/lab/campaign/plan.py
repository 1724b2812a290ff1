"""A declared experiment: a TOML file, checked whole before anything starts, then frozen.

name = "demo"
title = "What the demo asks"
[target]                       # what is measured; left out: headrace's server with its demonstration model
model = "path/to/model"
[targets.vllm]                 # others, by name; each has the keys of [target] where it says nothing else
kind = "vllm"
[serve]                        # flags of every server, in vLLM's names
max-model-len = 512
[[sweep]]                      # lists are crossed; a second table is a second grid
enable-chunked-prefill = true
max-num-batched-tokens = [64, 128]
target = ["vllm", "default"]   # "default" is [target] itself
[workload]                     # keys of headrace.lab.workload.spec.WorkloadSpec, the same for every cell
dataset = "conversation"
num-prompts = 250
[run]
repeats = 3
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from headrace.errors import ConfigError
from headrace.lab.campaign.flags import SERVE_FLAGS
from headrace.lab.campaign.paths import check_paths, make_commands_absolute, make_paths_absolute
from headrace.lab.campaign.target import Table, TargetTable, check_target
from headrace.lab.workload.spec import WorkloadSpec

Json = Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# The key of a sweep that chooses among [targets.NAME], and its word for [target] itself.
TARGET, DEFAULT = "target", "default"


class _PlanError(ValueError):
    """A value that pydantic's own types cannot judge; its text completes "FILE: [TABLE] ..."."""


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _PlanError(f"must be letters, digits, dots, dashes and underscores (it names files), not {name!r}")
    return name


def _check_sweep(table: dict[str, Json]) -> dict[str, Json]:
    if not table:
        raise _PlanError("is empty; give it at least one flag, for example max-num-batched-tokens = [64, 128]")
    for key, value in table.items():
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _PlanError(f"{key} is an empty list; give it at least one value")
        if key == TARGET and not all(isinstance(one, str) for one in values):
            raise _PlanError(f"target must be names of [targets.NAME] tables, or {DEFAULT!r}, not {value!r}")
        if len(set(map(repr, values))) < len(values):
            raise _PlanError(f"{key} has the same value twice; each value makes a cell of its own")
    return table


def _check_flags(plan: Plan, source: str) -> None:
    """Raises ConfigError for a flag that no server of this plan takes, or a value that it does not accept.

    headrace's flags are known one by one.  A plan without headrace may have any: their servers know them.
    """
    own = any(target.own for target in plan.used_targets().values())
    tables = [("[serve]", plan.serve), *((f"[[sweep]] number {n}", table) for n, table in enumerate(plan.sweep, 1))]
    for where, table in tables:
        for key, value in table.items():
            if key == TARGET and where != "[serve]":
                continue
            for one in value if isinstance(value, list) and where != "[serve]" else [value]:
                try:
                    _check_flag(key, one, own=own)
                except _PlanError as error:
                    raise ConfigError(f"{source}: {where} {error}") from None


def _check_flag(key: str, value: Json, *, own: bool) -> None:
    flag = SERVE_FLAGS.get(key)
    if not own:
        if not _NAME.fullmatch(key):
            raise _PlanError(f"has no key {key!r}: flags are written without their leading dashes")
        if not isinstance(value, bool | int | float | str) or value == "":
            raise _PlanError(f"{key} must be a number, a text, true or false, not {value!r}")
        return
    if flag is None:
        raise _PlanError(_unknown(key, SERVE_FLAGS))
    if not flag.accepts(value):
        hint = "; only [[sweep]] takes lists" if isinstance(value, list) else ""
        raise _PlanError(f"{key} must be {flag.accepted()}, not {value!r}{hint}")


def _unknown(key: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(key.replace("_", "-"), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"has no key {key!r}{hint} (keys: {', '.join(known)})"


class RunTable(Table):
    """[run]: how often, and in which order.

    repeats    servers of each cell, started one after the other and interleaved with the other cells'
    runs_per_server  measured runs on each of them, each with requests of its own (the same in all cells)
    order      "shuffled": every repeat visits the cells in an order of its own, drawn from `seed`, so that a drift
               of the machine does not look like an effect of the settings; "listed": as in the plan
    warmup     requests before the measured ones, with prompts that are never measured
    timeout_s  a run that takes longer is ended and recorded as failed
    baseline   the cell (by its name) that the others are compared with; left out with several targets: these
    resolution the smallest relative difference that matters: comparisons are undecided until it would show
    scrape_every_s  between two looks at a server's /metrics while it is measured
    max_minutes  leave out the repeats (never the first) that would end later than this, by the pace so far
    """

    repeats: Annotated[int, Field(ge=1)] = 1
    runs_per_server: Annotated[int, Field(ge=1)] = 1
    order: Literal["shuffled", "listed"] = "shuffled"
    seed: Annotated[int, Field(ge=0)] = 0
    warmup: Annotated[int, Field(ge=0)] = 4
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    baseline: Annotated[str, Field(min_length=1)] | None = None
    resolution: Annotated[float, Field(gt=0, lt=1)] = 0.05
    scrape_every_s: Annotated[float, Field(gt=0)] = 1.0
    max_minutes: Annotated[float, Field(gt=0)] | None = None


class Plan(Table):
    """A whole plan, checked.  Frozen; treat the tables in it as read-only.

    targets   name -> a whole target: what its table says, else what [target] says
    serve     flag -> value, for every cell
    sweep     grids in order: flag -> value or list of values; "target" -> names of targets
    workload  keys of WorkloadSpec (dashes or underscores); see `workload_spec`
    """

    name: Annotated[str, AfterValidator(_check_name)]
    title: Annotated[str, Field(min_length=1)]
    target: TargetTable = TargetTable()
    targets: dict[str, TargetTable] = Field(default_factory=dict)
    serve: dict[str, Json] = Field(default_factory=dict)
    sweep: tuple[Annotated[dict[str, Json], AfterValidator(_check_sweep)], ...] = ()
    workload: dict[str, Json] = Field(default_factory=dict)
    run: RunTable = RunTable()

    def used_targets(self) -> dict[str, TargetTable]:
        """Those that some cell is measured on, by name; [target] itself is "default"."""
        names: list[str] = []
        for table in self.sweep or ({},):
            value = table.get(TARGET, DEFAULT)
            names += value if isinstance(value, list) else [value]
        known = {DEFAULT: self.target, **self.targets}
        return {name: known[name] for name in dict.fromkeys(names)}

    def workload_spec(self, *, where: str = "[workload]") -> WorkloadSpec:
        """What every cell is sent.  Raises ConfigError naming the key."""
        values = {key.replace("-", "_"): value for key, value in self.workload.items()}
        known = {"dataset", *(field.name for field in fields(WorkloadSpec))} - {"warmup_requests"}
        for key in self.workload:
            if key.replace("-", "_") == "warmup_requests":
                raise ConfigError(f"{where} has no key {key!r}; the warm-up is [run] warmup")
            if key.replace("-", "_") not in known:
                raise ConfigError(f"{where} {_unknown(key, [name.replace('_', '-') for name in known])}")
        return WorkloadSpec.from_mapping({**values, "warmup_requests": self.run.warmup}, where=where)


def read_plan(path: Path) -> Plan:
    """Read and check a plan.  Raises ConfigError: one sentence with the file, the key and what it accepts."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such plan; examples/demo-plan.toml is one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a plan: {error}") from None
    return parse_plan(text, source=str(path), directory=path.resolve().parent)


def parse_plan(text: str, *, source: str, directory: Path) -> Plan:
    """Check the text of a plan.  Paths in it are relative to `directory`, where the file is.

    Raises ConfigError naming `source`.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from None
    if "round" in data:
        raise ConfigError(f"{source} is a table of published rounds, not a plan; `headrace import {source}` reads it")
    make_paths_absolute(data, directory)
    make_commands_absolute(data, directory)
    if isinstance(data.get("sweep"), list):
        data["sweep"] = tuple(data["sweep"])
    _inherit(data)
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error)}") from None
    _check_targets(plan, source)
    _check_flags(plan, source)
    plan.workload_spec(where=f"{source}: [workload]")
    check_paths(data, source=source)
    return plan


def _inherit(data: dict[str, Json]) -> None:
    """Fill up each [targets.NAME] with what [target] says."""
    common, tables = data.get("target", {}), data.get("targets")
    if isinstance(common, dict) and isinstance(tables, dict):
        data["targets"] = {
            name: {**common, **table} if isinstance(table, dict) else table for name, table in tables.items()
        }


def _check_targets(plan: Plan, source: str) -> None:
    """Raises ConfigError for a name that is not declared, a target that is never used, keys that do not fit."""
    for name in plan.targets:
        if name == DEFAULT or not _NAME.fullmatch(name):
            raise ConfigError(f"{source}: [targets.{name}] cannot have that name; {DEFAULT!r} is [target] itself")
    for number, table in enumerate(plan.sweep, 1):
        value = table.get(TARGET, DEFAULT)
        for name in value if isinstance(value, list) else [value]:
            if name != DEFAULT and name not in plan.targets:
                known = ", ".join([*plan.targets, DEFAULT])
                raise ConfigError(f"{source}: [[sweep]] number {number} target: there is no [targets.{name}] ({known})")
    used = plan.used_targets()
    for name in plan.targets:
        if name not in used:
            raise ConfigError(f'{source}: [targets.{name}] is never measured; add target = ["{name}"] to a [[sweep]]')
    for name, target in used.items():
        check_target(target, where=f"{source}: {'[target]' if name == DEFAULT else f'[targets.{name}]'}")


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints as `[table] key must be ..., not ...`."""
    first = error.errors()[0]
    where = [part for part in first["loc"] if not isinstance(part, int)]
    index = next((part for part in first["loc"] if isinstance(part, int)), None)
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "value_error":  # ours: names the key itself
        return f"{_table_name(where[0], index)} {context['error']}"
    if kind == "extra_forbidden":
        tables: dict[str, type[Table]] = {"target": TargetTable, "targets": TargetTable, "run": RunTable}
        table = Plan if len(where) == 1 else tables[str(where[0])]
        known = [field.alias or name for name, field in table.model_fields.items()]
        first_part = f"targets.{where[1]}" if where[0] == "targets" else where[0]
        name = "the plan" if table is Plan else _table_name(first_part, index)
        return f"{name} {_unknown(str(where[-1]), known)}"
    if where[0] == "targets" and len(where) > 1:
        where = [f"targets.{where[1]}", *where[2:]]
    key = " ".join([_table_name(where[0], index), *map(str, where[1:])])
    if kind == "missing":
        return f"{key} is missing"
    if kind == "tuple_type" and where == ["sweep"]:
        return f"{key} must be one or more [[sweep]] tables, not {value!r}"
    return f"{key} must be {_accepted(kind, context)}, not {value!r}"


def _table_name(name: object, index: int | None) -> str:
    if name == "sweep":
        return "[[sweep]]" + (f" number {index + 1}" if index is not None else "")
    known = name in ("target", "serve", "workload", "run") or str(name).startswith("targets.")
    return f"[{name}]" if known else str(name)


def _accepted(kind: str, context: dict[str, Any]) -> str:
    """What would have been accepted, from pydantic's kind of error."""
    known = {
        "string_type": "a text",
        "string_too_short": "a text that is not empty",
        "int_type": "a whole number",
        "float_type": "a number",
        "dict_type": "a table",
        "model_type": "a table",
        "model_attributes_type": "a table",
        "tuple_type": "a list",
    }
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if kind == "less_than_equal":
        return f"at most {context['le']}"
    if kind == "string_pattern_mismatch":
        return "a text that begins with /"
    if kind == "greater_than_equal":
        return f"at least {context['ge']}"
    if kind == "greater_than":
        return f"above {context['gt']}"
    if kind == "less_than":
        return f"below {context['lt']}"
    return known.get(kind, kind.replace("_", " "))
