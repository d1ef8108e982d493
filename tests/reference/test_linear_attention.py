"""The definition of linear attention: golden figures recomputed, forms and backward equal to it, the bound holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from assay.reference import linear_attention as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate, lift, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded


SUMS = (reference.quadratic, reference.recurrent, reference.chunked)
ELUS = {"stable": None, "torch": reference.elu_and_one}
SINGLE = PRECISIONS["float32"]

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sizes": st.tuples(*(st.integers(1, 4),) * 4),
        "feature_map": st.sampled_from(reference.FEATURE_MAPS),
        "causal": st.booleans(),
        "normalize": st.booleans(),
        "eps": st.sampled_from((0.0, 0.375)),
        "denominator": st.sampled_from(reference.DENOMINATORS),
        "stateful": st.booleans(),
        "return_state": st.booleans(),
    }
)


def drawn(seed: int, sizes: tuple[int, ...], stateful: bool, **rest: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    t, s, d, e = sizes
    if rest["feature_map"] == "softmax":
        rest.update(causal=False, return_state=False)
        stateful = False
    if rest["causal"]:
        s = t
    shapes = {"q": (1, 2, t, d), "k": (1, 2, s, d), "v": (1, 2, s, e)}
    if stateful:
        shapes["state"] = (1, 2, d + (rest["feature_map"] == "1+x"), e + rest["normalize"])
    return {n: random.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()} | rest


def close(a: Any, b: Any, exact: Exact) -> bool:
    limit = exact.mp.mpf(2) ** -200
    return all(abs(x - y) <= limit * (1 + abs(x)) for x, y in zip(a.parts[0].ravel(), b.parts[0].ravel(), strict=True))


@pytest.mark.parametrize("maps", [{}, {"phi": reference.elu_and_one}, {"shares": True}], ids=["", "elu", "softmax"])
@pytest.mark.parametrize("sums", SUMS, ids=lambda f: f.__name__)
@settings(max_examples=25)
@given(arguments)
def test_every_form_is_the_definition(sums: Any, maps: dict[str, Any], arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    wanted = evaluate(reference.linear_attention, exact, given_)
    got = evaluate(reference.form(sums, **maps), exact, given_)
    assert all(close(a, b, exact) for a, b in zip(wanted, got, strict=True))


@settings(max_examples=15)
@given(arguments)
def test_the_written_backward_is_the_derivative(arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    random = np.random.default_rng(0)
    cotangents = [random.standard_normal(o.shape) for o in evaluate(reference.linear_attention, exact, given_)]
    names = tuple(n for n in ("q", "k", "v", "state") if n in given_)
    lifted = {name: lift(exact, value) for name, value in given_.items()}
    written = reference.backward(tuple(exact.lift(c) for c in cotangents), **lifted)
    for sums in SUMS[:2]:
        derived = differentiate(reference.form(sums), exact, given_, cotangents, names)[1]
        assert all(close(derived[n], w, exact) for n, w in zip(names, written, strict=True))


@settings(max_examples=15)
@given(arguments)
def test_numpy_agrees_with_the_balls(arguments: dict[str, Any]) -> None:
    given_ = drawn(**arguments)
    ball, bound = Ball(113), evaluate(reference.form(reference.chunked), Bounded(PRECISIONS["float32"]), given_)
    outputs = evaluate(reference.linear_attention, ball, given_)
    given_["eps"] = np.float32(given_["eps"])
    got = reference.linear_attention(**given_)
    for exact, value, limit in zip(outputs, got if isinstance(got, tuple) else (got,), bound, strict=True):
        wanted = np.array([float(x) for x in exact.parts[0].ravel()]).reshape(exact.shape)
        assert (~(np.abs(value - wanted) > limit.parts[1] + 1e-9)).all()


@given(st.floats(-80, 30, width=32))
def test_the_feature_map_as_torch_writes_it_loses_what_is_small(x: float) -> None:
    """The bound of elu(x) + 1 by expm1 is that of 1 below 0; that of exp(x) follows the number itself."""
    given_ = np.float32([[x]])

    def bound(elu: Any) -> Any:
        return evaluate(lambda q: reference.features(q, q, "elu+1", elu)[0], Bounded(SINGLE), {"q": given_})[0].parts[1]

    stable, lossy = map(bound, ELUS.values())
    assert (stable <= lossy).all()
    if x < -20:
        assert stable < 2**-20 * np.exp(np.longdouble(x))
        assert lossy > 2**-26


def test_features_that_add_up_to_one_share_their_roundings() -> None:
    """One key is seen, so that no query has a gradient; and a channel of it is so small that its feature is 0. Of a
    softmax the last channel then receives what the sum over the others leaves, which is 0 but for roundings."""
    random = np.random.default_rng(0)
    given_: dict[str, Any] = {n: random.standard_normal((1, 1, 1, 16)).astype(np.float32) for n in "qkv"}
    given_["k"][..., -1] = -4096
    cotangents = [random.standard_normal((1, 1, 1, 16))]
    of = {"feature_map": "exp", "eps": 0.0, "causal": True}

    def gradient(xp: Any, **maps: Any) -> Any:
        text = reference.form(reference.recurrent, **maps)
        return differentiate(text, xp, given_ | of, cotangents, ("q",))[1]["q"].parts

    off = np.abs(gradient(Rounded(SINGLE), shares=True)[0])[..., -1]
    assert off > gradient(Bounded(SINGLE))[1][..., -1]
    assert off <= gradient(Bounded(SINGLE), shares=True)[1][..., -1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "tf32", "float32-truncating"])
@settings(max_examples=10)
@given(arguments, st.integers(1, 6))
def test_every_chunk_size_keeps_the_bound_of_chunks(precision: str, arguments: dict[str, Any], size: int) -> None:
    """An honest kernel that works in chunks of any size, in emulated arithmetic."""

    def by_chunks(a: Any, b: Any, c: Any, over: str, state: Any) -> Any:
        if over == "all":
            return reference.recurrent(a, b, c, over, state)
        outs, now = [], state
        for start in range(0, a.shape[-2], size):
            rows = slice(start, start + size)
            outs.append(reference.quadratic(a[..., rows, :], b[..., rows, :], c[..., rows, :], over, now))
            step = b[..., rows, :].mT @ c[..., rows, :]
            now = step if now is None else now + step
        return a.xp.concat(outs, axis=-2)

    given_ = drawn(**arguments)
    bound = evaluate(reference.form(reference.chunked), Bounded(PRECISIONS[precision]), given_)
    limits = [b.parts[1].astype(np.float64) for b in bound]
    exact = oracle(reference.linear_attention, given_, limits)
    kernel = evaluate(reference.form(by_chunks), Rounded(PRECISIONS[precision]), given_)
    for got, truth, limit in zip(kernel, exact, limits, strict=True):
        judged = np.isfinite(limit)
        assert (np.abs(got.parts[0] - truth.midpoint) <= limit + truth.radius)[judged].all()


# Associativity -------------------------------------------------------------------------------------------------------


def three(seed: int, t: int, s: int, d: int, e: int, integers: bool = False) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    shapes = {"q": (t, d), "k": (s, d), "v": (s, e)}
    return {
        n: random.integers(-4, 5, shape).astype(np.float32) if integers else random.standard_normal(shape)
        for n, shape in shapes.items()
    }


@given(st.integers(0, 2**32 - 1), *(st.integers(1, 12),) * 4)
def test_the_bound_of_both_orders_is_that_of_the_textbook(seed: int, t: int, s: int, d: int, e: int) -> None:
    """|error| <= gamma_(s + d) |Q| |K|^T |V|, N. J. Higham, Accuracy and Stability, section 3.5."""
    given_ = three(seed, t, s, d, e)
    given_ = {n: x.astype(np.float32) for n, x in given_.items()}
    q, k, v = (np.abs(given_[n]).astype(np.longdouble) for n in "qkv")
    n = s + d
    gamma = n * SINGLE.working.u / (1 - n * SINGLE.working.u)
    for text in (reference.left, reference.right):
        (out,) = evaluate(text, Bounded(SINGLE), given_)
        assert (out.parts[1] <= gamma * (q @ k.T @ v) * (1 + 1e-6) + 1e-30).all()


@given(st.integers(0, 2**32 - 1), *(st.integers(1, 12),) * 4)
def test_small_integers_associate_bit_for_bit(seed: int, t: int, s: int, d: int, e: int) -> None:
    given_ = three(seed, t, s, d, e, integers=True)
    for text in (reference.left, reference.right):
        assert not evaluate(text, Bounded(SINGLE), given_)[0].parts[1].any()
    left, right = (reference.unnormalized_attention(**given_, order=order) for order in reference.ORDERS)
    np.testing.assert_array_equal(left, right)


def test_a_causal_mask_breaks_associativity() -> None:
    """M * (Q K^T) V is not Q (K^T V): for q = k = 1 and v = 1, 2 the first query sees 1, not 3."""
    q = np.ones((1, 1, 2, 1))
    v = np.array([1.0, 2.0]).reshape(1, 1, 2, 1)
    masked = reference.linear_attention(q, q, v, feature_map="identity", causal=True, normalize=False)
    assert masked.ravel().tolist() == [1.0, 3.0]
    assert reference.unnormalized_attention(q, q, v).ravel().tolist() == [3.0, 3.0]


# Figures and edges ---------------------------------------------------------------------------------------------------


E_TO_MINUS_1, E_TO_2 = "0.367879441171442321595523770161", "7.38905609893065022723042746058"
FIGURES = {
    "elu+1": ([-1, 0, 2], [E_TO_MINUS_1, "1", "3"]),
    "relu": ([-1, 0, 2], ["0", "0", "2"]),
    "identity": ([-1, 0, 2], ["-1", "0", "2"]),
    "exp": ([-1, 0, 2], [E_TO_MINUS_1, "1", E_TO_2]),
    "1+x": ([3, 4], ["1", "0.6", "0.8"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_features_are_those_of_the_note(name: str) -> None:
    """Each ball meets the figure, give or take one of its last digit."""
    x, figures = FIGURES[name]
    given_ = {"x": np.array([x], dtype=float)}
    with Ball(113).context():
        found = evaluate(lambda x: reference.features(x, x, name)[0], Ball(113), given_)[0].parts[0].ravel()
        for ball, figure in zip(found, figures, strict=True):
            assert ball.overlaps(flint.arb(figure, 1e-29)), (ball, figure)
            assert ball.rad() < flint.arb(1e-29)


def test_a_feature_of_nothing_is_nothing() -> None:
    assert reference.features(np.zeros((1, 2)), np.zeros((1, 2)), "1+x")[0].tolist() == [[1, 0, 0]]


@given(st.integers(0, 2**32 - 1))
def test_efficient_attention_is_row_stochastic(seed: int) -> None:
    random = np.random.default_rng(seed)
    q, k = random.standard_normal((2, 1, 1, 5, 3))
    given_ = {"q": q, "k": k, "v": np.ones((1, 1, 5, 2))}
    with Ball(113).context():
        out = evaluate(partial(reference.linear_attention, feature_map="softmax"), Ball(113), given_)[0].parts[0]
        assert all(ball.contains(1) and not ball.contains(1 + 2.0**-52) for ball in out.ravel())


@pytest.mark.parametrize("feature_map", ["relu", "identity", "1+x"])
def test_a_zero_denominator_gives_zero_and_no_gradient(feature_map: str) -> None:
    """relu sees nothing of -1, keys cancel, directions are opposite."""
    k = np.array([1.0, -1.0 if feature_map == "identity" else 1.0]).reshape(1, 1, 2, 1)
    given_ = {"q": np.full((1, 1, 1, 1), -1.0), "k": k, "v": np.arange(1.0, 3).reshape(1, 1, 2, 1)}
    given_["feature_map"] = feature_map
    cotangents = [np.ones((1, 1, 1, 1))]
    outs, gradients = differentiate(reference.linear_attention, Ball(113), given_, cotangents, ("q", "k", "v"))
    assert all(x == 0 for array in (*outs, *gradients.values()) for x in array.parts[0].ravel())
    assert not reference.linear_attention(**given_).any()
    bound = evaluate(reference.form(reference.chunked), Bounded(SINGLE), given_)[0]
    assert not bound.parts[1].any()


def test_what_may_be_zero_is_not_judged() -> None:
    """0.1 + 0.2 - 0.3 in float32: a kernel may find a denominator of 0, or not."""
    k = np.array([0.1, 0.2, -0.3], np.float32).reshape(1, 1, 3, 1)
    given_ = {"q": np.full((1, 1, 1, 1), 1 / 3, np.float32), "k": k, "v": np.ones_like(k), "feature_map": "identity"}
    for sums in SUMS:
        assert np.isinf(evaluate(reference.form(sums), Bounded(SINGLE), given_)[0].parts[1]).all()


def test_no_key_gives_zero() -> None:
    for feature_map in reference.FEATURE_MAPS:
        q, k = np.ones((1, 2, 3, 4)), np.ones((1, 2, 0, 4))
        out = reference.linear_attention(q, k, np.ones((1, 2, 0, 5)), feature_map=feature_map)
        assert out.shape == (1, 2, 3, 5)
        assert not out.any()


@pytest.mark.parametrize("sums", SUMS)
def test_no_key_leaves_the_state(sums: Any) -> None:
    state = np.arange(12.0).reshape(1, 1, 4, 3)
    nothing = np.ones((1, 1, 0, 4))
    given_ = {"q": np.ones((1, 1, 2, 4)), "k": nothing, "v": np.ones((1, 1, 0, 2)), "state": state}
    for text in (reference.linear_attention, reference.form(sums)):
        _, after = evaluate(text, Exact(100), {**given_, "return_state": True})
        assert np.array_equal(after.parts[0].astype(float), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature_map": "cosine"}, "elu"),
        ({"denominator": "minus"}, "plus, clamp"),
        ({"causal": True}, "as many keys as queries"),
        ({"feature_map": "softmax", "return_state": True}, "neither causal nor continued"),
        ({"state": np.ones((1, 1, 2, 2))}, "2 features and 3 columns"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    given_ = {"q": np.ones((1, 1, 3, 2)), "k": np.ones((1, 1, 2, 2)), "v": np.ones((1, 1, 2, 2))}
    with pytest.raises(ValueError, match=message):
        reference.linear_attention(**given_ | change)
    with pytest.raises(ValueError, match="right, left"):
        reference.unnormalized_attention(**given_, order="middle")
