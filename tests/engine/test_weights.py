"""Every tensor is accounted for, and random weights depend on the seed alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from headrace.engine.weights import Checkpoint, RandomWeights
from headrace.errors import ConfigError

EXPECTED = {"model.embed_tokens.weight": (4, 2), "model.norm.weight": (2,)}


def tensors(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"model.embed_tokens.weight": torch.arange(8.0).view(4, 2), "model.norm.weight": torch.ones(2), **extra}


def test_tensors_are_converted_to_the_requested_dtype(tmp_path: Path) -> None:
    halves = {name: value.to(torch.float16) for name, value in tensors().items()}
    save_file(halves, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path, EXPECTED, torch.bfloat16) as checkpoint:
        embedding = checkpoint.take("model.embed_tokens.weight")
    assert embedding.dtype == torch.bfloat16
    assert embedding.flatten().tolist() == list(range(8))


def test_what_is_not_kept_is_not_copied(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    name = "model.embed_tokens.weight"
    with Checkpoint(tmp_path, EXPECTED, torch.float32) as checkpoint:
        view, again, own = (checkpoint.take(name, keep=keep) for keep in (False, False, True))
        assert view.untyped_storage().data_ptr() == again.untyped_storage().data_ptr()  # the file
        assert torch.equal(own, view) and own.data_ptr() != view.data_ptr()
    assert own.flatten().tolist() == list(range(8))  # after the file was closed


def test_missing_and_unexpected_names_are_both_told(tmp_path: Path) -> None:
    found = tensors(**{"model.layers.0.experts.weight": torch.ones(1)})
    del found["model.norm.weight"]
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"missing: model\.norm\.weight; unexpected: model\.layers\.0\.experts"):
        Checkpoint(tmp_path, EXPECTED, torch.float32)


def test_recomputed_buffers_and_the_copy_of_a_tied_head_are_no_surprise(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1), "lm_head.weight": torch.ones(4, 2)}
    save_file(tensors(**extra), tmp_path / "model.safetensors")
    with Checkpoint(tmp_path, EXPECTED, torch.float32) as checkpoint:
        assert checkpoint.take("model.norm.weight").tolist() == [1.0, 1.0]


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_file(tensors() | {"model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with (
        Checkpoint(tmp_path, EXPECTED, torch.float32) as checkpoint,
        pytest.raises(ConfigError, match=r"model\.norm\.weight has shape \[3\], but config\.json says \[2\]"),
    ):
        checkpoint.take("model.norm.weight")


def test_quantised_numbers_are_refused(tmp_path: Path) -> None:
    save_file(tensors() | {"model.norm.weight": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    with Checkpoint(tmp_path, EXPECTED, torch.float32) as checkpoint, pytest.raises(ConfigError, match="int8"):
        checkpoint.take("model.norm.weight")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no \\*.safetensors files"),
        ({"model.safetensors": b"not a header"}, "cannot read"),
        ({"model.safetensors.index.json": b"{}"}, "not a safetensors index"),
        ({"model.safetensors.index.json": b'{"weight_map": ["part-1.safetensors"]}'}, "not a safetensors index"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": ["x"], "b": 1}}'}, "not a safetensors index"),
        (
            {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "part-1.safetensors"}}).encode()},
            "cannot read .*part-1.safetensors",
        ),
        (
            {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "../other.safetensors"}}).encode()},
            "not a safetensors index",
        ),
    ],
)
def test_a_broken_directory_ends_in_one_sentence(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Checkpoint(tmp_path, EXPECTED, torch.float32)


def test_random_weights_depend_on_the_seed_and_the_name_only() -> None:
    first = RandomWeights(EXPECTED, torch.float32, seed=1)
    second = RandomWeights(EXPECTED, torch.float32, seed=1)
    second.take("model.norm.weight")
    name = "model.embed_tokens.weight"
    assert torch.equal(first.take(name), second.take(name))
    assert torch.equal(first.take(name).bfloat16(), RandomWeights(EXPECTED, torch.bfloat16, seed=1).take(name))
    assert not torch.equal(first.take(name), RandomWeights(EXPECTED, torch.float32, seed=2).take(name))
