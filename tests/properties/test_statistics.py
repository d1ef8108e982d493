"""Statistical tests: their p-values are valid for every number of samples, heavy tails included, and they see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from assay.properties.statistics import LEVEL, bennett, kolmogorov


RUNS = 2000


def normal(x: np.ndarray) -> np.ndarray:
    return np.asarray(special.ndtr(x))


def lognormal_moments(s: float) -> tuple[float, float]:
    """Mean and variance of exp(s N)."""
    return math.exp(s * s / 2), math.exp(s * s) * math.expm1(s * s)


def below(p_values: list[float], level: float) -> bool:
    """Are there no more small p-values than the level allows, give or take six standard errors?"""
    share = float(np.mean(np.array(p_values) <= level))
    return share <= level + 6 * math.sqrt(level * (1 - level) / len(p_values))


@pytest.mark.parametrize("n", [1, 3, 50])
def test_kolmogorov_is_valid(n: int) -> None:
    random = np.random.default_rng(0)
    p = [kolmogorov(random.standard_normal(n), normal) for _ in range(RUNS)]
    assert all(below(p, level) for level in (0.5, 0.1, 0.02))


@pytest.mark.parametrize(("n", "s"), [(1, 1.0), (3, 2.0), (50, 1.0), (50, 2.0), (400, 1.5)])
def test_bennett_is_valid_for_heavy_tails(n: int, s: float) -> None:
    random = np.random.default_rng(1)
    mean, variance = lognormal_moments(s)
    p = [bennett(np.exp(s * random.standard_normal(n)), mean, variance, 0.0, np.inf) for _ in range(RUNS)]
    assert all(below(p, level) for level in (0.5, 0.1, 0.02))


def test_the_normal_approximation_is_not_valid_there() -> None:
    """Why no central limit is taken: of exp(2 N), 400 samples, a z test at 1e-9 rejects far too often."""
    random = np.random.default_rng(2)
    mean, variance = lognormal_moments(2.0)
    z = [(np.exp(2 * random.standard_normal(400)).mean() - mean) / math.sqrt(variance / 400) for _ in range(20 * RUNS)]
    assert np.mean(np.array(z) > 6) > 1e-5


def test_they_see() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal(512)
    assert kolmogorov(x, normal) > 0.01
    assert kolmogorov(np.abs(x), normal) < LEVEL
    mean, variance = lognormal_moments(0.5)
    y = np.exp(0.5 * x)
    assert bennett(y, mean, variance, 0.0, np.inf) > 0.01
    assert bennett(1.5 * y, mean, variance, 0.0, np.inf) < LEVEL
    assert bennett(0.5 * y, mean, variance, 0.0, np.inf) < LEVEL
    assert bennett(np.append(y, np.nan), mean, variance, 0.0, np.inf) == 0


def test_errors_of_rounding_count_for_the_kernel() -> None:
    half = np.full(1000, 0.5)
    assert kolmogorov(half, lambda x: np.clip(x, 0, 1), error=0.5) == 1
    assert kolmogorov(half, lambda x: np.clip(x, 0, 1)) < LEVEL
    assert bennett(half, 0.6, 1e-6, 0.0, 1.0, error=0.11) == 1
    assert bennett(half, 0.6, 1e-6, 0.0, 1.0) < LEVEL
