"""The twelve published rounds: what the rules must find in them, from the data alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

import headrace.lab.findings as package
from headrace.lab.findings import Finding, explain
from headrace.lab.records.published import load_published


@pytest.fixture(scope="module")
def found() -> dict[str, Finding]:
    return {finding.id: finding for finding in explain(load_published())}


def test_the_run_takes_longer_below_256_and_ties_from_there(found: dict[str, Finding]) -> None:
    duration = found["budget-threshold.duration"]
    assert duration.claim == (
        "Below a budget of 256 tokens the run takes longer: 458 s at 64 and 407 s at 128 against 391 s at 256; from "
        "256 on all budgets lie within 3.6 %, best at 256."
    )
    assert duration.cells == ("on-64", "on-128", "on-256", "on-512", "on-2048", "on-4096", "on-8192")
    throughput = found["budget-threshold.output-throughput"]
    assert throughput.numbers["flat_from"] == "256"
    assert throughput.numbers["spread_where_flat"] < 0.04
    assert "best at 256" in throughput.claim


def test_ttft_falls_until_512(found: dict[str, Finding]) -> None:
    assert found["budget-trend.ttft"].claim == (
        "Mean TTFT falls from 64 to 512 tokens (220 s to 146 s) and is flat from there on (within 0.5 %)."
    )


def test_itl_and_tpot_rise_until_2048_while_the_median_itl_turns(found: dict[str, Finding]) -> None:
    rising = found["budget-trend.itl"]
    assert rising.claim.startswith("Mean ITL and median TPOT rise from 64 to 2048 tokens")
    assert rising.numbers["flat_from"] == "2048"
    mix = found["budget-trend.itl-mix"]
    assert mix.claim.startswith("From 512 to 2048 tokens the median ITL falls (437 ms to 294 ms) while the mean rises")
    assert "a few long steps" in mix.claim
    assert "many short ones" in mix.claim


def test_the_tpot_tail_keeps_growing(found: dict[str, Finding]) -> None:
    tail = found["budget-trend.tpot-tail"]
    assert tail.claim == "P99 TPOT rises from 64 to 8192 tokens (72.2 ms to 3.09 s), over the whole range."
    assert "flat_from" not in tail.numbers


def test_chunking_makes_no_difference_but_for_the_tail(found: dict[str, Finding]) -> None:
    outcome = found["chunking.outcome"]
    assert outcome.claim == (
        "From a budget of 2048 tokens up chunked prefill on or off makes no difference in duration, output throughput "
        "and mean TTFT: at most 2.1 %."
    )
    tail = found["chunking.tpot-tail"]
    assert "p99 5.65 s against 1.55 s at 2048 tokens" in tail.claim
    assert "stall the sequences that decode" in tail.claim


def test_the_two_short_rounds_are_out_of_every_comparison(found: dict[str, Finding]) -> None:
    degraded = found["comparability.degraded"]
    assert degraded.cells == ("off-256", "off-512")
    assert "704 of 1000 and 300 of 1000 requests failed, because max_model_len (256 and 512)" in degraded.claim
    assert "left out of all comparisons" in degraded.claim
    for finding in found.values():
        if finding.topic not in ("comparability", "caveat"):
            assert not {"off-256", "off-512"} & set(finding.cells), finding.id


def test_ttft_is_the_queue_by_littles_law(found: dict[str, Finding]) -> None:
    queue = found["queueing.ttft"]
    numbers = queue.numbers["on-256"]
    assert numbers["in_system"] == pytest.approx(numbers["throughput_req_s"] * (165.59 + 42.9), rel=0.001)
    assert numbers["in_system"] > numbers["max_num_seqs"] == 256
    assert numbers["ttft_s"] > 100 * numbers["prefill_s"]
    assert "At request rate inf TTFT is waiting in the queue, not prefill" in queue.claim
    assert len(queue.cells) == 10


def test_a_step_costs_what_its_tokens_cost(found: dict[str, Finding]) -> None:
    step = found["step-time.tokens"]
    assert "nearly proportional" in step.claim
    assert "about 1 ms a token" in step.claim
    assert "latency between phases instead of buying throughput" in step.claim
    assert step.numbers["median_step_ms"] == {"64": 68.24, "128": 120.48, "256": 225.01, "512": 437.46}


def test_the_caveats(found: dict[str, Finding]) -> None:
    assert "cannot be told from noise" in found["caveat.single-run"].claim
    assert set(found["caveat.confounded"].numbers) == {"max_model_len", "max_num_seqs"}
    profiler = found["caveat.profiler"]
    assert "in every run" in profiler.claim
    assert "not in the durations" in profiler.claim
    assert profiler.numbers["largest_gap_s"] < 1


def test_the_headline_comes_first_and_names_a_setting_its_price_and_its_doubt(found: dict[str, Finding]) -> None:
    first = next(iter(found.values()))
    assert first.id == "headline"
    assert first.claim.startswith("Use chunked prefill with a budget of 256 tokens: 509 tok/s")
    assert "at the price of mean TTFT 166 s" in first.claim
    assert "not settled by one run a cell" in first.claim
    assert any("profiler" in caveat for caveat in first.caveats)


def test_every_finding_is_plain_json_with_numbers_and_cells(found: dict[str, Finding]) -> None:
    json.dumps([asdict(finding) for finding in found.values()], allow_nan=False)
    for finding in found.values():
        assert finding.numbers, finding.id
        assert finding.cells, finding.id


def test_no_rule_knows_a_published_number() -> None:
    """Figures, budgets and settings of the published rounds appear nowhere in the rules' code."""
    folder = Path(package.__file__).parent
    code = "\n".join(
        line.split("#")[0]
        for path in folder.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if '"""' not in line
    )
    for figure in ("2048", "8192", "102000", "512", "704", "391", "458"):
        assert figure not in code, figure
