"""`headrace calibrate`: learn what a step costs from what runs have left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.lab.sim.calibration import Calibration

app = App(
    name="headrace calibrate",
    help="Learn what a step costs, for `headrace simulate`: from a step log (exact), from a campaign's records, "
    "or from printed results alone.",
)


@app.default
def calibrate(
    source: Annotated[
        list[Path],
        Parameter(
            name="SOURCE", help="A step log (.jsonl), a campaign's directory, or result files and logs of other tools."
        ),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="The calibration's file.")] = Path("calibration.json"),
    on: Annotated[
        list[str] | None,
        Parameter(
            consume_multiple=True, negative="", help="Cells to learn from (default: chosen, or all printed ones)."
        ),
    ] = None,
) -> None:
    """Write a calibration and say what it rests on."""
    # Imported here so that --help stays fast.
    from headrace.lab.sim.calibration import save_calibration

    if not source:
        raise ConfigError("name what to learn from: a step log, a campaign's directory, or result files")
    learned = _learn(source, on)
    save_calibration(learned, out)
    print(f"learned from {learned.source}: {', '.join(learned.runs)}")
    for name, value in {**learned.fit.cost.to_json(), "delay_s": learned.fit.front.delay_s}.items():
        if name == "knots":
            points = ", ".join(f"{tokens:.0f}: {1e3 * seconds:.4g} ms" for tokens, seconds in value)
            print(f"  step of so many tokens: {points}")
        elif value:
            print(f"  {name}: {value:.4g}")
    worst = sorted(learned.fit.residuals.items(), key=lambda item: -abs(item[1]))[:3]
    for (run, metric), error in worst:
        print(f"  largest residuals: {run} {metric} {error:+.1%}")
    for note in learned.notes:
        print(f"  note: {note}")
    print(f"wrote {out}; next: headrace simulate PLAN --calibration {out}")


def _learn(source: list[Path], on: list[str] | None) -> Calibration:
    from headrace.lab.report import load_study
    from headrace.lab.sim.campaigns import calibrate_on_campaign, read_measured
    from headrace.lab.sim.plans import calibrate_on_files
    from headrace.lab.sim.steplog import calibrate_on_steps, is_step_log, merged, read_step_log

    if all(path.is_file() and is_step_log(path) for path in source):
        if on:
            raise ConfigError("--on chooses among cells; a step log has none")
        return calibrate_on_steps(merged([read_step_log(path) for path in source]), ", ".join(map(str, source)))
    if len(source) == 1 and (source[0] / "study.json").is_file():
        study = load_study(source[0])
        cells = read_measured(study, source[0])
        if cells:
            names = [cell.name for cell in cells]
            if unknown := [name for name in on or [] if name not in names]:
                raise ConfigError(f"{source[0]} has no cell {unknown[0]!r} with records (cells: {', '.join(names)})")
            return calibrate_on_campaign(cells, on)[0]
    return calibrate_on_files(source, on)
