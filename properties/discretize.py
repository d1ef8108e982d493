"""The contract of `discretize`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Definition, Operator, Positive, Property, Real, Sizes, Structure, Tensor, Work
from assay.properties.drawing import Values
from assay.properties.laws import few_bits
from assay.properties.trial import Trial
from assay.reference import discretize as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.linear import expm, identity
from assay.reference.arithmetic.precision import Format


LARGEST = 6
"""States of a case: nobody works on them in blocks."""
EXPONENTIAL = {"method": ("zoh", "mamba")}
FIXED = {"method": ("bilinear", "euler", "backward", "gbt", "zoh")}
"""Methods that leave a fixed point of x' = A x + B where it is."""
TURNED = {"method": ("bilinear", "gbt", "zoh", "mamba")}
"""Methods of which a step of -A, by another alpha, takes back a step."""


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """As many rows m as columns n."""
    n = draw(st.integers(1, LARGEST))
    return Structure(sizes={"m": n, "n": n})


# Regimes -------------------------------------------------------------------------------------------------------------

Drawn = dict[str, Any]


def _of(matrix: Callable[[np.random.Generator, int], Values], **parameters: float) -> Callable[..., Drawn]:
    """A as made, B ordinary, and some parameters at one value."""

    def regime(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> Drawn:
        n = shapes["B"][0]
        return {"A": matrix(random, n), "B": random.standard_normal(n), **parameters}

    return regime


def _ordinary(random: np.random.Generator, n: int) -> Values:
    return random.standard_normal((n, n))


def _dissipative(random: np.random.Generator, n: int) -> Values:
    """-1/2 and a skew part, as the normal part of HiPPO's matrices."""
    skew = random.standard_normal((n, n))
    return skew - skew.T - np.eye(n) / 2


def _stiff(random: np.random.Generator, n: int) -> Values:
    """Decays from 1/100 to 100, triangular, of numbers of few bits."""
    decays = np.exp2(random.integers(-6, 7, n))
    return np.tril(random.integers(-4, 5, (n, n)) / 4, -1) - np.diag(decays)


def _defective(random: np.random.Generator, n: int) -> Values:
    """One eigenvalue with one eigenvector."""
    return np.diag(np.full(n, random.choice((-1.0, -0.5, 0.0)))) + np.diag(np.ones(n - 1), 1)


def _singular(random: np.random.Generator, n: int) -> Values:
    """Of rank below n, 0 for n = 1."""
    left, right = random.integers(-2, 3, (n, n - 1)), random.integers(-2, 3, (n - 1, n))
    return np.asarray(left @ right / 4)


# Slips ---------------------------------------------------------------------------------------------------------------


def _at(change: Callable[..., dict[str, Any]]) -> Definition:
    """The definition at other arguments."""

    def slip(A: Any, B: Any, *, dt: Any, method: str = "bilinear", alpha: Any = None) -> Any:
        given = {"A": A, "B": B, "dt": dt, "method": method, "alpha": alpha}
        return reference.discretize(**given | change(**given))

    return slip


def _and(change: Callable[..., tuple[Any, Any]]) -> Definition:
    """The definition, and then something done to Ab and Bb."""

    def slip(A: Any, B: Any, *, dt: Any, method: str = "bilinear", alpha: Any = None) -> Any:
        found = reference.discretize(A, B, dt=dt, method=method, alpha=alpha)
        return change(*found, A=A, B=B, dt=dt, method=method)

    return slip


def _exponential_of_elements(Ab: Any, Bb: Any, *, A: Any, B: Any, dt: Any, method: str) -> tuple[Any, Any]:
    return (A.xp.exp(dt * A) if method in EXPONENTIAL["method"] else Ab), Bb


def _input_by_mean(Ab: Any, Bb: Any, *, A: Any, B: Any, dt: Any, method: str) -> tuple[Any, Any]:
    """The input as one of the trapezoidal rule at both ends, (exp(dt A) + I) dt B / 2."""
    if method != "zoh":
        return Ab, Bb
    one = identity(A.xp, A.shape[0], A)
    return Ab, ((expm(dt * A) + one) @ (dt * B)[:, None])[:, 0] / 2


# Hazards -------------------------------------------------------------------------------------------------------------

Stepped = tuple[Values, Values]


def _by_quotient(A: Values, B: Values, *, dt: float, method: str = "bilinear", **rest: Any) -> Stepped | None:
    """Bb of zoh is (exp(dt A) - 1) / A B as commonly written: of a small dt A, hardly a digit is left"""
    single = np.promote_types(A.dtype, np.float32)
    step = A.astype(np.float64) * float(dt)
    if method != "zoh" or not np.isfinite(step).all():
        return None
    one = np.eye(len(B))
    times = max(0, int(np.ceil(np.log2(1 + np.abs(step).sum(-1).max()))))
    term = power = one
    for k in range(1, 24):
        term = term @ (step / 2**times) / k
        power = power + term
    Ab = np.linalg.matrix_power(power, 2**times).astype(single)
    try:
        return Ab, np.linalg.solve(A.astype(single), (Ab - one.astype(single)) @ B.astype(single))
    except np.linalg.LinAlgError:
        return Ab, np.full(len(B), np.nan)


def _diagonalised(A: Values, B: Values, *, dt: float, method: str = "bilinear", **rest: Any) -> Stepped | None:
    """exponentials are taken of the eigenvalues, between the eigenvectors and their inverse"""
    single = np.promote_types(A.dtype, np.float32)
    if method != "zoh" or not np.isfinite(A.astype(single)).all():
        return None
    values, vectors = np.linalg.eig(A.astype(single))
    z = values * single.type(dt)
    held = np.where(values == 0, dt, np.expm1(z) / np.where(values == 0, 1, values))
    back = np.linalg.inv(vectors)
    Ab, Bb = (vectors * np.exp(z)) @ back, (vectors * held) @ (back @ B.astype(single))
    return np.asarray(Ab.real), np.asarray(Bb.real)


# Properties ----------------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> tuple[Values, Values]:
    return trial.case.arguments["A"], trial.case.arguments["B"]


def _beside(trial: Trial, Ab: Array, Bb: Array) -> Array:
    """Both as one array, [n, n + 1]."""
    return Ab.xp.concat([Ab, Bb[:, None]], axis=1)


def _no_step(trial: Trial) -> Array | None:
    n = len(_arrays(trial)[1])
    return _beside(trial, *trial.calls(dt=0.0)) - trial.given(np.eye(n, n + 1))


def _order_of_states(trial: Trial) -> Array | None:
    A, B = _arrays(trial)
    order = np.random.default_rng(trial.case.seed).permutation(len(B))
    Ab, Bb = trial.calls()
    moved = Ab.xp.take(Ab.xp.take(Ab, order, axis=0), order, axis=1)
    return _beside(trial, *trial.calls(A=A[np.ix_(order, order)], B=B[order])) - _beside(
        trial, moved, Bb.xp.take(Bb, order, axis=0)
    )


def _apart(trial: Trial) -> Array | None:
    """States that do not see each other, beside each other or each by themselves."""
    A, B = _arrays(trial)
    n = len(B)
    if n < 2:
        return None
    cut = 1 + trial.case.seed % (n - 1)
    apart = np.array(A)
    apart[:cut, cut:] = apart[cut:, :cut] = 0
    Ab, Bb = trial.calls(A=apart)
    first = trial.calls(A=apart[:cut, :cut], B=B[:cut])
    second = trial.calls(A=apart[cut:, cut:], B=B[cut:])
    xp, nothing = Ab.xp, trial.given(np.zeros((cut, n - cut)))
    rows = [xp.concat([first[0], nothing], axis=1), xp.concat([nothing.mT, second[0]], axis=1)]
    together = xp.concat(rows, axis=0), xp.concat([first[1], second[1]], axis=0)
    return _beside(trial, Ab, Bb) - _beside(trial, *together)


def _products(trial: Trial) -> Array | None:
    """Twice A and B in steps of half the length."""
    dt = trial.case.arguments["dt"]
    with np.errstate(over="ignore"):
        twice = [trial.rounded(np.asarray(2 * x.astype(np.float64))) for x in _arrays(trial)]
    if not all(np.isfinite(x.astype(np.float64)).all() for x in twice):
        return None
    there = trial.calls(A=twice[0], B=twice[1], dt=dt / 2)
    return _beside(trial, *there) - _beside(trial, *trial.calls())


def _fixed_point(trial: Trial) -> Array | None:
    """x' = A x + B rests at x where B = -A x; so does x = Ab x + Bb. Numbers of few bits, so that B is exact."""
    n = len(_arrays(trial)[1])
    A, x = few_bits(trial, (n, n)), few_bits(trial, (n,), 1)
    Ab, Bb = trial.calls(A=trial.rounded(A), B=trial.rounded(np.asarray(-A @ x)))
    rest = trial.given(x)
    return (Ab @ rest[:, None])[:, 0] + Bb - rest


def _turned(trial: Trial) -> Array | None:
    """Ab of -A, by 1 - alpha, is the inverse."""
    A, B = _arrays(trial)
    n, alpha = len(B), trial.case.arguments.get("alpha")
    changes = {} if alpha is None or not trial.subject.supports("alpha") else {"alpha": 1 - alpha}
    if "alpha" not in changes and trial.case.arguments.get("method") == "gbt" and alpha != 1 / 2:
        return None
    return trial.call() @ trial.call(A=-A, **changes) - trial.given(np.eye(n))


def _halves(trial: Trial) -> Array | None:
    """Two steps of half the length are one."""
    half = trial.call(dt=trial.case.arguments["dt"] / 2)
    return half @ half - trial.call()


def _work(*, m: int, n: int, itemsize: int, backward: bool, method: str = reference.METHODS[0], **rest: Any) -> Work:
    """A matrix is scaled and added to, or a system of it solved by elimination for as many right sides, which is less
    than an exponential takes. Backward: two more of these."""
    passes, products = (2, 3) if backward else (1, 1)
    made = 2 * n * n if method in ("euler", "mamba") else 8 * n**3 // 3
    return Work(bytes=passes * itemsize * 2 * (m * n + n), flops=products * made)


DISCRETIZE = Operator(
    name="discretize",
    definition=reference.discretize,
    inputs=(Tensor("A", "m n"), Tensor("B", "n")),
    parameters=(
        Positive("dt", default=0.1, low=1e-3, high=1, differentiated=True),
        Real("alpha", default=0.5, low=0, high=1),
    ),
    conventions={"method": reference.METHODS},
    slips={
        "A_transposed": _at(lambda A, **rest: {"A": A.mT}),
        "A_negated": _at(lambda A, **rest: {"A": -A}),
        "half_a_step": _at(lambda dt, **rest: {"dt": dt / 2}),
        "input_without_step": _and(lambda Ab, Bb, *, dt, **rest: (Ab, Bb / dt)),
        "input_by_euler": _and(lambda Ab, Bb, *, B, dt, **rest: (Ab, dt * B)),
        "input_by_trapezoids": _and(_input_by_mean),
        "exponential_of_each_element": _and(_exponential_of_elements),
        "identity_left_out": _and(lambda Ab, Bb, *, A, **rest: (Ab - identity(A.xp, A.shape[0], A), Bb)),
    },
    hazards={"(exp(z) - 1) / z": _by_quotient, "naive diagonalisation": _diagonalised},
    structure=_structure,
    regimes={
        "dissipative": _of(_dissipative),
        "stiff": _of(_stiff),
        "defective": _of(_defective),
        "singular": _of(_singular),
        "no step": _of(_ordinary, dt=0.0),
    },
    properties=(
        Property("no_step_changes_nothing", "dt = 0: Ab = I and Bb = 0", _no_step),
        Property("states_permute", "P A P^T and P B give P Ab P^T and P Bb", _order_of_states),
        Property("states_apart_stay_apart", "of a block-diagonal A each block is discretised by itself", _apart),
        Property("only_products_with_dt_matter", "2 A, 2 B and dt / 2 give what A, B and dt give", _products),
        Property("a_fixed_point_stays", "B = -A x: Ab x + Bb = x", _fixed_point, about=FIXED),
        Property("a_step_is_taken_back", "Ab(A, alpha) Ab(-A, 1 - alpha) = I", _turned, about=TURNED),
        Property("half_steps_compose", "Ab(dt) = Ab(dt / 2)**2", _halves, about=EXPONENTIAL),
    ),
    work=_work,
    timed={
        "short": Structure(sizes={"m": 32, "n": 32}),
        "long": Structure(sizes={"m": 256, "n": 256}),
        "held": Structure({"method": "zoh"}, sizes={"m": 64, "n": 64}),
    },
    source="A. Gu et al., HiPPO, arXiv:2008.07669, appendix B.3",
)
