"""Real FFTs and solvers in float32 keep the normwise bounds; a float16 result does not."""

from __future__ import annotations

from typing import Any

import flint
import numpy as np
import pytest
import torch

from assay.reference.arithmetic.normwise import fft, fft_convolve, orthonormal, solve
from assay.reference.arithmetic.precision import PRECISIONS


SINGLE = PRECISIONS["float32"]
LENGTHS = [1, 2, 4, 16, 64, 512, 4096]


def drawn(random: Any, *shape: int) -> Any:
    """Numbers of one magnitude, or of many."""
    x = random.standard_normal(shape) * np.exp2(random.integers(-12, 13, shape) * random.integers(0, 2))
    return x.astype(np.float32)


def halved(x: Any) -> Any:
    """x in half precision, scaled so as to use its range."""
    top = np.abs(x).max()
    parts = [np.asarray(p / top, np.float16).astype(np.float64) * top for p in (x.real, x.imag)]
    return parts[0] + 1j * parts[1]


def norm(x: Any) -> Any:
    return np.sqrt((np.abs(x) ** 2).sum(axis=-1))


@pytest.mark.parametrize("n", LENGTHS)
def test_transforms_keep_the_bound(n: int) -> None:
    for seed in range(40):
        random = np.random.default_rng((n, seed))
        x = drawn(random, n) if seed % 2 else drawn(random, n) + np.complex64(1j) * drawn(random, n)
        exact = np.fft.fft(x.astype(np.clongdouble))
        bound = fft(x, SINGLE)
        kernels = np.fft.fft(x), torch.fft.fft(torch.from_numpy(x)).numpy()
        for got in kernels:
            assert got.dtype == np.complex64
            assert norm(got - exact) <= bound
        if n > 1:
            assert norm(halved(kernels[0]) - exact) > bound


@pytest.mark.parametrize("n", LENGTHS[1:])
def test_convolutions_keep_the_bound(n: int) -> None:
    for seed in range(40):
        random = np.random.default_rng((n, seed))
        x, k = drawn(random, n), drawn(random, n)
        wide = [np.fft.rfft(a.astype(np.longdouble)) for a in (x, k)]
        exact = np.fft.irfft(wide[0] * wide[1], n)
        bound = fft_convolve(x, k, SINGLE)
        a, b = torch.from_numpy(x), torch.from_numpy(k)
        kernels = (
            np.fft.irfft(np.fft.rfft(x) * np.fft.rfft(k), n),
            torch.fft.irfft(torch.fft.rfft(a) * torch.fft.rfft(b), n).numpy(),
            np.fft.ifft(np.fft.fft(x) * np.fft.fft(k)).real,
        )
        for got in kernels:
            assert got.dtype == np.float32
            assert norm(got - exact) <= bound


def test_a_convolution_rounded_to_half_precision_is_beyond_the_bound() -> None:
    for seed in range(40):
        random = np.random.default_rng(seed)
        x, k = (random.standard_normal(64).astype(np.float32) for _ in range(2))
        exact = np.fft.irfft(np.fft.rfft(x.astype(np.float64)) * np.fft.rfft(k.astype(np.float64)))
        assert norm(halved(exact).real - exact) > fft_convolve(x, k, SINGLE)


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="power of two"):
        fft(np.zeros(6), SINGLE)


def exact_solution(a: Any, b: Any) -> Any:
    with flint.ctx.workprec(300):
        x = flint.arb_mat(a.astype(float).tolist()).solve(flint.arb_mat([[float(v)] for v in b]))
        return np.array([float(x[i, 0]) for i in range(len(b))])


@pytest.mark.parametrize("n", [1, 2, 3, 8, 20, 48])
def test_solvers_keep_the_bound(n: int) -> None:
    """Condition numbers from 1 to 1e8. Zeros are rejected, and in small systems a solver that rounds a to half."""
    told = rejected = 0
    for seed in range(60):
        random = np.random.default_rng((n, seed))
        left, right = (np.linalg.qr(random.standard_normal((n, n)))[0] for _ in range(2))
        reach = random.uniform(0, 8)
        a = (left * 10.0 ** -np.linspace(0, reach, n) @ right * np.exp2(random.integers(-20, 21))).astype(np.float32)
        b = random.standard_normal(n).astype(np.float32)
        bound = solve(a, b, SINGLE)
        exact = exact_solution(a, b)
        for got in (np.linalg.solve(a, b), torch.linalg.solve(torch.from_numpy(a), torch.from_numpy(b)).numpy()):
            assert got.dtype == np.float32
            assert np.abs(got - exact).max() <= bound
        rejected += bool(np.abs(exact).max() > bound)
        told += bool(np.abs(exact_solution(halved(a).real, b) - exact).max() > bound)
    assert rejected >= 15
    assert told >= 15 or n not in (2, 3, 8)


def test_the_bound_of_a_singular_system_is_infinite() -> None:
    assert np.isinf(solve(np.ones((2, 2), np.float32), np.ones(2, np.float32), SINGLE))


def apart(q: Any) -> Any:
    """How far q is from the nearest orthogonal matrix, in the Frobenius norm."""
    return norm(np.linalg.svd(q.astype(np.float64), compute_uv=False) - 1)


@pytest.mark.parametrize("d", [1, 2, 16, 64])
def test_householder_reflections_keep_the_bound(d: int) -> None:
    """The singular values, in double precision, are known to within the bound of that."""
    for seed in range(20):
        q, _ = np.linalg.qr(np.random.default_rng((d, seed)).standard_normal((d, d)).astype(np.float32))
        assert apart(q) <= orthonormal(d, SINGLE) + orthonormal(d, PRECISIONS["float64"])


def test_gram_schmidt_does_not() -> None:
    """Columns that are nearly the same: what is left of one after the others is mostly rounding."""
    d = 16
    x = (1 / (1 + np.add.outer(np.arange(d), np.arange(d)))).astype(np.float32)
    for j in range(d):
        x[:, j] -= x[:, :j] @ (x[:, :j].T @ x[:, j])
        x[:, j] /= np.linalg.norm(x[:, j])
    assert apart(x) > orthonormal(d, SINGLE)
