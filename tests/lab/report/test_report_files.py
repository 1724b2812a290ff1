"""Files and the terminal: the page, its JSON twin, the summary, and what happens with bad input."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import pytest
from report_worlds import FINDING, campaign, measured, study, unmeasured

from headrace.errors import ConfigError
from headrace.lab.findings import explain
from headrace.lab.findings.finding import Finding
from headrace.lab.records.published import load_published
from headrace.lab.records.results import CellStatus, study_from_json, study_to_json
from headrace.lab.report import load_study, studies_beside, write_report
from headrace.lab.report.data import study_view
from headrace.lab.report.summary import MAX_LINES, print_summary, summary_lines


def test_the_twin_holds_the_studies_and_findings_as_they_came_in(tmp_path: Path) -> None:
    world, other = campaign(3), study(measured(64), name="other")
    twin = json.loads(write_report(tmp_path, [world, other], [[FINDING], []]).json.read_text())
    first, second = twin["studies"]
    assert first["study"] == json.loads(json.dumps(asdict(world)))
    assert first["findings"] == json.loads(json.dumps([asdict(FINDING)]))
    assert second["study"]["name"] == "other" and second["findings"] == []
    text = json.dumps({"schema_version": 1, **first["study"]})
    assert study_from_json(text, source="twin") == world  # nothing was lost on the way


def test_the_twin_holds_what_the_charts_show(tmp_path: Path) -> None:
    twin = json.loads(write_report(tmp_path, [campaign()], [[]]).json.read_text())
    duration = twin["studies"][0]["charts"][0]["panels"][0]
    shown = {point["cell"]: point["y"] for line in duration["series"] for point in line["points"]}
    assert shown["on-128"] == pytest.approx(55.625)


def test_written_twice_the_files_are_identical(tmp_path: Path) -> None:
    one = write_report(tmp_path / "a", [campaign(3)], [[FINDING]])
    two = write_report(tmp_path / "b", [campaign(3)], [[FINDING]])
    assert one.html.read_bytes() == two.html.read_bytes()
    assert one.json.read_bytes() == two.json.read_bytes()
    assert {path.name for path in one.html.parent.iterdir()} == {"report.html", "report.json"}


def test_a_study_is_found_in_its_directory_or_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(study_to_json(campaign()), encoding="utf-8")
    assert load_study(tmp_path) == load_study(tmp_path / "study.json") == campaign()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a headrace study"),
        ('{"schema_version": 1}', "damaged"),
        (study_to_json(campaign()).replace('"settings": {', '"settings": 5, "x": {', 1), "damaged"),
        (study_to_json(campaign()).replace('"duration": 55.625', '"duration": "long"', 1), "damaged"),
        (study_to_json(campaign()).replace('"status": "ok"', '"status": "great"', 1), "damaged"),
    ],
)
def test_a_damaged_study_is_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "study.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        load_study(tmp_path)
    assert "study.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_study_names_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no study\.json; give a directory"):
        load_study(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        load_study(tmp_path / "gone")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(tmp_path, [campaign()], [[]], tmp_path / "file" / "report.html")
    with pytest.raises(ConfigError, match="would overwrite"):
        write_report(tmp_path, [campaign()], [[]], tmp_path / "report.json")


def test_the_summary_of_a_campaign_beside_the_published_one_fits_a_screen() -> None:
    worlds = (campaign(3), load_published())
    views = [study_view(world, explain(world), index) for index, world in enumerate(worlds)]
    for order in (views, views[::-1], views[1:]):
        for width in (40, 80, 100):
            lines = summary_lines(order, Path("out/report.html"), width)
            assert 5 < len(lines) <= MAX_LINES
            assert all(len(text) <= max(width, 40) for text, _ in lines)
            assert "report.html" in lines[-1][0]


def test_the_summary_stays_short_whatever_a_study_holds() -> None:
    cells = [unmeasured(64 + n, False, CellStatus.FAILED, f"R{n}", f"reason {n} " * 40) for n in range(50)]
    findings = [Finding(f"f{n}", f"t{n}", "long " * 200) for n in range(50)]
    lines = summary_lines([study_view(study(*cells), findings)], Path("r.html"), 80)
    assert len(lines) <= MAX_LINES and "more" in "".join(text for text, _ in lines)


def test_the_summary_says_what_is_best_tied_found_and_not_measured() -> None:
    text = "\n".join(line for line, _ in summary_lines([study_view(campaign(3), [FINDING])], Path("r.html")))
    assert "best Output throughput: on-512" in text and "; tied " in text
    assert "Duration falls until 512" in text
    assert "illegal: off-64 (R1)" in text and "failed: on-64 (the server stopped" in text


def test_the_summary_ends_at_clauses_and_counts_the_names_that_do_not_fit() -> None:
    claim = "Duration rises; it is " + ", ".join(f"{n} s at {n}" for n in range(40))
    endless = "In all these cells it is " + ", ".join(f"{n} s at {n}" for n in range(40))
    cells = [unmeasured(n, True, CellStatus.ILLEGAL, "R2", "too small") for n in range(16, 48)]
    world = study(measured(64), measured(128), *cells, title="A rather long title, " * 6 + "the end")
    lines = [
        text
        for text, _ in summary_lines(
            [study_view(world, [Finding("f", "t", claim), Finding("g", "t", endless)])], Path("r.html"), 80
        )
    ]
    assert " ".join(line.strip() for line in lines[:2]) == f"{world.title} (measured)"
    assert "- Duration rises." in lines and "  1 more in the report" in lines
    assert any(line.startswith("illegal: on-16,") and line.endswith(" more (R2)") for line in lines)
    assert not any("…" in line for line in lines)


def test_the_twin_of_a_report_is_not_taken_for_a_study(tmp_path: Path) -> None:
    twin = write_report(tmp_path, [campaign()], [[]]).json
    with pytest.raises(ConfigError, match=r"report\.json is the JSON twin of a report; give the study\.json"):
        load_study(twin)


def test_what_stood_beside_a_report_stands_beside_the_next(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    for directory, name in ((home, "one"), (other, "two")):
        directory.mkdir()
        (directory / "study.json").write_text(study_to_json(study(measured(64), name=name)), encoding="utf-8")
    named = studies_beside(["published", str(other)], home)
    write_report(home, [load_study(home), *named.studies], [[], [], []], beside=named.names)
    again = studies_beside(None, home)
    assert again.studies == named.studies == (load_published(), load_study(other))
    assert json.loads((home / "report.json").read_text())["beside"] == ["published", "../other"]
    assert studies_beside(["none"], home).studies == ()
    (other / "study.json").unlink()
    with pytest.raises(ConfigError, match="`--beside none` drops it"):
        studies_beside(None, home)
    (home / "report.json").write_text("{")
    assert studies_beside(None, home).studies == ()  # a damaged one is replaced


def test_the_summary_is_plain_text_without_a_terminal() -> None:
    view = study_view(study(measured(64, name="\x1b[31mred[bold]x"), measured(128), title="\x07 [red]t"), ())
    out = io.StringIO()
    print_summary([view], Path("r.html"), file=out)
    assert "\x1b" not in out.getvalue() and "\x07" not in out.getvalue()
    assert "[red]t" in out.getvalue() and "[bold]" in out.getvalue()  # no markup is read from names
