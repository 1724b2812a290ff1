"""`headrace size`: what a model needs and what a device gives, before anything is started."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter

from headrace.cli.spelling import FALSE, TRUE, is_number, split, switch_value
from headrace.errors import ConfigError

app = App(
    name="headrace size",
    help="Memory, KV cache, legal settings and ceilings of a model on a device.  Takes vLLM's flags.",
    help_format="plaintext",
)
DEVICE, SETTINGS, TRAFFIC = Group("Device", sort_key=1), Group("Settings", sort_key=2), Group("Traffic", sort_key=3)
_SWITCHES = ("--enable-chunked-prefill", "--enable-prefix-caching", "--enforce-eager")
_SHORT = {"-tp": "--tensor-parallel-size"}


def _flag(group: Group, help: str) -> Parameter:
    return Parameter(group=group, help=help, show_default=False)


def prepare(argv: Sequence[str]) -> list[str]:
    """vLLM's spellings as one form; `--json -`, whose dash reads as an option otherwise."""
    tokens: list[str] = []
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("-") or token == "-" or is_number(token):
            if token == "-" and tokens[-1:] == ["--json"]:
                tokens[-1] = "--json=-"
            else:
                tokens.append(token)
            continue
        name, equals, value = split(token)
        name = _SHORT.get(name, name)
        positive = "--" + name.removeprefix("--no-") if name.startswith("--no-") else name
        if positive in _SWITCHES:
            on = switch_value(name, equals, value, rest) == (positive == name)
            tokens.append(f"{positive}={TRUE if on else FALSE}")
        elif equals:
            tokens.append(f"{name}={value}")
        elif rest and is_number(rest[0]):
            tokens.append(f"{name}={rest.pop(0)}")  # else -1 would be read as a flag
        else:
            tokens.append(name)
    return tokens


@app.default
def size(
    model: Annotated[str, Parameter(help="Directory, config.json, or a name on the Hugging Face hub.")],
    /,
    *,
    gpu: Annotated[str | None, _flag(DEVICE, "A device of the table, e.g. H100 or RTX-4090.")] = None,
    memory: Annotated[float | None, _flag(DEVICE, "Memory of one device in GiB, as its driver reports it.")] = None,
    tensor_parallel_size: Annotated[int, _flag(DEVICE, "Devices that share the model (default 1).")] = 1,
    gpu_memory_utilization: Annotated[float | None, _flag(DEVICE, "Share of the memory (default 0.9).")] = None,
    vllm_version: Annotated[
        str | None, _flag(DEVICE, "Version whose start-up is predicted, e.g. 0.10; else a range over all.")
    ] = None,
    max_num_batched_tokens: Annotated[str | None, _flag(SETTINGS, "Tokens that one step may compute.")] = None,
    max_num_seqs: Annotated[int | None, _flag(SETTINGS, "Sequences that may run at once.")] = None,
    max_model_len: Annotated[str | None, _flag(SETTINGS, "Longest sequence in tokens (default: the model's).")] = None,
    dtype: Annotated[str, _flag(SETTINGS, "auto (default), bfloat16, float16 or float32.")] = "auto",
    kv_cache_dtype: Annotated[str, _flag(SETTINGS, "auto (default), fp8, fp8_ds_mla, bfloat16 or float16.")] = "auto",
    block_size: Annotated[int, _flag(SETTINGS, "Tokens in a block of the KV cache (default 16).")] = 16,
    enable_chunked_prefill: Annotated[bool, _flag(SETTINGS, "Split prompts over steps (default true).")] = True,
    enable_prefix_caching: Annotated[bool, _flag(SETTINGS, "Share equal beginnings (default true).")] = True,
    enforce_eager: Annotated[
        bool, _flag(SETTINGS, "Accepted: graphs are captured after the KV cache is sized.")
    ] = False,
    scheduler_version: Annotated[str, _flag(SETTINGS, "Generation of vLLM's scheduler: v1 (default) or v0.")] = "v1",
    long_prefill_token_threshold: Annotated[int, _flag(SETTINGS, "Most tokens of one prompt in one step.")] = 0,
    max_num_partial_prefills: Annotated[int, _flag(SETTINGS, "Prompts that may be in progress (default 1).")] = 1,
    max_long_partial_prefills: Annotated[int, _flag(SETTINGS, "Long ones among them (default 1).")] = 1,
    num_gpu_blocks_override: Annotated[int | None, _flag(SETTINGS, "Size of the KV cache in blocks.")] = None,
    kv_cache_memory_bytes: Annotated[str | None, _flag(SETTINGS, "Size of the KV cache in bytes, like 2G.")] = None,
    prompt_tokens: Annotated[int | None, _flag(TRAFFIC, "Mean length of your prompts.")] = None,
    output_tokens: Annotated[int | None, _flag(TRAFFIC, "Mean length of your answers.")] = None,
    json: Annotated[
        str | None, Parameter(name="--json", help="Write everything as JSON to this file; `-` is standard output.")
    ] = None,
) -> None:
    """Say what a model needs: parameters, weights, KV cache; with a device, what fits, is legal and bounds it."""
    given = dict(locals())
    from headrace.cli.size_text import render
    from headrace.lab.files import write_where_asked
    from headrace.sizing.answer import Question, answer

    found = answer(_question(given, Question))
    if json == "-":
        sys.stdout.write(json_module.dumps(found, indent=2) + "\n")
        return
    if json is not None:
        write_where_asked(Path(json), json_module.dumps(found, indent=2) + "\n", what=f"--json {json}")
    print(render(found))


def _question(given: dict[str, Any], question: Any) -> Any:
    from headrace.engine.flag_values import parse_tokens

    directory, config, beside = _read_model(given["model"])
    numbers = {
        name: None if given[name] is None else parse_tokens(f"--{name.replace('_', '-')}", given[name])
        for name in ("max_num_batched_tokens", "max_model_len", "kv_cache_memory_bytes")
    }
    same = {
        name: given[name]
        for name in (
            *("gpu", "tensor_parallel_size", "gpu_memory_utilization", "vllm_version", "max_num_seqs", "dtype"),
            *("kv_cache_dtype", "block_size", "enable_chunked_prefill", "enable_prefix_caching", "scheduler_version"),
            *("long_prefill_token_threshold", "max_num_partial_prefills", "max_long_partial_prefills"),
            *("num_gpu_blocks_override", "prompt_tokens", "output_tokens"),
        )
    }
    return question(
        name=given["model"],
        config=config,
        beside=beside,
        directory=directory,
        memory_gib=given["memory"],
        **numbers,
        **same,
    )


def _read_model(name: str) -> tuple[Path | None, dict[str, Any], dict[str, Any] | None]:
    """Directory, config.json and hf_quant_config.json of a directory, a file, or a name on the hub."""
    path = Path(name)
    if name == "demo":
        from headrace.engine.demo import DEMO_DIRECTORY

        path = DEMO_DIRECTORY
    if path.is_file():
        return None, _json_object(path), None
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(f"{path} has no config.json; give the directory of a Hugging Face model")
        beside = path / "hf_quant_config.json"
        return path, _json_object(path / "config.json"), _json_object(beside) if beside.is_file() else None
    return _from_hub(name)


def _from_hub(name: str) -> tuple[Path | None, dict[str, Any], dict[str, Any] | None]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise ConfigError(f"there is no file or directory {name}; give one, or a name like Qwen/Qwen3-8B")
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        raise ConfigError(
            f"there is no directory {name}; to read it from the hub: pip install 'headrace[engine]'"
        ) from None
    try:
        config = _json_object(Path(hf_hub_download(name, "config.json")))
    except ConfigError:
        raise
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"there is no directory {name}, and the hub did not give its config.json: {reason}") from None
    try:
        return None, config, _json_object(Path(hf_hub_download(name, "hf_quant_config.json")))
    except Exception:  # most models have none
        return None, config, None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json_module.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return content
