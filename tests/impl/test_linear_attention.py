"""Linear attention in torch and in Triton: whatever a sequence is cut into, the sums are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from assay.impl import linear_attention as plain
from assay.impl.triton import linear_attention as fused


KERNELS = (plain.linear_attention, fused.linear_attention)


def integers(*shape: int) -> torch.Tensor:
    made = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-3, 4, shape, generator=made).float().requires_grad_()


@pytest.mark.parametrize("t", [1, 63, 64, 65, 150])
@pytest.mark.parametrize("function", KERNELS, ids=["torch", "triton"])
def test_integers_are_summed_exactly(function: Any, t: int) -> None:
    """Also backward, and through the state: of small integers every sum is exact."""
    q, k, v, state = integers(1, 2, t, 4), integers(1, 2, t, 4), integers(1, 2, t, 3), integers(1, 2, 4, 3)
    keywords = {"feature_map": "identity", "causal": True, "normalize": False}
    got = function(q, k, v, state=state, return_state=True, **keywords)
    want = (q @ k.mT).tril() @ v + q @ state, state + k.mT @ v
    cotangents = [torch.ones_like(x) for x in want]
    gradients = (torch.autograd.grad(x, (q, k, v, state), cotangents) for x in (got, want))
    for a, b in zip((*got, *next(gradients)), (*want, *next(gradients)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("function", KERNELS, ids=["torch", "triton"])
def test_wrong_arguments_are_refused(function: Any) -> None:
    q, k = torch.ones(1, 1, 3, 2), torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="as many keys"):
        function(q, k, k, causal=True)
    with pytest.raises(ValueError, match="denominator"):
        function(q, q, q, denominator="minus")
