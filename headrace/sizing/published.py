"""The formula for the KV cache that is published most often, beside what a token really takes."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from headrace.sizing.architectures import Model
from headrace.sizing.memory import kv_bytes_per_token

FORMULA = "2 * layers * heads * length * head_dim * precision * batch"


@dataclass(frozen=True, slots=True)
class Published:
    """Bytes a token by the published formula and in truth, and by how much the first overstates.

    factor              with the true head size: what query heads in place of key-value heads do
    hidden_factor       with hidden size / query heads as the head size, as it is filled in where head_dim is overlooked
    """

    layers: int
    heads: int
    head_dim: int
    bytes_per_token: int
    factor: float
    hidden_factor: float


def published(model: Model, kv_number: Fraction) -> Published:
    """The formula filled in with all layers, query heads and the model's head size."""
    layers, heads, head = len(model.layers), model.num_heads, model.head_dim
    claimed = int(2 * layers * heads * head * kv_number)
    hidden = 2 * layers * heads * (model.hidden_size // heads) * kv_number
    true = kv_bytes_per_token(model, kv_number)
    if not true:
        return Published(layers, heads, head, claimed, float("inf"), float("inf"))
    return Published(layers, heads, head, claimed, claimed / true, float(hidden / true))
