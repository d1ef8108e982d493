"""The contract of `random_projection`: no definition, but a distribution that is known in every respect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from assay.properties.contract import Operator, Property, Statistic
from assay.properties.drawing import Values
from assay.properties.emulated import Emulated, Memory
from assay.properties.statistics import Samples, bennett, kolmogorov
from assay.properties.trial import Answer, Trial
from assay.properties.truth import JUDGE
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.normwise import orthonormal
from assay.reference.arithmetic.oracle import Arguments
from assay.reference.arithmetic.precision import natural
from assay.reference.projection import KINDS, SCALINGS, Estimator, context


def random_projection(
    r: int,
    d: int,
    *,
    orthogonal: bool = True,
    scaling: str = "chi",
    seed: int,
    dtype: Any = None,
    device: Any = None,
) -> Values:
    """projection[r, d] for random features: r rows, each with a uniform direction, from the seed and nothing else.

    `orthogonal`: the rows come in blocks of d, the last one maybe shorter; each block is made of rows of an orthogonal
    matrix with the Haar distribution, and blocks are independent. Otherwise all rows are. `scaling` of "chi": the
    lengths are independent and distributed as those of vectors of d normal numbers, so that each row is N(0, I);
    "regularised": all are sqrt(d). This one computes in float64 whatever the dtype.

    Source: K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, section 2.4 and theorem 1.
    The signs: F. Mezzadri, How to generate random matrices from the classical compact groups, arXiv:math-ph/0609050.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling must be one of {', '.join(SCALINGS)}, not {scaling!r}")
    return _drawn(r, d, orthogonal, scaling, np.random.default_rng(seed))


def _drawn(r: int, d: int, orthogonal: bool, scaling: str, random: np.random.Generator, *, raw: bool = False) -> Values:
    """`raw`: the orthogonal matrices as Householder reflections leave them."""
    if orthogonal:
        q, upper = np.linalg.qr(random.standard_normal((-(-r // d), d, d)))
        signs = 1.0 if raw else np.sign(np.einsum("nii->ni", upper))[:, None, :]
        directions = np.swapaxes(q * signs, -1, -2).reshape(-1, d)[:r]
    else:
        directions = random.standard_normal((r, d))
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    if scaling == "regularised":
        return directions * np.sqrt(d)
    return directions * np.linalg.norm(random.standard_normal((r, d)), axis=-1, keepdims=True)


# What is known of the samples ----------------------------------------------------------------------------------------


def _sizes(trial: Trial) -> tuple[int, int]:
    return trial.case.arguments["r"], trial.case.arguments["d"]


def _is(trial: Trial, name: str, value: Any) -> bool:
    return bool(trial.case.arguments.get(name, value) == value)


def _error(trial: Samples) -> float:
    """How far a row may be from one with exactly the distribution, relative to its length.

    The orthogonal matrix has the error of Householder's reflections, and every number is rounded when it is returned;
    lengths and products are within a few roundings more.
    """
    d = _sizes(trial)[1]
    precision = natural(trial.case.dtype)
    computed = orthonormal(d, precision) if _is(trial, "orthogonal", True) else 0
    return float(computed + 2 * trial.unit + (d + 4) * precision.working.u)


def _lengths(trial: Samples) -> Values:
    """[n, r]"""
    return np.linalg.norm(trial.values, axis=-1)


def _directions(trial: Samples) -> Values:
    """[n, r, d]"""
    return trial.values / _lengths(trial)[..., None]


def _coordinate(d: int) -> Callable[[Values], Values]:
    """The distribution function of a coordinate of a uniform direction."""

    def cdf(x: Values) -> Values:
        from scipy import special  # late: nobody else waits for it

        x = np.clip(x, -1, 1)
        return (1 + np.sign(x) * special.betainc(0.5, (d - 1) / 2, x * x)) / 2

    return cdf


def _length(d: int) -> Callable[[Values], Values]:
    """The distribution function of the length of d normal numbers."""

    def cdf(x: Values) -> Values:
        from scipy import special

        return np.asarray(special.gammainc(d / 2, np.square(np.maximum(x, 0)) / 2))

    return cdf


def _away(x: Values, d: int) -> Values:
    """The distribution function of the size of a coordinate, at these."""
    return np.abs(2 * _coordinate(d)(x) - 1)


def _uniform(x: Values) -> Values:
    return np.clip(x, 0, 1)


def _together(p_values: Iterator[float]) -> float:
    """Several tests as one: the least p-value times their number (Bonferroni)."""
    found = list(p_values)
    return min(1.0, min(found) * len(found))


def _units(d: int) -> tuple[Values, ...]:
    """Unit vectors to hold rows against: an axis, and all axes at once."""
    return np.eye(d)[0], np.full(d, d**-0.5)


# Statistics and properties -------------------------------------------------------------------------------------------


def _lengths_are_chi(trial: Samples) -> float | None:
    r, d = _sizes(trial)
    if not _is(trial, "scaling", "chi"):
        return None
    lengths = _lengths(trial)
    error = _error(trial) * float(lengths.max())
    return _together(kolmogorov(x, _length(d), error) for x in (lengths, lengths[:, 0], lengths[:, r - 1]))


def _lengths_are_constant(trial: Trial) -> Array | None:
    assert isinstance(trial, Samples)
    if not _is(trial, "scaling", "regularised"):
        return None
    d, error = _sizes(trial)[1], _error(trial)
    squares = _lengths(trial) ** 2
    return JUDGE.approximate(squares - d, np.full(squares.shape, d * error * (2 + error)))


def _rows_are_orthogonal(trial: Trial) -> Array | None:
    assert isinstance(trial, Samples)
    r, d = _sizes(trial)
    if not _is(trial, "orthogonal", True) or r == 1:
        return None
    rows = _directions(trial)[:LOOKED_AT]
    cosines = rows @ np.swapaxes(rows, -1, -2)
    within = np.arange(r)[:, None] // d == np.arange(r) // d
    off = np.where(within & ~np.eye(r, dtype=bool), cosines, 0)
    error = _error(trial)
    return JUDGE.approximate(off, np.full(off.shape, error * (2 + error)))


LOOKED_AT = 8
"""The samples whose rows are held against each other, all pairs."""


def _directions_are_uniform(trial: Samples) -> float | None:
    """Each row, and in blocks the mean of their rows, against an axis of its own and all axes at once."""
    r, d = _sizes(trial)
    rows = _directions(trial)

    def tests() -> Iterator[Values]:
        for i in range(r):
            yield rows[:, i, i % d]
        for unit in _units(d):
            yield from (rows @ unit).T
            if _is(trial, "orthogonal", True):
                for start in range(0, r, d):
                    block = rows[:, start : start + d]
                    yield block.sum(axis=1) @ unit / block.shape[1] ** 0.5

    return _together(kolmogorov(x, _coordinate(d), _error(trial)) for x in tests())


def _rows_are_independent(trial: Samples) -> float | None:
    """Directions of rows that are not in one block, lengths of neighbours, and the length and direction of a row."""
    r, d = _sizes(trial)
    rows, lengths = _directions(trial), _lengths(trial)
    step = d if _is(trial, "orthogonal", True) else 1
    error = _error(trial)

    def tests() -> Iterator[float]:
        for i in range(step, r):
            cosines = (rows[:, i] * rows[:, i - step]).sum(axis=-1)
            yield kolmogorov(cosines, _coordinate(d), error * (2 + error))
        if _is(trial, "scaling", "chi"):
            # Numbers that are uniform if all is right: of two that are independent, the centred product has mean 0.
            sizes = _length(d)(lengths) - 0.5
            slack = error * (2 + d)
            yield _uncorrelated(sizes, _coordinate(d)(rows @ _units(d)[1]) - 0.5, slack)
            for i in range(min(r, d)):  # the same row of every block, with the size of its coordinate on its own axis
                yield _uncorrelated(sizes[:, i::d], _away(rows[:, i::d, i], d) - 0.5, 2 * slack)
            if r > 1:
                yield _uncorrelated(sizes[:, 1:], sizes[:, :-1], slack)

    found = list(tests())
    return _together(iter(found)) if found else None


def _uncorrelated(a: Values, b: Values, error: float) -> float:
    """Of uniform numbers a[n, m] and b[n, m] in [-1/2, 1/2], each a independent of all other numbers, or of all but its
    own b: products have mean 0 and variance 1/144, and are uncorrelated."""
    products = (a * b).mean(axis=-1)
    return bennett(products, 0.0, 1 / (144 * a.shape[-1]), -0.25, 0.25, error * (1 + error))


def _seeds_are_independent(trial: Samples) -> float | None:
    d, error = _sizes(trial)[1], _error(trial)
    rows = _directions(trial)[:, 0]
    cosines = (rows[0::2] * rows[1::2]).sum(axis=-1)
    return kolmogorov(cosines, _coordinate(d), error * (2 + error))


SQUARES = (0.25, 1.0)
"""|z|^2 of the vectors at which estimators are held to their moments."""


def _estimates(trial: Samples) -> Iterator[tuple[Estimator, float, Values, Values]]:
    """For each kind and |z|^2: X of every sample [n], and how far rounding may have moved it."""
    r, d = _sizes(trial)
    arguments = trial.case.arguments
    length = _lengths(trial).max(axis=-1)
    for kind in KINDS:
        estimator = Estimator(kind, r, d, arguments.get("orthogonal", True), arguments.get("scaling", "chi"))
        g = {"positive": np.exp, "trigonometric": np.cos, "hyperbolic": np.cosh}[kind]
        for t in SQUARES:
            moved = _error(trial) * length * t**0.5
            for unit in _units(d):
                x = g(trial.values @ (unit * t**0.5)).mean(axis=-1)
                # |g(a + m) - g(a)| <= expm1(m) g(a) for exp and cosh, <= m for cos.
                yield estimator, t, x, moved if kind == "trigonometric" else np.expm1(moved) * x


@cache
def _moments(estimator: Estimator, t: float) -> tuple[float, ...]:
    """Mean and variance of X, and the variance of (X - E X)**2."""
    mp = context()
    return tuple(float(f(t, mp)) for f in (estimator.mean, estimator.variance, estimator.spread_of_square))


def _estimates_are_unbiased(trial: Samples) -> float | None:
    def tests() -> Iterator[float]:
        for estimator, t, x, moved in _estimates(trial):
            mean, variance, _ = _moments(estimator, t)
            low, high = (-1.0, 1.0) if estimator.kind == "trigonometric" else (0.0, np.inf)
            yield bennett(x, mean, variance, low, high, float(moved.mean()))

    return _together(tests())


def _errors_are_exact(trial: Samples) -> float | None:
    def tests() -> Iterator[float]:
        for estimator, t, x, moved in _estimates(trial):
            mean, variance, spread = _moments(estimator, t)
            high = (1 + abs(mean)) ** 2 if estimator.kind == "trigonometric" else np.inf
            off = np.abs(x - mean)
            yield bennett(off**2, variance, spread, 0.0, high, float((moved * (2 * off + moved)).mean()))

    return _together(tests())


# Mutants -------------------------------------------------------------------------------------------------------------


def _changed(change: Callable[[dict[str, Any], np.random.Generator], Values], told: str) -> Callable[..., Answer]:
    """A wrong kernel: a function of the arguments and of a generator of the seed."""

    def mutant(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Memory) -> Answer:
        given = {n: arguments[n] for n in ("r", "d", "orthogonal", "scaling") if n in arguments}
        given = {"orthogonal": True, "scaling": "chi", **given}
        return Answer((kernel.returned(change(given, np.random.default_rng(arguments["seed"])), 0),))

    mutant.__doc__ = told
    return mutant


def _lengthened(a: dict[str, Any], random: np.random.Generator, lengths: Callable[[int, int], Values]) -> Values:
    """Rows of other lengths, where these are drawn."""
    if a["scaling"] != "chi":
        return _drawn(**a, random=random)
    r, d = a["r"], a["d"]
    return _drawn(**{**a, "scaling": "regularised"}, random=random) / np.sqrt(d) * lengths(r, d)[:, None]


def _first_block_again(a: dict[str, Any], random: np.random.Generator) -> Values:
    r, d = a["r"], a["d"]
    out = _drawn(**a, random=random)
    return np.resize(out[: min(r, d)], (r, d)) if a["orthogonal"] else out


def _opposite(a: dict[str, Any], random: np.random.Generator) -> Values:
    out = _drawn(**a, random=random)
    if not a["orthogonal"]:
        out[1::2] = -out[: 2 * (a["r"] // 2) : 2]
    return out


def _cut_small(a: dict[str, Any], random: np.random.Generator) -> Values:
    r, d = a["r"], a["d"]
    out = _drawn(**a, random=random)
    rest = r % d
    if a["orthogonal"] and rest:
        out[-rest:] = 0
        out[-rest:, :rest] = _drawn(**{**a, "r": rest, "d": rest}, random=random)
    return out


def _own_rows(a: dict[str, Any], random: np.random.Generator) -> Values:
    r, d = a["r"], a["d"]
    if not a["orthogonal"] or a["scaling"] != "chi":
        return _drawn(**a, random=random)
    given = random.standard_normal((-(-r // d), d, d))
    q, upper = np.linalg.qr(given)
    rows = np.swapaxes(q * np.sign(np.einsum("nii->ni", upper))[:, None, :], -1, -2)
    return (rows * np.linalg.norm(given, axis=-1, keepdims=True)).reshape(-1, d)[:r]


def _sorted(a: dict[str, Any], random: np.random.Generator) -> Values:
    out = _drawn(**a, random=random)
    return out[np.argsort(np.linalg.norm(out, axis=-1))] if not a["orthogonal"] else out


def _uniform_numbers(a: dict[str, Any], random: np.random.Generator) -> Values:
    if a["orthogonal"] or a["scaling"] != "chi":
        return _drawn(**a, random=random)
    return random.uniform(-(3**0.5), 3**0.5, (a["r"], a["d"]))


def _seed_as(function: Callable[[int], int], told: str) -> Callable[..., Answer]:
    def mutant(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Memory) -> Answer:
        return kernel.answer({**arguments, "seed": function(arguments["seed"])}, cotangents)

    mutant.__doc__ = told
    return mutant


def _no_seed(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Memory) -> Answer:
    """draws from a generator that earlier calls have used"""
    return kernel.answer({**arguments, "seed": memory.calls}, cotangents)


def _transposed(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Memory) -> Answer:
    """returns projection[d, r]"""
    (out,) = kernel.answer(arguments, cotangents).outputs
    return Answer((np.ascontiguousarray(out.T),))


def _one_infinite(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Memory) -> Answer:
    """returns an infinity where a normal number is beyond 4"""
    (out,) = kernel.answer(arguments, cotangents).outputs
    return Answer((np.where(np.abs(out) > 4, np.array(np.inf, out.dtype), out),))


def _settings() -> Iterator[dict[str, Any]]:
    for scaling, orthogonal, d, rows in (
        ("chi", True, 4, (1, 2, 3, 4, 5, 8, 13, 16)),
        ("chi", True, 16, (1, 16, 17, 40, 64)),
        ("chi", True, 64, (1, 64, 100, 256)),
        ("chi", False, 4, (1, 4, 16)),
        ("chi", False, 16, (17, 64)),
        ("chi", False, 64, (100,)),
        ("regularised", True, 4, (4, 9)),
        ("regularised", True, 16, (16,)),
        ("regularised", True, 64, (64,)),
        ("regularised", False, 16, (20,)),
    ):
        for r in rows:
            yield {"r": r, "d": d, "orthogonal": orthogonal, "scaling": scaling}


RANDOM_PROJECTION = Operator(
    name="random_projection",
    definition=random_projection,
    settings=tuple(sorted(_settings(), key=lambda a: a["r"] * a["d"])),
    samples=512,
    properties=(
        Property("rows_are_orthogonal", "<w_i, w_j> = 0 for rows of a block", _rows_are_orthogonal),
        Property("lengths_are_sqrt_d", "|w_i|^2 = d where regularised", _lengths_are_constant, ("scaling",)),
        Statistic("lengths_are_chi", "|w_i|^2 ~ chi-squared of d degrees", _lengths_are_chi),
        Statistic(
            "directions_are_uniform",
            "<a, W u> / |a| ~ a coordinate of a uniform direction, W the directions of a block",
            _directions_are_uniform,
        ),
        Statistic("rows_are_independent", "blocks, lengths, and length and direction are", _rows_are_independent),
        Statistic("seeds_are_independent", "the rows of two seeds are", _seeds_are_independent),
        Statistic(
            "estimates_are_unbiased", "E X = its closed form, for every kind of feature", _estimates_are_unbiased
        ),
        Statistic("errors_are_exact", "E (X - E X)^2 = its closed form, for every kind of feature", _errors_are_exact),
    ),
    mutants={
        "signs of QR kept": _changed(lambda a, g: _drawn(**a, random=g, raw=True), "keeps the signs that QR gives"),
        "unit lengths": _changed(lambda a, g: _lengthened(a, g, lambda r, d: np.ones(r)), "does not draw lengths"),
        "lengths sqrt(d)": _changed(
            lambda a, g: _drawn(**{**a, "scaling": "regularised"}, random=g), "never draws lengths, all are sqrt(d)"
        ),
        "lengths always drawn": _changed(
            lambda a, g: _drawn(**{**a, "scaling": "chi"}, random=g), "ignores that lengths should be sqrt(d)"
        ),
        "one length for all": _changed(
            lambda a, g: _lengthened(a, g, lambda r, d: np.full(r, np.linalg.norm(g.standard_normal(d)))),
            "draws one length for all rows",
        ),
        "lengths of d - 1": _changed(
            lambda a, g: _lengthened(a, g, lambda r, d: np.linalg.norm(g.standard_normal((r, d - 1)), axis=-1)),
            "draws the lengths of d - 1 normal numbers",
        ),
        "lengths of the rows of the same matrix": _changed(_own_rows, "takes lengths from the matrix it decomposes"),
        "sorted by length": _changed(_sorted, "sorts independent rows by length"),
        "orthogonal ignored": _changed(
            lambda a, g: _drawn(**{**a, "orthogonal": False}, random=g), "draws independent rows whatever is asked"
        ),
        "always orthogonal": _changed(
            lambda a, g: _drawn(**{**a, "orthogonal": True}, random=g), "draws orthogonal rows whatever is asked"
        ),
        "first block again": _changed(_first_block_again, "repeats the first block"),
        "opposite rows": _changed(_opposite, "makes every second independent row the opposite of the one before"),
        "last block in fewer dimensions": _changed(_cut_small, "draws the last block in as many dimensions as rows"),
        "uniform numbers": _changed(_uniform_numbers, "draws independent numbers uniformly, of variance 1"),
        "all times 1.02": _changed(lambda a, g: 1.02 * _drawn(**a, random=g), "makes all rows longer by 2 per cent"),
        "seed ignored": _seed_as(lambda seed: 0, "draws the same whatever the seed"),
        "seed halved": _seed_as(lambda seed: seed // 2, "drops the last bit of the seed"),
        "draws on": _no_seed,
        "transposed": _transposed,
        "infinite beyond 4": _one_infinite,
    },
    survivors={
        f"lengths of the rows of the same matrix {dtype}": "what rounding to the dtype may do to a length hides it"
        for dtype in ("bfloat16", "float16")
    },
    source="K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, section 2.4",
)
