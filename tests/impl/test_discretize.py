"""Discretisation in torch."""

from __future__ import annotations

import pytest
import torch

from assay.impl.discretize import discretize, exponential
from assay.impl.kernel import claims_of
from assay.kernels import keywords
from assay.properties.discretize import DISCRETIZE
from assay.properties.judgement import examine
from assay.properties.run import QUICK
from assay.reference.arithmetic.linear import expm
from assay.reference.arithmetic.objects import Ball
from assay.reference.arithmetic.oracle import evaluate
from assay.runner import TorchSubject


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [0.0, 1e-3, 0.03, 0.499, 0.5, 0.501, 1.0, 7.0, 40.0])
def test_the_exponential_at_every_norm(norm: float, dtype: torch.dtype) -> None:
    """Of a skew matrix, whose exponential is orthogonal, against balls."""
    a = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = a - a.mT
    a = (a * norm / a.abs().sum(dim=-1).max()).to(dtype)
    (exact,) = evaluate(lambda a: expm(a), Ball(113), {"a": a.numpy()})
    off = exponential(a).double() - torch.tensor(
        [[float(x) for x in row] for row in exact.parts[0]], dtype=torch.float64
    )
    assert off.abs().max() <= 8 * (1 + norm) * torch.finfo(dtype).eps


def test_its_derivative() -> None:
    a = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    torch.autograd.gradcheck(exponential, a)


def test_what_has_no_solution_is_not_finite() -> None:
    found = discretize(torch.eye(2), torch.ones(2), dt=2.0)
    assert not any(x.isfinite().all() for x in found)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="method must be"):
        discretize(torch.eye(2), torch.ones(2), dt=1.0, method="tustin")
    with pytest.raises(ValueError, match=r"A must be \[n, n\]"):
        discretize(torch.eye(2), torch.ones(3), dt=1.0)
    with pytest.raises(TypeError, match="B"):
        discretize(torch.eye(2), torch.ones(2).long(), dt=1.0)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_kernel_keeps_what_it_claims(dtype: str) -> None:
    claims = claims_of(discretize)
    assert claims is not None
    found = examine(DISCRETIZE, TorchSubject("ours", discretize, claims, keywords(DISCRETIZE)), dtype, effort=QUICK)
    assert {r.property: r.message for r in found.results if r.verdict in ("fail", "error", "undecided")} == {}
