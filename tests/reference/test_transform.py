"""Convolution by transforms: the arithmetics agree, and kernels of others keep the bound, backward too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded
from assay.reference.arithmetic.transform import convolve, direct, transform


SINGLE = PRECISIONS["float32"]


def drawn(seed: int, t: int, scale: int = 0) -> dict[str, Any]:
    random = np.random.default_rng((seed, t))
    u, k = random.standard_normal((2, 3, t)), random.standard_normal((3, t))
    return {"u": np.ldexp(u, scale).astype(np.float32), "k": np.ldexp(k, scale).astype(np.float32)}


@pytest.mark.parametrize("n", [1, 2, 8, 32])
def test_a_transform_is_the_sum_of_its_definition(n: int) -> None:
    random = np.random.default_rng(n)
    a, b = random.standard_normal((2, 3, n))
    exact = Exact(200)
    real, imag = transform(exact.lift(a), exact.lift(b))
    found = real.parts[0].astype(float) + 1j * imag.parts[0].astype(float)
    wanted = np.fft.fft(a + 1j * b)
    assert (np.abs(found - wanted) <= 2.0**-45 * np.abs(a + 1j * b).sum(axis=-1, keepdims=True)).all()
    assert np.array_equal(found, sum(transform(a, b)[i] * (1, 1j)[i] for i in (0, 1))) or n > 2


@pytest.mark.parametrize("t", [0, 1, 3, 8])
def test_all_arithmetics_have_the_same_numbers_and_gradients(t: int) -> None:
    given, exact = drawn(0, t), Exact(300)
    weight = [np.random.default_rng(1).standard_normal((2, 3, t))]
    by_fft, by_sum = (differentiate(text, exact, given, weight, list(given)) for text in (convolve, direct))
    by_balls = differentiate(convolve, Ball(300), given, weight, list(given))
    for found in (by_fft, by_balls):
        for one, two in zip((by_sum[0][0], *by_sum[1].values()), (found[0][0], *found[1].values()), strict=True):
            assert one.shape == two.shape
            for x, y in zip(one.parts[0].ravel(), two.parts[0].ravel(), strict=True):
                assert abs(float(x) - float(y)) <= 2.0**-50 * (1 + abs(float(x)))


def by_torch(u: torch.Tensor, k: torch.Tensor, n: int) -> torch.Tensor:
    return torch.fft.irfft(torch.fft.rfft(u, n) * torch.fft.rfft(k, n), n)[..., : u.shape[-1]]


@pytest.mark.parametrize("scale", [0, -60, -75])
@pytest.mark.parametrize("t", [1, 2, 3, 5, 31, 64, 100])
def test_kernels_of_others_keep_the_bound(t: int, scale: int) -> None:
    """Of any length that holds all of it, powers of two, even and odd; where products underflow too."""
    for seed in range(2):
        given = drawn(seed, t, scale)
        weight = np.random.default_rng(seed).standard_normal((2, 3, t)).astype(np.float32)
        outputs, gradients = differentiate(convolve, Bounded(SINGLE), given, [weight], list(given))
        exact, slopes = differentiate(direct, Bounded(PRECISIONS["float64"]), given, [weight], list(given))
        limits = [x.parts[1] for x in (outputs[0], *gradients.values())]
        truths = [x.parts for x in (exact[0], *slopes.values())]
        got = [
            [x.parts[0] for x in (r[0][0], *r[1].values())]
            for r in [differentiate(convolve, Rounded(SINGLE), given, [weight], list(given))]
        ]
        for n in {2 * t - 1, 2 * t, 2 * t + 1, 1 << (2 * t - 1).bit_length()}:
            u, k = (torch.from_numpy(x).requires_grad_() for x in given.values())
            y = by_torch(u, k, n)
            y.backward(torch.from_numpy(weight))
            got.append([x.detach().numpy() for x in (y, u.grad, k.grad) if x is not None])
        for arrays in got:
            for x, limit, (truth, unsure) in zip(arrays, limits, truths, strict=True):
                assert (np.abs(x - truth) <= limit + unsure).all()


def test_a_circle_and_half_precision_are_beyond_the_bound() -> None:
    given = drawn(0, 64)
    (bound,), (exact,) = evaluate(convolve, Bounded(SINGLE), given), evaluate(direct, Bounded(SINGLE), given)
    u, k = (torch.from_numpy(x) for x in given.values())
    for wrong in (by_torch(u, k, 64), by_torch(u, k, 126), by_torch(u.half().float(), k.half().float(), 128)):
        assert (np.abs(wrong.numpy() - exact.parts[0]) > bound.parts[1] + exact.parts[1]).any()


def test_nothing_convolved_is_nothing() -> None:
    given = {"u": np.zeros((1, 2, 5)), "k": np.ones((2, 5))}
    (found,) = evaluate(convolve, Bounded(SINGLE), given)
    assert not found.parts[0].any()
    assert not found.parts[1].any()
