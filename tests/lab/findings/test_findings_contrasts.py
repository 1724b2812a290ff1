"""Comparisons that end: A against A is called different about as seldom as promised, and a shift of 10 % is found."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from headrace.lab.campaign.launchers import probe
from headrace.lab.client import measure
from headrace.lab.findings import explain
from headrace.lab.findings.contrasts import End, contrast
from headrace.lab.findings.restarts import by_restart
from headrace.lab.findings.stats import critical
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study
from headrace.lab.workload.spec import WorkloadSpec

METRIC = "mean_ttft_ms"
PAIRS, REPEATS = 40, 6
# Of one short run on a machine that is not crowded, with the tails that were measured on one that was (kurtosis 12: as
# of Student's t with few degrees of freedom).  The check on real runs below prints both.
MEASURED_SPREAD, MEASURED_TAILS = 0.025, 4


def cell(name: str, values: list[float], metric: str = METRIC) -> Cell:
    runs = tuple(
        RunResult(f"{name}/{k}", {"repeat": k, "model": "m"}, {metric: value, "completed": 10.0})
        for k, value in enumerate(values, 1)
    )
    return Cell(name, {"max_num_seqs": 1}, CellStatus.OK, runs)


def noisy(seed: int) -> Callable[[float], tuple[float, ...]]:
    """Repeats of the measured shape; a drift of the machine that both cells of a repeat share lies over them."""
    draw = random.Random(seed)
    drift = [draw.gauss(0, 0.05) for _ in range(REPEATS)]

    def values(centre: float) -> tuple[float, ...]:
        tails = [draw.gauss(0, 1) / math.sqrt(draw.gammavariate(MEASURED_TAILS / 2, 2 / MEASURED_TAILS)) for _ in drift]
        shrink = MEASURED_SPREAD * math.sqrt((MEASURED_TAILS - 2) / MEASURED_TAILS)
        return tuple(centre * math.exp(d + shrink * t) for d, t in zip(drift, tails, strict=True))

    return values


def found_different(change: float) -> int:
    ends = []
    for seed in range(PAIRS):
        values = noisy(seed)
        made = contrast(METRIC, cell("a", [*values(100)]), cell("b", [*values(100 * (1 + change))]))
        assert made is not None and made.basis == "paired repeats"
        ends.append(made.end in (End.BETTER, End.WORSE))
    return sum(ends)


def test_a_against_a_is_seldom_called_different() -> None:
    assert found_different(0.0) <= 5


def test_a_planted_shift_of_ten_per_cent_is_found() -> None:
    assert found_different(0.10) >= 36


# Answers take so long that a busy machine adds little to them; so several pairs may be measured at once.
DELAYS_MS = {"a": 2000, "again": 2000, "slower": 2200}
AT_ONCE = 8


def real_pair(number: int, urls: dict[str, str], out: Path) -> dict[str, list[float]]:
    """Six repeats of the three servers, each repeat in an order of its own: server -> its runs' values."""
    spec = WorkloadSpec(num_prompts=6, scale=0.02, tokenizer=str(demo_tokenizer()))
    order, seen = random.Random(number), {name: [] for name in urls}
    for repeat in range(REPEATS):
        for name in order.sample(list(urls), len(urls)):
            run = measure(urls[name], spec, out / f"{number}-{name}-{repeat}", model="fake")
            seen[name].append(run.metrics[METRIC])
    return seen


@pytest.mark.slow
def test_the_same_with_real_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Short runs of the real client against three scripted servers: two are alike, the third takes 10 % longer."""
    script = Path(__file__).parents[1] / "campaign" / "fake_server.py"
    ports = {name: probe.free_port() for name in DELAYS_MS}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    servers = [
        subprocess.Popen(
            [
                *(sys.executable, str(script), "--script", f'{{"1": "takes {delay} ms"}}', "--max-num-seqs", "1"),
                *("--port", str(ports[name]), "--served-model-name", "fake"),
            ]
        )
        for name, delay in DELAYS_MS.items()
    ]
    try:
        while not all(map(probe.answers, urls.values())):
            pass
        with ProcessPoolExecutor(AT_ONCE, mp_context=get_context("spawn")) as pool:
            pairs = list(pool.map(partial(real_pair, urls=urls, out=tmp_path), range(PAIRS)))
    finally:
        for one in servers:
            one.kill()
            one.wait()

    def different(other: str) -> int:
        made = [contrast(METRIC, cell("a", seen["a"]), cell("b", seen[other])) for seen in pairs]
        return sum(one is not None and one.end in (End.BETTER, End.WORSE) for one in made)

    logs = np.concatenate([np.log(seen["a"]) - np.mean(np.log(seen["a"])) for seen in pairs])
    kurtosis = float(np.mean(logs**4) / np.mean(logs**2) ** 2)
    with capsys.disabled():
        print(f"\nA/A called different: {different('again')} of {PAIRS}; 10 % found: {different('slower')} of {PAIRS}")
        print(f"noise of one run: standard deviation {np.std(logs):.4f}, kurtosis {kurtosis:.1f} (normal: 3)")
    assert different("again") <= 5
    assert different("slower") >= 36


def demo_tokenizer() -> Path:
    import headrace

    return Path(headrace.__file__).parent / "engine" / "demo"


@pytest.mark.parametrize(("freedom", "comparisons"), [(2, 3), (10, 1), (10, 6), (30, 20)])
def test_simultaneous_intervals_hold_together_in_95_per_cent(freedom: int, comparisons: int) -> None:
    """By drawing: so many normal deviates over one estimate of their spread stay below the factor, all of them."""
    draw = np.random.default_rng(1)
    largest = np.abs(draw.standard_normal((100_000, comparisons))).max(axis=1)
    spread = np.sqrt(draw.chisquare(freedom, 100_000) / freedom)
    assert np.mean(largest / spread <= critical(freedom, comparisons)) == pytest.approx(0.95, abs=0.003)


def test_each_comparison_comes_to_an_end() -> None:
    """Better, the same, or so many more repeats: by the same spread, for three sizes of difference."""
    quiet, loud = [1.0, 1.01, 0.99, 1.005], [1.0, 1.12, 0.9, 1.05]
    base = cell("a", [100 * x for x in quiet])
    better = contrast(METRIC, base, cell("b", [80 * x for x in reversed(quiet)]))
    same = contrast(METRIC, base, cell("b", [100.5 * x for x in reversed(quiet)]))
    open_ = contrast(METRIC, base, cell("b", [98 * x for x in loud]))
    assert better is not None and same is not None and open_ is not None
    assert (better.end, same.end, open_.end) == (End.BETTER, End.SAME, End.UNDECIDED)
    assert better.words().startswith("better by 20 % (1") and same.words().startswith("no difference larger than 3")
    assert open_.more_repeats is not None and "more repeats needed to tell 5.0 %" in open_.words()


def test_the_repeats_that_were_asked_for_do_tell() -> None:
    """With as many repeats as it asked for, the next interval is about as narrow as was wanted."""
    draw = random.Random(5)

    def made(repeats: int) -> Cell:
        return cell("x", [100 * math.exp(draw.gauss(0, 0.05)) for _ in range(repeats)])

    first = contrast(METRIC, made(4), made(4))
    assert first is not None and first.more_repeats is not None
    wider = contrast(METRIC, made(4 + first.more_repeats), made(4 + first.more_repeats))
    assert wider is not None and (wider.high - wider.low) / 2 < 0.09


def test_a_single_run_decides_nothing_below_the_allowance() -> None:
    made = contrast(METRIC, cell("a", [100]), cell("b", [102]))
    assert made is not None and made.end is End.UNDECIDED and made.basis == "single runs"
    certain = contrast(METRIC, cell("a", [100]), cell("b", [130]))
    assert certain is not None and certain.end is End.WORSE
    tail = contrast("p99_ttft_ms", cell("a", [100], "p99_ttft_ms"), cell("b", [110], "p99_ttft_ms"))
    assert tail is not None and tail.end is End.UNDECIDED and "repeats needed" in tail.words()


def on_servers(name: str, table: list[list[float]], target: str) -> Cell:
    runs = tuple(
        RunResult(
            f"{name}/{s}/{k}",
            {"repeat": s, "run_on_server": k},
            {METRIC: value, "output_throughput": 1e4 / value, "completed": 10.0, "total_input_tokens": 50.0},
        )
        for s, row in enumerate(table, 1)
        for k, value in enumerate(row, 1)
    )
    return Cell(name, {"max_num_seqs": 1, "target": target, "model": "m"}, CellStatus.OK, runs)


def test_runs_on_one_server_are_one_repeat() -> None:
    """Three servers of four runs each are three repeats, not twelve: what a restart changes they share."""
    whole = on_servers("vllm-1", [[100, 101, 99, 100], [120, 121, 119, 120], [110, 111, 109, 110]], "vllm")
    assert [round(run.metrics[METRIC]) for run in by_restart(whole).runs] == [100, 120, 110]


def test_the_noise_is_split_into_its_levels_and_targets_are_compared() -> None:
    rows = [[100, 101], [112, 113], [106, 108], [103, 104]]
    cells = (on_servers("vllm-1", rows, "vllm"), on_servers("own-1", [[x / 2 for x in row] for row in rows], "own"))
    found = {finding.id: finding for finding in explain(Study("s", "t", "measured", cells))}
    levels = found["noise.levels"].numbers[METRIC]
    assert levels["between_restarts"] == pytest.approx(0.045, abs=0.01) and levels["within_a_server"] < 0.005
    assert "more restarts pay most" in found["noise.levels"].claim
    claim = found[f"comparison.{METRIC}"].claim
    assert claim.startswith("own against vllm, at equal settings, mean TTFT: own-1 better by 50 %"), claim


def test_a_plan_may_name_what_all_cells_are_compared_with() -> None:
    shape = [1.0, 1.02, 0.99]
    cells = tuple(
        cell(name, [scale * x for x in shape], "output_throughput")
        for name, scale in (("on-64", 100), ("on-128", 150), ("on-256", 100.2))
    )
    study = Study("s", "t", "measured", cells, {"baseline": "on-64", "resolution": 0.1})
    [found] = [finding for finding in explain(study) if finding.topic == "comparison"]
    assert found.claim.startswith("Against on-64, output throughput: on-128 better by 50 % (")
    assert "no difference larger than" in found.claim and "on-256" in found.claim
