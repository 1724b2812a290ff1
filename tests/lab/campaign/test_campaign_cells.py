"""From a plan to named cells, each legal or with the rule that forbids it."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.lab.campaign.cells import cells
from headrace.lab.campaign.execute import run_order
from headrace.lab.campaign.plan import parse_plan, read_plan

HEAD = 'name = "p"\ntitle = "t"\n'
DEMO = Path(__file__).resolve().parents[3] / "examples" / "demo-plan.toml"


def names(text: str) -> list[str]:
    return [cell.name for cell in cells(parse_plan(HEAD + text, source="p", directory=Path(".")))]


def test_the_demos_plan_has_the_published_grid_with_its_illegal_cells() -> None:
    demo = cells(read_plan(DEMO))
    assert [(cell.name, cell.rule, cell.settings["policy"]) for cell in demo] == [
        ("on-16", "R2", "v0-chunked"),
        ("on-32", "R2", "v0-chunked"),
        ("on-64", None, "v0-chunked"),
        ("on-128", None, "v0-chunked"),
        ("on-512", None, "v0-chunked"),
        ("on-1024", None, "v0-chunked"),
        ("on-2048", None, "v0-chunked"),
        ("off-64", "R1", "v0"),
        ("off-128", "R1", "v0"),
        ("off-512", None, "v0"),
        ("off-1024", None, "v0"),
        ("off-2048", None, "v0"),
    ]
    assert demo[7].reason is not None and "at least 512 (the value of --max-model-len)" in demo[7].reason


def test_names_come_from_what_varies() -> None:
    assert names("[serve]\nmax-num-seqs = 4") == ["only"]
    assert names("[[sweep]]\nmax-num-batched-tokens = [64, 128]") == ["64", "128"]
    assert names("[[sweep]]\nmax-num-batched-tokens = [64]\nmax-num-seqs = [1, 2]") == ["seqs=1", "seqs=2"]
    assert names("[[sweep]]\nmax-num-seqs = 1\n[[sweep]]\nmax-num-batched-tokens = 64") == [
        "default-seqs=1",
        "64-seqs=default",
    ]
    assert names('[[sweep]]\ntokenizer = ["a/b", "a b"]') == ["tokenizer=a%2Fb", "tokenizer=a%20b"]


def test_lists_are_crossed_and_the_last_key_changes_fastest() -> None:
    text = "[[sweep]]\nenable-prefix-caching = [true, false]\nmax-num-batched-tokens = [64, 128]"
    assert names(text) == [
        "64-prefix-caching=on",
        "128-prefix-caching=on",
        "64-prefix-caching=off",
        "128-prefix-caching=off",
    ]


def test_grids_may_not_overlap() -> None:
    with pytest.raises(ConfigError, match="has the cell 64 twice; two"):
        names("[[sweep]]\nmax-num-batched-tokens = [64, 32]\n[[sweep]]\nmax-num-batched-tokens = [64, 128]")


def test_what_the_plan_leaves_to_the_server_is_not_judged_here() -> None:
    [cell] = cells(parse_plan(HEAD + "[serve]\nmax-num-batched-tokens = 1", source="p", directory=Path(".")))
    assert cell.legal and cell.settings["policy"] == "v1"


def test_a_known_kv_cache_is_judged() -> None:
    text = "[serve]\nmax-num-batched-tokens = 64\nmax-num-seqs = 4\nmax-model-len = 512\nnum-gpu-blocks-override = 10"
    [cell] = cells(parse_plan(HEAD + text, source="p", directory=Path(".")))
    assert cell.rule == "R10"


def test_every_repeat_visits_all_cells_in_an_order_of_its_own() -> None:
    text = "[[sweep]]\nmax-num-batched-tokens = [1, 2, 3, 4, 5, 6]\n[run]\nrepeats = 3\nseed = 1"
    plan = parse_plan(HEAD + text, source="p", directory=Path("."))
    order = [(cell.name, repeat) for cell, repeat in run_order(plan, cells(plan))]
    rounds = [[name for name, repeat in order if repeat == k] for k in (1, 2, 3)]
    assert order == [(name, k) for k in (1, 2, 3) for name in rounds[k - 1]]
    assert all(sorted(visited) == ["1", "2", "3", "4", "5", "6"] for visited in rounds)
    assert len({tuple(visited) for visited in rounds}) == 3
    assert order == [(cell.name, repeat) for cell, repeat in run_order(plan, cells(plan))]  # from the seed
