"""A mixture of experts: each token is computed by the few MLPs that the router chooses for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from headrace.engine.models.layers import GatedMLP, Projection, padded_rows
from headrace.engine.models.shape import Experts


class MixtureOfExperts:
    """sum over the chosen experts of weight * expert(x); weights are the router's softmax over all experts.

    Tokens are sorted by expert, so each expert runs once a step.  A token's sum runs in order of the experts'
    numbers, whatever else is in the batch.
    """

    def __init__(self, shape: Experts, router: Projection, experts: Sequence[GatedMLP]) -> None:
        self._per_token = shape.per_token
        self._normalize = shape.normalize_weights
        self._router = router
        self._experts = experts
        self.num_bytes = router.num_bytes + sum(expert.num_bytes for expert in experts)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weights, chosen = F.softmax(self._router(x).float(), dim=-1).topk(self._per_token, dim=-1)
        if self._normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        rows = order // self._per_token
        ordered_weights = weights.flatten()[order].unsqueeze(1)
        out = torch.zeros(x.shape, dtype=torch.float32)
        begin = 0
        for expert, count in enumerate(torch.bincount(flat, minlength=len(self._experts)).tolist()):
            if not count:
                continue
            picked = rows[begin : begin + count]
            # Few different numbers of rows, so few kernels to build; the padding's results are dropped.
            padded = F.pad(picked, (0, padded_rows(count) - count))
            result = self._experts[expert](x[padded])[:count]
            out.index_add_(0, picked, result.float().mul_(ordered_weights[begin : begin + count]))
            begin += count
        y = out.to(x.dtype)
        return y if residual is None else residual + y
