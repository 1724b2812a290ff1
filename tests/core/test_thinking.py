"""The thinking budget over token ids: 8 opens, 9 closes."""

from __future__ import annotations

import pytest

from headrace.core.thinking import ThinkingBudget


def spent_after(budget: ThinkingBudget, output: list[int]) -> list[bool]:
    """Whether the mark is due before each token and behind the last; read piece by piece and at once, alike."""
    thought, found = budget.start(), []
    for count in range(len(output) + 1):
        thought = budget.follow(thought, output[:count])
        assert budget.is_spent(budget.follow(budget.start(), output[:count])) == budget.is_spent(thought)
        found.append(budget.is_spent(thought))
    return found


def test_only_tokens_between_the_marks_count() -> None:
    budget = ThinkingBudget(2, 8, 9)
    assert spent_after(budget, [1, 1, 1]) == [False] * 4
    assert spent_after(budget, [1, 8, 1, 1, 9, 1, 1]) == [False, False, False, False, True, False, False, False]
    assert spent_after(budget, [8, 9, 8, 1, 1]) == [False] * 5 + [True]


@pytest.mark.parametrize(
    ("prompt", "inside"), [((1, 8, 2), True), ((1, 8, 2, 9), False), ((9, 8), True), ((1, 2), False), ((), False)]
)
def test_a_prompt_may_have_opened_the_thinking(prompt: tuple[int, ...], inside: bool) -> None:
    budget = ThinkingBudget.behind(prompt, 0, 8, 9)
    assert spent_after(budget, [])[0] is inside
    assert ThinkingBudget.behind(prompt, 0, 8, 9, begins_inside=True).begins_inside
