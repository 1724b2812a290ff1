"""`headrace bench`: measure a running server.  Takes the flags of `vllm bench serve` and prints its block."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from headrace import exit_codes
from headrace.cli.bench_flags import FOREIGN
from headrace.cli.bench_notes import explain, keep_steps, message, user_table
from headrace.cli.spelling import set_apart
from headrace.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.lab.client import MeasuredRun
    from headrace.lab.metrics.dialects import BenchSettings
    from headrace.lab.metrics.vllm import VllmMetrics
    from headrace.lab.workload.spec import WorkloadSpec

app = App(
    name="headrace bench",
    help="Measure a running OpenAI-compatible server, with the flags of `vllm bench serve`.",
    help_format="plaintext",
    version_flags=[],
)

# vLLM's names of datasets -> ours.
DATASET_NAMES = {"prefix_repetition": "shared-prefix", "timed_trace": "trace"}

# vLLM's backend name -> endpoint.  Its other backends speak protocols that this client does not.
BACKENDS = {
    "vllm": "completions",
    "openai": "completions",
    "headrace": "completions",
    "sglang": "completions",
    "vllm-chat": "chat",
    "openai-chat": "chat",
    "sglang-oai": "completions",
    "sglang-oai-chat": "chat",
}

_Many = Parameter(consume_multiple=True, negative=())
_Flag = Parameter(negative=())


def prepare(argv: list[str]) -> list[str]:
    """Accept `bench serve ...`, flags with underscores, and vLLM's flags that mean nothing here."""
    tokens, accepted = set_apart(argv[1:] if argv[:1] == ["serve"] else argv, FOREIGN)
    return tokens + [f"--accepted-flag={line}" for line in accepted]


@app.default
def bench(
    *,
    backend: str = "openai",
    base_url: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    endpoint: str | None = None,
    model: str | None = None,
    served_model_name: str | None = None,
    tokenizer: str | None = None,
    dataset_name: str | None = None,
    dataset_path: str | None = None,
    dataset: str | None = None,
    num_prompts: int = 1000,
    request_rate: float = math.inf,
    burstiness: float = 1.0,
    ramp_up_strategy: str | None = None,
    ramp_up_start_rps: float | None = None,
    ramp_up_end_rps: float | None = None,
    arrival_rescale: Annotated[bool, _Flag] = False,
    rate_steps: str | None = None,
    arrivals: str | None = None,
    time_scale: float = 1.0,
    max_concurrency: int | None = None,
    seed: int = 0,
    scale: float = 1.0,
    random_input_len: int = 1024,
    random_output_len: int = 128,
    random_range_ratio: float = 0.0,
    random_prefix_len: int = 0,
    sharegpt_output_len: int | None = None,
    sonnet_input_len: int = 550,
    sonnet_output_len: int = 150,
    sonnet_prefix_len: int = 200,
    prefix_repetition_num_prefixes: int = 10,
    prefix_repetition_prefix_len: int = 256,
    prefix_repetition_suffix_len: int = 256,
    prefix_repetition_output_len: int = 128,
    session_turns: int = 4,
    session_think_s: float = 1.0,
    custom_output_len: int | None = None,
    hf_output_len: int | None = None,
    hf_name: str | None = None,
    hf_subset: str | None = None,
    hf_split: str = "train",
    input_len: int | None = None,
    output_len: int | None = None,
    ignore_eos: bool | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    repetition_penalty: float | None = None,
    logprobs: int | None = None,
    extra_body: str | None = None,
    header: Annotated[list[str] | None, _Many] = None,
    num_warmups: int = 0,
    timeout_s: float | None = None,
    ready_check_timeout_sec: float = 0.0,
    client_processes: str = "auto",
    ray: str | None = None,
    calibrate: bool = True,
    profile: Annotated[bool, _Flag] = False,
    profile_max_s: float = 30.0,
    percentile_metrics: str = "ttft,tpot,itl",
    metric_percentiles: str = "99",
    goodput: Annotated[list[str] | None, _Many] = None,
    label: str | None = None,
    metadata: Annotated[list[str] | None, _Many] = None,
    save_result: Annotated[bool, _Flag] = False,
    save_detailed: Annotated[bool, _Flag] = False,
    append_result: Annotated[bool, _Flag] = False,
    result_dir: str | None = None,
    result_filename: str | None = None,
    dialect: str = "vllm",
    out: str | None = None,
    step_log: str | None = None,
    disable_tqdm: Annotated[bool, _Flag] = False,
    accepted_flag: Annotated[list[str] | None, Parameter(show=False)] = None,
) -> int:
    """Send a workload to a server and print what came of it, as `vllm bench serve` prints it.

    Exit codes: 0 measured, 1 every request failed, 2 bad input, 3 no server, 4 the run should not be believed.

    Parameters
    ----------
    backend
        Which API to speak: vllm, openai, headrace, sglang, sglang-oai (completions); openai-chat, vllm-chat,
        sglang-oai-chat.
    base_url
        The server's root, in place of --host and --port.
    host
        The server's host.
    port
        The server's port.
    endpoint
        Path of the API, where it is not /v1/completions or /v1/chat/completions.
    model
        The model's name, also where its tokenizer is looked for; default: what /v1/models says.
    served_model_name
        The name to send, where it differs from --model.
    tokenizer
        A tokenizer.json or a directory that has one; default: the model's directory, else the server's /tokenize.
    dataset_name
        conversation (built in), random, sharegpt, sonnet, shared-prefix, sessions (several turns, with --backend
        openai-chat), custom (JSON lines with prompt), hf (any set of the Hugging Face hub), trace (recorded lengths
        and arrivals of Azure, BurstGPT, Mooncake, AIBrix, vLLM).
    dataset_path
        The file (sharegpt, sonnet, sessions, custom, trace), or the set's name (hf).
    dataset
        The old form of --dataset-name sharegpt --dataset-path FILE.
    num_prompts
        Requests to send.
    request_rate
        Requests per second; inf sends all at once, or with --max-concurrency as fast as answers come.
    burstiness
        Shape of the gaps' gamma distribution: 1 is Poisson, below 1 burstier, inf constant.
    ramp_up_strategy
        linear or exponential: raise the rate during the run (--request-rate stays inf).
    ramp_up_start_rps
        Requests per second at the first request of a ramp.
    ramp_up_end_rps
        And at the last.
    arrival_rescale
        Stretch the schedule to end at num-prompts / request-rate, as vLLM does (no longer Poisson).
    rate_steps
        2:30,4:30 sends 2 requests/s for 30 s, then 4; the last rate goes on until all are sent.
    arrivals
        A file of recorded arrivals to replay with any dataset; a trace replays its own.
    time_scale
        Multiplies recorded times: 0.5 replays twice as fast.
    max_concurrency
        Requests in flight at most.
    seed
        Of samples and arrivals.
    scale
        Multiplies the lengths of conversation and random.
    random_input_len
        Prompt tokens (random).
    random_output_len
        Answer tokens (random).
    random_range_ratio
        Lengths vary by this share of themselves (random).
    random_prefix_len
        Tokens that all prompts begin with, on top of their length (random).
    input_len
        The same as --random-input-len.
    output_len
        The same as --random-output-len, or --sharegpt-output-len with sharegpt.
    sharegpt_output_len
        Answer tokens, in place of the file's.
    sonnet_input_len
        Prompt tokens (sonnet).
    sonnet_output_len
        Answer tokens (sonnet).
    sonnet_prefix_len
        Of the prompt, what all requests share (sonnet).
    prefix_repetition_num_prefixes
        Different prefixes (shared-prefix).
    prefix_repetition_prefix_len
        Tokens of each (shared-prefix).
    prefix_repetition_suffix_len
        Tokens of each request's own (shared-prefix).
    prefix_repetition_output_len
        Answer tokens (shared-prefix).
    session_turns
        Turns of a session (sessions); their lengths are those of random.
    session_think_s
        Mean of the user's exponential pause between turns (sessions).
    custom_output_len
        Answer tokens (custom), in place of the file's.
    hf_output_len
        The same for hf.
    hf_name
        The same as --dataset-path with hf.
    hf_subset
        The set's configuration (hf).
    hf_split
        Its split (hf).
    ignore_eos
        Force the answer's length; default: yes for conversation and random, no for sharegpt.
    temperature
        Not sent unless given; nor are the options below.
    top_p
        Nucleus sampling.
    top_k
        Only the k likeliest tokens.
    min_p
        Only tokens with this share of the likeliest one's probability.
    frequency_penalty
        OpenAI's frequency penalty.
    presence_penalty
        OpenAI's presence penalty.
    repetition_penalty
        Penalty on tokens that were there before.
    logprobs
        Log probabilities per token.
    extra_body
        A JSON object merged into every request.
    header
        NAME=VALUE pairs sent with every request.
    num_warmups
        Requests before the measured ones, with prompts of their own.
    timeout_s
        For one request; default six hours, as vLLM has it.
    ready_check_timeout_sec
        How long to wait for the server to answer at all.
    client_processes
        A number, or auto: one for every 512 streams or 500 requests/s, and a core left for others.
    ray
        Send from the machines of this Ray cluster (auto, or ray://host:port), one client process each.
    calibrate
        After runs of at least 3 s, measure the client against a server that does nothing, at the run's rate (1 s).
    profile
        Start the server's profiler before and stop it after; the run is marked and should not be compared.
    profile_max_s
        Stop the profiler after so long while the run goes on: a trace of everything takes minutes to write.
    percentile_metrics
        Of ttft, tpot, itl, e2el.
    metric_percentiles
        For example 50,99,99.9.
    goodput
        Goals in milliseconds: ttft:200 tpot:50 e2el:5000.
    label
        Begins the result file's name.
    metadata
        KEY=VALUE pairs for the result file.
    save_result
        Write the result file.
    save_detailed
        Write it with every request's values.
    append_result
        Add to the result file, one object a line.
    result_dir
        Where to write it.
    result_filename
        Its name; default: vLLM's.
    dialect
        Form of the block and the file: vllm or vllm-2025.
    out
        A new directory for the run's raw records, every time stamp kept.
    step_log
        The file that `headrace serve --step-log FILE --step-log-requests` writes, on this machine: each TTFT and each
        long gap is explained by what the server did.
    disable_tqdm
        No progress.
    """
    from headrace.lab.client.control import request_headers, served_models
    from headrace.lab.http import base_of
    from headrace.lab.metrics.dialects import DIALECTS, BenchSettings
    from headrace.lab.metrics.vllm import parse_goodput, vllm_metrics
    from headrace.lab.records.store import write_run
    from headrace.lab.workload.spec import DEFAULT_TIMEOUT_S, WorkloadSpec

    if backend not in BACKENDS:
        raise ConfigError(f"--backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if endpoint is not None and ("chat" in endpoint) != (BACKENDS[backend] == "chat"):
        raise ConfigError(
            f"--endpoint {endpoint} does not fit --backend {backend}: use openai for completions, openai-chat for chat"
        )
    if dialect not in DIALECTS:
        raise ConfigError(f"--dialect must be one of {', '.join(DIALECTS)}, not {dialect!r}")
    if dataset is not None:
        if dataset_path is not None or dataset_name not in (None, "sharegpt"):
            raise ConfigError("--dataset FILE is the old form of --dataset-name sharegpt --dataset-path FILE: give one")
        dataset_path = dataset
    dataset_name = DATASET_NAMES.get(dataset_name or "", dataset_name)
    dataset_path = dataset_path or (hf_name if dataset_name == "hf" else None)
    if dataset_name is None:
        dataset_name = "sharegpt" if dataset_path is not None else "conversation"
    if input_len is not None:
        random_input_len = _general_length("--input-len", input_len, dataset_name, ("random",))
    if output_len is not None:
        _general_length("--output-len", output_len, dataset_name, ("random", "sharegpt"))
        if dataset_name == "random":
            random_output_len = output_len
        else:
            sharegpt_output_len = output_len
    options = {
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "repetition_penalty": repetition_penalty,
        "logprobs": logprobs,
    }
    spec = WorkloadSpec(
        dataset_name=dataset_name,
        dataset_path=dataset_path,
        num_prompts=num_prompts,
        seed=seed,
        scale=scale,
        request_rate=request_rate,
        burstiness=burstiness,
        ramp_up_strategy=ramp_up_strategy,
        ramp_up_start_rps=ramp_up_start_rps,
        ramp_up_end_rps=ramp_up_end_rps,
        arrival_rescale=arrival_rescale,
        rate_steps=rate_steps,
        arrivals_path=arrivals,
        time_scale=time_scale,
        max_concurrency=max_concurrency,
        ignore_eos=ignore_eos,
        temperature=temperature,
        endpoint=BACKENDS[backend],
        tokenizer=tokenizer,
        warmup_requests=num_warmups,
        timeout_s=DEFAULT_TIMEOUT_S if timeout_s is None else timeout_s,
        random_input_len=random_input_len,
        random_output_len=random_output_len,
        random_range_ratio=random_range_ratio,
        random_prefix_len=random_prefix_len,
        sharegpt_output_len=sharegpt_output_len,
        sonnet_input_len=sonnet_input_len,
        sonnet_output_len=sonnet_output_len,
        sonnet_prefix_len=sonnet_prefix_len,
        num_prefixes=prefix_repetition_num_prefixes,
        prefix_len=prefix_repetition_prefix_len,
        suffix_len=prefix_repetition_suffix_len,
        prefix_output_len=prefix_repetition_output_len,
        session_turns=session_turns,
        session_think_s=session_think_s,
        custom_output_len=hf_output_len if dataset_name == "hf" else custom_output_len,
        hf_subset=hf_subset,
        hf_split=hf_split,
        extra_body={key: value for key, value in options.items() if value is not None} | _json_object(extra_body),
        headers=_pairs("--header", header),
    )
    client = {"processes": _processes(client_processes), "ray_address": ray, "calibrated": calibrate}
    if not 0 < profile_max_s < math.inf:
        raise ConfigError(f"--profile-max-s must be a number above 0, not {profile_max_s:g}")
    goals = parse_goodput(goodput or [])
    percentiles = _percentiles(metric_percentiles)
    extra_keys = _pairs("--metadata", metadata)
    metrics = tuple(name.strip() for name in percentile_metrics.split(",") if name.strip())
    _check_targets(out, result_dir)
    if step_log is not None and not Path(step_log).is_file():
        raise ConfigError(f"--step-log: {step_log} is not there: start the server with --step-log {step_log}")
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port must be from 1 to 65535, not {port}")

    url = base_of(base_url or f"http://{host}:{port}")
    models = served_models(url, request_headers(spec.headers), wait_s=ready_check_timeout_sec)
    name = model or (models[0] if models else None)
    if name is None:
        raise ConfigError(f"{url}/v1/models names no model: give --model")
    settings = BenchSettings(
        backend=backend,
        model_id=name,
        tokenizer_id=tokenizer or name,
        num_prompts=num_prompts,
        request_rate=request_rate,
        burstiness=burstiness,
        max_concurrency=max_concurrency,
        ramp_up=spec.ramp_up,
        label=label,
        metadata=extra_keys,
        metrics=metrics,
        percentiles=percentiles,
    )
    for line in accepted_flag or ():
        print(f"note: {line}", file=sys.stderr)
    run = _measure(
        url,
        spec,
        settings,
        sent_name=served_model_name or name,
        endpoint_path=endpoint,
        profile_max_s=profile_max_s if profile else None,
        show_progress=not disable_tqdm,
        client=client,
    )
    totals = vllm_metrics(
        run.records,
        run.duration_s,
        goodput_ms=goals or None,
        closed_loop_start_ns=run.start_ns if spec.closed_loop else None,
    )
    kept: list[str] = []
    try:  # first what lasts; and what could not be kept is at least shown
        if out is not None:
            write_run(Path(out), run.manifest, run.records, interrupted=run.interrupted)
            kept.append(f"raw records: {out}")
            if step_log is not None:
                keep_steps(Path(step_log), Path(out))
        if save_result or append_result:
            path = Path(result_dir or ".")
            detail = {"detailed": save_detailed, "append": append_result}
            kept.append(f"result file: {_save(totals, settings, dialect, path, result_filename, **detail)}")
    finally:
        _print(run, totals, spec, settings, dialect)
        user_table(run, goals)
        explain(run, step_log)
        for line in kept:
            print(line, file=sys.stderr)
    return _exit_code(run)


def _measure(
    url: str,
    spec: WorkloadSpec,
    settings: BenchSettings,
    *,
    sent_name: str,
    endpoint_path: str | None,
    profile_max_s: float | None,
    show_progress: bool,
    client: dict[str, Any],
) -> MeasuredRun:
    from headrace.lab.client import conduct
    from headrace.lab.client.console import console_progress
    from headrace.lab.client.control import BoundedProfile, request_headers
    from headrace.lab.workload.samples import build_workload
    from headrace.lab.workload.tokens import open_tokenizer

    headers = request_headers(spec.headers)
    tokenizer = open_tokenizer(
        spec.tokenizer, model=settings.model_id, served_name=sent_name, base_url=url, headers=headers
    )
    workload = build_workload(spec, tokenizer)
    profile = None
    if profile_max_s is not None:
        print("Starting profiler...")
        profile = BoundedProfile(url, headers, max_s=profile_max_s)
    print("Starting main benchmark run...")
    if spec.ramp_up_strategy is None:
        print(f"Traffic request rate: {spec.request_rate}")
    else:
        print(f"Traffic ramp-up strategy: {spec.ramp_up_strategy}.")
        print(f"Will increase RPS from {spec.ramp_up_start_rps:g} to {spec.ramp_up_end_rps:g} RPS.")
    process = "Poisson process" if spec.burstiness == 1.0 else "Gamma distribution"
    print(f"Burstiness factor: {spec.burstiness} ({process})")
    print(f"Maximum request concurrency: {spec.max_concurrency}", flush=True)
    try:
        with console_progress(enabled=show_progress) as progress:
            run = conduct(
                url,
                spec,
                workload,
                model=sent_name,
                tokenizer=tokenizer,
                endpoint_path=endpoint_path,
                progress=progress,
                settings={"backend": settings.backend, "model": settings.model_id, "profile": profile is not None},
                **client,
            )
    except BaseException:
        if profile is not None:  # the first error is the one to tell
            with contextlib.suppress(HeadraceError):
                profile.stop()
        raise
    if profile is not None:
        # After the clock has stopped: flushing a trace must not count as benchmark time.
        print("Stopping profiler...", flush=True)
        try:
            if profile.stop():
                run = run.noting(f"the profiler was stopped after {profile_max_s:g} s, while the run went on")
        except HeadraceError as error:
            run = run.noting(f"the profiler could not be stopped, so its trace may be missing: {error}")
        except KeyboardInterrupt:
            run = run.noting("stopping the profiler was interrupted, so its trace may be missing")
    return run


def _print(run: MeasuredRun, totals: VllmMetrics, spec: WorkloadSpec, settings: BenchSettings, dialect: str) -> None:
    from headrace.lab.metrics.dialects import result_block

    print(result_block(totals, settings, dialect=dialect), flush=True)
    errors = [record for record in run.records if not record.ok]
    if errors:
        print("Failed requests during benchmark run detected (capping to 10):", file=sys.stderr)
        for record in errors[:10]:
            print(f"  request {record.index}: {record.error_class}: {message(record.error)}", file=sys.stderr)
    print(run.verdict.line(), file=sys.stderr)
    for warning in run.result("").warnings:
        print(f"note: {warning}", file=sys.stderr)
    if spec.closed_loop:
        print("note: a closed loop: its tails cannot be compared with those of an open loop", file=sys.stderr)


def _save(
    totals: VllmMetrics,
    settings: BenchSettings,
    dialect: str,
    directory: Path,
    file_name: str | None,
    *,
    detailed: bool,
    append: bool,
) -> Path:
    """Write the result file; returns where it is."""
    from datetime import datetime

    from headrace.errors import LaunchError
    from headrace.lab.files import write_durably
    from headrace.lab.metrics.dialects import result_file_name, result_json

    date = datetime.now()
    path = directory / (file_name or result_file_name(settings, date))
    text = json.dumps(result_json(totals, settings, date, dialect=dialect, detailed=detailed))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if append:
            with path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        else:
            write_durably(path, text)
    except OSError as error:
        raise LaunchError(f"the result cannot be written to {path}: {error.strerror}", kind="disk") from None
    return path


def _exit_code(run: MeasuredRun) -> int:
    from headrace.lab.records.results import Level

    if run.interrupted:
        return exit_codes.INTERRUPTED
    if not any(record.ok for record in run.records):
        return exit_codes.CHECK_FAILED
    return exit_codes.INVALID_RUN if run.verdict.level is Level.INVALID else exit_codes.OK


def _check_targets(out: str | None, result_dir: str | None) -> None:
    """Say before the run what would make its result homeless after it."""
    from headrace.lab.records.store import is_done

    if out is not None and is_done(Path(out)):
        raise ConfigError(f"--out: {out} already holds a finished run; choose another directory")
    for flag, name in (("--out", out), ("--result-dir", result_dir)):
        if name is not None and Path(name).exists() and not Path(name).is_dir():
            raise ConfigError(f"{flag}: {name} is a file, not a directory")


def _general_length(flag: str, value: int, dataset: str, fitting: tuple[str, ...]) -> int:
    if dataset not in fitting:
        raise ConfigError(f"{flag} is for --dataset-name {' or '.join(fitting)}, not {dataset}")
    return value


def _processes(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise ConfigError(f"--client-processes takes a number from 1 to 1024, or auto, not {text!r}")
    return int(text)


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError('--extra-body must be a JSON object, such as {"top_k": 5}')
    return value


def _pairs(flag: str, items: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not key.strip() or not equals:
            raise ConfigError(f"{flag} takes KEY=VALUE pairs, not {item!r}")
        pairs[key.strip()] = value.strip()
    return pairs


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--metric-percentiles takes numbers such as 50,99,99.9, not {text!r}") from None
