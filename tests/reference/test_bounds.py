"""Right kernels keep their bounds: thousands, emulated in every direction of rounding and every order of summation.

A kernel is a text run in Rounded; its bound is the same text run in Bounded, with or without gradients; the truth is
the text run over balls. The inputs range from the subnormals to the largest numbers of the format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from assay.reference.arithmetic import bounded, oracle as oracles
from assay.reference.arithmetic.array import Array, store
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.oracle import differentiate, evaluate, gradient_oracle, oracle
from assay.reference.arithmetic.precision import FLOAT16, FLOAT32, MODES, PRECISIONS, Precision, published
from assay.reference.arithmetic.rounded import ORDERS, Rounded


def softmax(x: Any) -> Any:
    xp = x.xp
    e = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def logsumexp(x: Any) -> Any:
    xp = x.xp
    top = xp.max(x, axis=-1, keepdims=True)
    return top + xp.log(xp.sum(xp.exp(x - top), axis=-1, keepdims=True))


def cross_entropy(x: Any) -> Any:
    """The loss of class 0: near zero where its logit is far above the others."""
    return logsumexp(x)[..., 0] - x[..., 0]


def softplus_entropy(x: Any) -> Any:
    """The same for two classes, with nothing lost near zero."""
    xp = x.xp
    gap = x[..., 1:] - x[..., :1]
    return xp.sum(xp.maximum(gap, xp.zeros_like(gap)) + xp.log1p(xp.exp(-xp.abs(gap))), axis=-1)


def normalised(x: Any) -> Any:
    xp = x.xp
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + xp.asarray(1) / 100_000)


def attention(x: Any) -> Any:
    scores = x @ x.mT
    return store(softmax(scores), "weights") @ x


def gated(x: Any) -> Any:
    xp = x.xp
    return x / (1 + xp.exp(-x)) * xp.tanh(x) + xp.expm1(x) * xp.sin(x)


def powers(x: Any) -> Any:
    return x**2 + x**3 - (1 + x.xp.abs(x)) ** (x.xp.asarray(1) / 3)


def recurrence(x: Any) -> Any:
    state, rows = x[..., 0] * 0, []
    for i in range(x.shape[-1]):
        state = state * x.xp.cos(x[..., i]) + x[..., i]
        rows.append(state)
    return x.xp.stack(rows, axis=-1)


TEXTS: dict[str, Callable[[Any], Any]] = {
    f.__name__: f
    for f in (
        softmax,
        logsumexp,
        cross_entropy,
        softplus_entropy,
        normalised,
        attention,
        gated,
        powers,
        recurrence,
    )
}
SCALES = (0.0, 1e-45, 1e-42, 1e-39, 1e-30, 1e-20, 1e-3, 1.0, 30.0, 1e4, 1e19, 1e38)
PARTS = {name: PRECISIONS[name] for name in ("float32", "float32-flushing", "tf32", "bfloat16", "float16-steps")}


def emulated(precision: Precision, mode: str) -> Precision:
    return replace(precision, rounding=mode)


def drawn(seed: int, scale: float, precision: Precision) -> Any:
    """Numbers of one magnitude, but for some, in the format in which the kernel takes them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, 6)) * scale
    x[0] *= np.exp2(random.integers(-6, 7, 6))
    with np.errstate(all="ignore"):
        narrow = FLOAT16 if precision.name.startswith("float16") else FLOAT32
        x = np.clip(narrow.round(x.astype(np.longdouble)), -narrow.max, narrow.max)
        return np.asarray(x, dtype=np.float32)


def assert_within(kernel: Array, exact: Any, bound: Any) -> float:
    """The headroom."""
    with np.errstate(all="ignore"):
        judged = np.isfinite(bound) & np.isfinite(exact.radius)
        error = np.abs(kernel.parts[0] - exact.midpoint)
        assert np.all((error <= bound + exact.radius)[judged]), (kernel.parts[0], exact.midpoint, bound)
        ratio = np.where(error > exact.radius, error / bound, 0)[judged]
    return float(ratio.max(initial=0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PARTS)
@pytest.mark.parametrize("name", TEXTS)
def test_a_right_kernel_keeps_its_bound(name: str, precision: str, mode: str) -> None:
    """At every scale and in every order, and something is demanded of it where nothing overflows."""
    text, p = TEXTS[name], emulated(PARTS[precision], mode)
    for number, scale in enumerate(SCALES):
        arguments = {"x": drawn(number, scale, p)}
        (bounded,) = evaluate(text, Bounded(p), arguments)
        (exact,) = oracle(text, arguments, [bounded.parts[1]])
        for order in ORDERS:
            (kernel,) = evaluate(text, Rounded(p, order=order), arguments)
            assert_within(kernel, exact, bounded.parts[1])
        if scale < 1:
            assert np.isfinite(bounded.parts[1]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PARTS)
@pytest.mark.parametrize("name", TEXTS)
def test_right_gradients_keep_their_bound(name: str, precision: str, mode: str) -> None:
    text, p = TEXTS[name], emulated(PARTS[precision], mode)
    for number, scale in enumerate(SCALES[1:]):
        arguments = {"x": drawn(number, scale, p)}
        shape = evaluate(text, Bounded(p), arguments)[0].shape
        weight = np.float32(np.random.default_rng(number).integers(-9, 10, shape)) / 8
        bound = differentiate(text, Bounded(p), arguments, [weight], ["x"])[1]["x"].parts[1]
        exact = gradient_oracle(text, arguments, [weight], {"x": bound})["x"]
        for order in ORDERS:
            kernel = differentiate(text, Rounded(p, order=order), arguments, [weight], ["x"])[1]["x"]
            assert_within(kernel, exact, bound)


FLOAT = Bounded(PRECISIONS["float32"])


def single(*values: float) -> Any:
    return np.asarray(values, dtype=np.float32)


def error_of(text: Callable[..., Any], xp: Bounded = FLOAT, **arguments: Any) -> Any:
    return evaluate(text, xp, arguments)[0].parts[1]


def test_a_loss_near_zero_has_an_absolute_bound() -> None:
    """logsumexp - logit is 3e-12 beside logits of 20, whose spacing is 2e-6: a kernel returns 0, and is right."""
    x = single(20.0, -7.0, -7.5)
    (exact,) = oracle(cross_entropy, {"x": x}, [np.asarray(1e-20)])
    bound = error_of(cross_entropy, x=x)
    assert exact.midpoint < 1e-11
    assert exact.midpoint < 2.0**-20 <= bound < 2.0**-19


def test_the_loss_that_loses_nothing_near_zero_has_a_relative_bound() -> None:
    x = single(20.0, -7.0, -7.5)
    (exact,) = oracle(softplus_entropy, {"x": x}, [np.asarray(1e-24)])
    assert error_of(softplus_entropy, x=x) < 1e-5 * exact.midpoint


def test_the_difference_of_a_computed_number_and_itself_keeps_both_errors() -> None:
    x = single(1.1)
    once = error_of(lambda x: x * x, x=x)
    assert error_of(lambda x: x * x - x * x, x=x) >= 2 * once > 0


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "sin", "cos", "tanh"])
@pytest.mark.parametrize("scale", [1e-44, 1e-39, 1e-30, 1e-4, 1.0, 40.0, 88.0, 1e30])
def test_libraries_keep_the_bound_of_one_step(name: str, scale: float) -> None:
    """NumPy's and torch's float32 functions, where they are small, ordinary and about to overflow."""
    torch = pytest.importorskip("torch")
    x = (np.random.default_rng(7).uniform(-1, 1, 2000) * scale).astype(np.float32)
    x = np.abs(x) + np.float32(2**-149) if name.startswith("log") else x
    (bounded,) = evaluate(lambda x: x.xp.unary(name, x), FLOAT, {"x": x})
    (exact,) = oracle(lambda x: x.xp.unary(name, x), {"x": x}, [np.maximum(bounded.parts[1], 1e-300)])
    with np.errstate(all="ignore"):
        for kernel in (getattr(np, name)(x), getattr(torch, name)(torch.from_numpy(x)).numpy()):
            judged = np.isfinite(bounded.parts[1])
            assert judged.any()
            error = np.abs(kernel.astype(np.longdouble) - exact.midpoint)
            assert np.all((error <= bounded.parts[1] + exact.radius)[judged])
            finite = np.abs(exact.midpoint) < float(FLOAT32.max) * 0.999
            assert np.array_equal(judged[finite], np.ones_like(judged[finite]))


def test_an_exponential_far_below_carries_no_error_however_large() -> None:
    """Scores of 1e19 carry errors of 1e12; what is further below the maximum than that weighs nothing."""
    assert np.isfinite(error_of(softmax, x=single(1e19, -1e19, 3e18))).all()


def test_a_sum_is_unbounded_only_where_some_order_overflows() -> None:
    sums = lambda x: x.xp.sum(x, axis=-1)  # noqa: E731
    assert np.isinf(error_of(sums, x=single(3e38, -3e38, 3e38, -3e38)))
    assert np.isfinite(error_of(sums, x=single(3e38, -3e38, 1e38 / 8)))
    for order in ORDERS:
        (kernel,) = evaluate(sums, Rounded(PRECISIONS["float32"], order=order), {"x": single(3e38, -3e38, 1e37)})
        assert np.isfinite(kernel.parts[0])


def test_half_precision_overflows_where_single_precision_does() -> None:
    x = np.asarray([60000.0, 60000.0], np.float16)
    inner = lambda x: x[None] @ x[:, None] / x  # noqa: E731
    for name in ("float16", "bfloat16"):
        assert np.isfinite(error_of(inner, Bounded(PRECISIONS[name]), x=x)).all()
    assert np.isinf(error_of(inner, Bounded(PRECISIONS["float16-steps"]), x=x)).all()


def test_an_overflown_factor_may_give_a_nan_even_with_zero() -> None:
    assert np.isinf(error_of(lambda x: x * x * (x - x), x=single(3e38)))


@pytest.mark.parametrize("x", [0.0, -3.0, 0.5])
def test_small_integer_powers_are_products(x: float) -> None:
    assert error_of(lambda x: x**2 - x * x, x=single(x)) <= 2.0**-20 * x * x
    for power in range(6):
        (known,) = oracle(lambda x, n=power: x**n, {"x": single(x)}, [np.asarray(1e-30)])  # type: ignore[misc]
        repeated = np.float32(1)
        for _ in range(power):
            repeated = repeated * np.float32(x)
        assert abs(repeated - known.midpoint) <= error_of(lambda x, n=power: x**n, x=single(x))  # type: ignore[misc]


def test_the_slope_at_a_kink_that_rounding_may_cross_is_either() -> None:
    """a b - c is 0 or 1e-9 either way: the gradient of its absolute value may have either sign."""
    x = single(1 / 3)
    text = lambda x: x.xp.abs(x * x - x * x)  # noqa: E731
    bound = differentiate(text, FLOAT, {"x": x}, [np.ones(1)], ["x"])[1]["x"].parts[1]
    assert bound >= 4 / 3
    plain = differentiate(lambda x: x.xp.abs(x), FLOAT, {"x": x}, [np.ones(1)], ["x"])[1]["x"].parts[1]
    assert plain == 0


def test_a_sum_in_a_short_format_is_bounded_however_long() -> None:
    """In 8 bits, 300 terms: n u is above 1."""
    p = Precision("short", "all in bfloat16", PRECISIONS["bfloat16-steps"].working)
    x = np.abs(drawn(3, 1.0, p)).reshape(-1).repeat(25)
    sums = lambda x: x.xp.sum(x, axis=-1)  # noqa: E731
    for order in ORDERS:
        (kernel,) = evaluate(sums, Rounded(p, order=order), {"x": x})
        assert abs(kernel.parts[0] - x.astype(np.longdouble).sum()) <= error_of(sums, Bounded(p), x=x) < np.inf


def test_flushing_reads_and_writes_no_subnormals() -> None:
    xp = Rounded(PRECISIONS["float32-flushing"])
    x = xp.lift(single(1e-39, -1e-39, 1e-37, 1.0))
    assert x.parts[0].tolist() == [0.0, -0.0, np.float32(1e-37), 1.0]
    assert not (x * xp.lift(single(1e-3, 1.0, 1e-3, 0.0))).parts[0].any()


def test_each_variant_forgives_only_its_own() -> None:
    """Truncated sums and flushed products break the bound of IEEE single precision and keep their own."""
    cases = {
        "truncating": (lambda x: x.xp.sum(x, axis=-1), single(1.0, 2.0**-23 * 0.99)),
        "flushing": (lambda x: x.xp.sum(x, axis=-1) * x[..., 0], single(1e-39, 0.0, 1.0)),
    }
    for variant, (text, x) in cases.items():
        own = PRECISIONS[f"float32-{variant}"]
        kernel = evaluate(text, Rounded(own), {"x": x})[0].parts[0]
        (exact,) = oracle(text, {"x": x}, [np.asarray(1e-24)])
        error = np.abs(kernel - exact.midpoint)
        assert error_of(text, x=x) < error <= error_of(text, Bounded(own), x=x)


def test_the_variants_are_published() -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        names = {p.name for p in published(dtype)}
        assert {f"{dtype}-truncating", f"{dtype}-flushing"} <= names


@pytest.mark.parametrize("name", ["float32", "float32-flushing", "float32-truncating", "tf32"])
@pytest.mark.parametrize("reach", [0, -70])
def test_products_that_are_bounded_as_a_whole_are_bounded(
    name: str, reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No less than term by term, and not much more: of random matrices, with errors and numbers that underflow."""
    random = np.random.default_rng(0)
    x, y = (
        random.standard_normal((3, n, m)).astype(np.float32) * np.float32(2.0) ** reach for n, m in ((4, 9), (9, 5))
    )
    xp = Bounded(PRECISIONS[name])

    def product() -> Array:
        return evaluate(lambda x, y: (x * x) @ y, xp, {"x": x, "y": y})[0]

    apart = product()
    monkeypatch.setattr(bounded, "KEPT", 0)
    whole = product()
    # Sums of 9 terms in extended precision, in another order; in the bounds, also products of roundings with roundings.
    size = np.abs(x).astype(np.longdouble) ** 2 @ np.abs(y).astype(np.longdouble)
    assert (np.abs(whole.parts[0] - apart.parts[0]) <= 9 * np.finfo(np.longdouble).eps * size).all()
    assert (whole.parts[1] >= apart.parts[1] * (1 - 9 * xp.unit)).all()
    assert (whole.parts[1] <= 4 * apart.parts[1]).all()


def test_of_many_numbers_the_truth_is_first_sought_in_extended_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its running error encloses what balls enclose, and where it is too wide, balls are asked."""
    x = np.random.default_rng(0).standard_normal((6, 8))
    bound = np.full((6, 8), 1e-9)
    (balls,) = oracle(softmax, {"x": x}, (bound,))
    monkeypatch.setattr(oracles, "MANY", 0)
    (wide,) = oracle(softmax, {"x": x}, (bound,))
    assert (np.abs(balls.midpoint - wide.midpoint) <= balls.radius + wide.radius).all()
    assert (wide.radius > balls.radius).all()
    (sharp,) = oracle(softmax, {"x": x}, (wide.radius.max() * 32 + np.zeros((6, 8)),))
    np.testing.assert_array_equal(sharp.radius, balls.radius)
