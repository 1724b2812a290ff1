"""What a log says about configuration: launch and client commands, argument dumps, progress bars.

Server settings stay valid until another launch; what the client says belongs to the next result block only.
A setting that is not stated is absent, except for three that follow from what is stated; the rule that implies each
is kept beside it in `settings["implied"]`.
"""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import dataclass, field

from headrace.lab.records.foreign.values import figure, setting
from headrace.lab.records.results import Json

# Automatic chunked prefill of vLLM's V0 scheduler: on for a GPU when max_model_len is above this.
_V0_AUTO_CHUNK_LEN = 32768
_V0_DEFAULT_MAX_NUM_SEQS = 256

_PROMPT = r"^[\s>|`]*(?:\w+: *)?(?:\S+@\S+[:~]\S*[#$] *)?[$#]? *(?:Command: *|Running: *)?(?:[A-Z_][A-Z0-9_]*=\S* +)*"
_WRAPPERS = r"(?:(?:sudo|nohup|time|uv run|numactl(?: -\S+)*) +)*"
_SERVER = re.compile(
    _PROMPT + _WRAPPERS + r"(?:docker run\b|podman run\b|vllm serve\b|headrace serve\b"
    r"|python[\d.]* -m (?:vllm\.entrypoints\.openai\.api_server|sglang\.launch_server)\b)"
)
_CLIENT = re.compile(
    _PROMPT + _WRAPPERS + r"(?:vllm bench serve\b|headrace bench\b|python[\d.]* \S*benchmark_serving\.py\b"
    r"|python[\d.]* -m sglang\.bench_serving\b)"
)
_NAMESPACE = re.compile(r"Namespace\(.*\bnum_prompts=")
_NAMESPACE_FIELD = re.compile(r"\b(\w+)=('(?:[^'\\]|\\.)*'|\"[^\"]*\"|[^\s,()\[\]{}]+)")
_NON_DEFAULT = re.compile(r"non-default args: (\{.*\})\s*$")
_SERVER_CHUNKS = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")
_SERVER_VERSION = re.compile(r"vLLM API server version v?(\d+\.\d+\S*)")
_RATE = re.compile(r"Traffic request rate: *(inf|[\d.]+)\b")
_CONCURRENCY = re.compile(r"Maximum request concurrency: *(\d+|None)\s*$")
_BURSTINESS = re.compile(r"Burstiness factor: *([\d.]+|inf)")
_BAR = re.compile(r"(\d+)/(\d+) \[(?:(\d+):)?(\d+):(\d\d)<")
_BAR_ASIDE = re.compile(r"(?:warm|Test request|Generating|Processing|Loading|Downloading)", re.IGNORECASE)

_SERVER_FLAGS: dict[str, str] = {
    "--model": "model",
    "--model-path": "model",
    "--max-model-len": "max_model_len",
    "--max-num-batched-tokens": "max_num_batched_tokens",
    "--max-num-seqs": "max_num_seqs",
    "--max-running-requests": "max_num_seqs",
    "--tensor-parallel-size": "tensor_parallel_size",
    "-tp": "tensor_parallel_size",
    "--tp-size": "tensor_parallel_size",
    "--gpu-memory-utilization": "gpu_memory_utilization",
    "--quantization": "quantization",
    "--dtype": "dtype",
}
_SERVER_SWITCHES = {
    "--enable-chunked-prefill": "enable_chunked_prefill",
    "--enable-prefix-caching": "enable_prefix_caching",
    "--enforce-eager": "enforce_eager",
}
_CLIENT_FLAGS: dict[str, str] = {
    "--model": "model",
    "--backend": "backend",
    "--num-prompts": "num_prompts",
    "--num-prompt": "num_prompts",
    "--request-rate": "request_rate",
    "--max-concurrency": "max_concurrency",
    "--dataset": "dataset",
    "--dataset-name": "dataset",
    "--random-input-len": "random_input_len",
    "--random-output-len": "random_output_len",
    "--burstiness": "burstiness",
    "--seed": "seed",
}
# The client's own dump of its arguments; lengths only where the data set is the one that uses them.
_NAMESPACE_KEYS: dict[str, str] = {
    "model": "model",
    "backend": "backend",
    "num_prompts": "num_prompts",
    "request_rate": "request_rate",
    "max_concurrency": "max_concurrency",
    "dataset": "dataset",
    "dataset_name": "dataset",
    "random_input_len": "random_input_len",
    "random_output_len": "random_output_len",
    "burstiness": "burstiness",
    "seed": "seed",
}
_ARGS_KEYS = set(_SERVER_FLAGS.values()) | set(_SERVER_SWITCHES.values())


@dataclass(slots=True)
class Context:
    """Configuration in force at one point of a log.

    progress       (done, total, elapsed seconds) of the last progress bar over requests
    server_known   a launch of the server was seen, so a flag that it lacks has its default
    old_client     the client predates 2025: it prints the traffic rate but no burstiness
    """

    server: dict[str, Json] = field(default_factory=dict)
    client: dict[str, Json] = field(default_factory=dict)
    progress: tuple[int, int, int] | None = None
    server_known: bool = False
    server_launches: int = 0
    profiler_prepared: bool = False
    profiler_started: bool = False
    old_client: bool = False
    sglang: bool = False

    def settings(self) -> dict[str, Json]:
        """The settings by RunResult's keys, with `implied` (key -> rule) for those that are not stated."""
        settings: dict[str, Json] = {**self.client, **self.server}
        if self.progress is not None:
            done, total, elapsed = self.progress
            settings.setdefault("num_prompts", total)
            if done == total:
                settings["progress_elapsed_s"] = elapsed
        if self.profiler_started or self.profiler_prepared:
            settings["profile"] = True
        implied = self._implied(settings)
        if implied:
            settings.update({key: value for key, (value, _) in implied.items()})
            settings["implied"] = {key: why for key, (_, why) in implied.items()}
        return settings

    def _implied(self, settings: dict[str, Json]) -> dict[str, tuple[Json, str]]:
        if not self.server_known or self.sglang or not self.old_client:
            return {}
        implied: dict[str, tuple[Json, str]] = {}
        era = "the client prints no burstiness, so it predates 2025 and the server has the V0 scheduler"
        length = settings.get("max_model_len")
        if "enable_chunked_prefill" not in settings and isinstance(length, int):
            on = length > _V0_AUTO_CHUNK_LEN
            implied["enable_chunked_prefill"] = (
                on,
                f"{era}, which turns chunked prefill on by itself only when max_model_len is above "
                f"{_V0_AUTO_CHUNK_LEN}; here it is {length}",
            )
        if "max_num_seqs" not in settings:
            implied["max_num_seqs"] = (_V0_DEFAULT_MAX_NUM_SEQS, f"{era}, whose default is {_V0_DEFAULT_MAX_NUM_SEQS}")
        chunked = implied["enable_chunked_prefill"][0] if "enable_chunked_prefill" in implied else None
        chunked = settings.get("enable_chunked_prefill") if chunked is None else chunked
        if isinstance(chunked, bool):
            implied["policy"] = ("v0-chunked" if chunked else "v0", era)
        return implied

    def warnings(self) -> tuple[str, ...]:
        """Sentences about the configuration that a reader of the figures must know."""
        found: list[str] = []
        if self.profiler_started:
            found.append("a torch profiler was on: absolute times are pessimistic")
        elif self.profiler_prepared:
            found.append("a torch profiler was prepared at the server; the log does not say whether it was started")
        if self.server_launches > 1:
            found.append(f"{self.server_launches} launch commands precede the block; the last one is taken")
        return tuple(found)


def read_context(lines: list[str], before: Context) -> Context:
    """Read the lines between two result blocks.  Server settings carry over from `before`, the client's do not."""
    context = Context(
        server=dict(before.server),
        server_known=before.server_known,
        profiler_prepared=before.profiler_prepared,
        sglang=before.sglang,
    )
    rate_seen = burstiness_seen = False
    for line in _joined(lines):
        if _SERVER.match(line):
            _server_command(line, context)
        elif _CLIENT.match(line):
            _client_command(line, context)
        elif _NAMESPACE.search(line):
            context.client.update(_namespace(line))
            context.profiler_started |= "profile=True" in line
        elif match := _RATE.search(line):
            rate_seen = True
            _state(context.client, "request_rate", match[1])
        elif match := _CONCURRENCY.search(line):
            _state(context.client, "max_concurrency", match[1])
        elif match := _BURSTINESS.search(line):
            burstiness_seen = True
            _state(context.client, "burstiness", match[1])
        elif line.strip().startswith("Starting profiler"):
            context.profiler_started = True
        elif match := _BAR.search(line):
            shown = [figure(group or "0") for group in match.groups()]
            if not _BAR_ASIDE.search(line[: match.start()]) and None not in shown:
                done, total, hours, minutes, seconds = (int(value or 0) for value in shown)
                context.progress = (done, total, hours * 3600 + minutes * 60 + seconds)
        else:
            _server_log(line, context)
    context.old_client = rate_seen and not burstiness_seen and not context.sglang
    return context


def _joined(lines: list[str]) -> list[str]:
    """Lines with their continuations (a backslash at the end) as one."""
    joined: list[str] = []
    open_line = ""
    for line in lines:
        stripped = line.rstrip()
        if stripped.endswith("\\"):
            open_line += stripped[:-1].rstrip() + " "
        else:
            joined.append(open_line + (stripped.lstrip() if open_line else stripped))
            open_line = ""
    if open_line:
        joined.append(open_line)
    return joined


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command, comments=False)
    except ValueError:  # an unbalanced quotation mark, cut off by the log
        return command.split()


def _server_command(line: str, context: Context) -> None:
    words = _words(line)
    flags, switches = _flags(words, _SERVER_FLAGS), _switches(words)
    model = _positional_model(words)
    prepared = "VLLM_TORCH_PROFILER_DIR" in line
    if not (flags or switches or model or prepared):
        return  # `docker run ... bash`: a shell in a container says nothing about the server
    context.server = {**({"model": model} if model else {}), **flags, **switches}
    image = next((word for word in words if re.search(r"vllm[-/]openai\S*:v?\d", word)), None)
    if image:
        context.server["version"] = image.rsplit(":", 1)[1].removeprefix("v")
    context.server_known = True
    context.server_launches += 1
    context.profiler_prepared = prepared
    context.sglang = "sglang" in line


def _positional_model(words: list[str]) -> str | None:
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        if (first, second) in (("vllm", "serve"), ("headrace", "serve")) and re.match(r"[\w./-]*\w$", third):
            return third if not third.startswith("-") else None
    return None


def _client_command(line: str, context: Context) -> None:
    words = _words(line)
    context.client.update(_flags(words, _CLIENT_FLAGS))
    context.profiler_started |= "--profile" in words
    context.sglang = context.sglang or "sglang" in line


def _flags(words: list[str], known: dict[str, str]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        name = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
        if name in known and (value or (following and not following.startswith("--"))):
            _state(found, known[name], value or following)
    return found


def _switches(words: list[str]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        positive = name.replace("--no-", "--", 1)
        key = _SERVER_SWITCHES.get(positive)
        if key is not None:
            said = (value or following).lower()
            on = said not in ("false", "0", "no") if value or said in ("true", "false", "0", "1", "yes", "no") else True
            found[key] = on if name == positive else not on
    return found


def _namespace(line: str) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name, raw in _NAMESPACE_FIELD.findall(line[line.index("Namespace(") :]):
        if name in _NAMESPACE_KEYS and raw != "None":
            _state(found, _NAMESPACE_KEYS[name], raw.strip("'\""))
    if found.get("dataset") != "random":
        found.pop("random_input_len", None)
        found.pop("random_output_len", None)
    return found


def _server_log(line: str, context: Context) -> None:
    """Lines that the server itself prints: they state the effective configuration."""
    if match := _NON_DEFAULT.search(line):
        try:
            arguments = ast.literal_eval(match[1])
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return  # cut off, or no dictionary that Python would have printed
        for key, value in arguments.items() if isinstance(arguments, dict) else ():
            if key in _ARGS_KEYS:
                _state(context.server, key, value)
    elif match := _SERVER_CHUNKS.search(line):
        context.server["enable_chunked_prefill"] = True
        _state(context.server, "max_num_batched_tokens", match[1])
    elif match := _SERVER_VERSION.search(line):
        context.server["version"] = match[1]


def _state(settings: dict[str, Json], key: str, value: object) -> None:
    """Note a setting, if it is one: not a shell variable, whose value is not in the log, and not of another type."""
    if isinstance(value, str) and "$" in value:
        return
    known = setting(key, value)
    if known is not None:
        settings[key] = known
