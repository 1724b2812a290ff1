"""Every family of models that can be sized: config.json -> the list of its weights and caches.

A family is one function; a key without a default in the family's own code is an error when it is missing.  Only the
language model is counted: `Model.notes` says what else a checkpoint holds (vision, draft layers).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headrace.errors import ConfigError
from headrace.sizing import families_grouped as grouped
from headrace.sizing import families_other as other
from headrace.sizing import model_shape
from headrace.sizing.config_values import positive_int
from headrace.sizing.family import Built, Config
from headrace.sizing.modules import Layer, Module


@dataclass(frozen=True, slots=True)
class Model:
    """A model as sizing sees it.

    num_heads, num_kv_heads, head_dim   as config.json says, for the formulas that are in use; 0 where it says nothing
    max_position_embeddings             None where config.json does not say
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    outer: tuple[Module, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int | None
    notes: tuple[str, ...] = ()


def describe(config: Config, source: str = "config.json") -> Model:
    """The model that a Hugging Face configuration declares; the text part of one that sees or hears.

    Raises ConfigError for a family that is not known and for a key that is missing.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{source} does not hold a JSON object")
    names = config.get("architectures")
    known = [name for name in names if name in FAMILIES] if isinstance(names, list) else []
    if not known:
        raise ConfigError(f"{source}: architectures {names!r} are not known here; known: {', '.join(sorted(FAMILIES))}")
    text = config.get("text_config", config)
    if not isinstance(text, Mapping):
        raise ConfigError(f"{source}: text_config must be an object")
    if text is not config:
        # The outer object decides what it says itself; tie_word_embeddings is often there only.
        text = {
            **{key: config[key] for key in ("tie_word_embeddings", "dtype", "torch_dtype") if key in config},
            **text,
        }
        source = f"{source}: text_config"
    layers, outer = FAMILIES[known[0]](text, source)
    heads = positive_int(text, "num_attention_heads", source)
    return Model(
        architecture=known[0],
        vocab_size=positive_int(text, "vocab_size", source),
        hidden_size=positive_int(text, "hidden_size", source),
        layers=layers,
        outer=outer,
        num_heads=heads,
        num_kv_heads=max((cache.heads for layer in layers for cache in layer.caches), default=heads),
        head_dim=_head_dim(text, layers),
        max_position_embeddings=_longest(text, known[0], source),
        notes=_notes(config, text),
    )


def _head_dim(text: Config, layers: tuple[Layer, ...]) -> int:
    """The width of one head's keys; of latent attention, what a head has beside the rotated part."""
    if isinstance(latent := text.get("qk_nope_head_dim"), int):
        return latent
    return max((cache.key for layer in layers for cache in layer.caches), default=0)


def _longest(text: Config, architecture: str, source: str) -> int | None:
    if "max_position_embeddings" not in text:
        # Falcon's own code has this default.
        return 2048 if architecture == "FalconForCausalLM" else None
    return positive_int(text, "max_position_embeddings", source)


def _notes(config: Config, text: Config) -> tuple[str, ...]:
    found = []
    if config.get("vision_config") or config.get("audio_config"):
        found.append("vision and audio parts are not counted: only the language model is")
    elif text is not config:
        found.append("only the language model is counted")
    drafts = ("num_nextn_predict_layers", "num_mtp_modules", "mtp_num_hidden_layers")
    if any(text.get(key) for key in drafts):
        found.append("draft layers (multi-token prediction) are not counted: servers load them for speculation only")
    return tuple(found)


def _plain(config: Config, source: str) -> Built:
    shape = model_shape.model_shape(config, source)
    return shape.layers, shape.outer


def _renamed(name: str) -> Callable[[Config, str], Built]:
    """A multimodal model whose text part is a plain decoder of another name."""
    return lambda config, source: _plain({**config, "architectures": [name]}, source)


FAMILIES: dict[str, Callable[[Config, str], Built]] = {
    **dict.fromkeys(model_shape.FAMILIES, _plain),
    "Qwen3VLForConditionalGeneration": _renamed("Qwen3ForCausalLM"),
    "Qwen3VLMoeForConditionalGeneration": _renamed("Qwen3MoeForCausalLM"),
    "MiniMaxM2ForCausalLM": grouped.minimax,
    "Qwen3_5ForConditionalGeneration": other.qwen35,
    "Qwen3_5MoeForConditionalGeneration": other.qwen35,
    "MiMoV2FlashForCausalLM": grouped.mimo,
    "Step3p7FlashForCausalLM": grouped.step,
    "DeepseekV2ForCausalLM": other.deepseek,
    "DeepseekV3ForCausalLM": other.deepseek,
    "DeepseekV32ForCausalLM": other.deepseek,
    "KimiK25ForConditionalGeneration": other.deepseek,
    "GlmMoeDsaForCausalLM": other.deepseek,
    "DeepseekV4ForCausalLM": other.deepseek_v4,
    "GptOssForCausalLM": grouped.gpt_oss,
    "Llama4ForConditionalGeneration": grouped.llama4,
    "NemotronHForCausalLM": other.nemotron_h,
    "Gemma4ForConditionalGeneration": grouped.gemma4,
    "FalconForCausalLM": grouped.falcon,
}
