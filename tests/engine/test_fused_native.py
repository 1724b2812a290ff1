"""Norms and gates of the native kernels equal torch's, and a row does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from headrace.engine.kernels import native

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels are not built")


def normed(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, *, add: bool = False) -> torch.Tensor:
    addresses = x.data_ptr(), x.stride(0), weight.data_ptr(), 1e-6, out.data_ptr(), out.stride(0)
    native().norm(*addresses, *x.shape, add)  # type: ignore[union-attr]
    return out


@pytest.mark.parametrize("width", [8, 56, 96, 897])
def test_norm_and_norm_behind_a_residual(width: int) -> None:
    torch.manual_seed(0)
    x, weight, base = torch.randn(70, width) * 3, torch.randn(width), torch.randn(70, width)
    expected = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    found = normed(x, weight, torch.empty_like(x))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(normed(x, weight, base.clone(), add=True), base + expected, atol=1e-5)
    assert torch.equal(normed(x[5:6], weight, torch.empty(1, width))[0], found[5])


@pytest.mark.parametrize("gelu", [False, True])
def test_gate(gelu: bool) -> None:
    x, out = torch.randn(33, 2 * 51) * 4, torch.empty(33, 51)
    native().gate(x.data_ptr(), x.stride(0), out.data_ptr(), 51, 33, 51, gelu)  # type: ignore[union-attr]
    gate, up = x.chunk(2, dim=-1)
    expected = (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)) * up
    assert torch.allclose(out, expected, atol=2e-6, rtol=1e-5)
