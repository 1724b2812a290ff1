"""How long an answer may think: a bound on the tokens between two marks (vLLM's `thinking_token_budget`)."""

from __future__ import annotations

from collections.abc import Sequence as Ids
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thought:
    """At the end of its first `read` tokens an output thinks since token `since` (None: it does not)."""

    since: int | None
    read: int = 0


@dataclass(frozen=True, slots=True)
class ThinkingBudget:
    """After `tokens` tokens of thinking the closing mark must follow.

    Thinking is what stands behind the token `open_id`, up to `close_id`.  With `begins_inside` it opens the output.
    """

    tokens: int
    open_id: int
    close_id: int
    begins_inside: bool = False

    @classmethod
    def behind(
        cls, prompt: Ids[int], tokens: int, open_id: int, close_id: int, *, begins_inside: bool = False
    ) -> ThinkingBudget:
        """The budget of an answer to `prompt`, which may have opened the thinking."""
        last = next((token for token in reversed(prompt) if token in (open_id, close_id)), None)
        return cls(tokens, open_id, close_id, begins_inside or last == open_id)

    def start(self) -> Thought:
        return Thought(0 if self.begins_inside else None)

    def follow(self, thought: Thought, output: Ids[int]) -> Thought:
        """`thought` of the beginning of `output` -> of all of it; costs what is new."""
        since = thought.since
        for place in range(thought.read, len(output)):
            if output[place] == self.close_id:
                since = None
            elif output[place] == self.open_id:
                since = place + 1
        return Thought(since, len(output))

    def is_spent(self, thought: Thought) -> bool:
        """Whether the next token must be the closing mark."""
        return thought.since is not None and thought.read - thought.since >= self.tokens
