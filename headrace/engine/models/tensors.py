"""Which tensors a model consists of, by their Hugging Face names.  No torch: sizes are asked before anything loads."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.engine.models.shape import ModelShape


@dataclass(frozen=True, slots=True)
class LinearModule:
    """A linear layer of the checkpoint: `name`.weight `[rows, columns]` when it is not quantised.

    is_router   its outputs choose experts: a small difference may change which
    """

    name: str
    rows: int
    columns: int
    has_bias: bool = False
    is_router: bool = False


def linear_modules(shape: ModelShape) -> tuple[LinearModule, ...]:
    """Every linear layer: attention, MLPs or experts with their routers, and the head unless it is tied."""
    hidden, head_dim = shape.hidden_size, shape.head_dim
    q_size, kv_size = shape.num_heads * head_dim, shape.num_kv_heads * head_dim
    modules: list[LinearModule] = []
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}."
        modules += [
            LinearModule(prefix + "self_attn.q_proj", q_size, hidden, shape.qkv_bias),
            LinearModule(prefix + "self_attn.k_proj", kv_size, hidden, shape.qkv_bias),
            LinearModule(prefix + "self_attn.v_proj", kv_size, hidden, shape.qkv_bias),
            LinearModule(prefix + "self_attn.o_proj", hidden, q_size, shape.output_bias),
        ]
        experts = shape.experts_of(layer)
        if experts is None:
            inner = shape.intermediate_size
            modules += [
                LinearModule(prefix + "mlp.gate_proj", inner, hidden, shape.mlp_bias),
                LinearModule(prefix + "mlp.up_proj", inner, hidden, shape.mlp_bias),
                LinearModule(prefix + "mlp.down_proj", hidden, inner, shape.mlp_bias),
            ]
            continue
        names, inner = experts.names, experts.intermediate_size
        modules.append(LinearModule(prefix + names.router, experts.count, hidden, is_router=True))
        for index in range(experts.count):
            modules += [
                LinearModule(prefix + names.gate.format(index), inner, hidden),
                LinearModule(prefix + names.up.format(index), inner, hidden),
                LinearModule(prefix + names.down.format(index), hidden, inner),
            ]
    if not shape.tie_word_embeddings:
        modules.append(LinearModule("lm_head", shape.vocab_size, hidden))
    return tuple(modules)


def other_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Embedding and norms: name and shape."""
    hidden = shape.hidden_size
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if shape.post_norms:
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    if shape.qk_norm:
        norms |= {"self_attn.q_norm": shape.head_dim, "self_attn.k_norm": shape.head_dim}
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.num_layers):
        tensors |= {f"model.layers.{layer}.{name}.weight": (size,) for name, size in norms.items()}
    tensors["model.norm.weight"] = (hidden,)
    return tensors


def expected_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint that is not quantised."""
    tensors = other_tensors(shape)
    for module in linear_modules(shape):
        tensors[f"{module.name}.weight"] = (module.rows, module.columns)
        if module.has_bias:
            tensors[f"{module.name}.bias"] = (module.rows,)
    return tensors


def num_parameters(shape: ModelShape) -> int:
    """Weights and biases of the whole model, a tied head counted once."""
    count = sum(_product(size) for size in other_tensors(shape).values())
    return count + sum(each.rows * (each.columns + each.has_bias) for each in linear_modules(shape))


def _product(sizes: tuple[int, ...]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
