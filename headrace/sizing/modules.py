"""A model as the list of what it holds: the weights of every layer, and what each layer keeps of a token.

Everything else about size follows from these lists: parameters, weight bytes in any format, KV bytes, products a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Protocol


class Role(Enum):
    """What a weight is for, as the totals are shown."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    MLP = "mlp"
    NORM = "norm"


@dataclass(frozen=True, slots=True)
class Module:
    """One weight `[outputs, inputs]`, or `copies` of it (experts) of which a token uses `used`.

    name      as in the checkpoint, without the model's prefix; of experts, the first one's
    bias      numbers beside each copy that are never quantised
    linear    a matrix product: counts in FLOPs and may be quantised; False for tables, norms and the like
    parts     into how many parts tensor parallelism can divide it; None: any number, 1: each rank has all of it
    """

    name: str
    role: Role
    outputs: int
    inputs: int = 1
    bias: int = 0
    copies: int = 1
    used: int = 1
    linear: bool = True
    parts: int | None = None

    @property
    def numbers(self) -> int:
        return self.copies * (self.outputs * self.inputs + self.bias)

    @property
    def active(self) -> int:
        """Numbers that one token uses."""
        return self.used * (self.outputs * self.inputs + self.bias)

    def ranks(self, tensor_parallel: int) -> int:
        """Over how many ranks it is divided."""
        return tensor_parallel if self.parts is None else min(self.parts, tensor_parallel)


@dataclass(frozen=True, slots=True)
class Cache:
    """What a layer keeps of each token: `key` + `value` numbers in each of `heads` heads.

    window   tokens that are kept of one sequence; None: all
    stride   tokens that share one entry (compressed attention)
    parts    as of a Module: latent vectors are the same on every rank, heads are divided
    side     bytes an entry beside it whose format the KV dtype does not change (keys of an indexer)
    """

    heads: int
    key: int
    value: int
    window: int | None = None
    stride: int = 1
    parts: int | None = None
    side: int = 0

    def entry_bytes(self, dtype_bytes: float | Fraction, tensor_parallel: int = 1) -> Fraction:
        """Of one entry on one rank."""
        heads = max(1, self.heads // min(tensor_parallel, self.parts or tensor_parallel))
        return Fraction(heads * (self.key + self.value)) * Fraction(dtype_bytes) + self.side


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: its weights, and what it keeps.

    inner         width of the MLP that one token meets (0: none)
    mixed         width of queries, keys and values together
    score_width   numbers of a query times a key plus of a weight times a value, over all heads: FLOPs per pair / 2
    state_bytes   kept of a sequence whatever its length (linear attention, Mamba), in the model's own formats
    """

    modules: tuple[Module, ...]
    caches: tuple[Cache, ...] = ()
    inner: int = 0
    mixed: int = 0
    score_width: int = 0
    state_bytes: int = 0


class Described(Protocol):
    """What `headrace.sizing` asks of a model; the engine's own shape answers it as well.

    outer   weights outside the layers: embedding, last norm, head
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def layers(self) -> tuple[Layer, ...]: ...
    @property
    def outer(self) -> tuple[Module, ...]: ...


def all_modules(shape: Described) -> tuple[Module, ...]:
    return (*shape.outer, *(module for layer in shape.layers for module in layer.modules))


def vector(name: str, numbers: int, role: Role = Role.NORM) -> Module:
    """Weights that are no matrix: norms, sinks, biases of a router."""
    return Module(name, role, numbers, linear=False, parts=1)


def outer_modules(vocab_size: int, hidden_size: int, tied: bool, last_norm: int | None = None) -> tuple[Module, ...]:
    """Embedding, last norm, and a head where it is not tied to the embedding."""
    table = Module("embed_tokens", Role.EMBEDDING, vocab_size, hidden_size, linear=False)
    norm = vector("norm", hidden_size if last_norm is None else last_norm)
    return (table, norm) if tied else (table, norm, Module("lm_head", Role.HEAD, vocab_size, hidden_size))
