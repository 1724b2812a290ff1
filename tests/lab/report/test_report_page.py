"""The page: what it says, and that text from a study stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from report_worlds import FINDING, campaign, measured, study

from headrace.lab.findings import explain
from headrace.lab.findings.finding import Finding
from headrace.lab.records.results import Cell, CellStatus, RunResult, Study
from headrace.lab.report.data import study_view
from headrace.lab.report.page import inert_json, page_html, plotly_script
from headrace.lab.report.text import decimals, percent, unbroken, without_shared_start

HOSTILE = "</script><img src=x onerror=alert(1)><b>\u2028 & \"'"


def page(world: Study, *findings: Finding) -> str:
    return page_html([study_view(world, findings)])


class Elements(HTMLParser):
    """Collects the elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_findings_come_first_with_their_numbers_cells_and_caveats() -> None:
    text = page(campaign(), FINDING)
    assert text.index(FINDING.claim.replace("43.9 s", "43.9\u00a0s")) < text.index('id="charts"')
    read = Elements(text)
    assert "71.25" in read.text and "One run a cell." in read.text
    links = [attrs["href"] for tag, attrs in read.elements if tag == "a" and attrs.get("class") == "cell"]
    assert "#s0c0" in links  # on-128 leads to its row
    assert '<span class="cell">gone</span>' in text  # a cell that the study does not have is named, not linked


def test_every_link_inside_the_page_has_its_target() -> None:
    read = Elements(page(campaign(3), FINDING))
    ids = [attrs["id"] for _, attrs in read.elements if attrs.get("id")]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"] for tag, attrs in read.elements if tag == "a"}
    assert {target for target in targets if target} <= {f"#{name}" for name in ids}


def test_cells_without_a_result_are_listed_with_rule_and_reason() -> None:
    text = Elements(page(campaign())).text
    assert "R1" in text and "--max-num-batched-tokens 64 is below --max-model-len 512" in text
    assert "the server stopped answering after 31 s" in text


def test_same_input_gives_the_same_bytes() -> None:
    assert page(campaign(3), FINDING) == page(campaign(3), FINDING)


@pytest.mark.parametrize("place", ["title", "cell", "model", "setting key", "reason", "finding", "fact"])
def test_hostile_text_adds_no_element(place: str) -> None:
    calm, wild = (_world(place, text) for text in ("calm", HOSTILE))
    before, after = Elements(page(*calm)), Elements(page(*wild))
    assert [tag for tag, _ in after.elements] == [tag for tag, _ in before.elements]
    assert not [name for _, attrs in after.elements for name in attrs if name.startswith("on")]
    assert "<img src=x onerror=alert(1)>" in after.text.replace("\ufffd", "")  # shown as the text that it is


def _world(place: str, text: str) -> tuple[Study, Finding]:
    cells = [measured(128, name=text if place == "cell" else "a"), measured(256, name="b")]
    more: dict[str, object] = {"model": text} if place == "model" else {text: 1} if place == "setting key" else {}
    cells.append(measured(512, name="c", **more))
    last = campaign().cells[-1]
    if place == "reason":
        last = type(last)(last.name, last.settings, last.status, (), text, text)
    world = study(*cells, last, title=text if place == "title" else "t", fact=text if place == "fact" else "f")
    words = text if place == "finding" else "w"
    return world, Finding(words, words, words, {words: words}, (words,), (words,))


def test_policy_allows_only_hashed_scripts_and_styles() -> None:
    text = page(campaign())
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    rules = dict(part.split(" ", 1) for part in policy[1].split("; "))
    assert rules["default-src"] == "'none'" and "unsafe" not in policy[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    for source in (*scripts, plotly_script()):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'" in rules["script-src"]
    assert len(scripts) == 1 and len(rules["script-src"].split()) == 2


def test_nothing_is_fetched() -> None:
    for tag, attrs in Elements(page(campaign())).elements:
        assert tag not in ("link", "img", "iframe", "base", "object", "embed")
        assert "src" not in attrs and not (attrs.get("href") or "#").startswith(("http", "//"))


def test_data_cannot_end_its_element_and_reads_back_unchanged() -> None:
    text = inert_json({"x": HOSTILE})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"x": HOSTILE}


def test_charts_stand_as_svg_without_script() -> None:
    read = Elements(page(campaign()))
    assert sum(tag == "svg" and attrs.get("class") == "still" for tag, attrs in read.elements) == 12


def test_each_chart_has_its_values_in_words() -> None:
    labels = [attrs["aria-label"] for _, attrs in Elements(page(campaign())).elements if attrs.get("class") == "plot"]
    assert len(labels) == 12
    assert all("on-128" in str(label) and "off-64 (illegal)" in str(label) for label in labels)


def test_a_page_stays_near_two_mebibytes() -> None:
    assert len(page(campaign(3), FINDING).encode()) < 2.5 * 2**20


def test_studies_beside_have_the_same_dashboards_and_one_chart_script() -> None:
    text = page_html([study_view(campaign(), (), 0), study_view(campaign(3), (), 1)])
    assert text.count('class="still"') == 24
    assert text.count('id="plotly"') == 1


def test_single_runs_and_repeats_are_told_apart() -> None:
    assert "single run a cell" in page(campaign(1))
    assert "n = 3 runs a cell; bar: lowest to highest" in page(campaign(3))


def test_the_best_table_ranks_by_what_the_headline_ranks() -> None:
    read = Elements(page(campaign(3), *explain(campaign(3))))
    table = read.text[read.text.index("tied with it") :]
    assert table.startswith("tied with itOutput throughput") and "Total throughput" not in table[:400]
    assert re.search(r"within [\d.]+\u00a0% \(95\u00a0% interval, from repeats\)", table)


def test_figures_are_for_people() -> None:
    assert [percent(share) for share in (0.04, 0.0123, 1.54)] == ["4\u00a0%", "1.2\u00a0%", "154\u00a0%"]
    assert "23.5\u00a0GiB" in page(study(measured(64), memory_bytes=25276510208))


def test_flags_and_values_do_not_break_at_their_hyphens() -> None:
    assert unbroken("set --max-num-seqs <= 4, or v0-chunked") == (
        "set <span class=nb>--max-num-seqs</span> &lt;= 4, or <span class=nb>v0-chunked</span>"
    )
    assert unbroken("a" + "-b" * 40) == "a" + "-b" * 40  # too long for a narrow page


def test_tails_stand_before_medians_and_what_is_the_same_everywhere_has_no_column() -> None:
    heads = re.findall(r'class="sort">(.*?)<', page(campaign()).partition('id="results"')[2])
    assert heads.index("ITL p99") < heads.index("TTFT median")
    assert "completed" not in heads and "failed" not in heads
    text = Elements(page(campaign())).text
    assert "120 requests completed in every run; 0 requests failed in every run" in text
    assert "with repeats" not in text and "with repeats" in Elements(page(campaign(3))).text


def test_a_column_has_one_number_of_decimals() -> None:
    assert [decimals(values) for values in ((407.0, 390.7), (27.3, 1130.5), (3, 4000), (0.31, 0.5), ())] == [
        1,
        1,
        0,
        3,
        0,
    ]


def test_long_names_lose_their_shared_start_in_the_table_and_keep_it_in_the_title() -> None:
    names = [f"model-openai-random-in-4096-rate-{rate}" for rate in (1, 16)]
    text = page(study(*(measured(64 * n, name=name) for n, name in enumerate(names, 1))))
    assert 'scope="row" title="model-openai-random-in-4096-rate-1"><span class=nb>' not in text
    assert 'scope="row" title="model-openai-random-in-4096-rate-1">…1</th>' in text
    assert without_shared_start(["on-128", "on-256"]) == ["on-128", "on-256"]


def test_an_empty_study_still_gives_a_page() -> None:
    text = page(study())
    assert "No cells" in text and "No finding could be derived" in text


def test_a_study_in_which_everything_failed_says_so() -> None:
    text = page(study(*(cell for cell in campaign().cells if not cell.runs)))
    assert "Nothing to compare" in text and text.count('class="still"') == 12


def test_what_the_server_counted_stands_in_a_table_of_its_own() -> None:
    counted = {"duration": 10.0, "completed": 5.0, "server_mean_queue_ms": 1234.0, "server_max_kv_use": 0.25}
    cells = (
        Cell("a", {}, CellStatus.OK, (RunResult("a/1", {}, counted),)),
        Cell("b", {}, CellStatus.OK, (RunResult("b/1", {}, {"duration": 9.0, "completed": 5.0}),)),
    )
    page = page_html([study_view(Study("s", "t", "measured", cells), (), 0)])
    table = page[page.index("By the server") :].partition("</table>")[0]
    assert "1,234" in table and "0.25" in table and "preempted" not in table
