"""`headrace fleet`: how many replicas a rate needs under an objective, and what they cost."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from headrace.cli.spelling import bind_dash
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.lab.sim.cells import SimulatedCell
    from headrace.lab.sim.demand import Demand
    from headrace.lab.sim.slo import Slo

app = App(
    name="headrace fleet",
    help="Size a fleet by simulation: what one replica of each of a plan's cells sustains under an objective, and how "
    "many of the best one a rate needs.",
)


def prepare(argv: Sequence[str]) -> list[str]:
    """Accept `--json -`, whose dash reads as an option otherwise."""
    return bind_dash(argv, "--json")


@app.default
def fleet(
    plan: Annotated[Path, Parameter(name="PLAN", help="A plan in TOML: its cells, and what requests look like.")],
    /,
    *,
    calibration: Annotated[Path, Parameter(help="What a step costs: a file that `headrace calibrate` has written.")],
    rate: Annotated[
        list[float] | None,
        Parameter(consume_multiple=True, negative="", help="Requests/s of the whole fleet; several give a table."),
    ] = None,
    goodput: Annotated[
        list[str],
        Parameter(consume_multiple=True, negative="", help="Bounds of a request: ttft:2000 tpot:100 e2el:60000 (ms)."),
    ],
    share: Annotated[float, Parameter(help="Share of the requests that must meet all bounds at once.")] = 0.99,
    routing: Annotated[
        str, Parameter(help="round-robin, least-requests, least-work or prefix-affinity.")
    ] = "least-requests",
    prefix_groups: Annotated[int, Parameter(help="Distinct beginnings among the requests, for prefix-affinity.")] = 0,
    price: Annotated[float | None, Parameter(help="Of one replica an hour, in any currency.")] = None,
    seeds: Annotated[int, Parameter(help="Runs of each probe to begin with.")] = 4,
    over: Annotated[str, Parameter(help="Where simulations run: here, cores, a number, ray or ray:ADDRESS.")] = "cores",
    json: Annotated[
        str | None, Parameter(name="--json", help="Also write the answer to this file; `-` is standard output.")
    ] = None,
) -> None:
    """Find the replicas that a rate needs under a joint objective."""
    # Imported here so that --help stays fast.
    from headrace.lab.campaign.plan import read_plan
    from headrace.lab.files import write_where_asked
    from headrace.lab.sim.calibration import load_calibration
    from headrace.lab.sim.cells import simulated_cells
    from headrace.lab.sim.demand import demand_from_spec
    from headrace.lab.sim.slo import parse_slo

    if any(not 0 < each < 1e9 for each in rate or ()):
        raise ConfigError(f"--rate takes requests/s above 0, not {rate}")
    if seeds < 2:
        raise ConfigError("--seeds must be at least 2: one run decides nothing")
    if price is not None and not price > 0:
        raise ConfigError(f"--price {price:g} must be above 0")
    declared = read_plan(plan)
    cells = simulated_cells(declared, load_calibration(calibration))
    demand = demand_from_spec(declared.workload_spec(), prefix_groups=prefix_groups)
    found = _answer(cells, demand, parse_slo(goodput, share), rate or [], routing, price, seeds, over)
    text = json_module.dumps(found, indent=2) + "\n"
    if json == "-":
        sys.stdout.write(text)
        return
    if json is not None:
        write_where_asked(Path(json), text, what=f"--json {json}")
    for line in _lines(found):
        print(line)


def _answer(
    cells: Sequence[SimulatedCell],
    demand: Demand,
    slo: Slo,
    rates: Sequence[float],
    routing: str,
    price: float | None,
    seeds: int,
    over: str,
) -> dict[str, Any]:
    from headrace.lab.sim.capacity import Effort, capacities, replicas_for
    from headrace.lab.sim.routing import POLICIES
    from headrace.lab.sim.spread import spread_over

    if routing not in POLICIES:
        raise ConfigError(f"--routing {routing!r} is not known; use {', '.join(POLICIES)}")
    effort = Effort(seeds=(seeds, 3 * seeds))
    with spread_over(over) as spread:
        sustained = capacities([cell.server for cell in cells], demand, slo, effort, spread)
        best = max(range(len(cells)), key=lambda index: sustained[index].rate)
        fleets = []
        for rate in rates:
            need = replicas_for(rate, cells[best].server, demand, slo, routing=routing, effort=effort, spread=spread)
            fleets.append(
                {
                    "rate": rate,
                    "replicas": need.enough,
                    "fewest_undecided": need.few + 1,
                    "share": need.share.mean,
                    "share_interval": [need.share.low, need.share.high],
                    "share_with_one_lost": need.without_one.mean,
                    "cost_an_hour": None if price is None else price * need.enough,
                }
            )
    return {
        "objective": str(slo),
        "routing": routing,
        "cells": [
            {"cell": cell.name, "rate": one.rate, "interval": [one.low, one.high], "saturation": one.saturation}
            for cell, one in zip(cells, sustained, strict=True)
        ],
        "best": cells[best].name,
        "fleets": fleets,
        "caveats": sorted({caveat for cell in cells for caveat in cell.caveats}),
    }


def _lines(found: Mapping[str, Any]) -> list[str]:
    lines = [f"Objective: {found['objective']}.  Simulated; latency counts from when a request is due."]
    width = max(len(cell["cell"]) for cell in found["cells"])
    for cell in sorted(found["cells"], key=lambda each: -each["rate"]):
        low, high = cell["interval"]
        lines.append(
            f"  {cell['cell']:<{width}}  one replica sustains {cell['rate']:.3g} requests/s ({low:.3g} to {high:.3g}); "
            f"saturated at {cell['saturation']:.3g}"
        )
    for fleet in found["fleets"]:
        low, high = fleet["share_interval"]
        range_ = "" if fleet["fewest_undecided"] == fleet["replicas"] else f" ({fleet['fewest_undecided']} may do)"
        cost = "" if fleet["cost_an_hour"] is None else f", {fleet['cost_an_hour']:,.2f} an hour"
        lines.append(
            f"{fleet['rate']:g} requests/s need {fleet['replicas']} replicas of {found['best']}{range_}{cost}: "
            f"{fleet['share']:.2%} of the requests meet the objective ({low:.2%} to {high:.2%}), "
            f"{fleet['share_with_one_lost']:.2%} with one replica lost"
        )
    return [*lines, *(f"note: {each}" for each in found["caveats"])]
