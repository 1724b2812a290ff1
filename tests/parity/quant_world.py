"""Writers of the quantised formats, made from their descriptions alone, with the plain numbers that they stand for.

Each writer takes a weight `[outputs, inputs]` and returns (stored tensors by suffix, the weight they stand for).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

Stored = dict[str, Tensor]
Write = Callable[[str, Tensor], tuple[Stored, Tensor]]


@dataclass(frozen=True)
class Format:
    config: dict[str, Any]
    write: Write
    skip: tuple[str, ...] = field(default=("lm_head", "mlp.gate."))

    def skips(self, name: str) -> bool:
        return any(part in f"{name}." for part in self.skip)


def pack_words(values: np.ndarray, bits: int) -> np.ndarray:
    """Consecutive values of the last axis into 32-bit words, the first in the lowest bits."""
    per_word = 32 // bits
    words = np.zeros((*values.shape[:-1], values.shape[-1] // per_word), dtype=np.uint32)
    for word in range(words.shape[-1]):
        for place in range(per_word):
            words[..., word] |= values[..., word * per_word + place].astype(np.uint32) << np.uint32(bits * place)
    return words.view(np.int32)


def rounded(
    weight: Tensor, bits: int, groups: np.ndarray, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
    """(integers [N, K], scales [N, G] in fp16, zeros [N, G], the weight they stand for); `groups` [K] names each
    column's group."""
    w = weight.double().numpy()
    top = 2**bits - 1
    values = np.zeros(w.shape, dtype=np.int64)
    scales = np.zeros((w.shape[0], groups.max() + 1), dtype=np.float16)
    zeros = np.zeros(scales.shape, dtype=np.int64)
    meant = np.zeros_like(w)
    for group in range(groups.max() + 1):
        columns = np.flatnonzero(groups == group)
        part = w[:, columns]
        low, high = part.min(1), part.max(1)
        if symmetric:
            high = np.abs(part).max(1)
            low = -high
        scale = ((high - low) / top).astype(np.float16)
        zero = np.full(len(w), 2 ** (bits - 1)) if symmetric else np.clip(np.round(-low / scale), 0, top)
        found = np.clip(np.round(part / scale[:, None] + zero[:, None]), 0, top)
        values[:, columns], scales[:, group], zeros[:, group] = found, scale, zero
        meant[:, columns] = (found - zero[:, None]) * scale[:, None].astype(np.float64)
    return values, scales, zeros, torch.from_numpy(meant).float()


def _groups(columns: int, size: int) -> np.ndarray:
    return np.arange(columns) // (columns if size == -1 else size)


def gptq(bits: int = 4, size: int = 32, *, order: bool = False, symmetric: bool = True, second: bool = False) -> Format:
    def write(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
        groups = _groups(weight.shape[1], size)
        if order:
            # The modules that share an input share its order, as they do when one Hessian made them.
            family = name.rsplit(".", 1)[0]
            groups = groups[np.random.default_rng(zlib.crc32(family.encode())).permutation(len(groups))]
        values, scales, zeros, meant = rounded(weight, bits, groups, symmetric)
        stored_zeros = zeros if second else (zeros - 1) & (2**bits - 1)
        return {
            "qweight": torch.from_numpy(pack_words(values, bits).T.copy()),
            "qzeros": torch.from_numpy(pack_words(stored_zeros.T, bits)),
            "scales": torch.from_numpy(scales.T.copy()),
            "g_idx": torch.from_numpy(groups.astype(np.int32)),
            "bias": torch.zeros(weight.shape[0], dtype=torch.float16),
        }, meant

    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": order, "sym": symmetric}
    return Format(config | ({"checkpoint_format": "gptq_v2"} if second else {}), write)


def awq(size: int = 32) -> Format:
    def interleaved(values: np.ndarray) -> Tensor:
        # Words hold columns 0, 2, 4, 6, 1, 3, 5, 7 of each eight, the first in the lowest bits.
        shuffled = values.reshape(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(values.shape)
        return torch.from_numpy(pack_words(shuffled, 4))

    def write(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
        values, scales, zeros, meant = rounded(weight, 4, _groups(weight.shape[1], size), symmetric=False)
        return {
            "qweight": interleaved(values.T),
            "qzeros": interleaved(zeros.T),
            "scales": torch.from_numpy(scales.T.copy()),
        }, meant

    config = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
    return Format(config | {"modules_to_not_convert": ["o_proj"]}, write, skip=("lm_head", "mlp.gate.", "o_proj"))


def packed(bits: int = 4, size: int = 32, *, order: bool = False, symmetric: bool = True) -> Format:
    """compressed-tensors' pack-quantized."""

    def write(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
        groups = _groups(weight.shape[1], size)
        if order:
            groups = groups[np.random.default_rng(zlib.crc32(name.encode())).permutation(len(groups))]
        values, scales, zeros, meant = rounded(weight, bits, groups, symmetric)
        stored = {
            "weight_packed": torch.from_numpy(pack_words(values, bits)),
            "weight_scale": torch.from_numpy(scales),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not symmetric:
            stored["weight_zero_point"] = torch.from_numpy(pack_words(zeros.T, bits).T.copy())
        if order:
            stored["weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
        return stored, meant

    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if size == -1 else "group",
        "group_size": None if size == -1 else size,
        "actorder": "group" if order else None,
    }
    return Format(_compressed("pack-quantized", weights, None), write)


def int8(layout: str = "int-quantized", *, activations: bool = True) -> Format:
    """Per-channel int8 weights; with `activations` the W8A8 scheme."""

    def write(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 127
        values = (weight / scale).round().to(torch.int8)
        return {"weight": values, "weight_scale": scale}, values.float() * scale

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return Format(_compressed(layout, weights, inputs if activations else None), write)


def fp8(strategy: str = "tensor", *, compressed: bool = False) -> Format:
    block = (32, 64)

    def write(name: str, weight: Tensor) -> tuple[Stored, Tensor]:
        if strategy == "block":
            scale = torch.rand(-(-weight.shape[0] // block[0]), -(-weight.shape[1] // block[1])) * 0.002 + 0.001
            full = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            full = full[: weight.shape[0], : weight.shape[1]]
        else:
            biggest = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().max()
            scale = full = biggest / 448
        values = (weight / full).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored = {"weight": values, "weight_scale": scale.clone(), "input_scale": torch.ones(1)}
        if strategy == "block" and not compressed:
            stored["weight_scale_inv"] = stored.pop("weight_scale")
        return stored, values.float() * full

    if compressed:
        weights: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
        if strategy == "block":
            weights["block_structure"] = list(block)
        return Format(_compressed("float-quantized", weights, {"num_bits": 8, "type": "float", "dynamic": True}), write)
    config: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    return Format(config | ({"weight_block_size": list(block)} if strategy == "block" else {}), write)


def _compressed(layout: str, weights: dict[str, Any], inputs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
    }


def quantize_saved(model: transformers.PreTrainedModel, directory: Path, form: Format) -> None:
    """Rewrite a model saved in `directory` in that format, and give `model` the weights that it then stands for.

    `model` is the plain twin: transformers multiplying by numbers that are not quantised any more.
    """
    from safetensors.torch import load_file

    stored: Stored = {}
    plain = load_file(directory / "model.safetensors")
    for name, tensor in plain.items():
        module, _, kind = name.rpartition(".")
        is_linear = kind == "weight" and tensor.dim() == 2 and "embed" not in name
        if not is_linear or form.skips(module):
            stored[name] = tensor
            continue
        written, plain[name] = form.write(module, tensor)
        for suffix, value in written.items():
            if f"{module}.{suffix}" not in plain or suffix == "weight":  # a bias of its own stays
                stored[f"{module}.{suffix}"] = value
    save_file(stored, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"quantization_config": form.config}))
    twin = directory / "twin"
    twin.mkdir()
    save_file(plain, twin / "model.safetensors", metadata={"format": "pt"})
    (twin / "config.json").write_text(json.dumps(config))
    model.load_state_dict(type(model).from_pretrained(twin).state_dict())
