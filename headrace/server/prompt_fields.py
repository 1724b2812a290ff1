"""Fields that change what a prompt is: truncation, and what a chat template is given beside the messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.thinking import ThinkingBudget
from headrace.errors import InvalidRequest
from headrace.server.bodies import ChatBody, CompletionBody, SamplingFields
from headrace.server.reasoning import CLOSE, OPEN
from headrace.server.state import Tokenizer


def cut(ids: list[int], body: SamplingFields, max_tokens: int | None, max_model_len: int) -> list[int]:
    """`ids`, cut to `truncate_prompt_tokens`; -1 stands for what the context leaves beside `max_tokens`.

    The same list when nothing is cut.  As in vLLM the end is kept, unless `truncation_side` says otherwise.
    """
    most = body.truncate_prompt_tokens
    if most is None:
        return ids
    if most == 0:
        raise InvalidRequest("`truncate_prompt_tokens` 0 would leave no prompt.", param="truncate_prompt_tokens")
    if most < 0:
        most = max(1, max_model_len - (max_tokens or 1))
    if len(ids) <= most:
        return ids
    return ids[:most] if body.truncation_side == "right" else ids[-most:]


def num_answer_logprobs(body: SamplingFields, asked: int | None) -> int | None:
    """How many alternatives of each token of the answer are told.

    `logprob_token_ids` names them; a number beside it must agree (vLLM's rule).
    """
    named = body.logprob_token_ids
    if named is None:
        return asked
    if asked and asked != len(named):
        field = "top_logprobs" if isinstance(body, ChatBody) else "logprobs"
        raise InvalidRequest(
            f"`{field}` ({asked}) must be the number of `logprob_token_ids` ({len(named)}), or be left out.",
            param=field,
        )
    if isinstance(body, CompletionBody) and body.echo:
        raise InvalidRequest(
            "`logprob_token_ids` are told of the answer, not of a prompt: leave out `echo`.", param="logprob_token_ids"
        )
    return len(named)


def documents_of(body: ChatBody, tokenizer: Tokenizer) -> Sequence[Mapping[str, str]]:
    """`documents`, when the chat template shows them to the model.  Raises InvalidRequest."""
    if body.documents and not tokenizer.template_reads("documents"):
        raise _unread("documents", "does not show documents to the model")
    return body.documents


def effort_of(body: ChatBody, tokenizer: Tokenizer) -> Mapping[str, Any]:
    """`reasoning_effort` as variables of the chat template.

    "none" also switches off thinking where a template knows only on and off.  Raises InvalidRequest for a template that
    would not look at it.
    """
    effort = body.reasoning_effort
    if effort is None:
        return {}
    found: dict[str, Any] = {}
    if tokenizer.template_reads("reasoning_effort"):
        found["reasoning_effort"] = effort
    if effort == "none" and tokenizer.template_reads("enable_thinking"):
        found["enable_thinking"] = False
    if not found:
        raise _unread("reasoning_effort", f'has no effort "{effort}"')
    return found


def budget_of(
    body: SamplingFields, tokenizer: Tokenizer, prompt: Sequence[int], *, begins_inside: bool
) -> ThinkingBudget | None:
    """`thinking_token_budget` for one prompt; -1 is no bound.

    Raises InvalidRequest for a model whose marks are no tokens: nobody could tell where it thinks.
    """
    tokens = body.thinking_token_budget
    if tokens is None or tokens < 0:
        return None
    opening, closing = tokenizer.token_id(OPEN), tokenizer.token_id(CLOSE)
    if opening is None or closing is None:
        raise InvalidRequest(
            f"`thinking_token_budget` is not supported: this model has no tokens {OPEN} and {CLOSE}.",
            param="thinking_token_budget",
            code="unsupported_parameter",
        )
    return ThinkingBudget.behind(prompt, tokens, opening, closing, begins_inside=begins_inside)


def _unread(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"`{field}` is not supported: this model's chat template {what}.", param=field, code="unsupported_parameter"
    )
