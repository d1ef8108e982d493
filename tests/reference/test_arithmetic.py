"""The arithmetics check each other: balls contain what mpmath gives, bounds cover what honest kernels do."""

from __future__ import annotations

from typing import Any

import flint
import mpmath
import numpy as np
import pytest
from hypothesis import given, strategies as st

from assay.reference.arithmetic.adjoint import Adjoint
from assay.reference.arithmetic.array import UNARY, Array, Uncertain, exactly
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact, enclosure
from assay.reference.arithmetic.oracle import differentiate, evaluate, oracle
from assay.reference.arithmetic.precision import BFLOAT16, FLOAT16, FLOAT32, FORMATS, PRECISIONS, TF32


FLOAT = Bounded(PRECISIONS["float32"])
numbers = st.floats(width=32, min_value=-8, max_value=8)
POSITIVE = ("sqrt", "log")


def contains(ball: flint.arb, value: Any) -> bool:
    """Does the ball contain an mpmath number?"""
    sign, man, exp, _ = value._mpf_
    with flint.ctx.workprec(4000):  # enough to hold the number exactly
        return bool(ball.contains(flint.arb((-1) ** sign * int(man)) * flint.arb(2) ** int(exp)))


@pytest.mark.parametrize("name", UNARY)
@given(x=numbers)
def test_balls_contain_the_exact_value(name: str, x: float) -> None:
    x = abs(x) + 2.0**-20 if name in POSITIVE else (abs(x) if name == "log1p" else x)
    ball, exact = Ball(80), Exact(400)
    with ball.context():
        enclosed = ball.unary(name, ball.lift(np.asarray(x))).parts[0].item()
    assert contains(enclosed, exact.unary(name, exact.lift(np.asarray(x))).parts[0].item())


shapes = st.lists(st.integers(0, 3), min_size=2, max_size=4).map(tuple)


@pytest.mark.parametrize("arithmetic", [Ball(80), Exact(400), FLOAT], ids=lambda a: type(a).__name__)
@given(shapes=st.tuples(shapes, shapes))
def test_matrices_are_multiplied_where_numpy_multiplies_them(arithmetic: Any, shapes: Any) -> None:
    """And nowhere else: products of elements would broadcast."""
    ones = [np.ones(shape) for shape in shapes]
    a, b = (arithmetic.lift(x) for x in ones)
    try:
        want = (ones[0] @ ones[1]).shape
    except ValueError:
        with pytest.raises(ValueError, match=r"multiplied|broadcast"):
            a @ b
    else:
        with arithmetic.context():
            assert (a @ b).shape == want


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide", "maximum", "minimum"])
@given(x=numbers, y=numbers.filter(bool))
def test_balls_contain_the_exact_result(name: str, x: float, y: float) -> None:
    ball, exact = Ball(80), Exact(2000)
    with ball.context():
        enclosed = ball.binary(name, ball.lift(np.asarray(x)), ball.lift(np.asarray(y))).parts[0].item()
    got = exact.binary(name, exact.lift(np.asarray(x)), exact.lift(np.asarray(y))).parts[0].item()
    if name == "divide":  # mpmath rounds the quotient, at 2000 bits: the ball at 80 bits is wider
        assert enclosed.is_exact() or contains(enclosed, got)
    else:
        assert contains(enclosed, got)


@pytest.mark.parametrize("name", UNARY)
@given(x=numbers)
def test_the_bound_covers_numpy_in_float32(name: str, x: float) -> None:
    """NumPy's float32 functions are honest kernels of one step."""
    x = abs(x) + 2.0**-20 if name in POSITIVE else (abs(x) if name == "log1p" else x)
    single = np.float32(x)
    out = FLOAT.unary(name, FLOAT.lift(np.asarray(single)))
    exact = evaluate(lambda x: x.xp.unary(name, x), Ball(200), {"x": np.asarray(single)})[0]
    middle, radius = enclosure(exact)
    got = np.negative(single) if name == "negative" else getattr(np, name)(single)
    assert abs(np.longdouble(got) - middle) <= out.parts[1] + radius


@given(x=st.lists(numbers, min_size=2, max_size=9), y=st.lists(numbers, min_size=9, max_size=9))
def test_the_bound_of_an_inner_product_covers_every_order(x: list[float], y: list[float]) -> None:
    a, b = np.float32(x), np.float32(y[: len(x)])
    value, error = FLOAT.sum(FLOAT.lift(a) * FLOAT.lift(b)).parts
    exact = Exact(2000)
    true = exact.sum(exact.lift(a) * exact.lift(b)).parts[0].item()
    for order in (np.arange(len(a)), np.arange(len(a))[::-1]):
        total = np.float32(0)
        for i in order:
            total = np.float32(total + np.float32(a[i] * b[i]))
        assert abs(float(mpmath.mpf(float(total)) - true)) <= float(error) * (1 + 2.0**-50)
    assert abs(float(true - mpmath.mpf(float(value)))) <= float(error) + 2.0**-60 * float(np.abs(a * b).sum())


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9))
def test_integers_are_free_of_charge(x: list[int]) -> None:
    a = FLOAT.lift(np.asarray(x))
    assert not FLOAT.sum(a * a + 3 * a - 2).parts[1].any()


def test_one_hot_sums_are_free_of_charge() -> None:
    x = np.zeros(9, np.float32)
    x[4] = 1 / 3
    assert FLOAT.sum(FLOAT.lift(x)).parts[1] == 0


def test_nothing_is_exact_by_accident_of_extended_precision() -> None:
    one, small = (FLOAT.lift(np.asarray(v)) for v in (1.0, 2.0**-70))
    assert (one + small).parts[1] >= 2.0**-70


@pytest.mark.parametrize("name", ["cos", "exp", "sin", "expm1", "log1p", "tanh"])
def test_elementary_functions_of_zero_are_exact(name: str) -> None:
    assert FLOAT.unary(name, FLOAT.lift(np.asarray(0.0))).parts[1] == 0


@pytest.mark.parametrize("fmt", [FLOAT32, TF32, BFLOAT16, FLOAT16], ids=lambda f: f.name)
def test_formats_hold_what_they_hold(fmt: Any) -> None:
    smallest = np.longdouble(2 * fmt.tiny)
    assert fmt.holds(np.asarray([0.0, 1.0, 1 + 2 * fmt.u, fmt.max, smallest], np.longdouble)).all()
    outside = [1 + fmt.u, 2 * fmt.max, smallest / 2, smallest * np.longdouble(1.5), np.inf]
    assert not fmt.holds(np.asarray(outside, np.longdouble)).any()


def test_overflow_of_the_working_format_bounds_nothing() -> None:
    x = FLOAT.lift(np.asarray(3e38))
    with FLOAT.context():
        assert np.isinf((x * x).parts[1])


@pytest.mark.parametrize("arithmetic", [Ball(100), Exact(), FLOAT, Adjoint(Ball(100))], ids=lambda a: a.__name__)
def test_float_literals_are_refused(arithmetic: Any) -> None:
    with pytest.raises(TypeError, match="not exact"):
        arithmetic.lift(np.asarray([1.0])) * 0.1


def test_overlapping_balls_are_not_compared() -> None:
    ball = Ball(60)
    with ball.context(), pytest.raises(Uncertain):
        _ = ball.pi * ball.pi < ball.pi * ball.pi


def test_a_definition_does_not_branch_on_a_number() -> None:
    with pytest.raises(TypeError, match="comparison"):
        bool(Exact().lift(np.asarray(1)))


def test_the_oracle_doubles_its_digits_until_it_knows() -> None:
    """1 + x - 1 at x = 2**-200 is lost to 113 bits."""

    def cancelling(x: Array) -> Array:
        return (1 + x) - 1

    (known,) = oracle(cancelling, {"x": np.asarray([2.0**-200])}, [np.asarray([2.0**-230])])
    assert known.midpoint == 2.0**-200


def test_enclosures_survive_the_way_out_of_arb() -> None:
    ball = Ball(300)
    with ball.context():
        third = ball.lift(np.asarray([1, 2, -5])) / 3
        middle, radius = enclosure(third)
        for value, m, r in zip(third.parts[0], middle, radius, strict=True):
            high = float(m)
            away = abs(value - flint.arb(high) - flint.arb(float(m - np.longdouble(high))))
            assert away <= flint.arb(float(r))


SMOOTH = {
    "quotient": lambda x, y: x / (1 + y * y),
    "norm": lambda x, y: x.xp.sqrt(x.xp.sum(x * x + y * y, axis=-1, keepdims=True) + 1) * y,
    "exp log": lambda x, y: x.xp.exp(x) * x.xp.log(1 + y * y) + x.xp.tanh(x) - x.xp.expm1(y) * x.xp.log1p(x * x),
    "waves": lambda x, y: x.xp.sin(x) * x.xp.cos(y) + (1 + x * x) ** y,
    "moved": lambda x, y: x.xp.concat([x[..., ::2], y.xp.roll(y, 1, axis=-1)], axis=-1) * 3,
    "scores": lambda x, y: x @ y.mT,
    "chosen": lambda x, y: x.xp.where(x < y, x * y, x.xp.maximum(x, 0 * y)),
    "exactly": lambda x, y: exactly(x * y, y * x) * x,
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_the_limits_of_difference_quotients(name: str) -> None:
    """Over mpmath with 600 bits, the quotient at 2**-200 agrees with the adjoint to within 2**-100."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 3, 4))
    below = Exact(600)
    function = SMOOTH[name]
    shape = evaluate(function, below, {"x": x, "y": y})[0].shape
    weight = random.integers(-3, 4, shape)
    _, found = differentiate(function, below, {"x": x, "y": y}, [weight], ["x", "y"])
    small = below.mp.mpf(2) ** -200
    for which in ("x", "y"):
        for index in np.ndindex(x.shape):
            lifted = {"x": below.lift(x), "y": below.lift(y)}
            moved = lifted[which].parts[0].copy()
            moved[index] += small
            ahead = function(**{**lifted, which: below.boxed(moved)})
            here = function(**lifted)
            slope = sum((ahead.parts[0] - here.parts[0]).ravel() / small * weight.ravel())
            assert abs(slope - found[which].parts[0][index]) < below.mp.mpf(2) ** -100


def test_every_format_is_known_by_its_name() -> None:
    assert all(name == f.name for name, f in FORMATS.items())
