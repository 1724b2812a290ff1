"""On a noisy machine the rules say that they cannot decide; on a quiet one they are as sharp as the runs allow."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from findings_worlds import cell, findings, metrics, study

from headrace.lab.findings import Finding
from headrace.lab.findings.stats import allowance, ratio
from headrace.lab.findings.table import build
from headrace.lab.records.results import Cell, Study

BUDGETS = (64, 128, 256, 512)
NEVER = ("no difference", "No difference", "flat", "tie with", "No setting is better", "best at")


def scattered(
    budget: int, duration: float, noise: float, rng: random.Random, repeats: int = 3, on: bool = True
) -> Cell:
    """Repeats of which every figure scatters by `noise`."""

    def run() -> dict[str, float]:
        counts = ("completed", "total_input_tokens", "total_output_tokens")
        plain = metrics(duration)
        return {key: value if key in counts else value * rng.lognormvariate(0, noise) for key, value in plain.items()}

    return cell(budget, *(run() for _ in range(repeats)), on=on)


def beside(one: Cell, *shares: float | None) -> Cell:
    """The cell, with what other processes took in each of its runs."""
    runs = [
        run if share is None else replace(run, settings={**run.settings, "foreign_cpu_share": share})
        for run, share in zip(one.runs, shares, strict=True)
    ]
    return replace(one, runs=tuple(runs))


def said(of: Study) -> dict[str, Finding]:
    found = findings(of)
    for finding in found.values():
        assert not any(words in finding.claim for words in NEVER), finding.claim
    return found


def test_noise_beyond_the_bar_is_one_finding_and_no_claim_of_equality() -> None:
    rng = random.Random(1)
    world = study(*(scattered(budget, 100.0, 0.4, rng, on=on) for budget in BUDGETS for on in (True, False)))
    found = said(world)
    assert found["headline"].claim.startswith("Which setting is best cannot be decided: run-to-run noise in output")
    assert "Repeat on a quieter machine, or with more repeats." in found["headline"].claim
    undecided = found["budget-undecided"]
    assert undecided.claim.startswith("Cannot be decided: how duration, output throughput, mean TTFT, mean ITL")
    assert "whether chunked prefill on or off changes" in undecided.claim
    assert "Run-to-run noise is " in undecided.claim
    assert not {"budget-threshold.flat", "budget-trend.flat", "chunking.outcome"} & set(found)


@pytest.mark.parametrize("seed", range(8))
def test_three_quiet_repeats_see_six_per_cent(seed: int) -> None:
    """1 % of noise: 64 takes 6 % longer than the others, and off 6 % longer than on."""
    rng = random.Random(seed)
    world = study(
        *(scattered(budget, 106.0 if budget == 64 else 100.0, 0.01, rng) for budget in BUDGETS),
        *(scattered(budget, 112.4 if budget == 64 else 106.0, 0.01, rng, on=False) for budget in BUDGETS),
    )
    found = findings(world)
    assert "budget-undecided" not in found
    assert found["budget-threshold.duration"].claim.startswith("Below a budget of 128 tokens the run takes longer")
    assert "Without chunked prefill duration is longer" in found["chunking.outcome"].claim
    assert not {"on-64", "off-64", "off-128", "off-256", "off-512"} & set(found["headline"].cells)
    on, off = (next(one for one in world.cells if one.name == name) for name in ("on-256", "off-256"))
    pooled = ratio("duration", on, off, 4, world.cells)
    assert pooled is not None
    assert pooled.distinct and pooled.noise < 0.05


def test_a_drift_that_all_cells_of_a_repeat_share_is_no_noise() -> None:
    drift = (1.0, 1.3, 1.7)
    world = study(
        *(cell(b, *[metrics(d * factor) for factor in drift]) for b, d in ((64, 110), (128, 100), (256, 100)))
    )
    assert allowance("duration", world.cells) < 0.02
    assert "best at" in findings(world)["budget-threshold.duration"].claim


def test_disturbed_runs_of_every_cell_leave_nothing_to_claim() -> None:
    """128 ran beside others: that it took twice as long says nothing."""
    cells = [cell(budget, metrics(d), metrics(d * 1.01)) for budget, d in ((64, 50.0), (128, 100.0), (256, 98.0))]
    found = said(study(cells[0], beside(cells[1], 0.6, 0.55), beside(cells[2], 0.69, 0.15)))
    told = "4 of 6 runs were disturbed: other processes used 15 % to 69 % of the processor."
    assert found["headline"].claim.endswith(f"{told} Repeat them on a quiet machine.")
    assert "budget-threshold.duration" not in found
    assert found["budget-undecided"].caveats == (told,)
    assert found["caveat.disturbed"].claim.startswith(
        "4 of 6 runs: other processes used 15 % to 69 % of the processor."
    )
    assert "caveat.run-warnings" not in found


def test_what_a_warning_says_counts_as_what_a_setting_states() -> None:
    calm, busy = cell(64, metrics(100.0)), cell(128, metrics(150.0))
    text = "other processes used 40% of the machine's processor time during this run (more than 10%)"
    found = said(study(calm, replace(busy, runs=(replace(busy.runs[0], warnings=(text,)),))))
    assert "1 of 2 runs was disturbed: other processes used 40 % of the processor." in found["headline"].claim


def test_disturbed_repeats_are_left_out_where_undisturbed_ones_remain() -> None:
    """One of three runs was twice as slow beside others: the other two decide, and the claims stay sharp."""
    slow = beside(cell(128, metrics(200.0), metrics(100.0), metrics(101.0)), 0.5, None, None)
    world = study(cell(64, metrics(120.0), metrics(121.0), metrics(120.0)), slow, cell(256, *[metrics(100.0)] * 3))
    table = build(world)
    assert [len(one.runs) for one in table.cells] == [3, 2, 3]
    assert [(name, run.source) for name, run in table.set_aside] == [("on-128", "on-128/0")]
    found = findings(world)
    assert "best at 256" in found["budget-threshold.duration"].claim
    assert "disturbed" not in found["headline"].claim
    assert found["caveat.disturbed"].claim == (
        "1 of 9 runs: other processes used 50 % of the processor. on-128 run 0 is left out, since its cell has "
        "undisturbed repeats."
    )


def test_repeats_far_apart_widen_the_allowance_of_single_runs_beside_them() -> None:
    apart, single = cell(64, metrics(100.0), metrics(130.0)), cell(128, metrics(120.0))
    assert allowance("duration", [apart, single]) == pytest.approx(0.3)


def test_single_runs_that_go_up_and_down_recommend_nothing() -> None:
    durations = (50.0, 300.0, 40.0, 30.5, 40.0)
    world = study(*(cell(b, metrics(d)) for b, d in zip((64, 128, 256, 512, 1024), durations, strict=True)))
    found = findings(world)
    assert found["headline"].claim.startswith(
        "Which setting is best cannot be decided: over the budget the single runs"
    )
    assert found["budget-threshold.duration"].claim == "Duration has no clear trend over the budget (30.5 s to 300 s)."
    assert "show the machine more than the setting" in found["budget-threshold.duration"].caveats[-1]


def test_a_finding_about_ttft_has_the_topic_ttft() -> None:
    world = study(*(cell(b, metrics(), metrics()) for b in BUDGETS))
    flat = findings(world)["budget-trend.flat"]
    assert flat.claim.startswith("No difference in mean TTFT")
    assert flat.topic == "ttft"
