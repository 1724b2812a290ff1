"""`headrace import`: console logs and result files of `vllm bench serve` -> the tables that every report reads."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.lab.records.foreign import Imported
    from headrace.lab.records.results import Study

app = App(
    name="headrace import",
    help="Read console logs and result files of `vllm bench serve` (and SGLang's client).\n\n"
    "Also read: the directory of a run that `headrace bench --out` wrote, and headrace's table of published rounds. "
    "Runs become repeats of one cell only when they stand in one directory, differ in a run index in their names "
    "(run=1, rep2, trial-3) or state a run number, and agree within 30 % in duration and throughput. "
    "Exact duplicates count once; warm-ups are skipped.",
    help_format="plaintext",
    version_flags=[],
)

_MAX_REASONS = 20


def prepare(argv: list[str]) -> list[str]:
    """Bind a lone `-` to the flag before it: `--json -` is standard output, not a path."""
    tokens: list[str] = []
    for token in argv:
        if token == "-" and tokens and tokens[-1] == "--json":
            tokens[-1] = "--json=-"
        else:
            tokens.append(token)
    return tokens


@app.default
def import_(
    *paths: Annotated[Path, Parameter(help="Files, or directories that are searched for them.")],
    json_: Annotated[
        str | None, Parameter(name="--json", help="Write a list of objects with vLLM's keys to this file; - prints it.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(
            help="Write study.json into this directory; `headrace report DIR` reads it. The study of an earlier "
            "import there is replaced, which is said; a measured one never is."
        ),
    ] = None,
    title: Annotated[
        str | None, Parameter(help="Title of the study (default: model, directory and number of runs).")
    ] = None,
) -> int | None:
    """Read results of other tools and show them as a table, as JSON, or as a study for a report."""
    from headrace.cli.import_table import print_study
    from headrace.lab.files import write_where_asked
    from headrace.lab.records.foreign import read_paths, to_vllm_object
    from headrace.lab.records.results import study_to_json

    if not paths:
        raise ConfigError("name at least one file or directory to read, for example: headrace import logs/*.log")
    imported = read_paths(paths)
    if not imported.runs:
        raise ConfigError(_nothing(imported.skipped))
    for path, reason in imported.skipped:
        print(f"headrace import: skipped {path}: {reason}", file=sys.stderr)
    study = _study(imported, paths, out, title)
    runs = {run.source: run for cell in study.cells for run in cell.runs}
    in_order = [run.source for run in imported.runs]
    if json_ is not None:
        objects = [to_vllm_object(runs[source]) for source in in_order if source in runs]
        text = json.dumps(objects, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        if json_ == "-":
            sys.stdout.write(text)
        else:
            write_where_asked(Path(json_), text, what=f"--json {json_}")
    if out is not None:
        _write_study(out, study_to_json(study))
    if json_ != "-":
        print_study(study, duplicates=[source for source in in_order if source not in runs])
    return None


def _nothing(skipped: Sequence[tuple[str, str]]) -> str:
    shown = [f"{path}: {reason}" for path, reason in skipped[:_MAX_REASONS]]
    if len(skipped) > _MAX_REASONS:
        shown.append(f"and {len(skipped) - _MAX_REASONS} more files")
    if len(shown) == 1:
        return f"nothing could be read: {shown[0]}"
    return "nothing could be read" + "".join(f"\n  {line}" for line in shown) if shown else "no file to read"


def _study(imported: Imported, paths: Sequence[Path], out: Path | None, title: str | None) -> Study:
    """The study of all runs; headrace's own table of rounds, alone, keeps its name and what it knows."""
    from dataclasses import replace

    from headrace.lab.records.foreign import study_from_runs
    from headrace.lab.records.foreign.values import clean
    from headrace.lab.records.published import load_published

    if len(paths) == 1 and paths[0].suffix.lower() == ".toml":
        study = load_published(paths[0])
    else:
        name = clean((paths[0] if len(paths) == 1 else imported.root).resolve().name)
        study = study_from_runs(imported.runs, name, name)
        study = replace(study, title=_title(study))
    if out is not None:
        study = replace(study, name=clean(out.resolve().name) or study.name)
    return replace(study, title=clean(title)) if title else study


def _title(study: Study) -> str:
    """ "gemma-4-31B-it, a100-gemma4 (12 runs)": what was measured, and where the results stood."""
    from headrace.cli.import_table import counted

    models = {
        str(cell.settings["model"]).rstrip("/").rpartition("/")[2] for cell in study.cells if "model" in cell.settings
    }
    what = [models.pop()] if len(models) == 1 else [counted(len(models), "model")] if models else []
    runs = counted(sum(len(cell.runs) for cell in study.cells), "run")
    return f"{', '.join([*what, study.name or 'result files'])} ({runs})"


def _write_study(directory: Path, text: str) -> None:
    """Write study.json, but never over the study of a campaign that was measured here."""
    from headrace.lab.files import write_where_asked
    from headrace.lab.records.foreign.own import is_campaign

    target = directory / "study.json"
    existed = target.exists()
    if is_campaign(directory) or (existed and _imported_title(target) is None):
        raise ConfigError(f"{target} exists and was not written by an import; choose another directory for --out")
    before = _imported_title(target) if existed else None
    write_where_asked(target, text, what=f"--out {directory}: {target}")
    done = f'replaced {target} (it was "{before}")' if before is not None else f"wrote {target}"
    print(f"{done}; next: headrace report {directory}", file=sys.stderr)


def _imported_title(path: Path) -> str | None:
    """The title of the imported study in a file, None when it holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(data.get("title", "")) if isinstance(data, dict) and data.get("kind") == "imported" else None
