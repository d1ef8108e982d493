"""The contract of `hippo_matrices`, which makes its arrays from a size alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from assay.properties.contract import Definition, Operator, Property, Size
from assay.properties.trial import Trial
from assay.properties.truth import JUDGE
from assay.reference import hippo as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.linear import identity


# Slips ---------------------------------------------------------------------------------------------------------------


def _and(change: Callable[..., tuple[Any, Any]], *measures: str) -> Definition:
    """The definition, and then something done to A and B of some measures, or of all: (A, B, xp, n) -> (A, B)."""

    def slip(n: int, *, measure: str = "legs", xp: Any, **rest: Any) -> tuple[Any, Any]:
        a, b = reference.hippo_matrices(n, measure=measure, xp=xp, **rest)
        return change(a, b, xp, n) if measure in (measures or reference.MEASURES) else (a, b)

    return slip


def _from_one(n: int, *, measure: str = "legs", xp: Any, **rest: Any) -> tuple[Any, Any]:
    """n and k counted from 1."""
    a, b = reference.hippo_matrices(n + 1, measure=measure, xp=xp, **rest)
    return a[1:, 1:], b[1:]


def _signs_below(a: Any, b: Any, xp: Any, n: int) -> tuple[Any, Any]:
    """The signs of one triangle in the other."""
    i, j = xp.arange(n)[:, None], xp.arange(n)[None, :]
    return xp.where(i == j, a, xp.where(i < j, -abs(a), a.mT)), b


def _normal(a: Any, b: Any, xp: Any, n: int) -> tuple[Any, Any]:
    p = reference.low_rank(n, measure="legs", xp=xp)
    return a + p * p.mT, b


# Properties ----------------------------------------------------------------------------------------------------------


def _plain(trial: Trial, **changes: Any) -> tuple[Array, Array]:
    """A and B as they are for a window of 1 and the stable sign: exactly, from those that were asked for."""
    a, b = trial.calls(**changes)
    arguments = trial.case.with_arguments(**changes)
    measure = arguments.get("measure", "legs")
    if arguments.get("window", "1") != "1" and measure in reference.WINDOWED:
        a, b = 2 * a, 2 * b
    return (-a, b) if arguments.get("sign", "stable") != "stable" and measure in reference.SIGNED else (a, b)


def _n(trial: Trial) -> int:
    return int(trial.case.arguments["n"])


def _measure(trial: Trial) -> str:
    return str(trial.case.arguments.get("measure", "legs"))


def _unit(n: int, *places: int) -> Array:
    """Ones at some places, those beyond the end left out."""
    return JUDGE.lift(np.isin(np.arange(n), places).astype(np.float64))


def _times(a: Array, x: Array) -> Array:
    return (a @ x[:, None])[:, 0]


def _nested(trial: Trial) -> Array | None:
    n = _n(trial)
    if n < 2:
        return None
    m = 1 + trial.case.seed % (n - 1)
    (a, b), (c, d) = trial.calls(), trial.calls(n=m)
    return JUDGE.concat([a[:m, :m] - c, (b[:m] - d)[:, None]], axis=1)


def _skew(trial: Trial) -> Array | None:
    n, measure = _n(trial), _measure(trial)
    a, _ = _plain(trial)
    p = reference.low_rank(n, measure=measure, xp=JUDGE)
    rest = a + a.mT + 2 * (p @ p.mT)
    return rest + identity(JUDGE, n, a) if measure == "legs" else rest


def _decays(trial: Trial) -> Array | None:
    """Triangular, with -1, -2, ... on the diagonal: these are the eigenvalues."""
    n = _n(trial)
    i, j = JUDGE.arange(n)[:, None], JUDGE.arange(n)[None, :]
    a, _ = _plain(trial)
    rate = JUDGE.where(i == j, a + i + 1, a)
    return JUDGE.where(i >= j, rate, a) * JUDGE.where(i > j, JUDGE.zeros((n, n)), JUDGE.ones((n, n)))


def _powers(trial: Trial) -> Array | None:
    """v_n of x**p by its recurrence in n; the other factor, sqrt(2n+1), is known to the judge's own rounding."""
    n = _n(trial)
    p = trial.case.seed % (n + 2)
    a, b = _plain(trial)
    v = [JUDGE.ones(()) / (p + 1)]
    for k in range(1, n):
        v.append(v[-1] * (p - k + 1) / (p + k + 1))
    c = JUDGE.stack(v) * JUDGE.sqrt(2 * JUDGE.arange(n) + 1)
    return p * c - _times(a, c) - b


def _constant(trial: Trial) -> Array | None:
    a, b = _plain(trial)
    return a[:, 0] + b


def _ramp(trial: Trial) -> Array | None:
    """f = x at the time t, whose coefficients over [t - 1, t] move as e_0."""
    n, t = _n(trial), trial.case.seed % 5
    if n < 2:
        return None
    a, b = _plain(trial)
    slope = JUDGE.sqrt(3 * JUDGE.ones(())) / 6 if _measure(trial) == "legt" else -JUDGE.ones(()) / 2
    c = _unit(n, 0) * (2 * t - 1) / 2 + _unit(n, 1) * slope
    return _times(a, c) + b * t - _unit(n, 0)


def _wave(trial: Trial) -> Array | None:
    """sqrt 2 cos(2 pi k x) at an integer time, and the sine, for every k at once."""
    n = _n(trial)
    k = np.arange(1, (n + 1) // 2)
    if not k.size:
        return None
    a, b = _plain(trial)
    cosines = JUDGE.take(a, 2 * k, axis=1) + (JUDGE.sqrt(2 * JUDGE.ones(())) * b)[:, None]
    both = [cosines] if n % 2 == 0 else [cosines[:, : k.size]]
    full = k[2 * k + 1 < n]
    turned = np.zeros((n, k.size))
    turned[2 * k[2 * k + 1 < n] + 1, np.flatnonzero(2 * k + 1 < n)] = full
    back = np.zeros((n, full.size))
    back[2 * full, np.arange(full.size)] = full
    rates = [JUDGE.lift(turned)]
    if full.size:
        both.append(-JUDGE.take(a, 2 * full + 1, axis=1))
        rates.append(JUDGE.lift(back))
    return JUDGE.concat(both, axis=1) - 2 * JUDGE.pi * JUDGE.concat(rates, axis=1)


def _toeplitz(trial: Trial) -> Array | None:
    if _n(trial) < 2:
        return None
    a, b = _plain(trial)
    return JUDGE.concat([a[1:, 1:] - a[:-1, :-1], (b[1:] - b[:-1])[:, None]], axis=1)


HIPPO_MATRICES = Operator(
    name="hippo_matrices",
    definition=reference.hippo_matrices,
    inputs=(Size("n", "n"),),
    conventions={"measure": reference.MEASURES, "window": reference.WINDOWS, "sign": reference.SIGNS},
    forms={
        "products": reference.form(reference.of_products, reference.whole),
        "roots": reference.form(reference.of_each, reference.less),
        "scaled": reference.form(reference.scaled, reference.similar),
    },
    slips={
        "counted_from_one": _from_one,
        "A_transposed": _and(lambda a, b, xp, n: (a.mT, b)),
        "A_negated": _and(lambda a, b, xp, n: (-a, b)),
        "normal_part_alone": _and(_normal, "legs"),
        "diagonal_less_a_half": _and(lambda a, b, xp, n: (a - identity(xp, n, a) / 2, b), "legs", "lagt"),
        "signs_in_the_other_triangle": _and(_signs_below, "legt", "lmu"),
        "input_halved": _and(lambda a, b, xp, n: (a, b / 2)),
        "input_squared": _and(lambda a, b, xp, n: (a, b * b), "legs", "legt"),
        "input_without_signs": _and(lambda a, b, xp, n: (a, abs(b)), "lmu"),
        "turns_backwards": _and(lambda a, b, xp, n: (a.mT, b), "fout"),
    },
    properties=(
        Property("smaller_ones_are_nested", "A(m) and B(m) are the first m rows and columns of A(n), B(n)", _nested),
        Property(
            "the_rest_is_skew",
            "A + A^T = -2 P P^T, less I for legs: without input the state never grows",
            _skew,
            about={"measure": tuple(reference.RANKS)},
        ),
        Property("a_constant_stays", "A e_0 + B = 0", _constant, about={"measure": ("legs", "legt", "fout", "lmu")}),
        Property("rates_are_whole_numbers", "legs has the eigenvalues -1 to -n", _decays, about={"measure": ("legs",)}),
        Property("powers_are_kept", "legs: (p - A) v = B, v of x**p", _powers, about={"measure": ("legs",)}),
        Property("a_ramp_is_followed", "A c + B t = c', c of x", _ramp, about={"measure": ("legt", "lmu")}),
        Property(
            "waves_turn",
            "A e_2k + sqrt 2 B = 2 pi k e_2k+1, A e_2k+1 = -2 pi k e_2k",
            _wave,
            about={"measure": ("fout",)},
        ),
        Property(
            "only_the_age_matters", "lagt: A_n+1,k+1 = A_nk, B_n+1 = B_n", _toeplitz, about={"measure": ("lagt",)}
        ),
    ),
    source="A. Gu et al., HiPPO, arXiv:2008.07669, theorem 2 and appendix D; arXiv:2206.12037, section 4",
)
