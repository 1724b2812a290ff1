"""Where a model's tensors come from: a safetensors directory, or random numbers from a seed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headrace.errors import ConfigError

# Buffers that old exports carry and every implementation recomputes.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Checkpoint:
    """A directory of safetensors files, one or sharded.  Use as a context manager; `take` hands tensors over.

    Opening compares names: every expected tensor must be there and nothing else, or ConfigError lists both sides.
    Tensors are read from a memory map when taken, so a model needs no second copy of itself while loading.
    """

    def __init__(self, model_dir: Path, expected: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._expected = expected
        self._dtype = dtype
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}  # tensor name -> open file
        try:
            for path in _weight_files(model_dir):
                try:
                    file = self._stack.enter_context(safe_open(path, framework="pt"))
                except (SafetensorError, OSError) as error:
                    raise ConfigError(f"cannot read {path}: {error}") from None
                self._files |= dict.fromkeys(file.keys(), file)
            _check_names(set(self._files), expected, model_dir)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def take(self, name: str) -> Tensor:
        """The tensor, converted to the model's dtype.  ConfigError when its shape or type is not the expected one."""
        tensor: Tensor = self._files[name].get_tensor(name)
        if tuple(tensor.shape) != self._expected[name]:
            raise ConfigError(
                f"tensor {name} has shape {list(tensor.shape)}, but config.json says {list(self._expected[name])}"
            )
        if tensor.dtype not in _FLOAT_DTYPES:
            raise ConfigError(f"tensor {name} is {tensor.dtype}; accepted: float32, float16, bfloat16")
        # A tensor of the right dtype is still a view of the memory map: copy, so that the file can be closed.
        return tensor.to(self._dtype, copy=True)


class RandomWeights:
    """`load_format dummy`: numbers from `seed` alone, the same for every dtype up to its rounding.

    vLLM fills with U(-1e-3, 1e-3), which makes all activations nearly zero.  Here each matrix keeps the variance of
    what passes through it, U(-a, a) with a = sqrt(3 / columns), so values stay near 1 at any depth and greedy output
    follows the context.  Norms are 1 but the last, which is 4: logits then have a standard deviation of 4, so the
    distribution is peaked as a trained model's is.  (Larger embeddings would do that too, but with a tied head each
    token would predict itself.)
    """

    def __init__(self, expected: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> None:
        self._expected = expected
        self._dtype = dtype
        self._seed = seed

    def __enter__(self) -> RandomWeights:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def take(self, name: str) -> Tensor:
        """The tensor of that name: depends on (seed, name) only, not on what was taken before."""
        shape = self._expected[name]
        if name.endswith("norm.weight"):
            return torch.full(shape, self._norm_gain(name), dtype=self._dtype)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}/{name}".encode()))
        half_width = 0.02 if len(shape) == 1 else (3.0 / shape[1]) ** 0.5
        return torch.empty(shape).uniform_(-half_width, half_width, generator=generator).to(self._dtype)

    @staticmethod
    def _norm_gain(name: str) -> float:
        if name == "model.norm.weight":
            return 4.0
        # Sharper attention than 1 would give: near-uniform attention averages the context away.
        return 2.0 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0


def _weight_files(model_dir: Path) -> list[Path]:
    index = model_dir / "model.safetensors.index.json"
    single = model_dir / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise ConfigError(f"{index} is not a safetensors index (an object with 'weight_map')") from None
        if any(Path(name).name != name for name in names):
            raise ConfigError(f"{index} is not a safetensors index: it names files outside its directory")
        missing = [name for name in names if not (model_dir / name).is_file()]
        if missing:
            raise ConfigError(f"{model_dir} lacks the weight files {', '.join(missing)} that its index names")
        return [model_dir / name for name in names]
    if single.is_file():
        return [single]
    raise ConfigError(f"{model_dir} has neither model.safetensors nor model.safetensors.index.json")


def _check_names(found: set[str], expected: Mapping[str, tuple[int, ...]], model_dir: Path) -> None:
    missing = sorted(set(expected) - found)
    # A tied model's export may repeat the embedding as its head.
    tied_head = {"lm_head.weight"} - set(expected)
    unexpected = sorted(name for name in found - set(expected) - tied_head if not name.endswith(_IGNORED_SUFFIXES))
    if missing or unexpected:
        parts = [
            f"{kind}: {_some(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise ConfigError(f"the tensors in {model_dir} do not match its config.json; " + "; ".join(parts))


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
