"""Native int4 layers (W4A8): the torch twin's bits for any groups, order, rows and threads; close to fp32 products."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from headrace.engine.kernels.linear import NativeLinear, int4_twin
from headrace.engine.quant.unpack import GroupedWeights, stacked


def weights(outputs: int, inputs: int, group: int, *, ordered: bool = False) -> GroupedWeights:
    generator = torch.Generator().manual_seed(outputs + inputs)
    groups = inputs // group
    return GroupedWeights(
        values=torch.randint(0, 16, (outputs, inputs), generator=generator).to(torch.uint8),
        scales=torch.rand(outputs, groups, generator=generator) * 0.01 + 0.001,
        zeros=torch.randint(0, 16, (outputs, groups), generator=generator).float(),
        group_size=group,
        order=torch.randperm(inputs, generator=generator) if ordered else None,
    )


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("outputs", "inputs", "group"), [(48, 64, 16), (100, 96, 32), (17, 2240, 64), (160, 1152, 128), (1, 1280, 256)]
)
def test_a_layer_gives_the_twins_bits(native: ModuleType, outputs: int, inputs: int, group: int, ordered: bool) -> None:
    """2240 and 1280 inputs are more than one block."""
    weight, bias = weights(outputs, inputs, group, ordered=ordered), torch.randn(outputs)
    layer = NativeLinear(native, [weight], bias)
    for rows in (0, 1, 2, 3, 6, 7, 40, 151):
        x, residual = torch.randn(rows, inputs), torch.randn(rows, outputs)
        assert torch.equal(layer(x), int4_twin(x, weight, bias)), rows
        assert torch.equal(layer(x, residual), int4_twin(x, weight, bias, residual)), rows


def test_the_largest_values_do_not_overflow(native: ModuleType) -> None:
    """15 * 127 in every place, where sums of pairs are closest to the end of int16; and tokens of zeros."""
    weight = weights(32, 512, 256)
    weight.values[:16], weight.zeros[:] = 15, torch.tensor([0.0, 15.0])
    x = torch.stack([torch.ones(512), -torch.ones(512), torch.zeros(512), torch.tensor([1.0, -1.0]).repeat(256)])
    assert torch.equal(NativeLinear(native, [weight])(x), int4_twin(x, weight))


def test_it_is_close_to_the_weights_multiplied_out(native: ModuleType) -> None:
    """Rounding to 8 bits costs 0.6 % (root mean square) of normally distributed tokens; an outlier harms its group
    alone (with one scale a token the second bound would be 0.08)."""
    weight = weights(64, 1024, 128)
    x = torch.randn(50, 1024)
    for outlier, most in ((1.0, 0.01), (100.0, 0.045)):
        x[:, 300] *= outlier
        exact = x @ weight.dequantize().t()
        off = (NativeLinear(native, [weight])(x) - exact).norm() / exact.norm()
        assert 0 < off < most


@pytest.mark.parametrize("ordered", [False, True])
def test_gate_and_up_are_multiplied_in_the_layer(native: ModuleType, ordered: bool) -> None:
    parts = [weights(48, 384, 128, ordered=ordered) for _ in range(2)]
    parts[1].values[:] = parts[1].values.flip(0)
    bias = torch.randn(96)
    layer = NativeLinear(native, parts, bias, gated=True)
    for rows in (1, 2, 5, 80):
        x = torch.randn(rows, 384)
        gate, up = int4_twin(x, stacked(parts), bias).chunk(2, dim=1)
        torch.testing.assert_close(layer(x), F.silu(gate) * up, rtol=1e-5, atol=1e-6)


def test_parts_follow_each_other(native: ModuleType) -> None:
    parts = [weights(outputs, 256, 64) for outputs in (40, 8, 9)]
    x = torch.randn(3, 256)
    assert torch.equal(NativeLinear(native, parts)(x), torch.cat([int4_twin(x, part) for part in parts], dim=1))


@pytest.mark.parametrize("inputs", [384, 2560])
def test_rows_have_the_same_bits_in_any_company_and_on_any_number_of_threads(native: ModuleType, inputs: int) -> None:
    layers = [
        NativeLinear(native, [weights(80, inputs, 128, ordered=True)]),
        NativeLinear(native, [weights(32, inputs, 128)] * 2, gated=True),
    ]
    x = torch.randn(300, inputs)
    for layer in layers:
        native.set_num_threads(1)
        alone = torch.cat([layer(row) for row in x[:70].split(1)])
        for threads in (1, 2, 3):
            native.set_num_threads(threads)
            for rows in range(1, 71):
                assert torch.equal(layer(x[:rows]), alone[:rows]), (threads, rows)
            assert torch.equal(layer(x)[:70], alone), threads
            assert torch.equal(layer(x[5:])[:65], alone[5:]), threads


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_spoils_its_own_row_alone(native: ModuleType, bad: float) -> None:
    layer = NativeLinear(native, [weights(40, 256, 128)])
    x = torch.randn(7, 256)
    clean = layer(x)
    x[4, 130] = bad
    spoilt = layer(x)
    assert spoilt[4].isnan().all()
    others = [0, 1, 2, 3, 5, 6]
    assert torch.equal(spoilt[others], clean[others])


@pytest.mark.parametrize("group", [16, 128])
def test_its_weights_can_be_read_back(native: ModuleType, group: int) -> None:
    weight = weights(50, 384, group, ordered=True)
    ids = torch.tensor([0, 49, 7, 7, 16])
    assert torch.equal(NativeLinear(native, [weight]).rows(ids), weight.dequantize()[ids])


def test_groups_that_it_cannot_hold_are_refused(native: ModuleType) -> None:
    for inputs, group in ((96, 24), (96, 64), (1024, 512), (64, 0)):
        with pytest.raises(ValueError, match="int4 groups hold 16, 32, 64, 128 or 256 inputs"):
            native.Linear("int4", 16, inputs, group)
