"""Request bodies, encoded before the run starts: building JSON while sending would make later sends late."""

from __future__ import annotations

import json
from typing import Any

from headrace.lab.workload.samples import Sample
from headrace.lab.workload.spec import WorkloadSpec

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def request_body(spec: WorkloadSpec, sample: Sample, model: str) -> bytes:
    """The body that vLLM's client sends, without the fields that say nothing (`repetition_penalty: 1.0`).

    Sampling options are sent only when asked for: the server's defaults stay the server's.
    """
    body: dict[str, Any] = {"model": model}
    if spec.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": [{"type": "text", "text": sample.prompt}]}]
        body["max_completion_tokens"] = sample.max_tokens
    else:
        body["prompt"] = sample.prompt
        body["max_tokens"] = sample.max_tokens
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    if spec.temperature is not None:
        body["temperature"] = spec.temperature
    if spec.force_lengths:
        body["ignore_eos"] = True
    body |= spec.extra_body
    return json.dumps(body).encode()
