"""The definition of softmax attention: golden figures recomputed, forms and backward equal to it."""

from __future__ import annotations

from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from assay.reference import attention as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate, lift, oracle
from assay.reference.arithmetic.precision import PRECISIONS


FORMS = (reference.shifted, reference.naive, reference.online)

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sizes": st.tuples(*(st.integers(1, 5),) * 4),
        "groups": st.sampled_from(((1, 1), (2, 1), (4, 2), (3, 3))),
        "mask": st.sampled_from((None, "boolean", "bias")),
        "causal": st.booleans(),
        "alignment": st.sampled_from(reference.ALIGNMENTS),
        "unseeing": st.sampled_from(reference.UNSEEING),
        "grouping": st.sampled_from(reference.GROUPINGS),
        "scale": st.sampled_from((None, 0.0, -0.7, 1.3)),
        "return_lse": st.booleans(),
    }
)


def drawn(seed: int, sizes: tuple[int, ...], groups: tuple[int, int], mask: str | None, **rest: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    (t, s, d, e), (h, g) = sizes, groups
    shapes = {"q": (2, h, t, d), "k": (2, g, s, d), "v": (2, g, s, e)}
    out: dict[str, Any] = {n: random.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    if mask is not None:
        visible = random.random((1, h, t, s)) < 0.6
        out["mask"] = (
            visible if mask == "boolean" else np.where(visible, random.integers(-8, 9, visible.shape), -np.inf)
        )
    return out | rest


def close(a: Any, b: Any, exact: Exact) -> bool:
    limit = exact.mp.mpf(2) ** -300
    return all(x == y or abs(x - y) < limit for x, y in zip(a.parts[0].ravel(), b.parts[0].ravel(), strict=True))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
@given(arguments)
def test_every_form_is_the_definition(form: Any, arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(400), drawn(**arguments)
    wanted, got = evaluate(reference.softmax_attention, exact, given_), evaluate(form, exact, given_)
    assert all(close(a, b, exact) for a, b in zip(wanted, got, strict=True))


@settings(max_examples=30)
@given(arguments)
def test_the_written_backward_is_the_derivative(arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(400), drawn(**arguments)
    outputs = evaluate(reference.softmax_attention, exact, given_)
    random = np.random.default_rng(0)
    cotangents = [random.standard_normal(o.shape) for o in outputs]
    lifted = {name: lift(exact, value) for name, value in given_.items()}
    written = reference.backward(tuple(exact.lift(c) for c in cotangents), **lifted)
    for text in (reference.softmax_attention, *FORMS):
        derived = differentiate(text, exact, given_, cotangents, ("q", "k", "v"))[1]
        assert all(close(derived[n], w, exact) for n, w in zip("qkv", written, strict=True))


@given(arguments)
def test_numpy_agrees_with_the_balls(arguments: dict[str, Any]) -> None:
    given_ = drawn(**arguments)
    outputs = evaluate(reference.softmax_attention, Ball(113), given_)
    bounds = evaluate(reference.softmax_attention, Bounded(PRECISIONS["float32"]), given_)
    got = reference.softmax_attention(**given_)
    for ball, bound, value in zip(outputs, bounds, got if isinstance(got, tuple) else (got,), strict=True):
        wanted = np.array([float(x) for x in ball.parts[0].ravel()]).reshape(ball.shape)
        with np.errstate(invalid="ignore"):  # minus infinity is minus infinity
            assert np.all((value == wanted) | (np.abs(value - wanted) <= bound.parts[1]))


# Golden figures of the note -------------------------------------------------------------------------------------------


def weights(scores: list[Any]) -> list[flint.arb]:
    """softmax(scores), as what attention with unit vectors for values returns."""
    q = np.ones((1, 1, 1, 1))
    k = np.asarray(scores, dtype=np.float64).reshape(1, 1, -1, 1)
    v = np.eye(len(scores)).reshape(1, 1, len(scores), len(scores))
    with Ball(200).context():
        (out,) = evaluate(reference.softmax_attention, Ball(200), {"q": q, "k": k, "v": v, "scale": 1.0})
        return list(out.parts[0].ravel())


def test_weights_are_the_exponentials_over_their_sum() -> None:
    scores = [0.5, -1.25, 3.0]
    with Ball(200).context():
        total = sum((flint.arb(s).exp() for s in scores), flint.arb(0))
        assert all((flint.arb(s).exp() / total).overlaps(w) for s, w in zip(scores, weights(scores), strict=True))


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
def test_the_mean_distance_to_the_maximum_is_at_most_the_logarithm_of_the_number(scores: list[float]) -> None:
    """sum_k p_k (m - s_k) <= ln n."""
    with Ball(200).context():
        top = max(scores)
        mean = sum((w * (flint.arb(top) - s) for s, w in zip(scores, weights(scores), strict=True)), flint.arb(0))
        assert not mean > flint.arb(len(scores)).log()


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6))
def test_the_jacobian_is_at_most_a_quarter_by_element_and_a_half_in_norm(scores: list[float]) -> None:
    """|dp_i/ds_j| = |p_i (delta_ij - p_j)| <= 1/4, and the sum of a row <= 1/2."""
    with Ball(200).context():
        p = weights(scores)
        for i, own in enumerate(p):
            row = [abs(own * ((i == j) - other)) for j, other in enumerate(p)]
            assert not any(x > flint.arb(1) / 4 for x in row)
            assert not sum(row, flint.arb(0)) > flint.arb(1) / 2


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_parts_merge(seed: int, cut: int) -> None:
    """O = sum over parts of exp(LSE_p - LSE) O_p, LSE = ln sum exp(LSE_p)."""
    given_ = drawn(seed, (2, 7, 3, 2), (2, 1), None, return_lse=True)
    exact = Exact(400)

    def part(rows: slice) -> Any:
        return evaluate(
            reference.softmax_attention,
            exact,
            {**given_, "k": given_["k"][..., rows, :], "v": given_["v"][..., rows, :]},
        )

    (whole, lse), parts = part(slice(None)), [part(slice(0, cut)), part(slice(cut, None))]
    merged = exact.zeros(whole.shape)
    for out, own in parts:
        merged = merged + exact.exp(own - lse)[..., None] * out
    assert close(merged, whole, exact)


@pytest.mark.parametrize("grouping", reference.GROUPINGS)
@pytest.mark.parametrize("mask", [None, "boolean", "bias"])
def test_each_query_head_attends_to_one_key_head(grouping: str, mask: str | None) -> None:
    given_ = drawn(0, (3, 4, 2, 2), (6, 2), mask, grouping=grouping)
    exact, h, g = Exact(400), 6, 2
    (whole,) = evaluate(reference.softmax_attention, exact, given_)
    for n in range(h):
        own = n % g if grouping == "interleaved" else n // (h // g)
        alone: dict[str, Any] = {"q": given_["q"][:, [n]], "k": given_["k"][:, [own]], "v": given_["v"][:, [own]]}
        if mask is not None:
            alone["mask"] = given_["mask"][:, [n]]
        (part,) = evaluate(reference.softmax_attention, exact, alone)
        assert close(part, whole[:, n : n + 1], exact)


def test_minus_infinity_is_exact_and_a_row_that_sees_nothing_is_zero() -> None:
    given_ = drawn(0, (3, 2, 2, 2), (1, 1), None, causal=True, return_lse=True)
    out, lse = oracle(reference.softmax_attention, given_, [np.full((2, 1, 3, 2), 1e-6), np.full((2, 1, 3), 1e-6)])
    assert (out.midpoint[:, :, 0] == 0).all()
    assert (out.radius[:, :, 0] == 0).all()
    assert (lse.midpoint[:, :, 0] == -np.inf).all()
    assert (lse.radius[:, :, 0] == 0).all()
    assert np.isfinite(lse.midpoint[:, :, 1:]).all()


def test_no_key_gives_zero() -> None:
    q, k = np.ones((1, 2, 3, 4)), np.ones((1, 1, 0, 4))
    out, lse = reference.softmax_attention(q, k, np.ones((1, 1, 0, 5)), return_lse=True)
    assert out.shape == (1, 2, 3, 5)
    assert not out.any()
    assert (lse == -np.inf).all()


def test_integers_need_no_error() -> None:
    """Equal scores of few bits, as many as a power of two, and integer values: every step is exact."""
    given_ = {"q": np.ones((1, 1, 2, 4)), "k": np.ones((1, 1, 4, 4)), "v": np.arange(8.0).reshape(1, 1, 4, 2)}
    for precision in ("float32", "bfloat16", "float16", "tf32"):
        (out,) = evaluate(reference.softmax_attention, Bounded(PRECISIONS[precision]), {**given_, "scale": 0.5})
        assert not out.parts[1].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"alignment": "sideways"}, "bottom-right, top-left"), ({"k": np.ones((1, 2, 2, 2))}, "do not divide")],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    given_ = {"q": np.ones((1, 3, 2, 2)), "k": np.ones((1, 1, 2, 2)), "v": np.ones((1, 1, 2, 2))}
    with pytest.raises(ValueError, match=message):
        reference.softmax_attention(**{**given_, **change})
