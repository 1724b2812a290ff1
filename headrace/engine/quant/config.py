"""`quantization_config` of a config.json -> how the weights are stored.  What is not read is refused by name.

Which modules are quantised is not decided here: the lists in the configurations (`modules_to_not_convert`, `ignore`)
are matched differently by every tool, while the tensors of the checkpoint say it without doubt (see `layout`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.sizing.config_values import one_of

SUPPORTED = (
    "gptq (4 or 8 bits)",
    "awq (4 bits, gemm)",
    "fp8 (e4m3)",
    "compressed-tensors (int-quantized, naive-quantized, float-quantized, pack-quantized)",
)
GROUP_SIZES = (-1, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Quantization:
    """How quantised linear layers are stored.

    storage      "gptq": integers packed along the inputs; "awq": along the outputs, interleaved; "packed": along the
                 inputs, weights `[outputs, inputs]` (compressed-tensors); "int8", "fp8": one value an element
    bits         of one weight
    group_size   inputs that share a scale; -1: all of a column ("int8", "fp8": always)
    zero_offset  what is added to a stored zero point ("gptq": 1 in the first format, 0 in gptq_v2)
    has_zeros    zero points are stored; otherwise the middle of the range is zero
    has_order    `desc_act`, `actorder`: the checkpoint says which group each input belongs to
    has_int8_activations   inputs are rounded to int8 as well, token by token (W8A8)
    block        rows and columns that share a scale ("fp8" in blocks), None otherwise
    scale_name   the scales' tensor
    """

    method: str
    storage: str
    bits: int
    group_size: int = -1
    zero_offset: int = 0
    has_zeros: bool = True
    has_order: bool = False
    has_int8_activations: bool = False
    block: tuple[int, int] | None = None
    scale_name: str = "scales"

    def __str__(self) -> str:
        parts = [f"{self.method} {'fp8' if self.storage == 'fp8' else f'int{self.bits}'}"]
        if self.storage in ("gptq", "awq", "packed"):
            parts.append("one group a column" if self.group_size == -1 else f"groups of {self.group_size}")
        if self.block:
            parts.append(f"blocks of {self.block[0]}x{self.block[1]}")
        if self.has_order:
            parts.append("inputs in activation order")
        if self.has_int8_activations:
            parts.append("int8 activations")
        return ", ".join(parts)


def read_quantization(section: Any, source: str) -> Quantization | None:
    """The storage that a `quantization_config` declares; None when there is none.  ConfigError for what is not read."""
    if not section:
        return None
    if not isinstance(section, dict):
        raise ConfigError(f"{source}: quantization_config must be an object")
    source = f"{source}: quantization_config"
    method = section.get("quant_method")
    if method == "gptq":
        return _gptq(section, source)
    if method == "awq":
        return _awq(section, source)
    if method == "fp8" and not section.get("config_groups"):
        return _fp8(section, source)
    if method in ("compressed-tensors", "compressed_tensors"):
        return _compressed_tensors(section, source)
    raise ConfigError(f"{source}: quant_method {method!r} is not supported; supported: {', '.join(SUPPORTED)}")


def refuse_foreign_quantization(model_dir: Path) -> None:
    """ConfigError when `model_dir` has ModelOpt's own declaration of a format, which is read by no part of this."""
    path = model_dir / "hf_quant_config.json"
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = f"{content['producer']['name']} {content['quantization']['quant_algo']}"
    except (OSError, ValueError, KeyError, TypeError):
        found = "unknown"
    raise ConfigError(f"{path} ({found}) is not supported; supported: {', '.join(SUPPORTED)}")


def _gptq(section: dict[str, Any], source: str) -> Quantization:
    if section.get("dynamic"):
        skips_only = isinstance(section["dynamic"], dict) and all(key.startswith("-:") for key in section["dynamic"])
        if not skips_only:
            raise ConfigError(f"{source}: dynamic (other settings for some modules) is not supported for gptq")
    is_second = "gptq_v2" in (section.get("checkpoint_format"), section.get("format"))
    if not is_second:
        one_of(section, "checkpoint_format", source, ("gptq", "gptq_v2"), "gptq")
    return Quantization(
        method="gptq",
        storage="gptq",
        bits=one_of(section, "bits", source, (4, 8), None),
        group_size=one_of(section, "group_size", source, GROUP_SIZES, 128),
        zero_offset=0 if is_second else 1,
        has_order=bool(section.get("desc_act", False)),
    )


def _awq(section: dict[str, Any], source: str) -> Quantization:
    version = section.get("version", "gemm")
    if not isinstance(version, str) or version.lower() != "gemm":
        raise ConfigError(f"{source}: awq version {version!r} is not supported; supported: 'gemm'")
    one_of(section, "zero_point", source, (True,), True)
    return Quantization(
        method="awq",
        storage="awq",
        bits=one_of(section, "bits", source, (4,), section.get("w_bit")),
        group_size=one_of(section, "group_size", source, GROUP_SIZES, section.get("q_group_size", 128)),
    )


def _fp8(section: dict[str, Any], source: str) -> Quantization:
    one_of(section, "fmt", source, ("e4m3", "float8_e4m3fn"), "e4m3")
    one_of(section, "activation_scheme", source, ("dynamic", "static"), "dynamic")
    block = _block(section.get("weight_block_size"), f"{source}: weight_block_size")
    scale_name = "weight_scale_inv" if block else "weight_scale"
    return Quantization(method="fp8", storage="fp8", bits=8, block=block, scale_name=scale_name)


def _compressed_tensors(section: dict[str, Any], source: str) -> Quantization:
    one_of(section, "quantization_status", source, ("compressed", "frozen"), "compressed")
    formats = ("int-quantized", "naive-quantized", "float-quantized", "pack-quantized")
    layout = one_of(section, "format", source, formats, None)
    if (section.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise ConfigError(f"{source}: sparsity_config is not supported; supported: dense weights")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1 or not isinstance(next(iter(groups.values())), dict):
        raise ConfigError(f"{source}: config_groups must hold exactly one group; several schemes are not supported")
    group = next(iter(groups.values()))
    weights = group.get("weights")
    if not isinstance(weights, dict):
        raise ConfigError(f"{source}: config_groups has no weights")
    where = f"{source}: weights"
    kind = one_of(weights, "type", where, ("int", "float"), "int")
    strategy = one_of(weights, "strategy", where, ("tensor", "channel", "group", "block"), None)
    if layout == "pack-quantized":
        return _packed(weights, where, kind, strategy)
    one_of(weights, "num_bits", where, (8,), None)
    one_of(weights, "symmetric", where, (True,), True)
    if kind == "float":
        one_of(weights, "strategy", where, ("tensor", "channel", "block"), None)
        block = _block(weights.get("block_structure"), f"{where}: block_structure") if strategy == "block" else None
        return Quantization("compressed-tensors", "fp8", 8, block=block, scale_name="weight_scale")
    one_of(weights, "strategy", where, ("tensor", "channel"), None)
    return Quantization(
        "compressed-tensors",
        "int8",
        8,
        scale_name="weight_scale",
        has_int8_activations=_has_int8_activations(group.get("input_activations"), f"{source}: input_activations"),
    )


def _packed(weights: dict[str, Any], where: str, kind: str, strategy: str) -> Quantization:
    if kind != "int":
        raise ConfigError(f"{where}: type {kind!r} is not supported in pack-quantized; supported: 'int'")
    one_of(weights, "strategy", where, ("group", "channel"), None)
    return Quantization(
        "compressed-tensors",
        "packed",
        bits=one_of(weights, "num_bits", where, (4, 8), None),
        group_size=one_of(weights, "group_size", where, GROUP_SIZES, None) if strategy == "group" else -1,
        has_zeros=not one_of(weights, "symmetric", where, (True, False), True),
        has_order=weights.get("actorder") in (True, "group"),
        scale_name="weight_scale",
    )


def _has_int8_activations(section: Any, where: str) -> bool:
    if section is None:
        return False
    if not isinstance(section, dict):
        raise ConfigError(f"{where} must be an object or null")
    one_of(section, "num_bits", where, (8,), None)
    one_of(section, "type", where, ("int",), "int")
    one_of(section, "symmetric", where, (True,), True)
    one_of(section, "strategy", where, ("token",), None)
    one_of(section, "dynamic", where, (True,), False)
    return True


def _block(value: Any, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise ConfigError(f"{where} must be two positive integers, not {value!r}")
    return value[0], value[1]
