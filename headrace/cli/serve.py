"""`headrace serve`: the OpenAI-compatible server, with vLLM's flags."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Group, Parameter

from headrace.cli import vllm_flags
from headrace.cli.old_speculation import modernize
from headrace.cli.spelling import FALSE, TRUE, accept, is_number, split, switch_value
from headrace.errors import ConfigError
from headrace.version import VERSION

if TYPE_CHECKING:
    from headrace.engine.async_engine import AsyncEngine
    from headrace.engine.config import EngineConfig
    from headrace.server.options import ServerOptions

app = App(
    name="headrace serve",
    help="Start the OpenAI-compatible server.  Takes vLLM's flags: a published `vllm serve` command works unchanged.",
    version=VERSION,
    help_format="plaintext",
)

MODEL = Group("Model", sort_key=1)
SCHEDULING = Group("Scheduling", sort_key=2)
MEMORY = Group("Memory", sort_key=3)
SERVER = Group("Server", sort_key=4)
_LOG_LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
_SWITCHES = (
    *("--enable-chunked-prefill", "--enable-prefix-caching", "--enable-log-requests"),
    *("--step-log-requests", "--startup-probe", "--enable-auto-tool-choice"),
)
_MANY = {"consume_multiple": True, "negative": ""}


def _flag(group: Group, help: str, **more: object) -> Parameter:
    return Parameter(group=group, help=help, show_default=False, **more)  # type: ignore[arg-type]


@app.default
def serve(
    model: Annotated[str | None, _flag(MODEL, "Directory, Hugging Face name, or `demo` (default).")] = None,
    *,
    served_model_name: Annotated[list[str] | None, _flag(MODEL, "Names that the API accepts.", **_MANY)] = None,
    tokenizer: Annotated[str | None, _flag(MODEL, "Directory or name of another tokenizer.")] = None,
    revision: Annotated[str | None, _flag(MODEL, "Branch, tag or commit on the Hugging Face hub.")] = None,
    download_dir: Annotated[str | None, _flag(MODEL, "Where fetched models are kept.")] = None,
    dtype: Annotated[str | None, _flag(MODEL, "auto (default), bfloat16 or float32.")] = None,
    kv_cache_dtype: Annotated[
        str | None, _flag(MEMORY, "auto (default: the model's dtype), bfloat16, float32, or int8: half of bfloat16.")
    ] = None,
    load_format: Annotated[str | None, _flag(MODEL, "auto (default), safetensors, or dummy: random weights.")] = None,
    quantization: Annotated[
        str | None, _flag(MODEL, "int8 quantises when loading (W8A8); a quantised model's own is used (default).")
    ] = None,
    seed: Annotated[int | None, _flag(MODEL, "Seed of random weights and of unseeded sampling (default 0).")] = None,
    max_model_len: Annotated[
        str | None, _flag(MODEL, "Longest sequence in tokens: 4096, 4k, auto (default: the model's).")
    ] = None,
    generation_config: Annotated[
        str | None, _flag(MODEL, "auto (default): the model's own sampling defaults; vllm: none.")
    ] = None,
    chat_template: Annotated[str | None, _flag(MODEL, "Jinja file that replaces the model's own template.")] = None,
    tool_call_parser: Annotated[
        str | None, _flag(MODEL, "How the model writes tool calls: hermes or llama3_json (default: not parsed).")
    ] = None,
    enable_auto_tool_choice: Annotated[
        bool | None, _flag(MODEL, "Let requests leave the choice of tools to the model; needs --tool-call-parser.")
    ] = None,
    reasoning_parser: Annotated[
        str | None, _flag(MODEL, "Split <think> off chat answers: deepseek_r1 or qwen3 (default: not split).")
    ] = None,
    max_num_batched_tokens: Annotated[
        str | None, _flag(SCHEDULING, "Tokens that one step may compute (default 2048).")
    ] = None,
    max_num_seqs: Annotated[int | None, _flag(SCHEDULING, "Sequences that may run at once (default 128).")] = None,
    enable_chunked_prefill: Annotated[
        bool | None, _flag(SCHEDULING, "Split prompts over steps and mix them with decodes (default on).")
    ] = None,
    enable_prefix_caching: Annotated[
        bool | None, _flag(SCHEDULING, "Share the KV cache of equal beginnings (default on, off for v0).")
    ] = None,
    long_prefill_token_threshold: Annotated[
        int | None, _flag(SCHEDULING, "Most tokens of one prompt in one step; 0 (default): no cap.")
    ] = None,
    scheduling_policy: Annotated[str | None, _flag(SCHEDULING, "fcfs (default) or priority.")] = None,
    scheduler_version: Annotated[
        str | None, _flag(SCHEDULING, "Generation of vLLM's scheduler: v1 (default) or v0.  Ours.")
    ] = None,
    max_num_queued_reqs: Annotated[
        int | None, _flag(SCHEDULING, "Requests that may wait; one more gets a 429 (default 8192).")
    ] = None,
    max_num_queued_tokens: Annotated[
        str | None, _flag(SCHEDULING, "Tokens that waiting prompts may have; more get a 429 (default 4M).")
    ] = None,
    speculative_config: Annotated[
        str | None,
        _flag(SCHEDULING, 'Guess tokens ahead: {"method": "ngram", "num_speculative_tokens": 4} (default: not).'),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, _flag(MEMORY, "Share of the free memory for weights and KV cache (default 0.9, and modest).")
    ] = None,
    kv_cache_memory_bytes: Annotated[str | None, _flag(MEMORY, "Size of the KV cache in bytes, like 2G.")] = None,
    num_gpu_blocks_override: Annotated[int | None, _flag(MEMORY, "Size of the KV cache in blocks.")] = None,
    block_size: Annotated[int | None, _flag(MEMORY, "Tokens in a block of the KV cache (default 16).")] = None,
    swap_space: Annotated[float | None, _flag(MEMORY, "Accepted, no effect: nothing is swapped.")] = None,
    num_threads: Annotated[
        int | None, _flag(MEMORY, "Threads of the model (default: OMP_NUM_THREADS, or usable cores).  Ours.")
    ] = None,
    host: Annotated[str, _flag(SERVER, "Address to listen on (default 127.0.0.1; 0.0.0.0 for all).")] = "127.0.0.1",
    port: Annotated[int, _flag(SERVER, "Port (default 8000); 0 takes a free one.")] = 8000,
    api_key: Annotated[
        list[str] | None, _flag(SERVER, "Key that opens the API; may be repeated (or HEADRACE_API_KEY).", **_MANY)
    ] = None,
    shutdown_timeout: Annotated[
        float | None, _flag(SERVER, "Seconds that running requests get at SIGTERM (default 30; 0 aborts).")
    ] = None,
    step_log: Annotated[
        str | None, _flag(SERVER, "File for one JSON line a step: tokens, sequences, KV blocks, seconds.  Ours.")
    ] = None,
    step_log_max_bytes: Annotated[
        str | None, _flag(SERVER, "Most that the step log and its older half may take (default 256M).  Ours.")
    ] = None,
    step_log_requests: Annotated[
        bool | None, _flag(SERVER, "Name the requests of each step in the step log.  Ours.")
    ] = None,
    profiler_config: Annotated[
        str | None, _flag(SERVER, 'Opens /start_profile: {"profiler": "torch", "torch_profiler_dir": "/directory"}.')
    ] = None,
    uvicorn_log_level: Annotated[str, _flag(SERVER, "debug, info (default), warning or error.")] = "info",
    startup_probe: Annotated[
        bool, _flag(SERVER, "Measure GB/s and GFLOP/s at start, a fraction of a second (default on).  Ours.")
    ] = True,
    log_format: Annotated[str, _flag(SERVER, "text (default), or json: one object a line.  Ours.")] = "text",
    enable_log_requests: Annotated[bool, _flag(SERVER, "Log a line for each request.")] = False,
    accepted_flag: Annotated[list[str] | None, Parameter(show=False)] = None,
) -> int:
    # cyclopts calls this function; the signature is the list of flags, and every EngineArgs field is one of them.
    given = locals()
    from headrace.engine.config import EngineArgs, resolve
    from headrace.server.lifecycle import bind
    from headrace.server.lifecycle import serve as serve_until_stopped

    arguments = {name.name: given[name.name] for name in dataclasses.fields(EngineArgs)}
    arguments["served_model_name"] = tuple(served_model_name or ())
    options = _server_options(given)
    if port:
        bind(host, port).close()  # a taken port is said before a model is fetched
    config, reasons = resolve(EngineArgs(**arguments))
    reasons += accepted_flag or []
    return serve_until_stopped(lambda: _load(config, reasons, startup_probe), options)


def _server_options(given: dict[str, object]) -> ServerOptions:
    from headrace.server.options import ServerOptions

    port, level, timeout = given["port"], str(given["uvicorn_log_level"]).lower(), given["shutdown_timeout"]
    assert isinstance(port, int)
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port} must be between 0 and 65535")
    if level not in _LOG_LEVELS:
        raise ConfigError(f"--uvicorn-log-level {level!r} is not known; use one of {', '.join(_LOG_LEVELS)}")
    if given["log_format"] not in ("text", "json"):
        raise ConfigError(f"--log-format {given['log_format']!r} is not known; use text or json")
    keys = list(given["api_key"] or ())  # type: ignore[call-overload]
    if not keys:
        keys = [os.environ[name] for name in ("HEADRACE_API_KEY", "VLLM_API_KEY") if os.environ.get(name)]
    if any(not key for key in keys):
        raise ConfigError("--api-key must not be empty")
    options = ServerOptions(
        host=str(given["host"]),
        port=port,
        api_keys=tuple(keys),
        log_level="debug" if level == "trace" else level,
        log_format=str(given["log_format"]),
        enable_log_requests=bool(given["enable_log_requests"]),
        tool_call_parser=_parser("tool-call", given["tool_call_parser"]),
        enable_auto_tool_choice=bool(given["enable_auto_tool_choice"]),
        reasoning_parser=_parser("reasoning", given["reasoning_parser"]),
    )
    if options.enable_auto_tool_choice and not options.tool_call_parser:
        raise ConfigError("--enable-auto-tool-choice needs --tool-call-parser: hermes or llama3_json")
    if timeout is None:
        return options
    assert isinstance(timeout, float)
    if not 0 <= timeout < float("inf"):
        raise ConfigError(f"--shutdown-timeout {timeout:g} must be at least 0")
    return dataclasses.replace(options, shutdown_timeout_s=timeout)


def _parser(kind: str, given: object) -> str:
    """The name of a parser, or "" for none.  Raises ConfigError for one that does not exist."""
    from headrace.server import reasoning, tools

    known = tuple(tools.PARSERS if kind == "tool-call" else reasoning.PARSERS)
    if given not in (None, "", *known):
        raise ConfigError(f"--{kind}-parser {given!r} is not known; use {' or '.join(known)}")
    return str(given or "")


def _load(config: EngineConfig, reasons: Sequence[str], probe: bool) -> AsyncEngine:
    """Load the model, and say in the log what was chosen and why."""
    from headrace.engine.async_engine import AsyncEngine
    from headrace.engine.startup_report import after_loading, before_loading

    if config.profiler is not None:
        # Read when torch is imported: its profiler has lines of its own on stderr, an ERROR that is none among them.
        os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    log = logging.getLogger("headrace.engine")
    for line in before_loading(config, reasons):
        log.info(line)
    started_s = time.perf_counter()
    engine = AsyncEngine.from_config(config)
    for line in after_loading(engine, time.perf_counter() - started_s, probe=probe):
        log.info(line)
    return engine


def prepare(argv: Sequence[str]) -> list[str]:
    """vLLM's spellings as one form: `--max_num_seqs`, `--enable-chunked-prefill false`, `--flag=value`, short names.

    Flags of vLLM that mean nothing here become `--accepted-flag LINE`; ConfigError for those that cannot be served.
    """
    tokens: list[str] = []
    rest = modernize(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-") or token in ("-", "--") or is_number(token):
            tokens.append(token)
            continue
        name, equals, value = split(token)
        vllm_flags.refuse_docker(name)
        if name.startswith("-O") and len(name) == 3:  # -O3
            name, equals, value = "-O", "=", name[2:]
        name = vllm_flags.SHORT.get(name, name)
        positive = name if not name.startswith("--no-") else "--" + name.removeprefix("--no-")
        if name == "--disable-log-requests":
            on = switch_value(name, equals, value, rest)
            tokens.append("--no-enable-log-requests" if on else "--enable-log-requests")
        elif positive in _SWITCHES:
            on = switch_value(name, equals, value, rest) == (positive == name)
            tokens.append(positive if on else f"--no-{positive.removeprefix('--')}")
        elif positive in vllm_flags.FOREIGN and (name == positive or vllm_flags.FOREIGN[positive].switch):
            if vllm_flags.FOREIGN[positive].switch:
                on = switch_value(name, equals, value, rest) == (positive == name)
                value = TRUE if on else FALSE
            elif not equals:
                if not rest:
                    raise ConfigError(f"{name} needs a value")
                value = rest.pop(0)
            tokens.append(f"--accepted-flag={accept(positive, vllm_flags.FOREIGN[positive], value)}")
        elif equals:
            tokens.append(f"{name}={value}")
        elif name == "--api-key" and (not rest or rest[0].startswith("--")):
            raise ConfigError("--api-key needs a value")  # an empty $KEY must not start an open server
        elif rest and is_number(rest[0]):
            tokens.append(f"{name}={rest.pop(0)}")  # else -1 would be read as a flag
        else:
            tokens.append(name)
    return tokens
