"""The same rules on small studies with known causes: they claim what is there, and no more."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import pytest
from findings_worlds import cell, findings, metrics, over_budgets, study
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.lab.findings import explain
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study


def test_flat_figures_give_no_difference_and_its_size() -> None:
    found = findings(over_budgets("duration", [100, 101, 100.5, 99.8, 100]))
    assert found["headline"].claim.startswith("No setting is better than another")
    assert "No difference in duration" in found["budget-threshold.flat"].claim
    assert "larger than 1.2 %" in found["budget-threshold.flat"].claim
    assert "budget-threshold.duration" not in found


def test_a_reversed_trend_gives_the_reversed_claim() -> None:
    world = study(*(cell(budget, metrics(float(d))) for budget, d in ((64, 100), (128, 110), (256, 130), (512, 170))))
    found = findings(world)
    assert found["budget-threshold.duration"].claim == (
        "Duration rises from 64 to 512 tokens (100 s to 170 s), over the whole range: best at 64, the smallest tried."
    )
    assert found["headline"].claim.startswith("Use chunked prefill with a budget of 64 tokens")


def test_noise_between_repeats_gives_no_claim() -> None:
    """Twenty studies of pure noise (5 % a run): at most two may claim a threshold at 95 % confidence."""
    claims = 0
    for seed in range(20):
        rng = random.Random(seed)
        budgets = (64, 128, 256, 512)
        world = study(*(cell(budget, *[metrics(100 * rng.gauss(1, 0.05)) for _ in range(3)]) for budget in budgets))
        claims += "budget-threshold.duration" in findings(world)
    assert claims <= 2


def test_repeats_show_what_one_run_cannot() -> None:
    rng = random.Random(4)
    durations = {64: 103.0, 128: 101.5, 256: 100.0, 512: 100.0, 1024: 100.0}
    one_run = study(*(cell(budget, metrics(duration)) for budget, duration in durations.items()))
    five_runs = study(
        *(
            cell(budget, *[metrics(duration * rng.gauss(1, 0.002)) for _ in range(5)])
            for budget, duration in durations.items()
        )
    )
    assert "budget-threshold.flat" in findings(one_run)
    claim = findings(five_runs)["budget-threshold.duration"].claim
    assert claim.startswith("Below a budget of 256 tokens the run takes longer: 103 s at 64")
    assert "caveat.single-run" not in findings(five_runs)


def test_paired_repeats_see_through_a_drift_that_both_cells_share() -> None:
    """Each repeat is slower than the one before, in both cells alike; within a pair the difference is clear."""
    drift = [1.0, 1.2, 1.5, 1.9]
    on = [metrics(100 * factor, mean_ttft_ms=100.0 * factor) for factor in drift]
    off = [metrics(110 * factor, mean_ttft_ms=100.0 * factor) for factor in drift]
    world = study(cell(64, *on), cell(64, *off, on=False), cell(128, *on), cell(128, *off, on=False))
    claim = findings(world)["chunking.outcome"].claim
    assert claim.startswith("Without chunked prefill duration is longer: ")


def test_on_and_off_differ_only_where_they_do() -> None:
    world = study(
        *(cell(budget, metrics()) for budget in (64, 128, 256)),
        cell(64, metrics(150.0, mean_ttft_ms=150.0), on=False),
        cell(128, metrics(101.0), on=False),
        cell(256, metrics(100.5), on=False),
    )
    claim = findings(world)["chunking.outcome"].claim
    assert "From a budget of 128 tokens up chunked prefill on or off makes no difference" in claim
    assert "at most 1.0 %" in claim
    assert "duration is longer: 150 s against 100 s at 64 tokens" in claim


def test_a_shorter_tail_without_chunking_is_told_without_the_cause_of_a_longer_one() -> None:
    world = study(
        *(cell(budget, metrics()) for budget in (64, 128)),
        *(cell(budget, metrics(p99_tpot_ms=10.0), on=False) for budget in (64, 128)),
    )
    claim = findings(world)["chunking.tpot-tail"].claim
    assert "the TPOT tail is shorter" in claim
    assert "stall" not in claim


def test_two_generations_of_the_scheduler_are_two_series() -> None:
    def generation(name: str, duration: float, on: bool) -> list[Cell]:
        policy = {"v0": ("v0", "v0-chunked"), "v1": ("v1-whole", "v1")}[name][on]
        return [
            replace(cell(budget, metrics(duration), on=on, policy=policy), name=f"{name}-{on}-{budget}")
            for budget in (64, 128, 256)
        ]

    found = findings(
        study(*(one for name in ("v0", "v1") for on in (True, False) for one in generation(name, 100.0, on)))
    )
    assert found["budget-threshold.flat"].cells == ("v0-True-64", "v0-True-128", "v0-True-256")
    assert set(found["chunking.outcome"].cells) == {f"v0-{on}-{b}" for on in (True, False) for b in (64, 128, 256)}
    assert set(found["chunking.outcome.2"].cells) == {f"v1-{on}-{b}" for on in (True, False) for b in (64, 128, 256)}


def test_a_setting_that_moves_with_the_budget_is_a_caveat_and_no_second_factor() -> None:
    world = study(
        *(cell(budget, metrics(), max_model_len=4096) for budget in (64, 128, 256)),
        *(cell(budget, metrics(), on=False, max_model_len=budget) for budget in (64, 128, 256)),
    )
    found = findings(world)
    assert found["budget-threshold.flat"].cells == ("on-64", "on-128", "on-256")
    assert len(found["chunking.outcome"].cells) == 6
    assert found["caveat.confounded"].claim.startswith("max_model_len (64, 128, 256, 4096) varied together")


def test_what_only_the_runs_state_counts_too() -> None:
    """A plan's cell lists the server's flags; the load stands in its runs."""
    cells = [cell(budget, metrics(mean_ttft_ms=6000.0), max_num_seqs=4) for budget in (64, 128)]
    bare = [
        replace(one, settings={"max_num_batched_tokens": budget}) for one, budget in zip(cells, (64, 128), strict=True)
    ]
    assert findings(study(*bare))["queueing.ttft"].claim.startswith("At request rate inf TTFT is waiting")


def test_warnings_of_runs_reach_the_headline() -> None:
    calm, busy = cell(64, metrics(200.0)), cell(128, metrics(100.0))
    busy = replace(busy, runs=(replace(busy.runs[0], warnings=("3 of 100 requests were sent late.",)),))
    found = findings(study(calm, busy))
    assert "1 of 2 compared cells carry warnings about their runs." in found["headline"].caveats
    assert found["caveat.run-warnings"].claim == "1 of 2 runs: 3 of 100 requests were sent late."


def test_warnings_that_differ_in_numbers_only_are_one() -> None:
    cells = [cell(budget, metrics()) for budget in (64, 128, 256)]
    texts = ("sent 3 of 100 requests 12.5% late.", "sent 11 of 100 requests 4% late.", "the clock was set")
    cells = [
        replace(one, runs=(replace(one.runs[0], warnings=(text,)),)) for one, text in zip(cells, texts, strict=True)
    ]
    assert findings(study(*cells))["caveat.run-warnings"].claim == (
        "2 of 3 runs: sent 3 to 11 of 100 requests 4% to 12.5% late; 1 of 3 runs: the clock was set."
    )


def test_illegal_cells_are_one_finding_with_rule_and_reason() -> None:
    world = study(
        *(cell(budget, metrics()) for budget in (64, 128, 256)),
        cell(32, status=CellStatus.ILLEGAL, rule="R2", reason="a budget of 32 is below --max-num-seqs 64."),
        *(
            cell(budget, on=False, status=CellStatus.ILLEGAL, rule="R1", reason=f"{budget} is below --max-model-len")
            for budget in (64, 128)
        ),
    )
    illegal = findings(world)["comparability.illegal"]
    assert illegal.claim == (
        "3 of 6 cells are illegal and were not launched. R2: on-32 (a budget of 32 is below --max-num-seqs 64); R1: "
        "off-64 and off-128 (for example off-64: 64 is below --max-model-len)."
    )
    assert illegal.cells == ("on-32", "off-64", "off-128")


def test_a_cell_whose_server_refused_was_launched() -> None:
    refused = cell(128, status=CellStatus.ILLEGAL, rule="R5", reason="R5: 4 heads do not divide by 3")
    found = findings(study(cell(64, metrics()), replace(refused, refused=True)))
    assert "comparability.illegal" not in found
    assert found["comparability.refused"].claim == (
        "1 of 2 cells is illegal and was launched, and refused by the server. R5: on-128 (4 heads do not divide by 3)."
    )


def test_one_cell_is_nothing_to_compare() -> None:
    found = findings(study(cell(64, metrics())))
    assert found["headline"].claim == (
        "The study has one cell, so there is nothing to compare. on-64: output throughput 50.0 tok/s, mean TTFT "
        "100 ms, median TPOT 20.0 ms."
    )
    assert not [name for name in found if name.startswith(("budget-", "chunking"))]


def test_all_failed() -> None:
    world = study(*(cell(b, status=CellStatus.FAILED, reason="the server did not start") for b in (64, 128)))
    found = findings(world)
    assert found["headline"].claim.startswith("No cell can be compared")
    assert "on-64 (the server did not start)" in found["comparability.failed"].claim


def test_an_empty_study_is_no_error() -> None:
    assert [one.id for one in explain(study())] == ["headline"]


def test_missing_metrics_silence_only_the_rules_that_need_them() -> None:
    bare = {"completed": 100, "duration": 10.0}
    found = findings(study(cell(64, bare), cell(128, {**bare, "duration": 12.0})))
    assert set(found) == {"headline", "budget-threshold.duration", "caveat.single-run"}


def test_a_cell_with_failures_is_left_out_even_when_nobody_marked_it() -> None:
    world = study(cell(64, metrics()), cell(128, metrics()), cell(256, metrics(50.0, completed=40.0)))
    found = findings(world)
    assert found["comparability.degraded"].cells == ("on-256",)
    assert "on-256" not in found["headline"].cells


def test_another_workload_is_not_compared() -> None:
    world = study(cell(64, metrics()), cell(128, metrics()), cell(256, metrics(10.0, total_input_tokens=500.0)))
    assert findings(world)["comparability.left-out"].cells == ("on-256",)


def test_load_is_no_setting_to_recommend() -> None:
    def at_rate(rate: float) -> Cell:
        figures = {**metrics(100 / rate), "mean_ttft_ms": 50.0 * rate}
        run = RunResult("x", {"request_rate": rate}, figures)
        return Cell(f"rate-{rate:g}", {"request_rate": rate}, CellStatus.OK, (run,))

    found = findings(study(at_rate(1), at_rate(2), at_rate(4)))
    assert "no setting to recommend" in found["headline"].claim
    assert "rises from 1 to 4 requests/s" in found["request-rate-trend.ttft"].claim


def test_no_queue_is_claimed_when_ttft_is_the_prompts_own_time() -> None:
    # 100 s for 10,000 tokens is 10 ms a token; a prompt has 50 tokens: 500 ms
    assert "queueing.ttft" not in findings(study(cell(64, metrics(mean_ttft_ms=600.0), max_num_seqs=1)))
    assert "queueing.ttft" in findings(study(cell(64, metrics(mean_ttft_ms=6000.0), max_num_seqs=4)))


def test_no_queue_is_claimed_while_all_that_is_in_the_system_can_run() -> None:
    """6 s of TTFT and 1 s of decoding at one request a second: 7 in the system."""
    slow = metrics(mean_ttft_ms=6000.0)
    assert "queueing.ttft" in findings(study(cell(64, slow, max_num_seqs=6)))
    assert "queueing.ttft" not in findings(study(cell(64, slow, max_num_seqs=7)))
    assert "queueing.ttft" not in findings(study(cell(64, slow, max_num_seqs=None)))
    # 64 may run, but 75 tokens a request and blocks for 400 tokens let five
    claim = findings(study(cell(64, slow, num_blocks=25, block_size=16)))["queueing.ttft"].claim
    assert "at most 5 can run (the KV cache of 400 tokens)" in claim


def test_ttft_without_a_queue_is_the_prefill_of_all_prompts_together() -> None:
    """Twenty prompts of 200 tokens at once, all of which may run: 4,000 tokens are computed before the last one."""
    figures = metrics(6.0, completed=20.0, total_input_tokens=4000.0, total_output_tokens=200.0, mean_ttft_ms=3000.0)
    found = findings(study(cell(512, figures, max_num_seqs=32, num_prompts=20)))
    assert "queueing.ttft" not in found
    assert found["ttft.prefill-together"].claim == (
        "TTFT is the prefill of all prompts together, not a queue. In on-512 20 requests arrive at once and 32 can run "
        "(max_num_seqs); their prompts are 4000 tokens, at least 8 steps of 512 tokens. At the run's mean cost of a "
        "token that is about 5.71 s for all of them, against a mean TTFT of 3.00 s."
    )
    tiny = {**figures, "mean_ttft_ms": 60_000.0}  # nothing here explains that
    assert "ttft.prefill-together" not in findings(study(cell(512, tiny, max_num_seqs=32, num_prompts=20)))


def test_no_queue_is_claimed_when_the_client_limits_concurrency() -> None:
    assert "queueing.ttft" not in findings(study(cell(64, metrics(mean_ttft_ms=6000.0), max_concurrency=8)))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([64.0, 128.0, 256.0], "saturated, so the budget moves latency between phases"),
        ([64.0, 80.0, 90.0], "hardly grows with the tokens in it"),
    ],
)
def test_step_time_against_tokens(steps: list[float], expected: str) -> None:
    # the run's cost of a token is that of a full step, so that all steps count as full
    cells = [
        cell(budget, metrics(10 * step / budget, median_itl_ms=step))
        for budget, step in zip((64, 128, 256), steps, strict=True)
    ]
    assert expected in findings(study(*cells))["step-time.tokens"].claim


def test_a_profiler_whose_trace_was_written_inside_the_run() -> None:
    world = study(*(cell(b, metrics(100.0), profile=True, progress_elapsed_s=60) for b in (64, 128)))
    assert "probably in the durations" in findings(world)["caveat.profiler"].claim


_value = st.one_of(st.none(), st.floats(0, 1e7), st.sampled_from([float("inf"), float("nan")]))
_figures = st.fixed_dictionaries(dict.fromkeys(metrics(), _value)).map(
    lambda figures: {key: value for key, value in figures.items() if value is not None}
)
_cells = st.builds(
    lambda budget, on, status, runs, seqs: cell(budget, *runs, on=on, status=status, max_num_seqs=seqs),
    st.sampled_from([1, 64, 128, 256]),
    st.booleans(),
    st.sampled_from(list(CellStatus)),
    st.lists(_figures, max_size=3),
    st.sampled_from([4, 8]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_cells, max_size=6))
def test_any_study_is_explained_without_an_error_and_as_json(cells: list[Cell]) -> None:
    named = [replace(one, name=f"{index}-{one.name}") for index, one in enumerate(cells)]
    found = explain(Study("any", "Any", "measured", tuple(named)))
    assert found[0].id == "headline"
    assert len({one.id for one in found}) == len(found)
    json.dumps([asdict(one) for one in found], allow_nan=False)
