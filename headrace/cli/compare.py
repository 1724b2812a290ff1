"""`headrace compare`: two measurements against each other, with intervals; a gate for continuous integration."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from headrace import exit_codes
from headrace.cli.spelling import bind_dash
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.lab.findings.compared import Comparison
    from headrace.lab.findings.gate import Judged

app = App(
    name="headrace compare",
    help="Compare B with A: every metric with its interval, and whether the difference is more than noise.\n\n"
    "A and B are campaigns, their cells (DIR:CELL), runs of `headrace bench --out`, or result files of vLLM (several "
    "of them are repeats). Exit codes: 0 nothing failed, 1 a --fail-if holds beyond noise, 2 wrong input, 4 nothing "
    "can be compared.",
)


def prepare(argv: Sequence[str]) -> list[str]:
    """Accept `--json -`, whose dash reads as an option otherwise."""
    return bind_dash(argv, "--json")


@app.default
def compare(
    a: Annotated[str, Parameter(name="A", help="What is compared with: DIR, DIR:CELL or a result file.")],
    b: Annotated[str, Parameter(name="B", help="What may be better or worse.")],
    /,
    *,
    fail_if: Annotated[
        list[str] | None,
        Parameter(
            name="--fail-if",
            negative="",
            help="A condition that must not hold: 'p99_ttft_ms > 5%' (B against A), 'p99_ttft_ms > 800' (B itself, in "
            "the metric's unit). It fails when it holds beyond noise. May be given several times.",
        ),
    ] = None,
    strict: Annotated[
        bool, Parameter(negative="", help="An undecided condition fails, too: more repeats are needed then.")
    ] = False,
    metrics: Annotated[
        list[str] | None,
        Parameter(consume_multiple=True, negative="", help="Metrics to compare (default: the main ones)."),
    ] = None,
    resolution: Annotated[
        float, Parameter(help="The smallest difference in per cent that matters; until it would show: undecided.")
    ] = 5.0,
    json: Annotated[
        str | None, Parameter(name="--json", help="Also write everything to this file; `-` is standard output.")
    ] = None,
) -> int:
    """Compare B with A."""
    # Imported here so that --help stays fast.
    from headrace.lab.files import write_where_asked
    from headrace.lab.findings.compared import compare_studies, read_side
    from headrace.lab.findings.gate import Outcome, parse_condition

    if not 0 < resolution < 100:
        raise ConfigError(f"--resolution must be a number of per cent between 0 and 100, not {resolution:g}")
    conditions = [parse_condition(text) for text in fail_if or ()]
    found = compare_studies(
        read_side(a), read_side(b), conditions, metrics=metrics, resolution=resolution / 100, same=a == b
    )
    text = jsonlib.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n"
    if json == "-":
        sys.stdout.write(text)
    elif json is not None:
        write_where_asked(Path(json), text, what=f"--json {json}")
    _print(found, to_stderr=json == "-")
    if not found.pairs:
        return exit_codes.INVALID_RUN
    outcomes = {judged.outcome for judged in found.judged}
    failing = {Outcome.FAILED, Outcome.ABSENT} | ({Outcome.UNDECIDED} if strict else set())
    return exit_codes.CHECK_FAILED if outcomes & failing else exit_codes.OK


def _print(found: Comparison, *, to_stderr: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=to_stderr, highlight=False, soft_wrap=True)
    for pair, contrasts in found.pairs.items():
        table = Table(title=pair, title_justify="left", box=None, pad_edge=False)
        for column in ("metric", "A", "B", "B against A"):
            table.add_column(column, justify="left" if column in ("metric", "B against A") else "right")
        for row in contrasts:
            table.add_row(row.metric, row.a, row.b, row.words)
        console.print(table)
    for note in found.notes:
        console.print(note, markup=False)
    for judged in found.judged:
        _print_judged(console, judged, several=len(found.pairs) > 1)


def _print_judged(console: object, judged: Judged, *, several: bool) -> None:
    from rich.console import Console

    assert isinstance(console, Console)
    where = f" [{judged.cell}]" if several else ""
    style = {"failed": "bold red", "passed": "green"}.get(judged.outcome.value, "yellow")
    line = f"{judged.outcome.value.upper()}  {judged.condition}{where}: {judged.words}"
    console.print(line, style=style, markup=False)
