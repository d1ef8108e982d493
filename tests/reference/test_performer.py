"""The definitions of random features and Performer attention; forms and backward are equal to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from assay.reference import performer as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact, enclosure
from assay.reference.arithmetic.oracle import differentiate, evaluate, lift
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.projection import KINDS


BY = ("q", "k", "v", "projection")

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sizes": st.tuples(*(st.integers(1, 4),) * 5),
        "kind": st.sampled_from(KINDS),
        "causal": st.booleans(),
        "eps": st.sampled_from((0.0, 0.01)),
        "stabilizer": st.sampled_from(reference.STABILIZERS),
    }
)


def drawn(seed: int, sizes: tuple[int, ...], **rest: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    t, s, d, e, r = sizes
    shapes = {"q": (1, 2, t, d), "k": (1, 2, t if rest["causal"] else s, d), "projection": (r, d)}
    shapes["v"] = (*shapes["k"][:-1], e)
    return {n: random.standard_normal(shapes[n]).astype(np.float32) for n in BY} | rest


def close(a: Any, b: Any, exact: Exact) -> bool:
    limit = exact.mp.mpf(2) ** -200
    return all(abs(x - y) < limit for x, y in zip(a.parts[0].ravel(), b.parts[0].ravel(), strict=True))


@settings(max_examples=40)
@given(arguments)
def test_forms_and_the_written_backward_are_the_definition(arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    cotangent = np.random.default_rng(0).standard_normal((*given_["q"].shape[:-1], given_["v"].shape[-1]))
    wanted, by = differentiate(reference.performer_attention, exact, given_, [cotangent], BY)
    for form in (reference.plain, reference.shifted):
        got, gradients = differentiate(form, exact, given_, [cotangent], BY)
        assert close(got[0], wanted[0], exact)
        assert all(close(gradients[n], by[n], exact) for n in BY)
    with exact.context():
        lifted = {name: lift(exact, value) for name, value in given_.items()}
        written = reference.backward((exact.lift(cotangent),), **lifted)
    assert all(close(w, by[n], exact) for n, w in zip(BY, written, strict=True))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 5))
def test_forms_of_features_are_the_definition(seed: int, kind: str, d: int, r: int) -> None:
    random, exact = np.random.default_rng(seed), Exact(300)
    given_ = {"x": random.standard_normal((2, 3, d)), "projection": random.standard_normal((r, d)), "kind": kind}
    (wanted,) = evaluate(reference.random_features, exact, given_)
    for form in (reference.exponent, reference.factors):
        assert close(evaluate(form, exact, given_)[0], wanted, exact)


@settings(max_examples=20)
@given(arguments)
def test_numpy_agrees_with_the_balls(arguments: dict[str, Any]) -> None:
    given_ = drawn(**arguments)
    got = reference.performer_attention(**{n: v.astype(np.float64) if n in BY else v for n, v in given_.items()})
    (out,) = evaluate(reference.performer_attention, Ball(113), given_)
    (bounded,) = evaluate(reference.performer_attention, Bounded(PRECISIONS["float64"]), given_)
    assert (np.abs(got - enclosure(out)[0]) <= bounded.parts[1]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_the_estimate(kind: str) -> None:
    """<phi(x), phi(y)> = c (1/r) sum g(<w, x +- y>)."""
    random, exact = np.random.default_rng(1), Exact(300)
    arrays = {"x": random.standard_normal((1, 3)), "y": random.standard_normal((1, 3))}

    def estimate(x: Any, y: Any, projection: Any) -> Any:
        phi, psi = (reference.random_features(z, projection, kind=kind) for z in (x, y))
        return phi @ psi.mT

    def wanted(x: Any, y: Any, projection: Any) -> Any:
        xp = x.xp
        half = (xp.sum(x * x) + xp.sum(y * y)) / 2
        if kind == "trigonometric":
            return xp.exp(half) * xp.mean(xp.cos(projection @ (x - y).mT), axis=0, keepdims=True)
        s = projection @ (x + y).mT
        g = xp.exp(s) if kind == "positive" else (xp.exp(s) + xp.exp(-s)) / 2
        return xp.exp(-half) * xp.mean(g, axis=0, keepdims=True)

    given_ = {**arrays, "projection": random.standard_normal((7, 3))}
    assert close(*(evaluate(text, exact, given_)[0] for text in (estimate, wanted)), exact)


def test_the_stabilizer_is_seen_with_eps_alone() -> None:
    given_ = drawn(3, (3, 4, 2, 2, 3), kind="positive", causal=False, eps=0.0, stabilizer="none")
    exact = Exact(300)

    def at(**changes: Any) -> Any:
        return evaluate(reference.performer_attention, exact, {**given_, **changes})[0]

    assert close(at(stabilizer="head"), at(), exact)
    assert close(at(stabilizer="batch"), at(), exact)
    seen = [at(eps=0.25, stabilizer=name) for name in reference.STABILIZERS]
    assert not any(close(a, b, exact) for i, a in enumerate(seen) for b in seen[:i])


def test_without_keys_there_is_nothing() -> None:
    out = reference.performer_attention(
        np.ones((1, 1, 2, 3)), np.ones((1, 1, 0, 3)), np.ones((1, 1, 0, 2)), np.ones((4, 3))
    )
    assert out.shape == (1, 1, 2, 2)
    assert not out.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "negative"}, "positive, trigonometric"),
        ({"stabilizer": "all"}, "none, head"),
        ({"causal": True}, "as many keys"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    q, k, w = np.ones((1, 1, 2, 2)), np.ones((1, 1, 3, 2)), np.ones((4, 2))
    with pytest.raises(ValueError, match=message):
        reference.performer_attention(q, k, k, w, **change)
