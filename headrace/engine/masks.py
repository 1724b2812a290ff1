"""Which tokens a request may not produce next, and which it likes more: applied to its logits before sampling.

In this order, as in vLLM: the grammar, allowed token ids, bad words, end tokens before `min_tokens`, logit bias; and a
spent thinking budget leaves the closing mark alone, unless a grammar holds already.
A later rule that would forbid everything that is left does not apply: a bad word that is the only way on is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headrace.core.request import SamplingParams
from headrace.core.thinking import ThinkingBudget, Thought
from headrace.engine.structured import Grammar, Matcher
from headrace.engine.verify import Ahead, Row

if TYPE_CHECKING:
    from headrace.engine.outputs import TokenLogprob


@dataclass(slots=True)
class SamplingState:
    """What sampling keeps for a sequence between steps, through preemptions too; it dies with the sequence."""

    matcher: Matcher | None = None
    allowed: Tensor | None = None
    thought: Thought | None = None
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)


def state_of(sequence: Row) -> SamplingState:
    """The state of `sequence`, made when it is first asked for."""
    state = sequence.sampling_state
    if not isinstance(state, SamplingState):
        state = sequence.sampling_state = SamplingState()
    return state


def is_masked(sequence: Row) -> bool:
    """Whether `mask` would change the next logits of `sequence` (true too often is harmless)."""
    params = sequence.request.params
    return bool(
        sequence.request.grammar is not None
        or params.logit_bias
        or params.allowed_token_ids
        or params.bad_words_token_ids
        or params.thinking is not None
        or sequence.num_output_tokens < params.min_tokens
    )


def mask(logits: Tensor, sequence: Row) -> None:
    """Apply the rules of one request to its row `[vocab]`, in place.  Raises GrammarFailure."""
    params = sequence.request.params
    allowed = None if sequence.request.grammar is None else _allowed_by_grammar(sequence)
    if allowed is not None:
        logits.masked_fill_(~allowed, -torch.inf)
    if params.allowed_token_ids:
        _keep_only(logits, sequence, params)
    if params.bad_words_token_ids:
        _forbid(logits, _ends_of_bad_words(sequence))
    if sequence.num_output_tokens < params.min_tokens:
        _forbid(logits, [token for token in sequence.end_ids if 0 <= token < logits.shape[0]])
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        logits[list(ids)] += torch.tensor(values)
    if params.thinking is not None and allowed is None and _has_thought_enough(sequence, params.thinking):
        logits.fill_(-torch.inf)
        logits[params.thinking.close_id] = 0.0


def forget_drafts(sequence: Row) -> None:
    """Take the grammar of `sequence` back to what its output is: right drafts come again, as tokens."""
    if sequence.request.grammar is None:
        return
    matcher = state_of(sequence).matcher
    if matcher is not None:
        matcher.rewind(sequence.num_output_tokens)


def _allowed_by_grammar(sequence: Row) -> Tensor | None:
    state = state_of(sequence)
    if state.matcher is None:
        grammar = sequence.request.grammar
        assert isinstance(grammar, Grammar)
        state.matcher = grammar.matcher()
    output = sequence.output_token_ids
    if isinstance(sequence, Ahead) and not state.matcher.takes(output):
        return None  # its last draft is wrong already, so nobody will ask what follows it
    return state.matcher.allowed(output)


def _has_thought_enough(sequence: Row, budget: ThinkingBudget) -> bool:
    state = state_of(sequence)
    thought = budget.follow(state.thought or budget.start(), sequence.output_token_ids)
    if not isinstance(sequence, Ahead):  # drafts may be wrong: they are read again
        state.thought = thought
    return budget.is_spent(thought)


def _keep_only(logits: Tensor, sequence: Row, params: SamplingParams) -> None:
    state = state_of(sequence)
    if state.allowed is None:
        state.allowed = torch.tensor(params.allowed_token_ids)
    kept = logits[state.allowed]
    logits.fill_(-torch.inf)
    logits[state.allowed] = kept


def _ends_of_bad_words(sequence: Row) -> list[int]:
    """Tokens that would complete a forbidden word; as in vLLM, only the output counts as its beginning."""
    output = sequence.output_token_ids
    ends = []
    for word in sequence.request.params.bad_words_token_ids:
        start = word[:-1]
        if not start or (len(start) <= len(output) and output[-len(start) :] == list(start)):
            ends.append(word[-1])
    return ends


def _forbid(logits: Tensor, ids: list[int]) -> None:
    if not ids:
        return
    before = logits[ids]
    logits[ids] = -torch.inf
    if logits.max() == -torch.inf:
        logits[ids] = before
