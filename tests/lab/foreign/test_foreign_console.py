"""Console logs of vLLM's client: blocks in any text, of every generation."""

from __future__ import annotations

import pytest

from headrace.lab.records.foreign.console import read_console

NEW = """\
============ Serving Benchmark Result ============
Successful requests:                     98
Failed requests:                         2
Maximum request concurrency:             8
Request rate configured (RPS):           0.33
Benchmark duration (s):                  10.50
Total input tokens:                      1,000
Total generated tokens:                  500
Request throughput (req/s):              9.33
Request goodput (req/s):                 8.00
Output token throughput (tok/s):         47.62
Peak output token throughput (tok/s):    61.00
Peak concurrent requests:                9.00
Total token throughput (tok/s):          142.86
---------------Time to First Token----------------
Mean TTFT (ms):                          12.00
Median TTFT (ms):                        11.00
P95 TTFT (ms):                           20.00
P99.9 TTFT (ms):                         30.00
----------------End-to-end Latency----------------
Mean E2EL (ms):                          99.00
---------------Speculative Decoding---------------
Acceptance rate (%):                     52.76
Acceptance length:                       2.58
Drafts:                                  37
Draft tokens:                            111
Accepted tokens:                         58
Per-position acceptance (%):
  Position 0:                            75.68
  Position 1:                            50.33
==================================================
"""


def only_run(text: str):
    log = read_console(text, "x.log")
    assert len(log.runs) == 1, log
    return log.runs[0]


def test_every_figure_of_the_new_layout_has_its_json_key() -> None:
    run = only_run(NEW)
    assert run.metrics == {
        "completed": 98,
        "failed": 2,
        "duration": 10.5,
        "total_input_tokens": 1000,
        "total_output_tokens": 500,
        "request_throughput": 9.33,
        "request_goodput": 8.0,
        "output_throughput": 47.62,
        "max_output_tokens_per_s": 61.0,
        "max_concurrent_requests": 9.0,
        "total_token_throughput": 142.86,
        "mean_ttft_ms": 12.0,
        "median_ttft_ms": 11.0,
        "p95_ttft_ms": 20.0,
        "p99.9_ttft_ms": 30.0,
        "mean_e2el_ms": 99.0,
        "spec_decode_acceptance_rate": 52.76,
        "spec_decode_acceptance_length": 2.58,
        "spec_decode_num_drafts": 37,
        "spec_decode_draft_tokens": 111,
        "spec_decode_accepted_tokens": 58,
        "spec_decode_position_0_acceptance_rate": 75.68,
        "spec_decode_position_1_acceptance_rate": 50.33,
    }
    assert run.settings == {"max_concurrency": 8, "request_rate": 0.33}
    assert run.warnings == ()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "".join(f"    {line}\n" for line in text.splitlines()),
        lambda text: "".join(f"> {line}\n" for line in text.splitlines()),
        lambda text: "".join(f"(client pid=7) {line}\n" for line in text.splitlines()),
        lambda text: "".join(f"\x1b[32m{line}\x1b[0m\n" for line in text.splitlines()),
        lambda text: f"50%|##   | 1/2 [00:01<00:01, 1it/s]\r100%|####| 2/2 [00:02<00:00, 1it/s]{text}",
        lambda text: f"```\n{text}```\nafterwards\n",
        lambda text: text.replace("Mean TTFT", "INFO 01-01 engine.py: Running: 3 reqs, Waiting: 0 reqs\nMean TTFT"),
    ],
    ids=["crlf", "indented", "quoted", "prefixed", "coloured", "after-a-bar", "fenced", "interleaved"],
)
def test_the_text_around_a_block_does_not_change_its_figures(wrap) -> None:
    assert only_run(wrap(NEW)).metrics == only_run(NEW).metrics


def test_several_blocks_are_several_runs_with_their_own_client_settings() -> None:
    text = f"Traffic request rate: 1.0\n{NEW}\nnoise\nTraffic request rate: inf\n{NEW}"
    first, second = read_console(text, "sweep.log").runs
    assert (first.source, second.source) == ("sweep.log#1", "sweep.log#2")
    assert (first.settings["request_rate"], second.settings["request_rate"]) == (1.0, "inf")


def test_a_block_without_its_closing_line_is_read_and_marked() -> None:
    run = only_run(NEW[: NEW.index("-----Spec") - 10])
    assert run.metrics["mean_e2el_ms"] == 99.0
    assert run.warnings == ("the block has no closing line: it may be cut short",)


def test_sglang_labels_become_vllms_keys_where_they_mean_the_same() -> None:
    run = only_run(
        """\
============ Serving Benchmark Result ============
Backend:                                 sglang
Traffic request rate:                    inf
Max request concurrency:                 16
Successful requests:                     80
Benchmark duration (s):                  60.60
Total input tokens:                      179772
Total generated tokens (retokenized):    39000
Input token throughput (tok/s):          2966.39
Concurrency:                             14.01
----------------End-to-End Latency----------------
Mean E2E Latency (ms):                   10615.87
---------------Inter-Token Latency----------------
Max ITL (ms):                            194.58
==================================================
"""
    )
    assert run.metrics["mean_e2el_ms"] == 10615.87
    assert run.metrics["max_itl_ms"] == 194.58
    assert run.metrics["input_throughput"] == 2966.39
    assert "total_output_tokens" not in run.metrics
    assert run.settings == {"backend": "sglang", "request_rate": "inf", "max_concurrency": 16}


def test_layouts_without_a_frame() -> None:
    early_2024 = (
        "Successful requests: 9\nBenchmark duration: 294.1 s\nRequest throughput: 6.05 requests/s\nMean TTFT: 5.5 ms\n"
    )
    assert only_run(early_2024).metrics == {
        "completed": 9,
        "duration": 294.1,
        "request_throughput": 6.05,
        "mean_ttft_ms": 5.5,
    }
    oldest = "Total time: 166.88 s\nThroughput: 5.99 requests/s\nAverage latency: 67.59 s\n"
    oldest += "Average latency per token: 0.21 s\n"
    run = only_run(oldest)
    assert run.metrics == {"duration": 166.88, "request_throughput": 5.99, "mean_e2el_ms": 67590.0}
    assert "per token" in run.warnings[0]  # named, not dropped


def test_prose_with_a_label_is_no_result() -> None:
    assert read_console("Successful requests: 3\nand then nothing more\n", "x").runs == ()


def test_a_log_without_a_block_says_how_far_the_run_came() -> None:
    log = read_console("Traffic request rate: 2.0\n 79%|###  | 793/1000 [05:12<01:20, 2.6it/s]\n", "x")
    assert log.runs == ()
    assert log.problems == ("no result block: the log stops when 793 of 1000 requests were done",)


def test_placeholders_are_no_figures() -> None:
    log = read_console(f"{'=' * 12} Serving Benchmark Result {'=' * 12}\nSuccessful requests:   xxx\n{'=' * 50}\n", "x")
    assert log.runs == ()
    assert "holds no figures" in log.problems[0]


def test_what_is_not_understood_is_named() -> None:
    run = only_run(NEW.replace("Peak concurrent requests:", "Widgets per fortnight:   "))
    assert run.warnings == ("not understood: Widgets per fortnight: 9.00",)
