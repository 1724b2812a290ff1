"""Parameters of every configuration, counted by transformers on the meta device (nothing is allocated)."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from headrace.sizing import memory
from headrace.sizing.architectures import describe

VISION = ("visual", "vision", "multi_modal", "audio", "mm_proj")


@pytest.mark.slow
def test_transformers_counts_the_same(shared_data: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    counted = 0
    for directory in sorted((shared_data / "model-configs").iterdir()):
        config = json.loads((directory / "config.json").read_text())
        bare = copy.deepcopy(config)
        for part in (bare, bare.get("text_config", {})):
            part.pop("quantization_config", None)
            part.pop("auto_map", None)
        kind = bare.pop("model_type")
        if kind in ("kimi_k2", "step3p7"):
            continue  # transformers has no kimi_k2, and reads this step3p7 (a flat file) with a vocabulary of its own
        kind = {"deepseek_ref": "deepseek_v4"}.get(kind, kind)
        declared = AutoConfig.for_model(kind, **bare)
        with torch.device("meta"):
            try:
                model = AutoModelForCausalLM.from_config(declared)
            except ValueError:
                model = AutoModelForImageTextToText.from_config(declared)
        model.tie_weights()
        theirs = sum(
            each.numel() for name, each in model.named_parameters() if not any(word in name for word in VISION)
        )
        assert memory.parameters(describe(config)).total == theirs, directory.name
        counted += 1
    assert counted == 50
