"""Where a model's tensors come from: a safetensors directory, or random numbers from a seed."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headrace.engine.model_files import weight_files
from headrace.engine.models.shape import ModelShape
from headrace.engine.models.tensors import expected_tensors
from headrace.engine.quant.layout import Layout, layout
from headrace.errors import ConfigError

# Buffers that old exports carry and every implementation recomputes.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Checkpoint:
    """A directory of safetensors files, one or sharded.  Use as a context manager; `take` hands tensors over.

    Opening compares names: every expected tensor must be there and nothing else, or ConfigError lists both sides.
    Tensors are read from a memory map when taken, so a model needs no second copy of itself while loading.
    """

    def __init__(
        self,
        model_dir: Path,
        expected: Mapping[str, tuple[int, ...] | None],
        dtype: torch.dtype,
        optional: Collection[str] = (),
    ) -> None:
        """`expected` maps names to shapes (None: checked by whoever reads it); `optional` may be there as well."""
        self._expected = expected
        self._dtype = dtype
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}  # tensor name -> open file
        files = weight_files(model_dir)
        if not files:
            raise ConfigError(f"{model_dir} has no *.safetensors files")
        try:
            for path in files:
                try:
                    file = self._stack.enter_context(safe_open(path, framework="pt"))
                except (SafetensorError, OSError) as error:
                    raise ConfigError(f"cannot read {path}: {error}") from None
                self._files |= dict.fromkeys(file.keys(), file)
            _check_names(set(self._files), expected, optional, model_dir)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    def take(self, name: str, *, keep: bool = True) -> Tensor:
        """The tensor, converted to the model's dtype.  ConfigError when its shape or type is not the expected one.

        With `keep` False it may be a view of the file, to be read before that is closed.
        """
        tensor = self.take_stored(name)
        assert tensor is not None, name
        if tensor.dtype not in _FLOAT_DTYPES:
            raise ConfigError(f"tensor {name} is {tensor.dtype}; accepted: float32, float16, bfloat16")
        # A tensor of the right dtype is still a view of the memory map: a copy lets the file be closed.
        return tensor.to(self._dtype, copy=keep)

    def take_stored(self, name: str) -> Tensor | None:
        """The tensor as stored, a view of the file that must not be kept; None where there is none of that name."""
        if name not in self._files:
            return None
        tensor: Tensor = self._files[name].get_tensor(name)
        shape = self._expected.get(name)
        if shape is not None and tuple(tensor.shape) != shape:
            raise ConfigError(f"tensor {name} has shape {list(tensor.shape)}, but config.json says {list(shape)}")
        return tensor


class RandomWeights:
    """`load_format dummy`: numbers from `seed` alone, the same for every dtype up to its rounding.

    vLLM fills with U(-1e-3, 1e-3), which makes all activations nearly zero.  Here each matrix keeps the variance of
    what passes through it, U(-a, a) with a = sqrt(3 / columns), so values stay near 1 at any depth and greedy output
    follows the context.  Norms are 1 but the last, which is 4: logits then have a standard deviation of 4, so the
    distribution is peaked as a trained model's is.  (Larger embeddings would do that too, but with a tied head each
    token would predict itself.)
    """

    def __init__(
        self, expected: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int, norm_offset: float = 0.0
    ) -> None:
        self._expected = expected
        self._norm_offset = norm_offset
        self._dtype = dtype
        self._seed = seed

    def __enter__(self) -> RandomWeights:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def take(self, name: str, *, keep: bool = True) -> Tensor:
        """The tensor of that name: depends on (seed, name) only, not on what was taken before; always a new one."""
        shape = self._expected[name]
        if name.endswith("norm.weight"):
            return torch.full(shape, self._norm_gain(name) - self._norm_offset, dtype=self._dtype)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}/{name}".encode()))
        half_width = 0.02 if len(shape) == 1 else (3.0 / shape[1]) ** 0.5
        return torch.empty(shape).uniform_(-half_width, half_width, generator=generator).to(self._dtype)

    def take_stored(self, name: str) -> Tensor | None:
        """Nothing is stored: random weights are plain numbers, and there are no optional tensors."""
        return None

    @staticmethod
    def _norm_gain(name: str) -> float:
        if name == "model.norm.weight":
            return 4.0
        # Sharper attention than 1 would give: near-uniform attention averages the context away.
        return 2.0 if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0


def open_weights(
    model_dir: Path, shape: ModelShape, dtype: torch.dtype, load_format: str, seed: int
) -> tuple[Checkpoint | RandomWeights, Layout]:
    """The source of a model's tensors and what it holds, for load formats "safetensors" and "dummy"."""
    if load_format == "dummy":
        if shape.quantization is not None:
            raise ConfigError(
                f"--load-format dummy: random weights are not quantised, and this model is ({shape.quantization}); "
                "remove quantization_config from its config.json, or load its own weights"
            )
        return RandomWeights(expected_tensors(shape), dtype, seed, shape.norm_offset), layout(shape, ())
    wanted = layout(shape, _tensor_names(model_dir))
    return Checkpoint(model_dir, wanted.required, dtype, wanted.optional), wanted


def _tensor_names(model_dir: Path) -> set[str]:
    names: set[str] = set()
    for path in weight_files(model_dir):
        try:
            with safe_open(path, framework="pt") as file:
                names |= set(file.keys())
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from None
    return names


def _check_names(
    found: set[str], expected: Mapping[str, tuple[int, ...] | None], optional: Collection[str], model_dir: Path
) -> None:
    missing = sorted(set(expected) - found)
    # A tied model's export may repeat the embedding as its head.
    tied_head = {"lm_head.weight"} - set(expected)
    accepted = set(expected) | set(optional) | tied_head
    unexpected = sorted(name for name in found - accepted if not name.endswith(_IGNORED_SUFFIXES))
    if missing or unexpected:
        parts = [
            f"{kind}: {_some(names)}" for kind, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise ConfigError(f"the tensors in {model_dir} do not match its config.json; " + "; ".join(parts))


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
