"""What one request may ask for and how much may wait: said in the log at start, and shown in /metrics."""

from __future__ import annotations

from headrace.engine.config import EngineConfig
from headrace.server import bodies
from headrace.server.options import ServerOptions


def request_limits(config: EngineConfig, options: ServerOptions) -> dict[str, int]:
    """Limit -> value.  Beyond the `max_num_queued_*` a request gets a 429, beyond the others a 4xx that names it."""
    return {
        "max_model_len": config.max_model_len,
        "max_num_queued_reqs": config.max_num_queued_reqs,
        "max_num_queued_tokens": config.max_num_queued_tokens,
        "max_body_bytes": options.max_body_bytes,
        "max_prompts": bodies.MAX_PROMPTS,
        "max_messages": bodies.MAX_MESSAGES,
        "max_n": bodies.MAX_N,
        "max_logprobs": bodies.MAX_LOGPROBS,
        "max_stops": bodies.MAX_STOPS,
        "max_stop_chars": bodies.MAX_STOP_CHARS,
    }
