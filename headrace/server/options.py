"""What the server is told at start; the engine has a configuration of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Resolved options of one server process.

    host, port           port 0 takes a free one; the ready line prints it
    api_keys             any of them opens the server; empty means no key is asked for
    served_model_names   names that the API accepts (the first is the one it answers with); empty takes the engine's
    shutdown_timeout_s   vLLM's semantics: 0 aborts requests in flight at the first SIGTERM or SIGINT, N refuses new
                         work and lets them run for up to N seconds.  vLLM's default is 0; here it is 30, so that a
                         plain `kill` loses nothing.  Every stream ends with a finish or an error event.
    log_level            debug, info, warning, error
    log_format           text, or json: one object a line
    enable_log_requests  one line per request, and uvicorn's access log
    max_body_bytes       larger request bodies get a 413
    tool_call_parser     form of the model's tool calls: hermes or llama3_json; empty for none
    enable_auto_tool_choice  whether `tool_choice` "auto" is served, with that parser
    reasoning_parser     deepseek_r1 or qwen3: `<think>` is split off chat answers; empty leaves them as they are

    How much may wait is the engine's `max_num_queued_reqs` and `max_num_queued_tokens`; above it a request gets a 429.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    served_model_names: tuple[str, ...] = ()
    shutdown_timeout_s: float = 30.0
    log_level: str = "info"
    log_format: str = "text"
    enable_log_requests: bool = False
    max_body_bytes: int = 4 * 1024 * 1024
    tool_call_parser: str = ""
    enable_auto_tool_choice: bool = False
    reasoning_parser: str = ""
