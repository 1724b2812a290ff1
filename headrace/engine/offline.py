"""The engine without a server, under vLLM's names: `LLM(model=...).generate(prompts, SamplingParams(...))`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import logging
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from headrace.core.request import Request
from headrace.engine.config import EngineArgs, resolve
from headrace.engine.engine import Engine, generate
from headrace.engine.flat_logprobs import FlatLogprobs, Logprob, Table
from headrace.engine.offline_params import RequestOutputKind, SamplingParams
from headrace.engine.outputs import Output, TokenLogprob
from headrace.engine.tokenizer import Tokenizer, sampling_defaults
from headrace.errors import ConfigError, InvalidRequest

__all__ = [
    "LLM",
    "CompletionOutput",
    "FlatLogprobs",
    "Logprob",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
]

logger = logging.getLogger("headrace.engine")

Prompt = str | Mapping[str, Any] | Sequence[int]
Message = Mapping[str, Any]
# Arguments of vLLM's LLM that change nothing here, with the values for which that is true (None: any).
_NEUTRAL: dict[str, tuple[object, ...] | None] = {
    "tensor_parallel_size": (1,),
    "pipeline_parallel_size": (1,),
    "trust_remote_code": None,
    "enforce_eager": None,
    "disable_log_stats": None,
    "disable_custom_all_reduce": None,
    "max_seq_len_to_capture": None,
    "tokenizer_mode": ("auto",),
    "skip_tokenizer_init": (False,),
    "task": ("auto", "generate"),
    "runner": ("auto", "generate"),
}


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One of the `n` answers.

    `finish_reason` is "stop", "length", "repetition" or "error" (then `error` says why).
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[Table] | FlatLogprobs | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """All answers to one prompt.  `prompt` is None when the prompt came as ids.

    `prompt_token_id_logprobs`, for `prompt_logprob_token_ids`: a row for each scored token, a column for each id.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Table | None] | FlatLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool = True
    num_cached_tokens: int = 0
    prompt_token_id_logprobs: list[list[float]] | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """One prompt with its sequences."""

    request_id: str
    prompt: str | None
    params: SamplingParams
    requests: list[Request] = field(default_factory=list)


class LLM:
    """A model in this process.  Arguments are those of `headrace serve`, with underscores; not thread-safe.

    Raises ConfigError for what cannot be served.  The engine is closed with the object, by `close()`, or by `with`.
    """

    def __init__(self, model: str | None = None, **arguments: Any) -> None:
        config, reasons = resolve(EngineArgs(model=model, **_engine_arguments(arguments)))
        for line in reasons:
            logger.info(line)
        assert config.model_path is not None
        from headrace.engine.models.shape import read_model_shape

        self.config = config
        self._tokenizer = Tokenizer.from_config(config, vocab_size=read_model_shape(config.model_path).vocab_size)
        self._engine = Engine.from_config(config)
        self._defaults = sampling_defaults(config.model_path, config.generation_config)
        self._numbers = itertools.count()
        self.close: Callable[[], object] = weakref.finalize(self, self._engine.close)

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses without parameters: the model author's, then vLLM's defaults."""
        return SamplingParams(**self._defaults)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self._engine.reset_prefix_cache()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts: texts, lists of token ids, or {"prompt_token_ids": [...]}.

        Raises InvalidRequest before anything runs when one of them can never be served.
        """
        listed = [prompts] if _is_one_prompt(prompts) else list(prompts)
        return self._run([self._prompt(prompt) for prompt in listed], sampling_params, use_tqdm)  # type: ignore[arg-type]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to one conversation or to several, rendered by the model's chat template.  Raises InvalidRequest."""
        one = bool(messages) and isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = [messages] if one else messages
        variables = dict(chat_template_kwargs or {})
        if clash := {"messages", "add_generation_prompt"} & variables.keys():
            raise InvalidRequest(f"`chat_template_kwargs` may not set {sorted(clash)}.", param="chat_template_kwargs")
        texts = [
            self._tokenizer.render_chat([_plain(m) for m in each], add_generation_prompt, **variables)
            for each in conversations
        ]
        # The template writes the special tokens itself.
        return self._run([(text, self._tokenizer.encode(text, False)) for text in texts], sampling_params, use_tqdm)

    def _run(
        self,
        prompts: Sequence[tuple[str | None, list[int]]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        if params is None:
            params = self.get_default_sampling_params()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InvalidRequest(
                f"There are {len(prompts)} prompts and {len(each)} sampling parameters; give one, or one for each.",
                param="sampling_params",
            )
        asked = [self._ask(text, ids, wanted) for (text, ids), wanted in zip(prompts, each, strict=True)]
        requests = [request for one in asked for request in one.requests]
        with _progress(len(requests), use_tqdm) as note:
            outputs = generate(self._engine, self._tokenizer, requests, on_output=note)
        ended = iter(outputs)
        return [self._answer(one, [next(ended) for _ in one.requests]) for one in asked]

    def _prompt(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                return None, self._checked(prompt["prompt_token_ids"])
            prompt = prompt.get("prompt", ())
        if isinstance(prompt, str):
            return prompt, self._tokenizer.encode(prompt)
        return None, self._checked(prompt)

    def _checked(self, ids: Any) -> list[int]:
        known = isinstance(ids, Sequence) and not isinstance(ids, str) and len(ids) > 0
        if not known or not all(isinstance(token, int) and 0 <= token < self._tokenizer.vocab_size for token in ids):
            raise InvalidRequest(
                'A prompt is a text, {"prompt": text}, or {"prompt_token_ids": [...]} with ids from 0 to '
                f"{self._tokenizer.vocab_size - 1}.",
                param="prompts",
            )
        return [int(token) for token in ids]

    def _ask(self, text: str | None, ids: list[int], params: SamplingParams) -> _Asked:
        request_id = str(next(self._numbers))
        ids = params.cut(ids, self.config.max_model_len)
        if (rows := params.prompt_logprob_token_ids) is not None:
            needed = max(0, len(ids) - 1 - params.prompt_logprob_start)
            if len(rows) != needed:
                raise InvalidRequest(
                    f"`prompt_logprob_token_ids` needs one row for each scored token of the prompt, {needed} of "
                    f"{len(ids)}, and has {len(rows)}.",
                    param="prompt_logprob_token_ids",
                )
        room = max(1, self.config.max_model_len - len(ids))
        core = params.translated(self._tokenizer, ids, room)
        grammar = self._grammar(params)
        asked = _Asked(request_id, text, params)
        for index in range(params.num_sequences):
            seed = None if core.seed is None else (core.seed + index) % (1 << 63)
            name = request_id if params.num_sequences == 1 else f"{index}_{request_id}"
            one = replace(core, seed=seed)
            asked.requests.append(Request(name, ids, one, self._tokenizer.eos_token_ids, grammar=grammar))
        return asked

    def _grammar(self, params: SamplingParams) -> object | None:
        if params.constraint is None:
            return None
        try:
            return self._tokenizer.grammar(*params.constraint)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"`structured_outputs` cannot be followed: {error}.", param="structured_outputs"
            ) from None

    def _answer(self, asked: _Asked, ended: Sequence[Output]) -> RequestOutput:
        params, first = asked.params, ended[0]
        scored = first.prompt_logprobs
        scores = tables = None
        if scored is not None and params.prompt_logprob_token_ids is not None:
            scores = [[value for _, value in item.top] for item in scored]
        elif scored is not None:
            tables = [None, *(self._table(item, params.prompt_logprobs or 0) for item in scored)]
        if params.num_sequences > params.n:  # the likeliest, as in older vLLM by the sum of their tokens
            ended = sorted(ended, key=lambda output: -sum(item.logprob for item in output.logprobs or ()))[: params.n]
        return RequestOutput(
            request_id=asked.request_id,
            prompt=asked.prompt,
            prompt_token_ids=list(asked.requests[0].prompt_token_ids),
            prompt_logprobs=FlatLogprobs.of(tables) if tables is not None and params.flat_logprobs else tables,
            prompt_token_id_logprobs=scores,
            outputs=[self._completion(index, output, params) for index, output in enumerate(ended)],
            num_cached_tokens=first.num_cached_tokens,  # its siblings hit what it computed
        )

    def _completion(self, index: int, output: Output, params: SamplingParams) -> CompletionOutput:
        items, tables = output.logprobs, None
        if items is not None and (params.logprobs is not None or params.logprob_token_ids is not None):
            is_named = params.logprob_token_ids is not None
            tables = [self._table(item, params.num_logprobs or 0, is_named=is_named) for item in items]
        return CompletionOutput(
            index=index,
            text=output.text,
            token_ids=list(output.token_ids),
            cumulative_logprob=None if items is None else sum(item.logprob for item in items),
            logprobs=FlatLogprobs.of(tables) if tables is not None and params.flat_logprobs else tables,
            finish_reason=None if output.finish_reason is None else output.finish_reason.value,
            stop_reason=output.stop_reason,
            error=output.error,
        )

    def _table(self, item: TokenLogprob, num_top: int, *, is_named: bool = False) -> Table:
        """The chosen token and the most likely ones, by id; ids that were named have no rank."""
        text = self._tokenizer.token_text
        table = {item.token_id: Logprob(item.logprob, item.rank, text(item.token_id))}
        for rank, (token, logprob) in enumerate(item.top[:num_top], start=1):
            table.setdefault(token, Logprob(logprob, None if is_named else rank, text(token)))
        return table


def _engine_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` without those that change nothing.  Raises ConfigError for the rest that is not known."""
    names = {each.name for each in dataclasses.fields(EngineArgs)}
    known: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in names:
            known[name] = value
            continue
        if name not in _NEUTRAL:
            near = difflib.get_close_matches(name, [*names, *_NEUTRAL], n=1)
            raise ConfigError(f"LLM has no argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        accepted = _NEUTRAL[name]
        if accepted is not None and value not in accepted:
            usable = " or ".join(map(repr, accepted))
            raise ConfigError(f"LLM: {name}={value!r} is not supported; use {usable}, or leave it out")
    if isinstance(served := known.get("served_model_name"), str):
        known["served_model_name"] = (served,)
    return known


def _is_one_prompt(prompts: object) -> bool:
    if isinstance(prompts, str | Mapping):
        return True
    return isinstance(prompts, Sequence) and bool(prompts) and isinstance(prompts[0], int)


def _plain(message: Message) -> dict[str, Any]:
    """A message whose content is one text: parts of type "text" are joined, as the server does."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    if not all(isinstance(part, Mapping) and part.get("type") == "text" for part in content):
        raise InvalidRequest("`content` may hold parts of type text only.", param="messages")
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}


@contextlib.contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[Output], None]]:
    """A bar on stderr that counts sequences, with the speed in tokens/s so far."""
    if not shown:
        yield lambda output: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    started_s = time.perf_counter()
    counted = {"prompt": 0, "output": 0}
    bar = Progress(
        *(TextColumn("Processed prompts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        TextColumn("{task.description}"),
        console=Console(file=sys.stderr),
    )
    with bar:
        task = bar.add_task("", total=total)

        def note(output: Output) -> None:
            counted["output"] += len(output.token_ids)
            if output.finish_reason is None:
                return
            counted["prompt"] += output.num_prompt_tokens
            seconds = max(time.perf_counter() - started_s, 1e-9)
            rates = (f"{name} {count / seconds:.1f} tokens/s" for name, count in counted.items())
            bar.update(task, advance=1, description=", ".join(rates))

        yield note
