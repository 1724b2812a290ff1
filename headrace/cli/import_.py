"""`headrace import`: console logs and result files of `vllm bench serve` -> the tables that every report reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from headrace.cli.spelling import bind_dash
from headrace.errors import ConfigError
from headrace.lab.files import write_where_asked

if TYPE_CHECKING:
    from headrace.lab.records.results import RunResult, Study

app = App(
    name="headrace import",
    help="Read console logs and result files of `vllm bench serve` (and SGLang's client).",
    help_format="plaintext",
    version_flags=[],
)

# When the output is not a terminal the table still needs its columns.
_PIPED_WIDTH = 160
_MAX_REASONS = 20
_COLUMNS = (
    ("completed", "served", "{:.0f}"),
    ("duration", "duration s", "{:.2f}"),
    ("request_throughput", "req/s", "{:.2f}"),
    ("output_throughput", "out tok/s", "{:.2f}"),
    ("total_token_throughput", "total tok/s", "{:.2f}"),
    ("mean_ttft_ms", "mean TTFT ms", "{:.2f}"),
    ("mean_tpot_ms", "mean TPOT ms", "{:.2f}"),
    ("p99_tpot_ms", "p99 TPOT ms", "{:.2f}"),
    ("mean_itl_ms", "mean ITL ms", "{:.2f}"),
)


def prepare(argv: list[str]) -> list[str]:
    """Bind a lone `-` to the flag before it: `--json -` is standard output, not a path."""
    return bind_dash(argv, "--json")


@app.default
def import_(
    *paths: Annotated[Path, Parameter(help="Files, or directories that are searched for them.")],
    json_: Annotated[
        str | None, Parameter(name="--json", help="Write a list of objects with vLLM's keys to this file; - prints it.")
    ] = None,
    out: Annotated[
        Path | None, Parameter(help="Write study.json into this directory; `headrace report DIR` reads it.")
    ] = None,
    title: Annotated[str | None, Parameter(help="Title of the study (default: the directory's name).")] = None,
) -> int | None:
    """Read results of other tools and show them as a table, as JSON, or as a study for a report."""
    from headrace.lab.records.foreign import read_paths, study_from_runs, to_vllm_object
    from headrace.lab.records.foreign.values import clean
    from headrace.lab.records.results import study_to_json

    if not paths:
        raise ConfigError("name at least one file or directory to read, for example: headrace import logs/*.log")
    imported = read_paths(paths)
    if not imported.runs:
        raise ConfigError(_nothing(imported.skipped))
    for path, reason in imported.skipped:
        print(f"headrace import: skipped {path}: {reason}", file=sys.stderr)
    name = clean(out.resolve().name) if out is not None else "imported"
    study = study_from_runs(imported.runs, name, clean(title) if title else name)
    if json_ is not None:
        objects = [to_vllm_object(run) for run in imported.runs]
        text = json.dumps(objects, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if json_ == "-":
            sys.stdout.write(text)
        else:
            write_where_asked(Path(json_), text, what=f"--json {json_}")
    if out is not None:
        _write_study(out, study_to_json(study))
    if json_ != "-":
        _print_table(study, imported.runs)
    return None


def _nothing(skipped: Sequence[tuple[str, str]]) -> str:
    shown = [f"{path}: {reason}" for path, reason in skipped[:_MAX_REASONS]]
    if len(skipped) > _MAX_REASONS:
        shown.append(f"and {len(skipped) - _MAX_REASONS} more files")
    if len(shown) == 1:
        return f"nothing could be read: {shown[0]}"
    return "nothing could be read" + "".join(f"\n  {line}" for line in shown) if shown else "no file to read"


def _write_study(directory: Path, text: str) -> None:
    """Write study.json, but never over the study of a campaign that was measured here."""
    target = directory / "study.json"
    if target.exists() and not _is_imported(target):
        raise ConfigError(f"{target} exists and was not written by an import; choose another directory for --out")
    write_where_asked(target, text, what=str(target))
    print(f"wrote {target}; next: headrace report {directory}", file=sys.stderr)


def _is_imported(path: Path) -> bool:
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and data.get("kind") == "imported"


def _print_table(study: Study, runs: Sequence[RunResult]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    table = Table(title=f"{len(runs)} runs in {len(study.cells)} cells", title_justify="left")
    table.add_column("cell", overflow="fold")
    table.add_column("status")
    shown = [column for column in _COLUMNS if any(column[0] in run.metrics for run in runs)]
    for _, heading, _ in shown:
        table.add_column(heading, justify="right")
    for cell in study.cells:
        for run in cell.runs:
            values = [form.format(run.metrics[key]) if key in run.metrics else "" for key, _, form in shown]
            # Text: a name from a file must not be read as markup
            table.add_row(Text(cell.name), cell.status.value, *values)
    console.print(table)
    for cell in study.cells:
        if cell.reason:
            rule = f"{cell.rule}: " if cell.rule else ""
            console.print(Text(f"{cell.name}: {rule}{cell.reason}"), soft_wrap=True)
