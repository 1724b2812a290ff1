"""docs/grafana/headrace.json against what a server really exposes: no panel without data, no mean that is none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import CONFIG, ScriptedEngine
from prometheus_client.parser import text_string_to_metric_families

from headrace.server.metrics import ServerMetrics

DASHBOARD = json.loads((Path(__file__).parents[2] / "docs" / "grafana" / "headrace.json").read_text())
SERIES = re.compile(r"((?:vllm|headrace):\w+)")
FROM_PROMETHEUS = {"instance", "le"}  # the scraper adds the one, the histogram the other


def exposed() -> dict[str, tuple[str, set[str]]]:
    """Sample name -> (type of its family, labels)."""
    text = ServerMetrics(CONFIG, "m", ScriptedEngine().stats).exposition().decode()
    return {
        sample.name: (family.type, set(sample.labels))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def wrong_means(query: str) -> list[str]:
    """Sums of a histogram that are not divided by their own count, both as rates over the same series and time."""
    right = re.findall(
        r"sum\(rate\((\S+)_sum(\{[^}]*\}\[[^\]]*\])\)\) / sum\(rate\((\S+)_count(\{[^}]*\}\[[^\]]*\])\)\)", query
    )
    good = {family for family, series, same_family, same in right if (family, series) == (same_family, same)}
    return [name for name in SERIES.findall(query) if name.endswith("_sum") and name.removesuffix("_sum") not in good]


def test_every_query_reads_series_and_labels_that_the_server_exposes() -> None:
    known = exposed()
    for title, query in queries():
        names = SERIES.findall(query)
        assert names, title
        for name in names:
            assert name in known, f"{title}: {name}"
        labels = set(re.findall(r"(\w+)=~?\"", query)) | {
            label for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(", ")
        }
        for name in names:
            assert labels - FROM_PROMETHEUS <= known[name][1], f"{title}: {labels}"
        assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


def test_counters_are_rates_and_gauges_are_not() -> None:
    known = exposed()
    for title, query in queries():
        for name in SERIES.findall(query):
            is_gauge = known[name][0] == "gauge"
            rated = re.search(rf"(rate|increase)\({re.escape(name)}{{", query) is not None
            assert rated != is_gauge, f"{title}: {name}"


def test_latency_means_divide_the_sum_by_the_count_and_quantiles_keep_the_buckets() -> None:
    latencies = [panel for panel in panels() if panel["fieldConfig"]["defaults"]["unit"] == "s"]
    assert len(latencies) >= 8
    for title, query in queries():
        assert wrong_means(query) == [], title
        if "histogram_quantile" in query:
            assert re.fullmatch(
                r"histogram_quantile\(0\.\d+, sum by \(le\) \(rate\(\S+_bucket\{[^}]*\}\[\S+\]\)\)\)", query
            )
    for panel in latencies:
        if not all("step_seconds_p99" in target["expr"] for target in panel["targets"]):
            assert any("_sum{" in target["expr"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize(
    "query",
    [
        "avg(vllm:x_seconds_sum{})",
        "sum(rate(vllm:x_seconds_sum{}[1m]))",
        "sum(rate(vllm:x_seconds_sum{}[1m])) / sum(rate(vllm:y_seconds_count{}[1m]))",
        "sum(rate(vllm:x_seconds_sum{}[1m])) / sum(rate(vllm:x_seconds_count{}[5m]))",
    ],
)
def test_a_mean_that_is_none_is_found(query: str) -> None:
    assert wrong_means(query) == ["vllm:x_seconds_sum"]


def test_panels_have_their_place_and_their_data_source() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert {"datasource", "model", "instance"} <= variables
    assert all(panel["datasource"]["uid"] == "${datasource}" and panel["description"] for panel in panels())
