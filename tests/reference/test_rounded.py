"""Rounded arithmetic is what hardware computes, and honest kernels emulated in it keep their bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from assay.reference import rope as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.oracle import evaluate, oracle
from assay.reference.arithmetic.precision import FORMATS, PRECISIONS
from assay.reference.arithmetic.rounded import ORDERS, Rounded


TYPES: dict[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.parametrize("name", TYPES)
@given(value=NUMBERS)
def test_nearest_is_the_conversion_of_the_type(name: str, value: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        expected = np.float64(np.float64(value).astype(TYPES[name]))
    assert np.float64(FORMATS[name].round(np.longdouble(value))) == expected


@pytest.mark.parametrize("name", ["float32", "float64"])
@given(
    significand=st.integers(-(2**64) + 1, 2**64 - 1),
    exponent=st.one_of(st.integers(-1200, 1100), st.integers(-215, 70)),
)
def test_the_processor_rounds_extended_numbers_as_any_format_is_rounded(
    name: str, significand: int, exponent: int
) -> None:
    x = np.ldexp(np.longdouble(significand), exponent)
    f = FORMATS[name]
    generic = replace(f, name="other")
    assert f.native is not None
    assert generic.native is None
    assert f.round(x).tobytes()[:10] == generic.round(x).tobytes()[:10]


@pytest.mark.parametrize("name", ["float64", *TYPES])
def test_an_underflow_loses_at_most_half_the_smallest_subnormal(name: str) -> None:
    f = FORMATS[name]
    assert f.tiny > 0
    assert f.holds(2 * f.tiny)
    assert f.round(f.tiny) == 0
    assert f.round(3 * f.tiny / 2) == 2 * f.tiny


@pytest.mark.parametrize("name", TYPES)
@given(value=NUMBERS)
def test_directed_roundings_bracket_the_number(name: str, value: float) -> None:
    x, f = np.longdouble(value), FORMATS[name]
    assert abs(f.round(x, "toward zero")) <= abs(x) <= max(abs(f.round(x, "up")), abs(-f.round(-x, "up")))
    assert f.round(x, "up") >= x
    assert f.holds(f.round(x, "toward zero"))


@pytest.mark.parametrize("name", ["add", "subtract", "multiply", "divide"])
@given(a=st.floats(width=32, allow_nan=False), b=st.floats(width=32, allow_nan=False))
def test_a_step_in_single_precision_is_that_of_the_hardware(name: str, a: float, b: float) -> None:
    xp = Rounded(PRECISIONS["float32"])
    with xp.context():
        got = xp.apply(name, xp.lift(np.float32(a)), xp.lift(np.float32(b))).parts[0]
        expected = getattr(np, name)(np.float32(a), np.float32(b))
    assert np.float32(got).tobytes() == expected.tobytes() or (np.isnan(got) and np.isnan(expected))


@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9))
def test_a_sum_is_taken_in_its_order(values: list[float]) -> None:
    x = np.array(values, dtype=np.float32)
    forward = np.add.accumulate(x)[-1]
    backward = np.add.accumulate(x[::-1])[-1]
    for order, expected in (("forward", forward), ("backward", backward)):
        xp = Rounded(PRECISIONS["float32"], order=order)
        assert np.float32(xp.sum(xp.lift(x)).parts[0]) == expected


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16-steps", "float16-table"])
@pytest.mark.parametrize("form", ["table", "reduced", "direct"])
@given(seed=st.integers(0, 2**32 - 1), start=st.integers(-(2**20), 2**20))
def test_an_emulated_kernel_keeps_its_bound(form: str, precision: str, order: str, seed: int, start: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 8)).astype(np.float32)
    arguments = {"x": x, "position": np.array([start, start + 1]), "base": 10001.0, "attention_factor": 1.1}
    text = getattr(reference, form)
    (bounded,) = evaluate(text, Bounded(PRECISIONS[precision]), arguments)
    (kernel,) = evaluate(text, Rounded(PRECISIONS[precision], order=order), arguments)
    (exact,) = oracle(reference.rope, arguments, [bounded.parts[1]])
    assert isinstance(kernel, Array)
    assert np.all(np.abs(kernel.parts[0] - exact.midpoint) <= bounded.parts[1] + exact.radius)
