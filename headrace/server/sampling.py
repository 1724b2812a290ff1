"""The sampling fields of a body -> SamplingParams: what the request says, else the model's defaults, else vLLM's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.core.request import SamplingParams
from headrace.errors import InvalidRequest
from headrace.server.bodies import SamplingFields
from headrace.server.state import ServedEngine

_VLLM_DEFAULTS = SamplingParams()


def sampling_params(
    body: SamplingFields, engine: ServedEngine, num_logprobs: int | None, *, scores_prompt: bool
) -> SamplingParams:
    """Everything but the length.  Raises InvalidRequest for a token id that the model does not have.

    `scores_prompt` asks for the prompt's log-probabilities, as many alternatives as the answer's.
    """
    vocab_size = engine.tokenizer.vocab_size
    biases = {int(token): value for token, value in body.logit_bias.items()}
    _check_ids(body.stop_token_ids, "stop_token_ids", vocab_size)
    _check_ids(biases, "logit_bias", vocab_size)
    _check_ids(body.allowed_token_ids or (), "allowed_token_ids", vocab_size)
    _check_ids(body.logprob_token_ids or (), "logprob_token_ids", vocab_size)
    for row in body.prompt_logprob_token_ids or ():
        _check_ids(row, "prompt_logprob_token_ids", vocab_size)

    def chosen(name: str) -> Any:
        given = getattr(body, name)
        return engine.sampling_defaults.get(name, getattr(_VLLM_DEFAULTS, name)) if given is None else given

    wanted = [each for each in (body.prompt_logprobs, num_logprobs if scores_prompt else None) if each is not None]
    return SamplingParams(
        min_tokens=body.min_tokens,
        temperature=chosen("temperature"),
        top_p=chosen("top_p"),
        top_k=max(0, chosen("top_k")),  # -1 is vLLM's older spelling of "off"
        min_p=chosen("min_p"),
        presence_penalty=chosen("presence_penalty"),
        frequency_penalty=chosen("frequency_penalty"),
        repetition_penalty=chosen("repetition_penalty"),
        seed=None if body.seed in (None, -1) else body.seed,  # -1 means "no seed" in vLLM
        stop=tuple(body.stop),
        stop_token_ids=tuple(body.stop_token_ids),
        include_stop_str_in_output=body.include_stop_str_in_output,
        ignore_eos=body.ignore_eos,
        logprobs=num_logprobs,
        skip_special_tokens=body.skip_special_tokens,
        logit_bias=tuple(sorted(biases.items())),
        allowed_token_ids=tuple(sorted(set(body.allowed_token_ids or ()))),
        bad_words_token_ids=engine.tokenizer.spellings(body.bad_words) if body.bad_words else (),
        prompt_logprobs=max(wanted, default=None),
        skip_reading_prefix_cache=body.skip_reading_prefix_cache,
        repetition_detection=None if body.repetition_detection is None else body.repetition_detection.rule,
        stream_interval=body.stream_interval,
        spaces_between_special_tokens=body.spaces_between_special_tokens,
        logprob_token_ids=tuple(body.logprob_token_ids or ()),
        prompt_logprob_token_ids=_rows(body.prompt_logprob_token_ids),
        prompt_logprob_start=body.prompt_logprob_start,
    )


def _rows(ids: list[list[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    return None if ids is None else tuple(map(tuple, ids))


def _check_ids(ids: Iterable[int], param: str, vocab_size: int) -> None:
    for token in ids:
        if token >= vocab_size:
            raise InvalidRequest(
                f"Token id {token} is out of vocabulary: ids go from 0 to {vocab_size - 1}.", param=param
            )
