"""`headrace run`: measure a plan's cells on headrace's own engine, and explain the result."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from headrace import exit_codes

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.lab.campaign.cells import PlannedCell
    from headrace.lab.campaign.plan import Plan
    from headrace.lab.records.results import Study
    from headrace.lab.report import Beside

app = App(
    name="headrace run",
    help="Run a campaign from a plan file: one server a run, the same workload for each, then the report.\n\n"
    "Interrupted or killed, the same command goes on where it stopped. "
    "Exit codes: 0 done, 2 a wrong plan or directory, 3 the environment failed (disk), "
    "4 no legal cell could be measured, 130 interrupted.",
)


@app.default
def run(
    plan: Annotated[Path, Parameter(name="PLAN", help="A plan in TOML; examples/demo-plan.toml is one.")],
    /,
    *,
    out: Annotated[
        Path | None, Parameter(help="The campaign's directory (default runs/NAME, with the plan's name).")
    ] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Only print the cells, which are legal and why not, and the work ahead.")
    ] = False,
    report: Annotated[bool, Parameter(help="Write the report and print its summary at the end.")] = True,
    beside: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True,
            negative="",
            help="Studies to show beside it: directories, `published`, or `none` (default: as in the last report).",
        ),
    ] = None,
    retry_failed: Annotated[
        bool, Parameter(negative="", help="Measure failed runs again; otherwise a failure is a result.")
    ] = False,
) -> int:
    """Measure a plan's cells, then explain them."""
    # Imported here so that --help stays fast.
    from rich.console import Console

    from headrace.lab.campaign.cells import cells
    from headrace.lab.campaign.execute import run_campaign
    from headrace.lab.campaign.plan import read_plan
    from headrace.lab.campaign.progress import reporter_for
    from headrace.lab.report import studies_beside

    console = Console(highlight=False, soft_wrap=True)  # a sentence is one line, in a pipe too
    declared = read_plan(plan)
    planned = cells(declared)
    if dry_run:
        _print_cells(console, declared, planned)
        return exit_codes.OK if any(cell.legal for cell in planned) else exit_codes.INVALID_RUN
    home = out if out is not None else Path("runs") / declared.name
    others = studies_beside(beside, home)  # a wrong name is told before an hour of measuring, not after
    try:
        with _terminated_like_ctrl_c():
            study = run_campaign(
                declared,
                plan.read_text(encoding="utf-8"),
                home,
                reporter=reporter_for(console),
                retry_failed=retry_failed,
            )
    except KeyboardInterrupt:
        console.print(
            f"interrupted; finished runs are kept in {home}, and the same command resumes", markup=False, style="bold"
        )
        return exit_codes.INTERRUPTED
    measured = any(cell.runs for cell in study.cells)
    if measured:
        study = _resimulated(study, home)
    if report:
        _report(home, study, others)
    elif measured:
        console.print(f"study: {home / 'study.json'}", markup=False)
    if not measured:
        console.print("no cell could be measured; the reasons:", markup=False, style="bold red")
        for cell in study.cells:
            console.print(f"  {cell.name}: {cell.status.value}. {cell.reason}", markup=False)
        return exit_codes.INVALID_RUN
    return exit_codes.OK


def _print_cells(console: Console, plan: Plan, planned: tuple[PlannedCell, ...]) -> None:
    legal = [cell for cell in planned if cell.legal]
    width = max(len(cell.name) for cell in planned)
    console.print(f"{plan.title}", markup=False, style="bold")
    for cell in planned:
        said = [cell.doubts] if cell.doubts is not None else cell.warnings
        verdict = f"illegal  {cell.reason}" if not cell.legal else f"legal    {' '.join(said)}"
        line = f"  {cell.name:<{width}}  {cell.settings.get('policy', ''):<10}  {verdict}".rstrip()
        console.print(line, markup=False, style="" if cell.legal else "yellow")
    servers, each = len(legal) * plan.run.repeats, plan.run.runs_per_server
    requests = servers * each * plan.workload_spec().num_prompts
    several = f", {each} runs on each of them" if each > 1 else ""
    console.print(
        f"{len(legal)} of {len(planned)} cells are legal; {plan.run.repeats} repeat(s) of each: {servers} runs, "
        f"each on a server of its own{several}, {requests} requests in all",
        markup=False,
    )


def _resimulated(study: Study, home: Path) -> Study:
    """The study with what the simulator says of its cells, kept beside the runs."""
    from headrace.lab.campaign.execute import STUDY
    from headrace.lab.files import write_durably
    from headrace.lab.records.results import study_to_json
    from headrace.lab.sim.campaigns import resimulated

    study = resimulated(study, home)
    write_durably(home / STUDY, study_to_json(study))
    return study


def _report(home: Path, study: Study, others: Beside) -> None:
    from headrace.lab.findings import explain
    from headrace.lab.report import write_report
    from headrace.lab.report.summary import print_summary

    studies = [study, *others.studies]
    paths = write_report(home, studies, [explain(each) for each in studies], beside=others.names)
    print_summary(paths.views, paths.html)


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and a closed terminal end a campaign as Ctrl-C does: server stopped, state kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)  # whoever handles Ctrl-C just now (the client, while it measures)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # a shell's background job: it must end by SIGTERM all the same
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
