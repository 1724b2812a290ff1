"""Real logs and result files beside the checkout: every figure equals what a naive search finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headrace.lab.records.foreign import read_file, read_paths, study_from_runs
from headrace.lab.records.published import load_published

# Written out again, by hand, so that a wrong table in the importer cannot agree with itself.
LABELS = {
    "Successful requests": "completed",
    "Benchmark duration (s)": "duration",
    "Total input tokens": "total_input_tokens",
    "Total generated tokens": "total_output_tokens",
    "Request throughput (req/s)": "request_throughput",
    "Output token throughput (tok/s)": "output_throughput",
    "Total Token throughput (tok/s)": "total_token_throughput",
    "Mean TTFT (ms)": "mean_ttft_ms",
    "Median TTFT (ms)": "median_ttft_ms",
    "P99 TTFT (ms)": "p99_ttft_ms",
    "Mean TPOT (ms)": "mean_tpot_ms",
    "Median TPOT (ms)": "median_tpot_ms",
    "P99 TPOT (ms)": "p99_tpot_ms",
    "Mean ITL (ms)": "mean_itl_ms",
    "Median ITL (ms)": "median_itl_ms",
    "P99 ITL (ms)": "p99_itl_ms",
}


def naive(path: Path, label: str) -> list[float]:
    """Every number printed after the label, in order."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [float(found) for found in re.findall(rf"^[ >]*{re.escape(label)}:[ ]+([-\d.]+)\s*$", text, re.M | re.I)]


def test_every_figure_of_the_published_rounds(shared_data: Path) -> None:
    logs = sorted((shared_data / "published-rounds").glob("*.log"))
    assert len(logs) == 12
    for path in logs:
        ((run,), problems) = read_file(path)
        assert problems == ()
        assert run.metrics == {key: naive(path, label)[0] for label, key in LABELS.items()}, path.name


def test_settings_of_the_published_rounds_match_their_file_names(shared_data: Path) -> None:
    for path in sorted((shared_data / "published-rounds").glob("*.log")):
        ((run,), _) = read_file(path)
        _, switch, tokens = path.stem.split("-")
        assert run.settings["enable_chunked_prefill"] is (switch == "enable")
        assert run.settings["max_num_batched_tokens"] == int(tokens)
        assert run.settings["num_prompts"] == 1000
        assert run.settings["request_rate"] == "inf"
        assert run.settings["profile"] is True
        assert "failed" not in run.metrics  # the old layout has no such line


def test_the_packaged_table_equals_the_logs(shared_data: Path) -> None:
    imported = read_paths([shared_data / "published-rounds"])
    study = study_from_runs(imported.runs, "x", "x")
    packaged = load_published()
    assert imported.skipped == ()
    for ours, theirs in zip(packaged.cells, study.cells, strict=True):
        assert (ours.name, ours.status, ours.rule, ours.reason) == (
            theirs.name,
            theirs.status,
            theirs.rule,
            theirs.reason,
        )
        assert ours.settings == theirs.settings
        assert ours.runs[0].settings == theirs.runs[0].settings
        assert ours.runs[0].metrics == theirs.runs[0].metrics
        assert ours.runs[0].warnings == theirs.runs[0].warnings


@pytest.mark.parametrize("label", ["Successful requests", "Benchmark duration (s)", "Mean TTFT (ms)", "P99 ITL (ms)"])
def test_every_block_of_every_log_is_found(shared_data: Path, label: str) -> None:
    key = LABELS[label]
    blocks = 0
    for path in sorted((shared_data / "bench-logs").rglob("*")):
        if path.suffix in (".log", ".md", ".mdx", ".yaml"):
            runs = [] if not path.is_file() else list(read_file(path)[0])
            found = [run.metrics[key] for run in runs if key in run.metrics]
            # the layout of early 2024 has no unit in the label: the naive search does not know it
            if "2024-05_oldstyle" not in path.name and "2023-07" not in path.name:
                assert found == naive(path, label), path.name
            blocks += len(found)
    assert blocks > 140


def pairs(data: Path) -> list[tuple[Path, int, Path]]:
    """(log, index of the block, result JSON of the same run)."""
    logs, jsons = data / "bench-logs", data / "bench-json" / "vllm"
    found = [
        (log, 0, jsons / folder / log.name.replace("bench-", "result-").replace(".log", ".json"))
        for folder in ("a100-gemma4", "tpu-gemma4")
        for log in sorted((logs / folder).glob("bench-*.log"))
    ]
    for log in sorted((logs / "dgx-spark").rglob("*.log")):
        folder = jsons / "dgx-spark" / log.parent.name
        if log.name == "11-rate-sweep.log":
            rates = sorted(folder.glob("11-rate-sweep-*.json"))
            found += [(log, index, path) for index, path in enumerate(rates)]
        elif (folder / f"{log.stem}.json").exists():
            found.append((log, 0, folder / f"{log.stem}.json"))
    return [pair for pair in found if pair[0].name != "bench-short-rate2.log"]  # stops half-way: no block


def test_a_block_and_the_json_of_the_same_run_agree_to_rounding(shared_data: Path) -> None:
    compared = 0
    for log, index, path in pairs(shared_data):
        console, stored = read_file(log)[0][index], read_file(path)[0][0]
        for key, printed in console.metrics.items():
            assert f"{printed:.2f}" == f"{stored.metrics[key]:.2f}", (log.name, key)
            compared += 1
        assert console.settings["num_prompts"] == stored.settings["num_prompts"]
        assert console.settings["request_rate"] == stored.settings["request_rate"], log.name
    assert compared > 600


def test_nothing_is_skipped_in_silence(shared_data: Path) -> None:
    for folder in ("bench-logs", "bench-json"):
        root = shared_data / folder
        imported = read_paths([root])
        accounted = {str(root / run.source.split("#")[0]) for run in imported.runs} | {
            path for path, _ in imported.skipped
        }
        assert accounted == {str(path) for path in root.rglob("*") if path.is_file()}
        assert all(reason for _, reason in imported.skipped)


def test_no_two_runs_of_the_real_files_are_pooled(shared_data: Path) -> None:
    """None is a repeat of another but the sweep's two, which are a factor of two apart."""
    imported = read_paths([shared_data / "bench-logs", shared_data / "bench-json"])
    assert (len(imported.runs), sum("warm-up" in reason for _, reason in imported.skipped)) == (238, 1)
    cells = study_from_runs(imported.runs, "s", "S").cells
    assert [cell.name for cell in cells if len(cell.runs) > 1] == []
    assert len(cells) == 236  # without two exact duplicates, the summary of the sweep
    assert not any(run.source.startswith(("/", "..")) for run in imported.runs)


def test_no_log_yields_a_line_that_was_not_understood(shared_data: Path) -> None:
    imported = read_paths([shared_data / "bench-logs"])
    assert [text for run in imported.runs for text in run.warnings if text.startswith("not understood")] == []
