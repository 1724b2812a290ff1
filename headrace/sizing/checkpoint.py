"""The exact size of a checkpoint, from the headers of its safetensors files: no weight is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from headrace.errors import ConfigError

_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the format's own bound


def checkpoint_bytes(directory: Path) -> int | None:
    """Bytes of all tensors, or None when there are no safetensors files.  ConfigError for a file that is damaged."""
    files = sorted(directory.glob("*.safetensors"))
    return sum(map(_tensor_bytes, files)) if files else None


def _tensor_bytes(path: Path) -> int:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER_BYTES + 1
            if size > _MAX_HEADER_BYTES:
                raise ValueError("its header is longer than the format allows")
            header = json.loads(file.read(size))
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return sum(int(end) - int(begin) for begin, end in spans)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"cannot read the header of {path}: {error}") from None
