"""Native linear layers: the twin's numbers, and the same bits for any number of rows and threads."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from headrace.engine.kernels.linear import NativeLinear, twin


def matrix(outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    return (torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(3)) * inputs**-0.5).to(dtype)


def close(native: ModuleType, dtype: torch.dtype) -> dict[str, float]:
    """bf16 instructions round the inputs too."""
    rounds = dtype == torch.bfloat16 and native.isa() == "avx512_bf16"
    return {"rtol": 1e-5, "atol": 0.03 if rounds else 1e-5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(48, 64), (100, 37), (17, 1000), (1, 1), (160, 896)])
def test_a_layer_gives_the_twins_numbers(native: ModuleType, dtype: torch.dtype, outputs: int, inputs: int) -> None:
    weight, bias = matrix(outputs, inputs, dtype), torch.randn(outputs).to(dtype)
    layer = NativeLinear(native, [weight], bias)
    for rows in (0, 1, 2, 3, 6, 7, 40, 151):
        x, residual = torch.randn(rows, inputs), torch.randn(rows, outputs)
        torch.testing.assert_close(layer(x), twin(x, weight, bias), **close(native, dtype))
        torch.testing.assert_close(layer(x, residual), twin(x, weight, bias, residual), **close(native, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gate_and_up_are_multiplied_in_the_layer(native: ModuleType, dtype: torch.dtype) -> None:
    weight, bias = matrix(96, 500, dtype), torch.randn(96).to(dtype)
    layer = NativeLinear(native, [weight[:48], weight[48:]], bias, gated=True)
    for rows in (1, 2, 5, 80):
        x = torch.randn(rows, 500)
        torch.testing.assert_close(layer(x), twin(x, weight, bias, gated=True), **close(native, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_have_the_same_bits_in_any_company_and_on_any_number_of_threads(
    native: ModuleType, dtype: torch.dtype
) -> None:
    layers = [
        NativeLinear(native, [matrix(80, 600, dtype)]),
        NativeLinear(native, [matrix(32, 600, dtype), matrix(32, 600, dtype).flip(0)], gated=True),
    ]
    x = torch.randn(300, 600)
    for layer in layers:
        native.set_num_threads(1)
        alone = torch.cat([layer(row) for row in x[:70].split(1)])
        for threads in (1, 2, 3):
            native.set_num_threads(threads)
            for rows in range(1, 71):
                assert torch.equal(layer(x[:rows]), alone[:rows]), (threads, rows)
            assert torch.equal(layer(x)[:70], alone), threads
            assert torch.equal(layer(x[5:])[:65], alone[5:]), threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_head_gives_back_its_rows(native: ModuleType, dtype: torch.dtype) -> None:
    weight = matrix(50, 33, dtype)
    ids = torch.tensor([0, 49, 7, 7, 16])
    layer = NativeLinear(native, [weight])
    assert torch.equal(layer.rows(ids), weight[ids].float())
    with pytest.raises(IndexError, match="no such row"):
        layer.rows(torch.tensor([50]))


def test_a_view_of_rows_is_read_where_it_lies(native: ModuleType) -> None:
    weight = matrix(20, 40, torch.float32)
    x = torch.randn(9, 100)[:, 30:70]
    torch.testing.assert_close(NativeLinear(native, [weight])(x), twin(x, weight), rtol=0, atol=1e-5)


def test_int8_tokens_and_weights_are_summed_exactly(native: ModuleType) -> None:
    """The extremes first: products of pairs must not saturate."""
    from headrace.engine.quant.linears import Int8Linear

    generator = torch.Generator().manual_seed(5)
    weight = torch.randint(-128, 128, (96, 1003), generator=generator).to(torch.int8)
    weight[:2] = torch.tensor([[-128], [127]])
    scales, bias = torch.rand(96, 1) * 0.01 + 0.001, torch.randn(96)
    x = torch.randn(70, 1003)
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    layer, plain = NativeLinear(native, [weight], bias, scales=scales), Int8Linear(weight, scales, bias, "plain")
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(layer.rows(torch.tensor([1, 95])), weight[[1, 95]].float() * scales[[1, 95]])
    gated = NativeLinear(native, [weight[:48], weight[48:]], scales=scales, gated=True)
    gate, up = Int8Linear(weight, scales, None, "plain")(x).chunk(2, dim=-1)
    torch.testing.assert_close(gated(x), torch.nn.functional.silu(gate) * up, rtol=1e-5, atol=1e-5)
    for threads in (1, 2, 3):
        native.set_num_threads(threads)
        for rows in (1, 2, 5, 6, 33, 70):
            assert torch.equal(layer(x[:rows]), layer(x)[:rows]), (threads, rows)
