"""Request bodies -> what the engine is asked to generate: tokens, sampling parameters, ids and bounds."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headrace.core.request import Request, SamplingParams
from headrace.errors import InvalidRequest
from headrace.server.bodies import ChatBody, CompletionBody, Message, SamplingFields, StreamOptions
from headrace.server.constraints import Constraint, constraint_of
from headrace.server.options import ServerOptions
from headrace.server.prompt_fields import budget_of, cut, documents_of, effort_of, num_answer_logprobs
from headrace.server.reading import Reading
from headrace.server.reasoning import CLOSE
from headrace.server.sampling import sampling_params
from headrace.server.state import ServedEngine, Tokenizer
from headrace.server.tool_bodies import Tool
from headrace.server.tool_choice import chat_constraint, check_tools, reading_of
from headrace.sizing.context import context_limit_message

MAX_PROMPTS = 2048
_MARK = "<continues here> "
NO_ARGUMENTS: Mapping[str, Any] = {}
RESERVED = ("messages", "add_generation_prompt", "tools", "documents")  # a template's, given by the server


@dataclass(frozen=True, slots=True)
class Generation:
    """One API request as the engine sees it: `n` sequences for each prompt, in the order of the choices.

    `best_of` above `n` means that so many are generated, and the likeliest `n` are answered.

    `echo` holds the text of each prompt when it was asked for; with `only_echo` nothing else is answered.
    `num_logprobs` is the number of alternatives per token (with `echo` also per token of the prompt),
    `num_prompt_logprobs` that of the field `prompt_logprobs`; None for no log-probabilities.
    `returns_ids` adds the ids of prompt and answer.
    `reading` says how a chat's text is read; None: it is content as it is.
    """

    request_id: str
    created: int
    model: str
    chat: bool
    n: int
    requests: tuple[Request, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    num_logprobs: int | None
    echo: tuple[str, ...] | None = None
    only_echo: bool = False
    num_prompt_logprobs: int | None = None
    tokens_as_ids: bool = False
    returns_ids: bool = False
    reading: Reading | None = None
    best_of: int = 0
    scores_ids: bool = False

    @property
    def num_sequences(self) -> int:
        """Sequences of a prompt."""
        return max(self.n, self.best_of)

    @property
    def num_prompts(self) -> int:
        return len(self.requests) // self.num_sequences

    @property
    def needs_engine(self) -> bool:
        """False when the prompt comes back as it is (`echo` with `max_tokens: 0`, and no log-probabilities)."""
        return self.requests[0].params.max_tokens > 0

    def echo_of(self, index: int) -> str:
        """What choice `index` repeats before its own text."""
        return "" if self.echo is None else self.echo[index // self.num_sequences]


def completion(body: CompletionBody, model: str, engine: ServedEngine) -> Generation:
    """Tokenise the prompts and bound the output.  Raises InvalidRequest."""
    tokenizer = engine.tokenizer
    prompts = _prompts(body.prompt)
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(f"`prompt`: at most {MAX_PROMPTS} prompts, got {len(prompts)}.", param="prompt")
    token_ids = [
        tokenizer.encode(prompt, body.add_special_tokens)
        if isinstance(prompt, str)
        else checked_ids(prompt, tokenizer, "prompt")
        for prompt in prompts
    ]
    kept = [cut(ids, body, body.max_tokens, engine.config.max_model_len) for ids in token_ids]
    echo = None
    if body.echo:
        echo = tuple(
            prompt if isinstance(prompt, str) and ids is whole else tokenizer.decode(ids, skip_special_tokens=False)
            for prompt, whole, ids in zip(prompts, token_ids, kept, strict=True)
        )
    default = engine.sampling_defaults.get("max_tokens", SamplingParams().max_tokens)
    max_tokens = default if body.max_tokens is None else body.max_tokens
    return _generation(
        body,
        model,
        engine,
        "cmpl",
        kept,
        max_tokens=max_tokens,
        num_logprobs=num_answer_logprobs(body, body.logprobs),
        grammar=_grammar(body, engine, constraint_of(body)),
        echo=echo,
    )


def chat(body: ChatBody, model: str, engine: ServedEngine, options: ServerOptions) -> Generation:
    """Render and tokenise the conversation; the output may fill what is left of the context.  Raises InvalidRequest."""
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("`top_logprobs` needs `logprobs: true`.", param="top_logprobs")
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise InvalidRequest("`max_tokens` and `max_completion_tokens` differ; send one.", param="max_tokens")
    tokenizer = engine.tokenizer
    check_tools(body, options, tokenizer)
    constraint = chat_constraint(body)
    prompt = chat_text(
        body.messages,
        tokenizer,
        body.add_generation_prompt,
        body.tools,
        documents=documents_of(body, tokenizer),
        arguments={**effort_of(body, tokenizer), **(body.chat_template_kwargs or {})},
        continues=body.continue_final_message,
    )
    reading = reading_of(body, options, prompt)
    behind = CLOSE if reading is not None and reading.begins_inside else ""
    explicit = limits.pop() if limits else None
    max_tokens = engine.sampling_defaults.get("max_tokens") if explicit is None else explicit
    # Special tokens come from the template, hence normally not from the tokenizer.
    ids = tokenizer.encode(prompt, body.add_special_tokens)
    return _generation(
        body,
        model,
        engine,
        "chatcmpl",
        [cut(ids, body, explicit, engine.config.max_model_len)],
        max_tokens=max_tokens,
        num_logprobs=num_answer_logprobs(body, body.top_logprobs or (0 if body.logprobs else None)),
        grammar=_grammar(body, engine, constraint, behind),
        reading=reading,
    )


def chat_text(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    add_generation_prompt: bool,
    tools: Sequence[Tool] = (),
    *,
    documents: Sequence[Mapping[str, str]] = (),
    arguments: Mapping[str, Any] = NO_ARGUMENTS,
    continues: bool = False,
) -> str:
    """The conversation as the model's text; with `continues` it ends inside the last message.

    Raises InvalidRequest.
    """
    plain = [message.for_template() for message in messages]
    if continues:
        plain[-1]["content"] += _MARK
    variables: dict[str, Any] = {"tools": [tool.for_template() for tool in tools]} if tools else {}
    if documents:
        variables["documents"] = list(documents)
    if taken := sorted(arguments.keys() & {*RESERVED, *tokenizer.special_tokens}):
        raise InvalidRequest(
            f"`chat_template_kwargs` may not set `{taken[0]}`, which the server gives the template.",
            param="chat_template_kwargs",
        )
    try:
        text = tokenizer.render_chat(plain, add_generation_prompt, **{**arguments, **variables})
    except InvalidRequest:
        raise
    except Exception as error:
        # The template is the model author's code: what it refuses ("roles must alternate") is the caller's to mend.
        raise InvalidRequest(f"The chat template refused the messages: {error}.", param="messages") from error
    if not continues:
        return text
    # As transformers does it: a mark behind the last message says where the template put its end.
    before, mark, behind = text.rpartition(_MARK.strip())
    if not mark:
        raise InvalidRequest(
            "`continue_final_message` cannot be followed: the chat template does not show the last message.",
            param="continue_final_message",
        )
    return before if behind.startswith(" ") else before.rstrip()  # else the template trims what messages end with


def _prompts(value: Any) -> list[str | list[int]]:
    """The four forms of `prompt` as a list of texts and token lists."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [value]
        if all(isinstance(item, str) for item in value):
            return list(value)
        if all(isinstance(item, list) and all(type(token) is int for token in item) for item in value):
            return list(value)
    raise InvalidRequest(
        "`prompt` must be a string, a list of strings, a list of token ids, or a list of such lists.", param="prompt"
    )


def checked_ids(ids: list[int], tokenizer: Tokenizer, param: str) -> list[int]:
    if ids and not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
        wrong = min(ids) if min(ids) < 0 else max(ids)
        raise InvalidRequest(
            f"Token id {wrong} is out of vocabulary: ids go from 0 to {tokenizer.vocab_size - 1}.", param=param
        )
    return ids


def _generation(
    body: SamplingFields,
    model: str,
    engine: ServedEngine,
    prefix: str,
    prompts: list[list[int]],
    *,
    max_tokens: int | None,
    num_logprobs: int | None,
    grammar: object | None,
    echo: tuple[str, ...] | None = None,
    reading: Reading | None = None,
) -> Generation:
    if body.priority and engine.config.scheduling_policy != "priority":
        raise InvalidRequest(
            "`priority` needs a server started with --scheduling-policy priority; this one serves in order of arrival.",
            param="priority",
            code="unsupported_parameter",
        )
    request_id = f"{prefix}-{body.request_id or uuid.uuid4().hex}"
    scores_echo = echo is not None and num_logprobs is not None
    if scores_echo and body.prompt_logprob_token_ids is not None:
        raise InvalidRequest(
            "`prompt_logprob_token_ids` cannot be used together with `echo` and `logprobs`.",
            param="prompt_logprob_token_ids",
        )
    best_of = body.num_sequences
    needed = 0 if num_logprobs is None and best_of > body.n else num_logprobs  # the likeliest are to be found
    base = sampling_params(body, engine, needed, scores_prompt=scores_echo)
    only_echo = echo is not None and max_tokens == 0
    asks_prompt = body.prompt_logprobs is not None or body.prompt_logprob_token_ids is not None
    if only_echo and (scores_echo or asks_prompt):
        max_tokens = 1  # the engine has to compute the prompt, and that gives a token; it is not shown
    requests: list[Request] = []
    for ids in prompts:
        params = _with_length(base, ids, max_tokens, engine.config.max_model_len, body, only_echo=only_echo)
        inside = reading is not None and bool(reading.begins_inside)
        if (budget := budget_of(body, engine.tokenizer, ids, begins_inside=inside)) is not None:
            params = replace(params, thinking=budget)
        for i in range(best_of):
            requests.append(
                Request(
                    request_id=f"{request_id}-{len(requests)}",
                    prompt_token_ids=ids,
                    # As in vLLM: the i-th sequence of a seeded request has the seed plus i.
                    params=params if params.seed is None else replace(params, seed=(params.seed + i) % 2**63),
                    eos_token_ids=engine.tokenizer.eos_token_ids,
                    priority=body.priority,
                    arrived=time.perf_counter(),
                    cache_salt=body.cache_salt,
                    grammar=grammar,
                )
            )
    options = body.stream_options or StreamOptions()
    return Generation(
        request_id=request_id,
        created=int(time.time()),
        model=model,
        chat=prefix == "chatcmpl",
        n=body.n,
        requests=tuple(requests),
        stream=body.stream,
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage_stats,
        num_logprobs=num_logprobs,
        echo=echo,
        only_echo=only_echo,
        num_prompt_logprobs=body.prompt_logprobs,
        tokens_as_ids=body.return_tokens_as_token_ids,
        returns_ids=body.return_token_ids,
        reading=reading,
        best_of=best_of,
        scores_ids=body.prompt_logprob_token_ids is not None,
    )


def _grammar(
    body: SamplingFields, engine: ServedEngine, constraint: Constraint | None, behind: str = ""
) -> object | None:
    """What the answer must follow (behind a mark), compiled.  Raises InvalidRequest."""
    if constraint is None:
        return None
    for name, off in (("ignore_eos", False), ("min_tokens", 0), ("allowed_token_ids", None)):
        if getattr(body, name) != off:
            # Each could leave no token at all, or make the answer go on behind the end of its grammar.
            raise InvalidRequest(f"`{name}` cannot be used together with `{constraint.field}`.", param=name)
    return constraint.compile(engine, behind)


def _with_length(
    params: SamplingParams,
    prompt: list[int],
    max_tokens: int | None,
    max_model_len: int,
    body: SamplingFields,
    *,
    only_echo: bool,
) -> SamplingParams:
    """Fix `max_tokens` for one prompt.  An explicit limit must fit into the context; a default one is cut to fit."""
    explicit = body.max_tokens is not None or getattr(body, "max_completion_tokens", None) is not None
    param = "messages" if isinstance(body, ChatBody) else "prompt"
    if not prompt:
        raise InvalidRequest("The prompt is empty: at least one token is needed.", param=param)
    least = 0 if only_echo else 1
    if explicit and max_tokens is not None and max_tokens < least:
        raise InvalidRequest(f"`max_tokens` must be at least 1, got {max_tokens}.", param="max_tokens")
    if (ids := params.prompt_logprob_token_ids) is not None:
        rows = max(0, len(prompt) - 1 - params.prompt_logprob_start)
        if len(ids) != rows:
            raise InvalidRequest(
                f"`prompt_logprob_token_ids` needs one row for each scored token of the prompt, {rows} of "
                f"{len(prompt)}, and has {len(ids)}.",
                param="prompt_logprob_token_ids",
            )
    room = max_model_len - len(prompt)
    wanted = max_tokens if explicit and max_tokens is not None else least
    if wanted > room:
        raise InvalidRequest(
            context_limit_message(max_model_len, len(prompt), wanted if explicit else None),
            param=param if room < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    fixed = wanted if explicit else room if max_tokens is None else min(max_tokens, room)
    if params.min_tokens > fixed:
        raise InvalidRequest(
            f"`min_tokens` ({params.min_tokens}) must not be larger than `max_tokens` ({fixed}).", param="min_tokens"
        )
    return replace(params, max_tokens=fixed)
