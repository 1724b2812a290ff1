"""Rotary positions as a config.json declares them: theta, and how frequencies are stretched for long contexts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from headrace.errors import ConfigError
from headrace.sizing.config_values import positive_float, positive_int

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "dynamic")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched.

    default  not at all
    linear   all by `factor`
    llama3   by wavelength: low frequencies by `factor`, high ones not, a ramp between (source: Llama 3.1's code)
    yarn     the same idea over the components of a head, between the ones that turn `beta_fast` and `beta_slow` times
             within the original context; cos and sin are multiplied by `attention_factor` (Peng et al. 2023)
    dynamic  as default up to the original context.  Beyond it the frequencies would depend on the length of the
             sequence so far, which keys already in a KV cache cannot follow: that is refused.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def read_rope(config: dict[str, Any], source: str, default_theta: float = 10000.0) -> tuple[float, RopeScaling]:
    """Theta and scaling, laid out as by transformers 5 (`rope_parameters`, perhaps by kind of layer: then those of
    layers that see everything) or before (`rope_theta`, `rope_scaling`)."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if isinstance(parameters, dict) and isinstance(parameters.get("full_attention"), dict):
        parameters = parameters["full_attention"]
    if not isinstance(parameters, dict):
        raise ConfigError(f"{source}: rope_scaling must be an object or null")
    return _rope(parameters, config, positive_float(config, "rope_theta", source, default_theta), source)


def read_local_rope(config: dict[str, Any], default_theta: float, source: str) -> tuple[float, RopeScaling]:
    """Theta and scaling of layers with a window, where they have their own."""
    parameters = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
    theta = positive_float(config, "rope_local_base_freq", source, default_theta)
    return _rope(parameters, config, theta, source)


def _rope(parameters: dict[str, Any], config: dict[str, Any], theta: float, source: str) -> tuple[float, RopeScaling]:
    theta = positive_float(parameters, "rope_theta", source, theta)
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if rope_type not in ROPE_TYPES:
        raise ConfigError(
            f"{source}: rope scaling type {rope_type!r} is not supported; accepted: {', '.join(ROPE_TYPES)}"
        )
    if rope_type == "default":
        return theta, RopeScaling()
    factor = positive_float(parameters, "factor", source)
    if rope_type == "linear":
        return theta, RopeScaling(rope_type="linear", factor=factor)
    if rope_type == "llama3":
        return theta, RopeScaling(
            rope_type="llama3",
            factor=factor,
            low_freq_factor=positive_float(parameters, "low_freq_factor", source),
            high_freq_factor=positive_float(parameters, "high_freq_factor", source),
            original_max_position_embeddings=positive_int(parameters, "original_max_position_embeddings", source),
        )
    original = positive_int(
        parameters,
        "original_max_position_embeddings",
        source,
        default=positive_int(config, "max_position_embeddings", source),
    )
    if rope_type == "dynamic":
        return theta, RopeScaling(rope_type="dynamic", factor=factor, original_max_position_embeddings=original)
    return theta, RopeScaling(
        rope_type="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=positive_float(parameters, "beta_fast", source, 32.0),
        beta_slow=positive_float(parameters, "beta_slow", source, 1.0),
        truncate=parameters.get("truncate", True) is not False,
        attention_factor=_attention_factor(parameters, factor, source),
    )


def longest_context(config: dict[str, Any], scaling: RopeScaling, source: str) -> int:
    """Positions that the model is made for.  YaRN declares the original context and a factor (as vLLM reads it)."""
    if scaling.rope_type == "yarn":
        return int(scaling.original_max_position_embeddings * scaling.factor)
    return positive_int(config, "max_position_embeddings", source)


def _attention_factor(parameters: dict[str, Any], factor: float, source: str) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return positive_float(parameters, "attention_factor", source)
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        return mscale(positive_float(parameters, "mscale", source)) / mscale(
            positive_float(parameters, "mscale_all_dim", source)
        )
    return mscale(1.0)
