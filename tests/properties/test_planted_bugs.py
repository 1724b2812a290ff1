"""The checkers are checked: each planted bug is caught by the seeded worlds, which pass without it."""

from __future__ import annotations

import pytest
from planted_bugs import BUGS, Bug, load_core
from world import run_world

WORLDS = 200


def test_the_unmutated_copy_passes() -> None:
    core = load_core()
    for seed in range(30):
        run_world(seed, core)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_planted_bug_is_caught(bug: Bug) -> None:
    core = load_core(bug)
    for seed in range(WORLDS):
        try:
            run_world(seed, core, **bug.settings)
        except Exception:
            return  # an invariant, a broken promise, or a crash: somebody noticed
    pytest.fail(f"{WORLDS} worlds ran without noticing: {bug.name}")
