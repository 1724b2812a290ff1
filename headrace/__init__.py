"""headrace serves language models and explains its own speed."""

from typing import TYPE_CHECKING, Any

from headrace.version import VERSION as __version__

if TYPE_CHECKING:
    from headrace.engine.offline import LLM
    from headrace.engine.offline_params import RequestOutputKind, SamplingParams

__all__ = ["LLM", "RequestOutputKind", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """`LLM` and its parameters when they are asked for: importing headrace must not import torch."""
    if name == "LLM":
        from headrace.engine.offline import LLM

        return LLM
    if name in ("RequestOutputKind", "SamplingParams"):
        from headrace.engine import offline_params

        return getattr(offline_params, name)
    raise AttributeError(f"module 'headrace' has no attribute {name!r}")
