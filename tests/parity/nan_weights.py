"""A checkpoint in which one token is poison: its row of the embedding is not finite, all else is sound."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

EMBEDDING = "model.embed_tokens.weight"


def poison(sound: Path, directory: Path, token_id: int, value: float) -> Path:
    """Copy the model `sound`, whose head must be its own: through a tied one the row would reach everybody's logits."""
    directory.mkdir(exist_ok=True)
    for file in sound.iterdir():
        if file.suffix == ".json":
            (directory / file.name).write_bytes(file.read_bytes())
    weights = load_file(sound / "model.safetensors")
    assert "lm_head.weight" in weights
    row = weights[EMBEDDING][token_id]
    row[torch.arange(len(row)) % 7 == 3] = value  # some of its numbers, as an overflow would leave it
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
