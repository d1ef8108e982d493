"""Our random projections are what they claim, and their features estimate the kernel with the error they should."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from assay.impl.performer import random_features
from assay.impl.projection import random_projection
from assay.kernels import resolve
from assay.properties.projection import RANDOM_PROJECTION
from assay.properties.statistics import bennett
from assay.reference.arithmetic.normwise import orthonormal
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.projection import KINDS, Estimator, context


ERROR = 1e-9
"""The probability that a right kernel fails, over all estimators together."""


def test_a_seed_means_the_same_rows_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (random_projection(9, 4, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("scaling", ["chi", "regularised"])
@pytest.mark.parametrize(("r", "d"), [(1, 1), (3, 4), (4, 4), (9, 4)])
def test_rows_of_a_block_are_orthogonal(r: int, d: int, scaling: str) -> None:
    w = random_projection(r, d, scaling=scaling, seed=0, dtype=torch.float64)
    product = w @ w.T
    block = torch.arange(r) // d
    within = (block[:, None] == block[None, :]) & ~torch.eye(r, dtype=torch.bool)
    # A direction is off by `off` at most; its product with a length, and sums of d terms here, by roundoffs.
    off, u = float(orthonormal(d, PRECISIONS["float64"])), 2.0**-53
    error = 2 * off + off**2 + 2 * (d + 4) * u
    lengths = w.norm(dim=-1)
    assert (product[within].abs() <= error * (lengths[:, None] * lengths)[within]).all()
    if scaling == "regularised":
        assert ((product.diag() - d).abs() <= error * d).all()


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_the_dtype_is_that_asked_for(dtype: torch.dtype | None) -> None:
    assert random_projection(2, 3, seed=0, dtype=dtype).dtype == (dtype or torch.get_default_dtype())


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="chi, regularised"):
        random_projection(2, 3, scaling="unit", seed=0)
    with pytest.raises(ValueError, match="no projection"):
        random_projection(2, 0, seed=0)


def test_kernels_are_found() -> None:
    (known,) = resolve("random_projection=assay.impl.projection:random_projection")
    assert known.operator is RANDOM_PROJECTION


# The error of estimating the kernel ----------------------------------------------------------------------------------


MP = context(160)


@cache
def moments(kind: str, r: int, d: int, orthogonal: bool, t: float) -> tuple[float, ...]:
    estimator = Estimator(kind, r, d, orthogonal)
    return tuple(float(f(t, MP)) for f in (estimator.mean, estimator.variance, estimator.spread_of_square))


def drawn(r: int, d: int, orthogonal: bool, samples: int) -> torch.Tensor:
    """rows[n, r, d] of so many seeds."""
    return torch.stack(
        [random_projection(r, d, orthogonal=orthogonal, seed=n, dtype=torch.float64) for n in range(samples)]
    )


def estimates(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, kind: str) -> torch.Tensor:
    """<phi(x), phi(y_i)>[i, n, r] by the first 1, 2, ... of the rows[n, r, d] of each projection.

    But for their factor features are those of single rows, so all are had at once.
    """
    n, r, d = rows.shape
    sides = 1 if kind == "positive" else 2
    phi, psi = (random_features(z, rows.reshape(-1, d), kind=kind).reshape(-1, sides, n, r) for z in (x, y))
    return (phi * psi).sum(dim=1).cumsum(dim=-1) * (n * r) / torch.arange(1, r + 1)


def p_values(rows: torch.Tensor, orthogonal: bool, least: int) -> dict[int, list[float]]:
    """By the number of rows, from the least on: of mean and mean squared error of the estimates by so many of the first
    of the rows[n, r, d], for each kind, |x| = |y| = 1/2, x = y or at right angles."""
    r, d = rows.shape[-2:]
    x = torch.zeros(1, d, dtype=torch.float64)
    x[0, 0] = 0.5
    aside = torch.zeros_like(x)
    aside[0, -1] = 0.5
    y = torch.cat([x, aside])
    found: dict[int, list[float]] = {}
    for kind in KINDS:
        portions = rows.split(max(1, (1 << 22) // (r * d)))
        seen = torch.cat([estimates(x, y, portion, kind) for portion in portions], dim=1).numpy()
        for column, inner in ((0, 0.25), (1, 0.0)):
            trigonometric = kind == "trigonometric"
            t = 0.5 - 2 * inner if trigonometric else 0.5 + 2 * inner
            for count in range(least, r + 1):
                own = seen[column, :, count - 1]
                if t == 0:  # x = y: no error at all
                    # cos**2 + sin**2 of r arguments, each of these within 2 ulps and the exponentials within 3; a root,
                    # five products and a sum of 2 r terms. An ulp is 2 roundoffs at most.
                    error = (2 * (2 * 3 + 2 * 2 + 3) + 2 * count + 2) * 2.0**-53
                    assert (np.abs(own / np.exp(inner) - 1) <= error).all()
                    continue
                mean, variance, spread = moments(kind, count, d, orthogonal, t)
                own = own * np.exp(-0.25 if trigonometric else 0.25)
                low, high = (-1.0, 1.0) if trigonometric else (0.0, np.inf)
                square = (1 + abs(mean)) ** 2 if trigonometric else np.inf
                found.setdefault(count, []).append(bennett(own, mean, variance, low, high))
                found[count].append(bennett((own - mean) ** 2, variance, spread, 0.0, square))
    return found


@pytest.mark.parametrize(("r", "d"), [(1, 4), (4, 4), (7, 4), (16, 16)])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_estimates_have_the_mean_and_the_error_of_the_closed_forms(r: int, d: int, orthogonal: bool) -> None:
    found = p_values(drawn(r, d, orthogonal, 1000), orthogonal, r)[r]
    assert min(found) * len(found) * 8 > ERROR


@pytest.mark.parametrize("d", [4, 16, 64])
def test_a_shorter_last_block_has_the_first_rows_of_a_whole_one(d: int) -> None:
    """So the rows of a projection with whole blocks stand for those of every smaller one."""
    for blocks in range(1, 5):
        whole = random_projection(blocks * d, d, scaling="regularised", seed=blocks)
        for r in range((blocks - 1) * d + 1, blocks * d):
            assert torch.equal(random_projection(r, d, scaling="regularised", seed=blocks), whole[:r])


@pytest.mark.nightly
@pytest.mark.parametrize(("d", "samples"), [(4, 20_000), (16, 8_000), (64, 2_000)])
@pytest.mark.parametrize("orthogonal", [True, False])
def test_estimates_have_the_mean_and_the_error_of_the_closed_forms_for_every_r(
    d: int, samples: int, orthogonal: bool
) -> None:
    """r = 1 ... 4 d, from one projection of so many blocks as r needs; ERROR is that of all r, d, kinds together."""
    tests = 2 * (4 + 16 + 64) * 4 * 2 * len(KINDS) * 2
    for blocks in range(1, 5):
        found = p_values(drawn(blocks * d, d, orthogonal, samples), orthogonal, (blocks - 1) * d + 1)
        least = {r: min(p) for r, p in found.items()}
        print(f"d = {d}, r = {min(least)} ... {max(least)}: the least p-value is {min(least.values()):.2g}")
        assert min(least.values()) * tests > ERROR


@pytest.mark.parametrize("kind", KINDS)
def test_the_test_of_the_error_tells_orthogonal_from_independent_rows(kind: str) -> None:
    """Independent rows, held to the moments of orthogonal ones: many samples of d rows at |z|^2 = 4."""
    d, t = 4, 4.0
    rows = torch.randn(20000, d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    g = {"positive": torch.exp, "trigonometric": torch.cos, "hyperbolic": torch.cosh}[kind]
    x = g(2 * rows[..., 0]).mean(dim=-1).numpy()
    mean, variance, spread = moments(kind, d, d, True, t)
    high = (1 + abs(mean)) ** 2 if kind == "trigonometric" else np.inf
    seen = bennett((x - mean) ** 2, variance, spread, 0.0, high) <= ERROR
    assert seen == (kind == "trigonometric")  # the tails of the others are too heavy for so small a difference
