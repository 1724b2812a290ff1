"""Flags of vLLM that `headrace serve` does not act upon: accepted where they change nothing, refused where they do.

A launch command that was published for vLLM should start here unchanged, or be told what stands in its way.
"""

from __future__ import annotations

from headrace.cli.spelling import ANY, FALSE, Foreign
from headrace.errors import ConfigError


def _one(what: str) -> Foreign:
    return Foreign(("1",), f"there is one {what}")


def _never(why: str, *, switch: bool = False) -> Foreign:
    return Foreign((FALSE,) if switch else (), why, switch)


_LORA = _never("there are no LoRA adapters", switch=True)
_TLS = _never("the server speaks plain HTTP; put a proxy in front of it for TLS")

FOREIGN: dict[str, Foreign] = {
    # Parallelism: one process, one device.
    "--tensor-parallel-size": _one("device"),
    "--pipeline-parallel-size": _one("device"),
    "--data-parallel-size": _one("replica in a process; start several servers instead"),
    "--api-server-count": _one("server process"),
    "--distributed-executor-backend": Foreign(ANY, "there is nothing to distribute"),
    "--enable-expert-parallel": Foreign(ANY, "all experts are in one process", True),
    "--max-parallel-loading-workers": Foreign(ANY, "weights are read by one process"),
    "--disable-custom-all-reduce": Foreign(ANY, "there is one device", True),
    # The device and its kernels.
    "--device": Foreign(("cpu", "auto"), "this engine runs on CPUs"),
    "--enforce-eager": Foreign(ANY, "steps are never captured as graphs", True),
    "--max-seq-len-to-capture": Foreign(ANY, "steps are never captured as graphs"),
    "--compilation-config": Foreign(ANY, "nothing is compiled"),
    "--cpu-offload-gb": Foreign(("0", "0.0"), "weights are in the CPU's memory already"),
    "--calculate-kv-scales": _never("an int8 KV cache has a scale for each token", switch=True),
    "--disable-cascade-attn": Foreign(ANY, "there is no cascade attention", True),
    "--attention-backend": _never("there is one attention implementation"),
    # The model's files.
    "--trust-remote-code": Foreign(ANY, "code from a model's directory is never run", True),
    "--tokenizer-mode": Foreign(("auto", "hf"), "only tokenizer.json is read"),
    "--tokenizer-revision": _never("the tokenizer is read at the model's --revision"),
    "--code-revision": Foreign(ANY, "code from a model's directory is never run"),
    "--config-format": Foreign(("auto", "hf"), "only Hugging Face directories are read"),
    "--hf-overrides": Foreign(("{}",), "config.json is taken as it is; edit the file instead"),
    "--rope-scaling": _never("config.json's own rope scaling is used; edit the file instead"),
    "--rope-theta": _never("config.json's own rope theta is used; edit the file instead"),
    "--override-generation-config": Foreign(("{}",), "send the parameters with the requests"),
    "--ignore-patterns": Foreign(ANY, "only *.json, *.jinja and *.safetensors are fetched"),
    "--runner": Foreign(("auto", "generate"), "this engine generates text"),
    "--task": Foreign(("auto", "generate"), "this engine generates text"),
    "--limit-mm-per-prompt": _never("there are no multimodal models"),
    "--disable-sliding-window": Foreign(ANY, "a sequence never outgrows the model's window here", True),
    "--model-impl": Foreign(("auto",), "models are headrace's own"),
    # Scheduling.
    "--preemption-mode": Foreign(("recompute",), "preempted sequences are computed again, never swapped"),
    "--num-scheduler-steps": Foreign(("1",), "every step is scheduled"),
    "--max-num-partial-prefills": Foreign(("1",), "one long prompt is in progress at a time"),
    "--max-long-partial-prefills": Foreign(("1",), "one long prompt is in progress at a time"),
    "--async-scheduling": Foreign(ANY, "steps are scheduled in turn; answers are the same", True),
    "--disable-async-output-proc": Foreign(ANY, "text is made beside the steps; answers are the same", True),
    "--stream-interval": Foreign(("1",), "every token is sent as soon as it is text"),
    "--use-v2-block-manager": Foreign(ANY, "there is one block manager", True),
    "--scheduler-delay-factor": Foreign(("0", "0.0"), "prompts are scheduled at once"),
    "--num-lookahead-slots": Foreign(("0",), "drafts get slots when they are made"),
    "--prefix-caching-hash-algo": Foreign(ANY, "cached blocks are compared token by token"),
    # Features.
    "--enable-lora": _LORA,
    "--lora-modules": _never("there are no LoRA adapters"),
    "--enable-prompt-adapter": _never("there are no prompt adapters", switch=True),
    "--enable-reasoning": Foreign(ANY, "--reasoning-parser alone decides", True),
    "--guided-decoding-backend": Foreign(ANY, "llguidance follows all grammars"),
    "--structured-outputs-config": Foreign(ANY, "llguidance follows all grammars"),
    "--kv-transfer-config": _never("the KV cache is not shared between servers"),
    "--return-tokens-as-token-ids": _never("send `return_tokens_as_token_ids` with the requests", switch=True),
    "--enable-prompt-tokens-details": Foreign(ANY, "usage always tells the cached tokens", True),
    "--enable-force-include-usage": _never("usage is sent when `stream_options` asks for it", switch=True),
    # The server.
    "--response-role": Foreign(("assistant",), "answers have the role assistant"),
    "--chat-template-content-format": Foreign(("auto", "string"), "messages are given to the template as text"),
    "--trust-request-chat-template": _never("templates in requests are refused", switch=True),
    "--disable-frontend-multiprocessing": Foreign(ANY, "server and engine share one process", True),
    "--disable-log-stats": Foreign(ANY, "the line of statistics is short, and silent while idle", True),
    "--disable-uvicorn-access-log": Foreign(ANY, "the access log follows --enable-log-requests", True),
    "--max-log-len": Foreign(ANY, "prompts are never logged"),
    "--enable-server-load-tracking": Foreign(ANY, "/load always answers", True),
    "--allow-credentials": _never("there are no CORS headers", switch=True),
    "--allowed-origins": _never("there are no CORS headers"),
    "--allowed-methods": _never("there are no CORS headers"),
    "--allowed-headers": _never("there are no CORS headers"),
    "--root-path": Foreign(("",), "paths are served as they are"),
    "--ssl-keyfile": _TLS,
    "--ssl-certfile": _TLS,
    "--ssl-ca-certs": _TLS,
    "--otlp-traces-endpoint": _never("traces are not exported"),
    "--collect-detailed-traces": _never("traces are not exported"),
    "--show-hidden-metrics-for-version": Foreign(ANY, "all metrics are shown"),
}
SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
    "-q": "--quantization",
    "-O": "--compilation-config",
}
_DOCKER = (
    *("--runtime", "--gpus", "--ipc", "--shm-size", "--volume", "--env", "--name", "--network", "--net", "--rm"),
    *("--publish", "--restart", "--privileged", "--entrypoint", "--ulimit", "--cap-add", "--security-opt"),
    *("-v", "-e", "-p", "-it", "-d"),
)


def refuse_docker(flag: str) -> None:
    """Raise ConfigError for an option of `docker run`, which is often copied along with a published command."""
    if flag in _DOCKER:
        raise ConfigError(
            f"{flag} is an option of `docker run`, not of the server; give only what follows the image's name "
            "(environment variables go in front of the command)"
        )
