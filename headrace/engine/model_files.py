"""Where a model's files are, and what its config.json says: read before torch is imported or a weight is loaded.

Nothing here executes anything from a model directory: JSON is parsed, safetensors headers are read with bounds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.engine.demo import DEMO_DIRECTORY, DEMO_NAME
from headrace.engine.models.shape import ModelShape, read_model_shape
from headrace.engine.models.tensors import num_parameters
from headrace.engine.quant.layout import W4A8, loaded_bytes, unfit_int4
from headrace.errors import ConfigError

# Only what the engine reads: no pickles (.bin, .pt), no Python.
DESCRIPTIONS, WEIGHTS = ("*.json", "*.jinja"), ("*.safetensors",)
_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the safetensors format's own bound


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What sizing and legality need to know of a model.

    dtype            the checkpoint's own dtype, e.g. "bfloat16"; None where config.json does not say
    num_parameters   as the model computes, whatever the format they are stored in
    tensor_names     of the safetensors files; empty when there are none
    """

    shape: ModelShape
    dtype: str | None
    num_parameters: int
    tensor_names: frozenset[str] = frozenset()

    def weight_bytes(self, dtype_bytes: int, *, int4: str = W4A8, to_int8: bool = False) -> int:
        """What the weights take in memory when the model computes in a dtype of that size; `int4` as in `layout`."""
        return loaded_bytes(self.shape, self.tensor_names, dtype_bytes, int4=int4, to_int8=to_int8)

    def num_unfit_int4(self, int4: str) -> int:
        """Modules whose int4 weights are expanded because the packed kernel of that choice cannot hold them."""
        return unfit_int4(self.shape, self.tensor_names, int4)

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """K and V of one token over all layers."""
        return self.shape.kv_values_per_token * dtype_bytes


def locate(
    model: str | None, *, revision: str | None = None, download_dir: str | None = None, weights: bool = True
) -> tuple[str, Path]:
    """(name, directory) of a model: the built-in one, a directory, or a name on the Hugging Face hub.

    The hub's local cache is asked before the network; `weights` False leaves the large files out.
    Raises ConfigError when the model cannot be found.
    """
    if model is None or model == DEMO_NAME:
        return DEMO_NAME, DEMO_DIRECTORY
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"--model {model} has no config.json; name a directory in the Hugging Face layout "
                "(config.json, tokenizer.json, *.safetensors)"
            )
        return model, path.resolve()
    if path.is_file():
        raise ConfigError(f"--model {model} is a file; name the directory in the Hugging Face layout that holds it")
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ConfigError(
            f"--model {model} is not a directory on this machine; give an existing directory, a Hugging Face name "
            f"such as Qwen/Qwen3-0.6B, or {DEMO_NAME!r} for the built-in demonstration model"
        )
    return model, _from_hub(model, revision, download_dir, weights)


def _from_hub(name: str, revision: str | None, download_dir: str | None, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    def fetch(local_only: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                cache_dir=download_dir,
                local_files_only=local_only,
                allow_patterns=[*DESCRIPTIONS, *(WEIGHTS if weights else ())],
            )
        )

    try:
        cached = fetch(local_only=True)
        # An interrupted download leaves a snapshot without its weights: only a complete one saves the network.
        if (cached / "config.json").is_file() and (not weights or weight_files(cached)):
            return cached
    except Exception:
        pass  # not in the cache; what is wrong is said by the network's answer below
    try:
        directory = fetch(local_only=False)
    except Exception as error:  # the hub's client has a dozen kinds, and its HTTP library more
        raise ConfigError(
            f"--model {name} is neither a directory here, nor in the local Hugging Face cache, nor could it be "
            f"fetched ({type(error).__name__}: {_first_line(error)}); check the name, or give a directory"
        ) from None
    if not (directory / "config.json").is_file():
        raise ConfigError(f"--model {name} has no config.json on the Hugging Face hub; it is no model that can be run")
    return directory


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else "no details"


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The model's safetensors files, in order of name: those that its index names, or its one file, or all there are.

    Files that an index names may be missing.  Raises ConfigError for an index that is none.
    """
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        promised = read_json(index).get("weight_map")
        names = set(promised.values()) if isinstance(promised, dict) and _all_names(promised.values()) else set()
        if not names:
            raise ConfigError(f"{index} is not a safetensors index: it needs a 'weight_map' from tensors to file names")
        return tuple(directory / name for name in sorted(names))
    single = directory / "model.safetensors"
    return (single,) if single.is_file() else tuple(sorted(directory.glob("*.safetensors")))


def _all_names(values: Iterable[object]) -> bool:
    """Names of files in the same directory: a path that leads out of it is not opened."""
    return all(isinstance(value, str) and Path(value).name == value for value in values)


def check_weights(name: str, directory: Path) -> None:
    """Raise ConfigError unless the directory has every safetensors file that it promises."""
    files = weight_files(directory)
    if not files:
        others = sorted({path.suffix for path in directory.iterdir()} & {".bin", ".pt", ".pth", ".gguf"})
        has = f"only {', '.join(others)} weights" if others else "no weights"
        raise ConfigError(
            f"--model {name} has {has}; this engine reads *.safetensors files only "
            "(or use --load-format dummy for random weights)"
        )
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ConfigError(
            f"--model {name}: model.safetensors.index.json names {len(missing)} file(s) that are not there, the first "
            f"is {missing[0]}; fetch the model again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConfigError names the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({_first_line(error)})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return value


def read_facts(directory: Path) -> ModelFacts:
    """Read config.json.  Raises ConfigError for what this engine cannot run, by name."""
    config = read_json(directory / "config.json")
    shape = read_model_shape(directory)
    dtype = config.get("dtype", config.get("torch_dtype"))
    return ModelFacts(
        shape=shape,
        dtype=dtype if isinstance(dtype, str) else None,
        num_parameters=num_parameters(shape),
        tensor_names=frozenset(name for path in weight_files(directory) if path.is_file() for name in _header(path)),
    )


def _header(path: Path) -> dict[str, Any]:
    """The JSON header of one safetensors file: 8 bytes little-endian length, then the JSON."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, os.path.getsize(path) - 8):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        end = 0
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            if not all(isinstance(each, int) and each >= 0 for each in (*tensor["shape"], *tensor["data_offsets"])):
                raise ValueError(f"the shape or place of {name}")
            end = max(end, *tensor["data_offsets"])
        if (missing := 8 + length + end - os.path.getsize(path)) > 0:
            raise ValueError(f"{missing:,} bytes are missing at its end")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a whole safetensors file ({_first_line(error)}); fetch it again") from None
    return header
