"""The contract of `hippo_project`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from assay.properties.contract import Definition, Operator, Property, Size, Sizes, Structure, Tensor, Work
from assay.properties.drawing import Values
from assay.properties.laws import adds_in, few_bits
from assay.properties.trial import Trial
from assay.properties.truth import JUDGE
from assay.reference import hippo_project as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.linear import expm, identity, solve
from assay.reference.arithmetic.steps import Step
from assay.reference.hippo import hippo_matrices


FEW = {"n": 5, "t": 8}
"""So many at most where every step is an exponential, whose bound takes long."""
MANY, SEEN = 20, 2
"""Of more coefficients than that, so many samples are seen at least: the first says nothing of them."""
OF_STEP_FUNCTIONS = {"method": ("zoh",)}
MEANS = {"method": ("zoh", "backward")}


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    if conventions["method"] == "zoh":
        return Structure(sizes={axis: min(sizes[axis], most) for axis, most in FEW.items()})
    return Structure(sizes={"t": max(sizes["t"], SEEN)} if sizes["n"] > MANY else {})


# Slips ---------------------------------------------------------------------------------------------------------------


def _stepping(
    *,
    old: int = 0,
    new: int = 0,
    turned: Callable[[Any], Any] = lambda A: A,
    first: Callable[[Any, Any], Any] = lambda u, B: None,
) -> Definition:
    """The projection with one thing changed: what is added to the time at which A is taken for the old and for the new
    state, what becomes of A, and what the first sample gives."""

    def way(xp: Any, n: int, method: str) -> Step:
        A, B = hippo_matrices(n, xp=xp)
        A, one, column = turned(A), identity(xp, n, A), B[:, None]
        usual = reference.dense(xp, n, method)

        def step(k: int, x: Any, u: Any) -> Any:
            if not k:
                found = first(u, column)
                return usual(0, x, u) if found is None else found
            if method == "zoh":
                M = expm(A * xp.log1p(xp.ones(()) / (k + new)))
                return M @ x + solve(A, M @ column - column) @ u
            ahead, of = reference.WEIGHTS[method]
            right = x + (A / (k + old) * (of - ahead) / of) @ x + column / (k + new) @ u
            return solve(one - A / (k + new) * ahead / of, right)

        return step

    return reference.form(way)


def _late(f: Any, n: int, *, measure: str = "legs", method: str = "zoh") -> Any:
    """Every sample one step late."""
    xp = f.xp
    moved = xp.concat([f[:1], f[:-1]]) if f.shape[0] else f
    return reference.hippo_project(moved, n, measure=measure, method=method)


def _values(f: Any, n: int, *, measure: str = "legs", method: str = "zoh") -> Any:
    """Coefficients of polynomials that are 1 at their end, and not of length 1."""
    xp, c = f.xp, reference.hippo_project(f, n, measure=measure, method=method)
    return c * xp.sqrt(xp.ones((n,)) * (2 * xp.arange(n) + 1))


# Properties ----------------------------------------------------------------------------------------------------------


def _given(trial: Trial) -> tuple[Values, int]:
    return trial.case.arguments["f"], int(trial.case.arguments["n"])


def _projection(trial: Trial) -> Array | None:
    """Of the step function: integrals of Legendre polynomials between ratios, in ratios."""
    f, n = _given(trial)
    few = few_bits(trial, (len(f),))
    exact = [Fraction(x) for x in few]
    rows = [_of_steps(exact[: k + 1], n) for k in range(len(f))]
    wanted = np.array([[np.longdouble(c.numerator) / np.longdouble(c.denominator) for c in row] for row in rows])
    wanted = wanted.reshape(len(f), n)
    # Each ratio in extended precision: numerator, denominator and quotient are rounded.
    known = JUDGE.approximate(wanted, 3 * JUDGE.format.u * np.abs(wanted))
    return trial.call(f=trial.rounded(few)) - known * JUDGE.sqrt(2 * JUDGE.arange(n) + 1)


def _of_steps(f: list[Fraction], n: int) -> list[Fraction]:
    """c_j / sqrt(2j+1) = 1/2 sum_k f_k integral of P_j over the k-th of equal parts of [-1, 1]."""
    ends = [Fraction(2 * m, len(f)) - 1 for m in range(len(f) + 1)]
    values = []
    for x in ends:
        p = [Fraction(1), x]
        for j in range(1, n):
            p.append(((2 * j + 1) * x * p[j] - j * p[j - 1]) / (j + 1))
        values.append([x, *((p[j + 1] - p[j - 1]) / (2 * j + 1) for j in range(1, n))])
    return [sum((y * (values[k + 1][j] - values[k][j]) for k, y in enumerate(f)), Fraction(0)) / 2 for j in range(n)]


def _timescale(trial: Trial) -> Array | None:
    f, _ = _given(trial)
    return trial.call(f=np.repeat(f, 2))[1::2] - trial.call()


def _constant(trial: Trial) -> Array | None:
    f, n = _given(trial)
    level = f[:1]
    unit = JUDGE.lift(np.eye(1, n)[0])
    return trial.call(f=np.repeat(level, len(f))) - trial.given(level) * unit


def _nested(trial: Trial) -> Array | None:
    _, n = _given(trial)
    if n < 2:
        return None
    m = 1 + trial.case.seed % (n - 1)
    return trial.call()[:, :m] - trial.call(n=m)


def _past(trial: Trial) -> Array | None:
    f, _ = _given(trial)
    if len(f) < 2:
        return None
    s = 1 + trial.case.seed % (len(f) - 1)
    return trial.call()[:s] - trial.call(f=f[:s])


def _mean(trial: Trial) -> Array | None:
    f, _ = _given(trial)
    few = few_bits(trial, (len(f),))
    means = JUDGE.lift(np.cumsum(few)) / (JUDGE.arange(len(f)) + 1)
    return trial.call(f=trial.rounded(few))[:, 0] - means


def _work(t: int, n: int, itemsize: int, backward: bool, **keywords: Any) -> Work:
    """A coefficient takes a sample and its own value before, each at least multiplied and added; backward likewise."""
    passes = 2 if backward else 1
    return Work(bytes=(t + t * n) * itemsize * passes, flops=4 * t * n * passes)


HIPPO_PROJECT = Operator(
    name="hippo_project",
    definition=reference.hippo_project,
    inputs=(Tensor("f", "t"), Size("n", "n")),
    conventions={"method": reference.METHODS},
    forms={
        "rows": reference.form(reference.in_rows),
        "dense": reference.form(reference.dense),
        "eliminated": reference.form(reference.eliminated),
    },
    slips={
        "time_one_more": _stepping(old=1, new=1),
        "new_state_at_the_new_time": _stepping(new=1),
        "A_transposed": _stepping(turned=lambda A: A.mT),
        "A_negated": _stepping(turned=lambda A: -A),
        "starts_with_B": _stepping(first=lambda u, B: B @ u),
        "starts_with_nothing": _stepping(first=lambda u, B: 0 * (B @ u)),
        "one_sample_late": _late,
        "not_orthonormal": _values,
    },
    structure=_structure,
    paired=("n",),
    properties=(
        Property(
            "it_is_the_legendre_projection",
            "c_k = the projection of the step function f_0, ..., f_k",
            _projection,
            about=OF_STEP_FUNCTIONS,
        ),
        Property(
            "only_ratios_of_times_matter",
            "every sample twice: c_{2k+1} is what c_k was",
            _timescale,
            about=OF_STEP_FUNCTIONS,
        ),
        Property("a_constant_stays", "f = a: c_k = a e_0", _constant),
        Property("fewer_coefficients_are_the_first", "c of m < n is the first m of c", _nested),
        Property("the_past_alone_counts", "c_k depends on f_0, ..., f_k", _past),
        Property("it_is_linear", "c(f + g) = c(f) + c(g)", adds_in("f")),
        Property("the_first_is_the_mean", "c_k0 = the mean of f_0, ..., f_k", _mean, about=MEANS),
    ),
    work=_work,
    timed={
        "short": Structure(keywords={"method": "bilinear"}, sizes={"t": 32, "n": 8}),
        "samples": Structure(keywords={"method": "bilinear"}, sizes={"t": 1_000, "n": 64}),
        "history": Structure(keywords={"method": "bilinear"}, sizes={"t": 10_000, "n": 256}),
        "held": Structure(keywords={"method": "zoh"}, sizes={"t": 500, "n": 64}),
    },
    source="A. Gu et al., HiPPO, arXiv:2008.07669, theorem 2, proposition 3 and appendix B.3",
)
