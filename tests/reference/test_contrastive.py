"""The definitions of the contrastive losses: golden figures recomputed by balls, forms and backward equal to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from assay.reference import contrastive as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate, lift
from assay.reference.arithmetic.precision import PRECISIONS


CLIP = (reference.logsumexp, reference.online, reference.merged)
SIGLIP = (reference.log_sigmoid, reference.logarithm, reference.subtracted)

common = {
    "seed": st.integers(0, 2**32 - 1),
    "n": st.integers(1, 6),
    "d": st.integers(1, 4),
    "positives": st.booleans(),
    "scale": st.sampled_from((0.0, -0.7, 1.3, 20.0)),
}
of_clip = st.fixed_dictionaries(
    {
        **common,
        "normalisation": st.sampled_from(reference.NORMALISATIONS["clip"]),
        "directions": st.sampled_from(reference.DIRECTIONS),
    }
)
of_siglip = st.fixed_dictionaries(
    {
        **common,
        "normalisation": st.sampled_from(reference.NORMALISATIONS["siglip"]),
        "bias": st.sampled_from((-10.0, 0.0, 1.7)),
    }
)
FORMS = [
    *((reference.clip_loss, form, reference.clip_backward, of_clip) for form in CLIP),
    *((reference.siglip_loss, form, reference.siglip_backward, of_siglip) for form in SIGLIP),
]
each_form = pytest.mark.parametrize(
    ("definition", "form", "backward", "arguments"), FORMS, ids=lambda f: getattr(f, "__name__", "")
)


def drawn(seed: int, n: int, d: int, positives: bool, **rest: Any) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    out: dict[str, Any] = {name: random.standard_normal((n, d)).astype(np.float32) for name in ("image", "text")}
    if positives:
        out["positives"] = random.random((n, n)) < 0.4  # some rows may have none
    return out | rest


def close(a: Any, b: Any, exact: Exact) -> bool:
    limit = exact.mp.mpf(2) ** -300
    return all(abs(x - y) < limit for x, y in zip(a.parts[0].ravel(), b.parts[0].ravel(), strict=True))


@each_form
def test_every_form_is_the_definition(definition: Any, form: Any, backward: Any, arguments: Any) -> None:
    @settings(max_examples=40)
    @given(arguments)
    def check(drawn_arguments: dict[str, Any]) -> None:
        exact, given_ = Exact(400), drawn(**drawn_arguments)
        (wanted,), (got,) = evaluate(definition, exact, given_), evaluate(form, exact, given_)
        assert close(wanted, got, exact)

    check()


@each_form
def test_the_written_backward_is_the_derivative(definition: Any, form: Any, backward: Any, arguments: Any) -> None:
    @settings(max_examples=15)
    @given(arguments)
    def check(drawn_arguments: dict[str, Any]) -> None:
        exact, given_ = Exact(400), drawn(**drawn_arguments)
        by = ("image", "text", "scale") + (("bias",) if "bias" in given_ else ())
        lifted = {name: lift(exact, value) for name, value in given_.items()}
        written = backward((exact.lift(np.asarray(1.25)),), **lifted)
        for text in (definition, form):
            derived = differentiate(text, exact, given_, [np.asarray(1.25)], by)[1]
            assert all(close(derived[name], w, exact) for name, w in zip(by, written, strict=True))

    check()


@each_form
def test_numpy_agrees_with_the_balls(definition: Any, form: Any, backward: Any, arguments: Any) -> None:
    @settings(max_examples=20)
    @given(arguments)
    def check(drawn_arguments: dict[str, Any]) -> None:
        given_ = drawn(**drawn_arguments)
        (ball,) = evaluate(definition, Ball(113), given_)
        wide = {n: v.astype(np.float64) if n in ("image", "text") else v for n, v in given_.items()}
        for text in (definition, form):
            assert is_within_the_bound(text, wide, ball.parts[0][()])

    check()


def is_within_the_bound(text: Any, arguments: dict[str, Any], exact: flint.arb) -> bool:
    """Is what NumPy computes in double within the derived bound, which is finite?"""
    with np.errstate(over="ignore"):
        got = float(text(**arguments))
    (bounded,) = evaluate(text, Bounded(PRECISIONS["float64"]), arguments)
    bound = float(bounded.parts[1])
    with Ball(113).context():
        return bound < np.inf and not abs(exact - got) > bound


# Golden figures of the note (E1, E2), recomputed ----------------------------------------------------------------------


def value(definition: Callable[..., Any], **arguments: Any) -> flint.arb:
    with Ball(200).context():
        return evaluate(definition, Ball(200), arguments)[0].parts[0][()]


def is_printed_as(ball: flint.arb, digits: str) -> bool:
    """The figure is the value, rounded to its digits or cut off there."""
    with Ball(200).context():
        unit = flint.arb(10) ** -len(digits.partition(".")[2])
        return bool(abs(ball - flint.arb(digits)) <= unit)


def simplex(n: int) -> Any:
    """Rows of a Sylvester matrix without its first column: n vectors of n - 1 channels, <x, x> = n - 1, <x, y> = -1."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix[:, 1:]


@pytest.mark.parametrize(
    ("n", "apart", "aligned"),
    [
        (1, "10.0000453989", ".6931471806"),
        (2, "10.0000907978", ".6931925795"),
        (16, "10.0007263824", ".6938281640"),
    ],
)
def test_siglip_at_its_initialisation(n: int, apart: str, aligned: str) -> None:
    images, others = np.eye(n, 2 * n), np.eye(n, 2 * n, k=n)
    assert is_printed_as(value(reference.siglip_loss, image=images, text=others, scale=10.0, bias=-10.0), apart)
    assert is_printed_as(value(reference.siglip_loss, image=images, text=images, scale=10.0, bias=-10.0), aligned)


@pytest.mark.parametrize(
    ("n", "apart", "aligned"), [(1024, "10.0464884728", ".7395902545"), (32768, "11.4876311295", "2.1807329112")]
)
def test_siglip_at_its_initialisation_in_large_batches(n: int, apart: str, aligned: str) -> None:
    """Through additivity: n positive terms and n (n - 1) negative ones, each from batches of one and two."""
    with Ball(200).context():

        def total(image: Any, text: Any) -> flint.arb:
            return len(image) * value(reference.siglip_loss, image=image, text=text, scale=10.0, bias=-10.0)

        orthogonal = np.eye(1, 2), np.eye(1, 2, k=1)
        one, two = total(*orthogonal), total(np.eye(2, 4), np.eye(2, 4, k=2))
        negative = (two - 2 * one) / 2
        assert is_printed_as(one + (n - 1) * negative, apart)
        assert is_printed_as(total(np.eye(1), np.eye(1)) + (n - 1) * negative, aligned)


def test_clip_of_equal_scores_is_the_logarithm_of_the_number() -> None:
    with Ball(200).context():
        for n in (1, 2, 7):
            got = value(reference.clip_loss, image=np.ones((n, 2)), text=np.ones((n, 2)), scale=14.25)
            assert got.overlaps(flint.arb(n).log())


def test_clip_on_a_simplex() -> None:
    """ln(1 + (n - 1) exp(-c n / (n - 1))) with unit vectors; n = 5, c = 3 is the note's figure."""
    with Ball(200).context():
        # Unit vectors of a simplex of five are not representable: the same scores through the identity.
        scores = np.where(np.eye(5, dtype=bool), 4.0, -1.0)
        got = value(reference.clip_loss, image=scores, text=np.eye(5), scale=0.75)
        assert is_printed_as(got, "0.08990558619474")
        for n in (2, 4, 8):
            got = value(reference.clip_loss, image=simplex(n), text=simplex(n), scale=0.5)
            assert got.overlaps((1 + (n - 1) * (flint.arb(-n) / 2).exp()).log())


def test_a_small_loss_is_not_lost() -> None:
    """Two aligned pairs at scale 100: exp(-200), where double gives 0 for lse - s_ii."""
    pair = np.array([[1.0], [-1.0]])
    arguments: dict[str, Any] = {"image": pair, "text": pair, "scale": 100.0}
    with Ball(200).context():
        exact = value(reference.clip_loss, **arguments)
        assert exact.overlaps(flint.arb(-200).exp().log1p())
    assert is_within_the_bound(reference.clip_loss, arguments, exact)
    (bounded,) = evaluate(reference.clip_loss, Bounded(PRECISIONS["float64"]), arguments)
    assert float(bounded.parts[1]) < float(exact)  # so that 0 would not be


def test_the_gradient_of_siglip_has_no_kink() -> None:
    """At l = 0 exactly, each logit has slope -z / 2."""
    zeros = {"image": np.zeros((2, 1)), "text": np.ones((2, 1)), "scale": 1.0, "bias": 0.0}
    found = differentiate(reference.siglip_loss, Ball(113), zeros, [np.asarray(1.0)], ("bias", "image"))[1]
    assert float(found["bias"].parts[0][()]) == 0
    image = differentiate(
        reference.siglip_loss, Ball(113), {**zeros, "text": np.eye(2, 1)}, [np.asarray(1.0)], ("image",)
    )[1]["image"]
    assert [float(x) for x in image.parts[0].ravel()] == [-0.25, 0.25]


def test_every_row_of_several_positives_costs_at_least_the_logarithm_of_their_number() -> None:
    random = np.random.default_rng(3)
    own = np.kron(np.eye(2, dtype=bool), np.ones((3, 3), dtype=bool))
    for _ in range(20):
        image, text = random.standard_normal((2, 6, 3)) * 4
        loss = value(reference.clip_loss, image=image, text=text, scale=1.0, positives=own)
        with Ball(200).context():
            assert loss >= flint.arb(3).log()


@pytest.mark.parametrize("definition", [reference.clip_loss, reference.siglip_loss])
def test_an_unknown_convention_is_told(definition: Any) -> None:
    bias = {"bias": 0.0} if definition is reference.siglip_loss else {}
    with pytest.raises(ValueError, match="normalisation must be one of n, "):
        definition(np.eye(2), np.eye(2), scale=1, **bias, normalisation="mean")
    if not bias:
        with pytest.raises(ValueError, match="directions must be one of averaged, "):
            definition(np.eye(2), np.eye(2), scale=1, directions="both")


@pytest.mark.parametrize("definition", [reference.clip_loss, reference.siglip_loss])
def test_positives_of_another_shape_mean_nothing(definition: Any) -> None:
    bias = {"bias": 0.0} if definition is reference.siglip_loss else {}
    with pytest.raises(ValueError, match=r"positives must be \[2, 2\], not \[3, 3\]"):
        definition(np.eye(2), np.eye(2), scale=1, **bias, positives=np.eye(3, dtype=bool))
