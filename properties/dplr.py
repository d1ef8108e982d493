"""The contract of `s4_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Definition, Operator, Positive, Property, Sizes, Structure, Tensor, Work
from assay.properties.drawing import LONG, Values
from assay.properties.emulated import computing
from assay.properties.laws import adds_in, longer
from assay.properties.trial import Trial
from assay.reference import dplr as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.complex import conj
from assay.reference.arithmetic.precision import Format


LARGEST = 4
"""States of a case, each two of a real system."""
NAMES = ("Lambda", "P", "Q", "B", "C")


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """Short kernels, and now and then one of one state that is long."""
    long = draw(st.integers(0, 3)) == 3
    n = 1 if long else min(sizes["n"], LARGEST)
    return Structure({"length": draw(st.integers(*LONG) if long else st.integers(1, 12))}, sizes={"n": n})


# Regimes -------------------------------------------------------------------------------------------------------------


def _complex(random: np.random.Generator, n: int) -> Values:
    return np.asarray(random.standard_normal(n) + 1j * random.standard_normal(n))


def _legs(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Any]:
    """HiPPO's matrix for Legendre polynomials, its normal part diagonalised."""
    n = shapes["C"][0]
    rank, odd = np.sqrt(np.arange(n) + 0.5), np.sqrt(2 * np.arange(n) + 1.0)
    full = np.outer(odd, odd) / 2
    turns, vectors = np.linalg.eigh(-1j * (np.triu(full, 1) - np.tril(full, -1)))
    P, B = vectors.conj().T @ rank, vectors.conj().T @ odd
    return {"Lambda": -0.5 + 1j * turns, "P": P, "Q": P, "B": B, "C": _complex(random, n)}


def _damped(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Any]:
    """Decays that turn, and P = Q, which only damps."""
    n = shapes["C"][0]
    P = _complex(random, n)
    rates = -np.exp2(random.uniform(-4, 0, n)) + 1j * random.uniform(-8, 8, n)
    return {"Lambda": rates, "P": P, "Q": P, "B": _complex(random, n), "C": _complex(random, n)}


def _lost(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Any]:
    """The same in long steps: what the bilinear rule turns nearly to -1, and decays slowly."""
    found = _damped(random, shapes, dtype)
    return found | {"Lambda": 16 * found["Lambda"], "dt": 1.0}


def _near_poles(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Any]:
    """States that hardly decay, at the frequencies of roots of unity, the first at rest: poles of all Cauchy products
    beside their nodes, which the low rank moves away."""
    n, dt = shapes["C"][0], 0.5
    turn = np.where(np.arange(n) == 0, 0, random.integers(-2, 3, n) / 6)
    turns = 2j / dt * np.tan(np.pi * turn)  # what the bilinear rule makes a root of 12th order
    P = _complex(random, n)
    rates = turns - np.exp2(-random.uniform(5, 10, n))
    return {"Lambda": rates, "P": P, "Q": P, "B": _complex(random, n), "C": _complex(random, n), "dt": dt}


def _defective(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Any]:
    """One eigenvalue, with one eigenvector less than states: P and Q are orthogonal, of numbers of few bits."""
    n = shapes["C"][0]
    P = random.integers(1, 5, n) + 1j * random.integers(1, 5, n)
    Q = np.zeros(n, complex)
    if n > 1:
        Q[:2] = P[1].conj(), -P[0].conj()
    rates = np.full(n, -0.5 + 1j * random.integers(-4, 5))
    return {"Lambda": rates, "P": P / 2, "Q": Q / 2, "B": _complex(random, n), "C": _complex(random, n)}


# Slips ---------------------------------------------------------------------------------------------------------------


def _at(change: Callable[..., dict[str, Any]]) -> Definition:
    """The definition at other arguments."""

    def slip(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, *, dt: Any, length: int) -> Any:
        given = {"Lambda": Lambda, "P": P, "Q": Q, "B": B, "C": C, "dt": dt, "length": length}
        return reference.s4_kernel(**given | change(**given))

    return slip


def _twice(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, *, dt: Any, length: int) -> Any:
    return 2 * reference.s4_kernel(Lambda, P, Q, B, C, dt=dt, length=length)


def _late(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, *, dt: Any, length: int) -> Any:
    return reference.s4_kernel(Lambda, P, Q, B, C, dt=dt, length=length + 1)[1:]


def _kept(Lambda: Any, P: Any, Q: Any, B: Any, C: Any, *, dt: Any, length: int) -> Any:
    """C (I - Ab**length), which models keep, in the place of C."""
    whole = reference.s4_kernel(Lambda, P, Q, B, C, dt=dt, length=2 * length)
    return whole[:length] - whole[length:]


def _generated(Lambda: Values, P: Values, Q: Values, B: Values, C: Values, *, dt: float, length: int) -> Values | None:
    """at z = -1 the generating function is divided by 1 + z, in 2 / dt (1 - z) / (1 + z)"""
    kind, n = Lambda.dtype, len(Lambda)
    z = np.exp(-2j * np.pi * np.arange(length) / length).astype(kind)
    if length % 2 == 0:
        z[length // 2] = -1
    A, one, step = np.diag(Lambda) - np.outer(P, Q.conj()), np.eye(n, dtype=kind), Lambda.real.dtype.type(dt)
    Ab = np.linalg.solve(one - step / 2 * A, one + step / 2 * A)
    left = C - C @ np.linalg.matrix_power(Ab, length)
    g = (2 / step * (1 - z) / (1 + z))[:, None]
    cb, cp, qb, qp = ((v * w / (g - Lambda)).sum(-1) for v in (left, Q.conj()) for w in (B, P))
    return np.asarray(np.fft.ifft(2 / (1 + z) * (cb - cp * qb / (1 + qp))).real)


def _diagonalised(
    Lambda: Values, P: Values, Q: Values, B: Values, C: Values, *, dt: float, length: int
) -> Values | None:
    """poles and residues are computed from the eigenvectors of A, which nearly coincide where it is far from normal"""
    A, half = np.diag(Lambda) - np.outer(P, Q.conj()), Lambda.real.dtype.type(dt) / 2
    if not np.isfinite(A).all():
        return None
    values, vectors = np.linalg.eig(A)
    weight = (C @ vectors) * np.linalg.lstsq(vectors, B, rcond=None)[0] * 2 * half / (1 - half * values)
    return np.asarray((((1 + half * values) / (1 - half * values)) ** np.arange(length)[:, None] @ weight).real)


# Properties ----------------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> dict[str, Values]:
    return {name: trial.case.arguments[name] for name in NAMES}


def _diagonal(trial: Trial) -> Array | None:
    """P = 0: the states are apart, and their kernels add."""
    given = _arrays(trial)
    n = len(given["C"])
    if n < 2:
        return None
    cut = 1 + trial.case.seed % (n - 1)
    given["P"] = np.zeros_like(given["P"])
    one, two = (trial.call(**{k: x[part] for k, x in given.items()}) for part in (slice(cut), slice(cut, None)))
    return trial.call(**given) - one - two


def _ordered(trial: Trial) -> Array | None:
    given = _arrays(trial)
    order = np.random.default_rng(trial.case.seed).permutation(len(given["C"]))
    return trial.call(**{k: x[order] for k, x in given.items()}) - trial.call() if len(order) > 1 else None


def _turned(trial: Trial) -> Array | None:
    """i P and i Q have the same product P Q^*."""
    given = _arrays(trial)
    return trial.call(**{name: 1j * given[name] for name in ("P", "Q")}) - trial.call()


def _conjugated(trial: Trial) -> Array | None:
    return trial.call(**{name: np.conj(x) for name, x in _arrays(trial).items()}) - trial.call()


def _products(trial: Trial) -> Array | None:
    """Twice A and B in steps of half the length."""
    given = _arrays(trial)
    with np.errstate(all="ignore"):
        changes = {name: 2 * given[name] for name in ("Lambda", "P", "B")}
    if not all(np.isfinite(x).all() for x in changes.values()):
        return None
    return trial.call(**changes, dt=trial.case.arguments["dt"] / 2) - trial.call()


def _work(*, n: int, length: int, itemsize: int, backward: bool, **rest: Any) -> Work:
    """Everything is read and written once, complex numbers as two."""
    passes = 2 if backward else 1
    return Work(bytes=passes * (length + 10 * n) * itemsize, flops=passes * 2 * length)


FORMS: dict[str, Definition] = {
    "recurrence": reference.s4_kernel,
    "doubling": reference.by_doubling,
    "cauchy": reference.by_cauchy,
}

S4_KERNEL = Operator(
    name="s4_kernel",
    definition=reference.s4_kernel,
    inputs=tuple(Tensor(name, "n", complex=True) for name in NAMES),
    parameters=(Positive("dt", default=0.1, low=1e-3, high=1, differentiated=True),),
    forms=FORMS,
    slips={
        "real_part_twice": _twice,
        "starts_one_lag_late": _late,
        "C_of_the_generating_function": _kept,
        "C_conjugated": _at(lambda C, **rest: {"C": conj(C)}),
        "Q_not_conjugated": _at(lambda Q, **rest: {"Q": conj(Q)}),
        "low_rank_added": _at(lambda P, **rest: {"P": -P}),
        "low_rank_left_out": _at(lambda P, **rest: {"P": 0 * P}),
        "half_a_step": _at(lambda dt, **rest: {"dt": dt / 2}),
    },
    mutants={"unclaimed form cauchy": computing("cauchy")},
    hazards={"z = -1": _generated, "naive diagonalisation": _diagonalised},
    structure=_structure,
    paired=("n",),
    regimes={"legs": _legs, "damped": _damped, "long steps": _lost, "near poles": _near_poles, "defective": _defective},
    properties=(
        Property("without_low_rank_states_add", "P = 0: K is the sum of the kernels of the states", _diagonal),
        Property("states_permute", "another order of the states is the same system", _ordered),
        Property("low_rank_has_no_phase", "i P and i Q are P and Q", _turned),
        Property("conjugates_are_meant", "the conjugate system has the same kernel", _conjugated),
        Property("rows_add", "K(C + C') = K(C) + K(C')", adds_in("C")),
        Property("a_longer_kernel_begins_alike", "K(l) begins with K(m) for m < l, and so does K(l + 3)", longer),
        Property("only_products_with_dt_matter", "2 A, 2 B and dt / 2 give what A, B and dt give", _products),
    ),
    work=_work,
    timed={
        "short": Structure({"length": 1024}, sizes={"n": 32}, regime="legs"),
        "long": Structure({"length": 16_384}, sizes={"n": 64}, regime="legs"),
    },
    source="A. Gu et al., S4, arXiv:2111.00396, section 3",
)
