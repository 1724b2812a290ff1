"""`headrace tune`: find a plan's best setting with few measured runs."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from headrace import exit_codes
from headrace.cli.spelling import bind_dash
from headrace.errors import ConfigError

app = App(
    name="headrace tune",
    help="Find the best setting of a plan: simulate all cells, measure those that may win, stop when none can.\n\n"
    "Runs are kept in the campaign's directory; interrupted, the same command goes on with them. "
    "Exit codes: 0 found, 2 a wrong plan, 4 no setting keeps the bounds, 130 interrupted.",
)


def prepare(argv: Sequence[str]) -> list[str]:
    """Accept `--json -`, whose dash reads as an option otherwise."""
    return bind_dash(argv, "--json")


@app.default
def tune(
    plan: Annotated[Path, Parameter(name="PLAN", help="A plan in TOML; its sweep is what is searched.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The campaign's directory (default runs/NAME).")] = None,
    maximize: Annotated[
        str, Parameter(help="output_throughput, request_throughput, total_token_throughput or request_goodput.")
    ] = "output_throughput",
    goodput: Annotated[
        list[str] | None,
        Parameter(consume_multiple=True, negative="", help="Bounds of a request: ttft:2000 tpot:100 (milliseconds)."),
    ] = None,
    goal: Annotated[
        list[str] | None,
        Parameter(consume_multiple=True, negative="", help="Bounds of a run: p99_ttft_ms:2000, may be repeated."),
    ] = None,
    max_runs: Annotated[
        int | None, Parameter(help="Most runs that may be measured (default: a quarter of the legal cells).")
    ] = None,
    tolerance: Annotated[float, Parameter(help="A gain that is not worth a run, as a share.")] = 0.02,
    kv_blocks: Annotated[
        int | None, Parameter(help="KV blocks of the servers, where the plan does not say (default: ample).")
    ] = None,
    json: Annotated[
        str | None, Parameter(name="--json", help="Also write the answer to this file; `-` is standard output.")
    ] = None,
) -> int:
    """Search a plan's cells for the best setting, with at most a quarter of an exhaustive sweep's runs."""
    # Imported here so that --help stays fast.
    from rich.console import Console

    from headrace.lab.campaign.plan import read_plan
    from headrace.lab.campaign.progress import reporter_for
    from headrace.lab.files import write_where_asked
    from headrace.lab.sim.slo import parse_slo
    from headrace.lab.tuner.campaign import tune_plan
    from headrace.lab.tuner.objective import GOODPUT, Objective
    from headrace.lab.tuner.words import sentences

    if not 0 < tolerance < 1:
        raise ConfigError(f"--tolerance {tolerance:g} must be between 0 and 1, for example 0.02")
    if max_runs is not None and max_runs < 1:
        raise ConfigError(f"--max-runs {max_runs} must be at least 1")
    if goodput and maximize == "output_throughput":
        maximize = GOODPUT
    slo = parse_slo(goodput, 0.5) if goodput else None
    objective = Objective(maximize, _bounds(goal or []), slo)
    declared = read_plan(plan)
    home = out if out is not None else Path("runs") / declared.name
    console = Console(highlight=False, soft_wrap=True, stderr=json == "-")
    try:
        answer = tune_plan(
            declared,
            plan.read_text(encoding="utf-8"),
            home,
            objective,
            reporter=reporter_for(console),
            most=max_runs,
            tolerance=tolerance,
            kv_blocks=kv_blocks,
            told=lambda line: console.print(line, markup=False, style="bold"),
        )
    except KeyboardInterrupt:
        console.print(f"interrupted; finished runs are kept in {home}, and the same command resumes", markup=False)
        return exit_codes.INTERRUPTED
    text = json_module.dumps(answer, indent=2) + "\n"
    if json == "-":
        sys.stdout.write(text)
    elif json is not None:
        write_where_asked(Path(json), text, what=f"--json {json}")
    for line in sentences(answer):
        console.print(line, markup=False)
    return exit_codes.OK if answer["best"] is not None else exit_codes.INVALID_RUN


def _bounds(words: Sequence[str]) -> dict[str, float]:
    bounds = {}
    for word in words:
        metric, _, bound = word.rpartition(":")
        try:
            bounds[metric] = float(bound)
        except ValueError:
            metric = ""
        if not metric or not bounds[metric] > 0:
            raise ConfigError(f"--goal takes METRIC:BOUND with a bound above 0 (p99_ttft_ms:2000), not {word!r}")
    return bounds
