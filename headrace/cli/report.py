"""`headrace report`: write a campaign's report and say in the terminal what it says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from headrace.cli.spelling import bind_dash

app = App(name="headrace report", help="Write a campaign's report: one HTML file, its JSON twin, a summary here.")


def prepare(argv: Sequence[str]) -> list[str]:
    """Accept a bare `--open` for `--open yes`, and `--json -`, whose dash reads as an option otherwise."""
    tokens = bind_dash(argv, "--json")
    followers = [*tokens[1:], "-"]
    return [
        "--open=yes" if token == "--open" and follower.startswith("-") else token
        for token, follower in zip(tokens, followers, strict=False)  # no token: one follower too many
    ]


@app.default
def report(
    directory: Annotated[Path, Parameter(name="DIR", help="Directory with a study.json (or that file).")],
    /,
    *,
    beside: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="Studies to show beside it: directories, `published`, or `none` (default: as in the last report).",
        ),
    ] = None,
    out: Annotated[Path | None, Parameter(help="The HTML file (default DIR/report.html).")] = None,
    json: Annotated[
        str | None, Parameter(name="--json", help="Also write the JSON twin to this file; `-` is standard output.")
    ] = None,
    open: Annotated[Literal["yes", "no"], Parameter(name="--open", help="Open the report in a browser.")] = "no",
) -> None:
    """Write a campaign's report: one self-contained HTML file, its JSON twin, and a summary in the terminal."""
    # Imported here so that --help stays fast.
    from headrace.lab.files import write_where_asked
    from headrace.lab.findings import explain
    from headrace.lab.report import load_study, studies_beside, write_report
    from headrace.lab.report.summary import print_summary

    study = load_study(directory)
    home = directory if directory.is_dir() else directory.parent
    others = studies_beside(beside, home, out)
    studies = [study, *others.studies]
    paths = write_report(home, studies, [explain(each) for each in studies], out, others.names)
    if json == "-":
        sys.stdout.write(paths.json.read_text(encoding="utf-8"))
    elif json is not None:
        write_where_asked(Path(json), paths.json.read_text(encoding="utf-8"), what=f"--json {json}")
    print_summary(paths.views, paths.html, file=sys.stderr if json == "-" else None)
    if open == "yes":
        import webbrowser

        webbrowser.open(paths.html.resolve().as_uri())
