"""Products with integers as they are stored: equal to the plain product, row by row, on every path there is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from headrace.engine.quant.linears import Int4Linear, Int8Linear, int8_kernel
from headrace.engine.quant.unpack import GroupedWeights


def int8_layer() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    weight = torch.randint(-128, 128, (48, 200)).to(torch.int8)
    return weight, torch.rand(48, 1) * 0.01 + 0.001, torch.randn(48)


def by_hand(x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor) -> Tensor:
    """One token after the other, in whole numbers."""
    rows = []
    for token in x:
        scale = token.abs().max() / 127
        whole = [round(value) for value in (token / scale).tolist()] if scale > 0 else [0] * len(token)
        sums = torch.tensor([sum(a * b for a, b in zip(whole, row, strict=True)) for row in weight.tolist()])
        rows.append(sums.double() * scale.double() * scales[:, 0].double() + bias.double())
    return torch.stack(rows)


@pytest.mark.parametrize("kernel", ["onednn", "torch", "plain"])
def test_int8_products_are_those_of_whole_numbers(kernel: str) -> None:
    if kernel == "onednn" and int8_kernel() != "onednn":
        pytest.skip("oneDNN's int8 products are not exact on this processor, so they are not used")
    weight, scales, bias = int8_layer()
    x = torch.randn(5, 200) * torch.tensor([[1.0], [1e-6], [300.0], [0.0], [1.0]])
    try:
        found = Int8Linear(weight, scales, bias, kernel)(x)
    except (AttributeError, RuntimeError):
        pytest.skip(f"this torch build has no {kernel} kernel for int8")
    torch.testing.assert_close(found.double(), by_hand(x, weight, scales, bias), rtol=1e-6, atol=1e-6)


def test_the_chosen_int8_kernel_gives_the_bits_of_the_plain_one_for_any_batch() -> None:
    weight, scales, bias = int8_layer()
    x = torch.randn(33, 200).to(torch.bfloat16)
    layer, plain = Int8Linear(weight, scales, bias), Int8Linear(weight, scales, bias, "plain")
    assert int8_kernel() in ("onednn", "torch", "plain")
    together = layer(x)
    assert torch.equal(together, plain(x))
    for rows in (1, 2, 7):
        assert torch.equal(together[:rows], layer(x[:rows]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_products_are_those_of_the_plain_weight_for_any_batch(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    weights = GroupedWeights(
        values=torch.randint(0, 16, (48, 256)).to(torch.uint8),
        scales=torch.rand(48, 4).to(torch.float16).float() * 0.01,
        zeros=torch.randint(0, 16, (48, 4)).float(),
        group_size=64,
        order=torch.randperm(256),
    )
    bias = torch.randn(48).to(dtype)
    layer = Int4Linear(weights.regrouped(32), bias, dtype)
    x = torch.randn(17, 512).to(dtype)[:, ::2]  # not contiguous
    exact = x.double() @ weights.dequantize().double().t() + bias.double()
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(layer(x).double(), exact, rtol=tolerance, atol=tolerance)
    for rows in (1, 3, 8):
        assert torch.equal(layer(x)[:rows], layer(x[:rows]))
