"""How the weights of a checkpoint are stored, and so how many bytes they are: exact for each format, module by module.

`parameters * bits / 8` is wrong by up to half for small models: embeddings, heads, norms and routers stay in 16 bits,
and groups have scales.  Sources of the layouts: the formats' own documentation (docs/sizing.md).
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.errors import ConfigError
from headrace.sizing.modules import Described, Module, Role, all_modules

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SUPPORTED = "gptq, awq, fp8, compressed-tensors, modelopt (FP8, NVFP4), mxfp4"

Size = Callable[[int, int], int]  # outputs, inputs of one matrix -> bytes, scales and zero points included


@dataclass(frozen=True, slots=True)
class Format:
    """A way to store matrices: its name for people, and the bytes of one `[outputs, inputs]`."""

    name: str
    size: Size


@dataclass(frozen=True, slots=True)
class Storage:
    """Which modules are stored how: `rules` in order, the first that matches decides; otherwise 16 or 32 bits.

    kv_hint   the checkpoint asks for an 8-bit KV cache (a server follows only when told to, or in newer versions)
    """

    dtype: str
    rules: tuple[tuple[Callable[[Module], bool], Format], ...] = ()
    kv_hint: bool = False
    notes: tuple[str, ...] = ()

    def format_of(self, module: Module) -> Format | None:
        """None: as numbers of `dtype`."""
        if not module.linear:
            return None
        return next((form for matches, form in self.rules if matches(module)), None)

    def module_bytes(self, module: Module) -> int:
        size, form = DTYPE_BYTES[self.dtype], self.format_of(module)
        one: int = module.outputs * module.inputs * size if form is None else form.size(module.outputs, module.inputs)
        return module.copies * (one + module.bias * size)

    @property
    def name(self) -> str:
        return ", ".join(dict.fromkeys(form.name for _, form in self.rules)) or self.dtype


class StoredWeights:
    """The bytes of every weight of a model, looked up once: matching thousands of names is the slow part."""

    def __init__(self, shape: Described, storage: Storage) -> None:
        self.storage = storage
        self._sizes = {id(module): storage.module_bytes(module) for module in all_modules(shape)}
        self._modules = all_modules(shape)
        self._per_rank: dict[int, int] = {}

    def of(self, module: Module) -> int:
        """Bytes of one module of that shape, all its copies."""
        return self._sizes[id(module)]

    def per_rank(self, tensor_parallel: int = 1) -> int:
        """What is divided is divided; norms and routers are on every rank."""
        if tensor_parallel not in self._per_rank:
            total = sum(-(-self.of(each) // each.ranks(tensor_parallel)) for each in self._modules)
            self._per_rank[tensor_parallel] = total
        return self._per_rank[tensor_parallel]

    def by_role(self) -> dict[str, int]:
        """Over all ranks, by what the weights are for."""
        return {role.value: sum(self.of(each) for each in self._modules if each.role is role) for role in Role}


def model_dtype(config: Mapping[str, Any], source: str, asked: str = "auto") -> str:
    """The dtype of weights that are not quantised: `asked`, or the configuration's (a missing one is an error)."""
    if asked == "auto":
        text = config.get("text_config") or {}
        found = [place.get(key) for place in (config, text) for key in ("dtype", "torch_dtype")]
        asked = next((str(value) for value in found if value), "")
        if not asked:
            raise ConfigError(f"{source}: key 'dtype' (or 'torch_dtype') is missing; give --dtype bfloat16")
    name = {"half": "float16", "float": "float32"}.get(asked, asked)
    if name not in DTYPE_BYTES:
        raise ConfigError(f"dtype {asked!r} is not supported; supported: {', '.join(DTYPE_BYTES)}")
    return name


def read_storage(
    config: Mapping[str, Any], dtype: str, source: str = "config.json", beside: Mapping[str, Any] | None = None
) -> Storage:
    """How a checkpoint is stored: from `quantization_config`, or hf_quant_config.json `beside` it (ModelOpt)."""
    section = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not section and beside is not None:
        section, source = {**(beside.get("quantization") or {}), "quant_method": "modelopt"}, "hf_quant_config.json"
    if not section:
        return Storage(dtype)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{source}: quantization_config must be an object")
    where = f"{source}: quantization_config"
    method = str(section.get("quant_method", "")).replace("_", "-")
    readers = {
        "gptq": _gptq,
        "awq": _awq,
        "fp8": _fp8,
        "compressed-tensors": _compressed,
        "modelopt": _modelopt,
        "mxfp4": _mxfp4,
    }
    if method not in readers:
        raise ConfigError(f"{where}: quant_method {section.get('quant_method')!r} is not known; known: {SUPPORTED}")
    form, skipped, notes = readers[method](section, where)
    skips = _matcher(skipped)
    rules: list[tuple[Callable[[Module], bool], Format]] = []
    mixed = section.get("quantized_layers")
    if isinstance(mixed, Mapping):
        rules += _mixed(mixed, where)
    if (config.get("expert_dtype") or "") == "fp4" and not mixed:
        rules.append((_is_expert, _MXFP4))
    if form is not None:
        quantises_head = bool(section.get("lm_head", False))
        rules.append((lambda module: _by_default(module, quantises_head) and not skips(module), form))
    scheme = section.get("kv_cache_scheme")
    hint = section.get("kv_cache_quant_algo") == "FP8" or (isinstance(scheme, Mapping) and scheme.get("num_bits") == 8)
    return Storage(dtype, tuple(rules), hint, notes)


def _int8_or_4(bits: int, outputs: int, inputs: int) -> int:
    return -(-inputs * bits // 32) * 4 * outputs


def _groups(inputs: int, group: int) -> int:
    return 1 if group == -1 else -(-inputs // group)


def _gptq(section: Mapping[str, Any], where: str) -> tuple[Format, Sequence[str], tuple[str, ...]]:
    bits, group = _number(section, "bits", where), _number(section, "group_size", where)

    def size(outputs: int, inputs: int) -> int:
        groups = _groups(inputs, group)
        zeros = groups * -(-outputs * bits // 32) * 4
        return _int8_or_4(bits, outputs, inputs) + 2 * groups * outputs + zeros + 4 * inputs

    return Format(f"gptq int{bits}, groups of {group}", size), section.get("modules_in_block_to_skip") or (), ()


def _awq(section: Mapping[str, Any], where: str) -> tuple[Format, Sequence[str], tuple[str, ...]]:
    bits = _number(section, "bits" if "bits" in section else "w_bit", where)
    group = _number(section, "group_size" if "group_size" in section else "q_group_size", where)

    def size(outputs: int, inputs: int) -> int:
        packed, groups = -(-outputs * bits // 32) * 4, _groups(inputs, group)
        return packed * inputs + 2 * groups * outputs + groups * packed

    return Format(f"awq int{bits}, groups of {group}", size), section.get("modules_to_not_convert") or (), ()


def _fp8(section: Mapping[str, Any], where: str) -> tuple[Format, Sequence[str], tuple[str, ...]]:
    skipped = section.get("modules_to_not_convert") or section.get("ignored_layers") or ()
    block = section.get("weight_block_size")
    if block is None:
        return _FP8, skipped, ()
    if not isinstance(block, list) or len(block) != 2:
        raise ConfigError(f"{where}: weight_block_size must be two numbers, not {block!r}")
    rows, columns = int(block[0]), int(block[1])
    scale = 1 if section.get("scale_fmt") == "ue8m0" else 4

    def size(outputs: int, inputs: int) -> int:
        return outputs * inputs + scale * -(-outputs // rows) * -(-inputs // columns)

    return Format(f"fp8, blocks of {rows}x{columns}", size), skipped, ()


def _compressed(section: Mapping[str, Any], where: str) -> tuple[Format, Sequence[str], tuple[str, ...]]:
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise ConfigError(f"{where}: config_groups must hold exactly one group")
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{where}: config_groups has no weights")
    bits, strategy = _number(weights, "num_bits", where), weights.get("strategy")
    is_float, symmetric = weights.get("type") == "float", weights.get("symmetric", True)
    if bits == 4 and is_float:
        return _NVFP4, section.get("ignore") or (), ()
    span = _number(weights, "group_size", where) if strategy == "group" else -1

    def size(outputs: int, inputs: int) -> int:
        stored = outputs * inputs if bits == 8 else _int8_or_4(bits, outputs, inputs)
        scales = 1 if strategy == "tensor" else outputs * _groups(inputs, span)
        zeros = 0 if symmetric else -(-outputs * bits // 32) * 4 * _groups(inputs, span)
        return stored + 2 * scales + zeros

    kind = "fp" if is_float else "int"
    name = f"{kind}{bits}, " + (f"groups of {span}" if span != -1 else f"a scale a {strategy}")
    return Format(name, size), section.get("ignore") or (), ()


def _modelopt(section: Mapping[str, Any], where: str) -> tuple[Format | None, Sequence[str], tuple[str, ...]]:
    algorithm = section.get("quant_algo")
    skipped = section.get("exclude_modules") or section.get("ignore") or ()
    if algorithm == "MIXED_PRECISION":
        return None, skipped, ()
    if algorithm not in _MODELOPT:
        raise ConfigError(f"{where}: quant_algo {algorithm!r} is not known; known: {', '.join(_MODELOPT)}")
    notes = (
        () if skipped else ("the checkpoint does not say which modules stay in 16 bits: all but the usual are taken",)
    )
    return _MODELOPT[algorithm], skipped, notes


def _mxfp4(section: Mapping[str, Any], where: str) -> tuple[Format, Sequence[str], tuple[str, ...]]:
    return _MXFP4, section.get("modules_to_not_convert") or (), ()


def _mixed(layers: Mapping[str, Any], where: str) -> list[tuple[Callable[[Module], bool], Format]]:
    """One rule for each algorithm: modules listed one by one."""
    names: dict[str, set[str]] = {}
    for name, entry in layers.items():
        algorithm = entry.get("quant_algo") if isinstance(entry, Mapping) else None
        if algorithm not in _MODELOPT:
            raise ConfigError(
                f"{where}: quant_algo {algorithm!r} of {name} is not known; known: {', '.join(_MODELOPT)}"
            )
        names.setdefault(algorithm, set()).add(_without_prefix(name))

    def rule(listed: set[str]) -> Callable[[Module], bool]:
        return lambda module: any(part in listed for part in _beginnings(module.name))

    return [(rule(listed), _MODELOPT[algorithm]) for algorithm, listed in names.items()]


_FP8 = Format("fp8, a scale a matrix", lambda outputs, inputs: outputs * inputs + 4)
# 4-bit floats: a scale in 8 bits for 32 numbers (MX), or for 16 and two float32 a matrix (NV).
_MXFP4 = Format("mxfp4", lambda outputs, inputs: outputs * (-(-inputs // 2) + -(-inputs // 32)))
_NVFP4 = Format("nvfp4", lambda outputs, inputs: outputs * (-(-inputs // 2) + -(-inputs // 16)) + 8)
_MODELOPT = {"FP8": _FP8, "NVFP4": _NVFP4, "W4A16_NVFP4": _NVFP4}

# Routers and gates of a few rows stay in 16 bits in every checkpoint that is read here, listed or not.
_NEVER = ("gate", "router", "proj", "shared_expert_gate", "weights_proj", "in_proj_a", "in_proj_b")


def _by_default(module: Module, quantises_head: bool) -> bool:
    if module.role is Role.HEAD:
        return quantises_head
    return module.name.rpartition(".")[2] not in _NEVER


def _is_expert(module: Module) -> bool:
    return module.copies > 1


def _number(section: Mapping[str, Any], key: str, where: str) -> int:
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value == 0 or value < -1:
        raise ConfigError(f"{where}: {key} must be a number of bits or inputs, not {value!r}")
    return value


_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "backbone.", "transformer.")


def _without_prefix(name: str) -> str:
    return next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), name)


def _beginnings(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _matcher(patterns: Any) -> Callable[[Module], bool]:
    """Whether a list of names, names with `*`, or `re:` expressions means a module or something that it is part of."""
    if not isinstance(patterns, list | tuple):
        raise ConfigError(f"quantization_config: modules that are not quantised must be a list, not {patterns!r}")
    texts = [str(each) for each in patterns]
    exact = {_without_prefix(each) for each in texts if not each.startswith("re:")}
    wild = [re.compile(fnmatch.translate(each)) for each in exact if "*" in each]
    expressions = [re.compile(each.removeprefix("re:")) for each in texts if each.startswith("re:")]
    single = {each for each in exact if "." not in each and "*" not in each}

    def matches(module: Module) -> bool:
        starts = _beginnings(module.name)
        return (
            any(start in exact for start in starts)
            or bool(single.intersection(module.name.split(".")))
            or any(pattern.match(start) for pattern in wild for start in starts)
            or any(pattern.match(f"model.{module.name}") or pattern.match(module.name) for pattern in expressions)
        )

    return matches
