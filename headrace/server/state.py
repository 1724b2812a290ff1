"""What all handlers share: the engine once it is loaded, what is in flight, and whether new work is still taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.engine.async_engine import Engine, Observer
from headrace.server.http_errors import ApiError
from headrace.server.limits import request_limits
from headrace.server.metrics import ServerMetrics
from headrace.server.options import ServerOptions


class Tokenizer(Protocol):
    """What the server asks of a tokenizer; safe to call from any thread."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_token_ids(self) -> frozenset[int]: ...
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def template_reads(self, variable: str) -> bool: ...
    @property
    def special_tokens(self) -> Mapping[str, str]: ...
    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str: ...
    def token_text(self, token_id: int) -> str: ...
    def grammar(self, kind: str, text: str, after: str = "") -> object: ...
    def token_id(self, text: str) -> int | None: ...
    def spellings(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]: ...


class ServedEngine(Engine, Protocol):
    """An engine with what the protocol needs beside it: its tokenizer and the model's own sampling defaults."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def sampling_defaults(self) -> Mapping[str, Any]: ...
    def set_observer(self, observer: Observer) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Service:
    """Shared state of one server; owned by the event loop's thread."""

    options: ServerOptions
    started_s: int
    _engine: ServedEngine | None = None
    _metrics: ServerMetrics | None = None
    draining: bool = False
    in_flight: int = field(default=0)  # sequences submitted and not ended

    def attach(self, engine: ServedEngine) -> None:
        """The engine is loaded: from here on the server is ready."""
        limits = request_limits(engine.config, self.options)
        self._metrics = ServerMetrics(engine.config, self.model_names_of(engine)[0], engine.stats, limits)
        engine.set_observer(self._metrics)
        self._engine = engine

    @property
    def engine(self) -> ServedEngine:
        if self._engine is None:
            raise ApiError(503, "The model is still loading.", code="loading")
        return self._engine

    def progress(self) -> tuple[bool, str]:
        """(progress is being made, nothing is to be done, or the model is loading; why not)."""
        return (True, "") if self._engine is None else self._engine.is_healthy()

    @property
    def metrics(self) -> ServerMetrics:
        if self._metrics is None:
            raise ApiError(503, "The model is still loading.", code="loading")
        return self._metrics

    def model_names_of(self, engine: ServedEngine) -> tuple[str, ...]:
        return self.options.served_model_names or engine.config.served_model_names or (engine.config.model,)

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that requests may use; never empty."""
        return self.model_names_of(self.engine)

    def check_model(self, name: str | None) -> str:
        """The name to answer with.  Raises ApiError (404) for a model that is not served."""
        names = self.model_names
        if name is None:
            return names[0]
        if name not in names:
            raise ApiError(404, f"The model `{name}` does not exist.", param="model", code="model_not_found")
        return name

    def admit(self, num_sequences: int) -> None:
        """Refuse work while draining (503) or when too much of it already waits (429).

        The engine has the same limit and the last word; asked here, before a body is read and tokenised, an overloaded
        server refuses cheaply.  The snapshot alone would not do: it misses what was submitted since the last step.
        """
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="draining")
        limit = self.engine.config.max_num_queued_reqs
        queued = self.in_flight - self.engine.stats().num_running
        if num_sequences > limit:
            raise ApiError(
                400,
                f"One request may ask for at most {limit} sequences (prompts times n); this one has {num_sequences}.",
            )
        if queued + num_sequences > limit:
            raise ApiError(
                429, f"The queue is full: {queued} sequences wait and the limit is {limit}.", code="queue_full"
            )
        if (tokens := self.engine.num_queued_tokens) >= self.engine.config.max_num_queued_tokens:
            raise ApiError(
                429,
                f"The queue is full: prompts of {tokens} tokens wait, the limit is "
                f"{self.engine.config.max_num_queued_tokens}.",
                code="queue_full",
            )
