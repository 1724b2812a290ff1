"""The engine's reading of a config.json and sizing's, which campaigns use without the engine, never differ."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.engine.demo import DEMO_DIRECTORY
from headrace.engine.models import shape as engine
from headrace.engine.models.tensors import num_parameters
from headrace.sizing import memory
from headrace.sizing.model_shape import FAMILIES, Dimensions, model_shape

DEMO: dict[str, Any] = json.loads((DEMO_DIRECTORY / "config.json").read_text())
EXPERTS = {"num_experts": 6, "num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96}


@pytest.mark.parametrize("family", sorted(engine.ARCHITECTURES))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"head_dim": None, "num_key_value_heads": None},
        {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
    ],
)
def test_both_read_the_same(family: str, changes: dict[str, Any]) -> None:
    config = {**DEMO, **EXPERTS, "architectures": [family], **changes}
    theirs, ours = engine.model_shape(config), model_shape(config)
    for name in (each for each in vars(Dimensions) if not each.startswith("_") and each != "experts"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert (theirs.experts is None) == (ours.experts is None)
    if theirs.experts is not None and ours.experts is not None:
        for name in ("count", "per_token", "intermediate_size", "dense_layers"):
            assert getattr(theirs.experts, name) == getattr(ours.experts, name), name
    assert memory.parameters(theirs).total == memory.parameters(ours).total == num_parameters(theirs)
    assert memory.kv_bytes_per_token(theirs, 2) == 2 * theirs.kv_values_per_token


def test_sizing_knows_every_family_that_the_engine_runs() -> None:
    assert set(engine.ARCHITECTURES) <= set(FAMILIES)
