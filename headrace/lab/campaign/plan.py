"""A declared experiment: a TOML file, checked whole before anything starts, then frozen.

name = "demo"
title = "What the demo asks"
[target]                       # what is measured; left out: the built-in demonstration model
model = "path/to/model"
[serve]                        # flags of every server, in vLLM's names
max-model-len = 512
[[sweep]]                      # lists are crossed; a second table is a second grid
enable-chunked-prefill = true
max-num-batched-tokens = [64, 128]
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

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from headrace.errors import ConfigError
from headrace.lab.campaign.flags import SERVE_FLAGS
from headrace.lab.campaign.paths import check_paths, make_paths_absolute
from headrace.lab.workload.spec import WorkloadSpec

Json = Any

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _PlanError(ValueError):
    """A value that pydantic's own types cannot judge; its text completes "FILE: [TABLE] ..."."""


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise _PlanError(f"must be letters, digits, dots, dashes and underscores (it names files), not {name!r}")
    return name


def _check_serve(table: dict[str, Json]) -> dict[str, Json]:
    for key, value in table.items():
        _check_flag(key, value)
    return table


def _check_sweep(table: dict[str, Json]) -> dict[str, Json]:
    if not table:
        raise _PlanError("is empty; give it at least one flag, for example max-num-batched-tokens = [64, 128]")
    for key, value in table.items():
        values = value if isinstance(value, list) else [value]
        if not values:
            raise _PlanError(f"{key} is an empty list; give it at least one value")
        for one in values:
            _check_flag(key, one)
        if len(set(map(repr, values))) < len(values):
            raise _PlanError(f"{key} has the same value twice; each value makes a cell of its own")
    return table


def _check_flag(key: str, value: Json) -> None:
    flag = SERVE_FLAGS.get(key)
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


class _Table(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=lambda name: name.replace("_", "-")
    )


class TargetTable(_Table):
    """[target]: what headrace's own server serves, and how long it may be silent.

    model            a directory or a name; left out: the built-in demonstration model
    ready_timeout_s  how long a server may take until it answers /health
    frozen_after_s   a running server that leaves /health unanswered for so long is ended as frozen
    """

    model: Annotated[str, Field(min_length=1)] | None = None
    ready_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    frozen_after_s: Annotated[float, Field(gt=0)] = 120.0


class RunTable(_Table):
    """[run]: how often, and in which order.

    repeats    measured runs of each cell, each on a server of its own
    order      "shuffled": every repeat visits the cells in an order of its own, drawn from `seed`, so that a drift
               of the machine does not look like an effect of the settings; "listed": as in the plan
    warmup     requests before the measured ones, with prompts that are never measured
    timeout_s  a run that takes longer is ended and recorded as failed
    max_minutes  leave out the repeats (never the first) that would end later than this, by the pace so far
    """

    repeats: Annotated[int, Field(ge=1)] = 1
    order: Literal["shuffled", "listed"] = "shuffled"
    seed: Annotated[int, Field(ge=0)] = 0
    warmup: Annotated[int, Field(ge=0)] = 4
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    max_minutes: Annotated[float, Field(gt=0)] | None = None


class Plan(_Table):
    """A whole plan, checked.  Frozen; treat the tables in it as read-only.

    serve     flag -> value, for every cell
    sweep     grids in order: flag -> value or list of values
    workload  keys of WorkloadSpec (dashes or underscores); see `workload_spec`
    """

    name: Annotated[str, AfterValidator(_check_name)]
    title: Annotated[str, Field(min_length=1)]
    target: TargetTable = TargetTable()
    serve: Annotated[dict[str, Json], AfterValidator(_check_serve)] = {}
    sweep: tuple[Annotated[dict[str, Json], AfterValidator(_check_sweep)], ...] = ()
    workload: dict[str, Json] = {}
    run: RunTable = RunTable()

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
    if isinstance(data.get("sweep"), list):
        data["sweep"] = tuple(data["sweep"])
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error)}") from None
    plan.workload_spec(where=f"{source}: [workload]")
    check_paths(data, source=source)
    return plan


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's complaints as `[table] key must be ..., not ...`."""
    first = error.errors()[0]
    where = [part for part in first["loc"] if not isinstance(part, int)]
    index = next((part for part in first["loc"] if isinstance(part, int)), None)
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "value_error":  # ours: names the key itself
        return f"{_table_name(where[0], index)} {context['error']}"
    if kind == "extra_forbidden":
        tables: dict[str, type[_Table]] = {"target": TargetTable, "run": RunTable}
        table = Plan if len(where) == 1 else tables[str(where[0])]
        known = [field.alias or name for name, field in table.model_fields.items()]
        name = "the plan" if table is Plan else _table_name(where[0], index)
        return f"{name} {_unknown(str(where[-1]), known)}"
    key = " ".join([_table_name(where[0], index), *map(str, where[1:])])
    if kind == "missing":
        return f"{key} is missing"
    return f"{key} must be {_accepted(kind, context)}, not {value!r}"


def _table_name(name: object, index: int | None) -> str:
    if name == "sweep":
        return "[[sweep]]" + (f" number {index + 1}" if index is not None else "")
    return f"[{name}]" if name in ("target", "serve", "workload", "run") else str(name)


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
        "tuple_type": "one or more [[sweep]] tables",
    }
    if kind == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}"
    if kind == "greater_than_equal":
        return f"at least {context['ge']}"
    if kind == "greater_than":
        return f"above {context['gt']}"
    return known.get(kind, kind.replace("_", " "))
