"""`headrace simulate`: what a plan's cells would do, without running them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from headrace.cli.spelling import bind_dash
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.lab.sim.rows import Row

app = App(
    name="headrace simulate",
    help="Predict a plan's cells with the scheduler that serves and a calibrated cost of its steps.\n\n"
    "A table of published rounds calibrates itself on the rounds that it names.",
)

_COLUMNS = (
    ("duration", "duration", 1.0, "s"),
    ("total_token_throughput", "tok/s", 1.0, ""),
    ("mean_ttft_ms", "mean TTFT", 1e-3, "s"),
    ("median_tpot_ms", "med TPOT", 1.0, "ms"),
    ("median_itl_ms", "med ITL", 1.0, "ms"),
    ("p99_ttft_ms", "p99 TTFT", 1e-3, "s"),
)


def prepare(argv: Sequence[str]) -> list[str]:
    """Accept `--json -`, whose dash reads as an option otherwise."""
    return bind_dash(argv, "--json")


@app.default
def simulate(
    plan: Annotated[Path, Parameter(name="PLAN", help="A plan in TOML, or a table of published rounds.")],
    /,
    *,
    calibration: Annotated[
        Path | None, Parameter(help="What a step costs: a file that `headrace calibrate` has written.")
    ] = None,
    goal: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="METRIC:BOUND, for example p99_ttft_ms:2000; undecided where the interval holds the bound.",
        ),
    ] = None,
    draws: Annotated[int, Parameter(help="Simulations behind each interval; 0 prints none.")] = 64,
    json_: Annotated[
        str | None, Parameter(name="--json", help="Also write the predictions to this file; `-` is standard output.")
    ] = None,
) -> None:
    """Predict every legal cell of a plan."""
    # Imported here so that --help stays fast.
    from headrace.lab.files import write_where_asked

    if draws < 0:
        raise ConfigError(f"--draws must be at least 0, not {draws}")
    rows = _rows(plan, calibration, _goals(goal or []), draws)
    if json_ is not None:
        text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if json_ == "-":
            sys.stdout.write(text)
            return
        write_where_asked(Path(json_), text, what=f"--json {json_}")
    _print(rows)


def _rows(plan: Path, calibration: Path | None, goals: dict[str, float], draws: int) -> list[Row]:
    from headrace.lab.sim.calibration import load_calibration
    from headrace.lab.sim.plans import is_table_of_rounds, simulate_plan, simulate_rounds

    if is_table_of_rounds(plan):
        if calibration is not None or goals:
            raise ConfigError(
                f"{plan} is a table of rounds, which calibrates itself: --calibration and --goal are for plans"
            )
        return simulate_rounds(plan, draws=draws)
    if calibration is None:
        raise ConfigError(
            "--calibration FILE is needed to simulate a plan; `headrace calibrate` makes one from a campaign, a step"
            " log or printed results"
        )
    return simulate_plan(plan, load_calibration(calibration), goals, draws=draws)


def _goals(words: Sequence[str]) -> dict[str, float]:
    goals = {}
    for word in words:
        metric, _, bound = word.rpartition(":")
        try:
            goals[metric] = float(bound)
        except ValueError:
            metric = ""
        if not metric:
            raise ConfigError(f"--goal takes METRIC:BOUND (p99_ttft_ms:2000), not {word!r}")
    return goals


def _print(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("cell")
    for _, title, _, unit in _COLUMNS:
        table.add_column(f"{title} {unit}".rstrip(), justify="right")
    compared = any(row.get("published") for row in rows)
    table.add_column("")
    for row in rows:
        if "predicted" not in row:
            table.add_row(row["cell"], *[""] * len(_COLUMNS), f"illegal: {row['reason']}")
            continue
        table.add_row(row["cell"], *(_figure(row, key, factor) for key, _, factor, _ in _COLUMNS), _remark(row))
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if compared:
        console.print("predicted (error against the published figure); calibrated on the rounds marked *", markup=False)


def _figure(row: Row, key: str, factor: float) -> str:
    value = row["predicted"].get(key)
    if value is None:
        return "-"
    text = f"{value * factor:.4g}"
    if key in row.get("error", {}):
        return f"{text} ({row['error'][key]:+.1%})"
    low, high = row["interval"].get(key, (value, value))
    return text if low == high else f"{text} [{low * factor:.3g}, {high * factor:.3g}]"


def _remark(row: Row) -> str:
    parts = ["*"] if row.get("calibration") else []
    if row["served"] < row["asked"]:
        parts.append(f"serves {row['served']:.0f} of {row['asked']}")
    verdicts: list[dict[str, Any]] = row.get("goals", [])
    parts += [{True: "met", False: "missed", None: "undecided"}[v["met"]] + f": {v['why']}" for v in verdicts]
    return "; ".join([*parts, *row["caveats"]])
