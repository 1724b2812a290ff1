"""`headrace capacity`: the largest request rate at which a running server keeps a service level."""

from __future__ import annotations

import json as jsonlib
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from headrace import exit_codes
from headrace.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from headrace.lab.findings.gate import Condition
    from headrace.lab.records.results import RunResult
    from headrace.lab.workload.spec import WorkloadSpec

app = App(
    name="headrace capacity",
    help="Find the largest request rate at which a running server keeps a service level, with a confidence bound on "
    "either side (docs/statistics.md). Called again with the same --out it goes on where it stopped.\n\n"
    "Exit codes: 0 found, 1 not even the smallest rate keeps the level, 2 wrong input, 3 no server, 4 the runs cannot "
    "be believed, 130 interrupted.",
)


@app.default
def capacity(
    *,
    slo: Annotated[
        list[str],
        Parameter(negative="", help="What every run must keep: 'p99_ttft_ms < 500'. May be given several times."),
    ],
    out: Annotated[Path, Parameter(help="Directory for the runs and capacity.json.")],
    base_url: Annotated[str, Parameter(help="The server's root.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, Parameter(help="The name to ask for (default: the first that it serves).")] = None,
    start_rate: Annotated[float, Parameter(help="Requests a second of the first run.")] = 1.0,
    min_rate: Annotated[float, Parameter(help="No rate below this is tried.")] = 0.05,
    max_rate: Annotated[float, Parameter(help="No rate above this is tried.")] = 1000.0,
    tolerance: Annotated[float, Parameter(help="Rates closer than this many per cent are not told apart.")] = 5.0,
    confidence: Annotated[float, Parameter(help="Of each bound, in per cent.")] = 95.0,
    max_runs: Annotated[int, Parameter(help="Runs at most.")] = 60,
    num_prompts: Annotated[int, Parameter(help="Requests of each run.")] = 200,
    dataset_name: Annotated[str, Parameter(help="conversation, random or sharegpt.")] = "conversation",
    dataset_path: Annotated[str | None, Parameter(help="The file, for sharegpt.")] = None,
    scale: Annotated[float, Parameter(help="Multiplies prompt and answer lengths.")] = 1.0,
    random_input_len: Annotated[int, Parameter(help="Prompt tokens, for random.")] = 1024,
    random_output_len: Annotated[int, Parameter(help="Answer tokens, for random.")] = 128,
    tokenizer: Annotated[str | None, Parameter(help="Counts prompts (default: the server's /tokenize).")] = None,
    seed: Annotated[int, Parameter(help="Of the first run's requests and arrivals; the others count up from it.")] = 0,
) -> int:
    """Find the largest request rate that keeps a service level."""
    # Imported here so that --help stays fast.
    from rich.console import Console

    from headrace.lab.capacity import Search
    from headrace.lab.files import write_where_asked
    from headrace.lab.findings.gate import parse_condition
    from headrace.lab.http import Peer, base_of, model_names
    from headrace.lab.workload.spec import WorkloadSpec

    for name, value, good in (
        ("--min-rate", min_rate, min_rate > 0),
        ("--max-rate", max_rate, min_rate < max_rate < math.inf),
        ("--start-rate", start_rate, start_rate > 0),
        ("--tolerance", tolerance, 0 < tolerance < 100),
        ("--confidence", confidence, 50 < confidence < 100),
        ("--max-runs", max_runs, max_runs >= 1),
    ):
        if not good:
            raise ConfigError(f"{name} {value:g} cannot be: rates are above 0, per cents below 100")
    level = [parse_condition(text) for text in slo]
    for condition in level:
        if condition.relative:
            raise ConfigError(f"--slo {condition}: a service level is in the metric's own unit, without %")
    url = base_of(base_url)
    spec = WorkloadSpec(
        dataset_name=dataset_name,
        dataset_path=dataset_path,
        num_prompts=num_prompts,
        scale=scale,
        seed=seed,
        tokenizer=tokenizer,
        random_input_len=random_input_len,
        random_output_len=random_output_len,
        request_rate=start_rate,
        warmup_requests=4,
    )
    if model is None:
        try:
            with Peer(url) as peer:
                served = model_names(peer.get("/v1/models")[1])
        except OSError as error:
            raise LaunchError(f"nobody answers at {url}: {error}", kind="not_ready") from None
        if not served:
            raise LaunchError(f"{url} serves no model", kind="wrong_model")
        model = served[0]
    console = Console(highlight=False, soft_wrap=True)
    trials = _Trials(url, model, spec, level, out, console)
    search = Search(trials.met, start_rate, min_rate, max_rate, 1 + tolerance / 100, confidence / 100, max_runs)
    try:
        found = search.run()
    except _UnbelievableError as error:
        console.print(str(error), markup=False, style="bold red")
        return exit_codes.INVALID_RUN
    words = " and ".join(map(str, level))
    report = {
        "schema_version": 1,
        "level": [str(condition) for condition in level],
        "confidence": confidence / 100,
        **asdict(found),
        "workload": spec.to_json(),
        "model": model,
    }
    text = jsonlib.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_where_asked(out / "capacity.json", text, what=f"{out / 'capacity.json'}")
    bounds = [
        f"{side} {rate:.3g} requests/s ({met} of {runs} runs there kept it)"
        for side, rate in (("at least", found.at_least), ("at most", found.at_most))
        if rate is not None
        for met, runs in [found.passed(rate)]
    ]
    if not any(trial.met for trial in found.trials):
        console.print(f"no run kept {words}, down to {min_rate:g} requests/s", markup=False, style="bold red")
        return exit_codes.CHECK_FAILED
    if not bounds:
        console.print(
            f"{len(found.trials)} runs were not enough to confirm a bound; --max-runs allows more, and the same "
            "command goes on", markup=False, style="bold",
        )  # fmt: skip
        return exit_codes.INVALID_RUN
    console.print(
        f"capacity under {words}: {', '.join(bounds)}; each with {confidence:g} % confidence, by {len(found.trials)} "
        f"runs of {num_prompts} requests",
        markup=False,
        style="bold",
    )
    return exit_codes.OK


class _UnbelievableError(Exception):
    """A run whose own client calls it INVALID: neither kept nor not kept."""


class _Trials:
    """Runs by number in the directory, measured or (when the search is repeated) read back."""

    def __init__(
        self, url: str, model: str, spec: WorkloadSpec, level: list[Condition], out: Path, console: Any
    ) -> None:
        self._url = url
        self._model = model
        self._spec = spec
        self._level = level
        self._out = out
        self._console = console
        self._number = 0

    def met(self, rate: float) -> bool:
        """Measure one run at `rate` and judge it.  Raises ConfigError for another search's directory."""
        self._number += 1
        spec = replace(self._spec, request_rate=rate, seed=self._spec.seed + self._number - 1)
        result = self._result(spec, self._out / f"run-{self._number}")
        shown = [f"{one.metric} {result.metrics.get(one.metric, math.nan):.4g}" for one in self._level]
        failed = int(result.metrics.get("failed", 0))
        kept = failed == 0 and all(
            one.metric in result.metrics and one.holds(result.metrics[one.metric]) for one in self._level
        )
        lost = f", {failed} requests failed" if failed else ""
        self._console.print(
            f"run {self._number} at {rate:.4g} requests/s: {', '.join(shown)}{lost}: {'kept' if kept else 'not kept'}",
            markup=False,
        )
        return kept

    def _result(self, spec: WorkloadSpec, directory: Path) -> RunResult:
        from headrace.lab.client import measure
        from headrace.lab.metrics.result import run_result_from_directory
        from headrace.lab.records.store import is_done, read_run

        if is_done(directory):
            manifest, _ = read_run(directory)
            if manifest["workload"] != spec.to_json() or manifest["model"] != self._model:
                raise ConfigError(f"{directory} holds a run of another search: give another --out")
            return run_result_from_directory(directory)
        result = measure(self._url, spec, directory, model=self._model)
        for one in self._level:
            if result.metrics.get("completed") and one.metric not in result.metrics:
                raise ConfigError(f"--slo: no run has the metric {one.metric!r}")
        if result.invalid and result.metrics.get("failed", 0) == 0:
            reasons = result.verdict.reasons if result.verdict is not None else ()
            raise _UnbelievableError(f"{directory} cannot be believed: {'; '.join(reasons)}")
        return result
