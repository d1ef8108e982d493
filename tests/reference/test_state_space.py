"""The definitions of the scan and the kernel of a state space: forms equal to them, figures, and bounds that hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from assay.reference import state_space as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded


SCANS = (reference.one_by_one, reference.convolution, reference.associative, reference.chunked)
KERNELS = (reference.ssm_kernel, reference.by_rows, reference.by_powers, reference.doubling)

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sizes": st.tuples(st.integers(1, 3), st.integers(0, 12), st.integers(1, 4)),
        "stated": st.booleans(),
    }
)


def drawn(seed: int, sizes: tuple[int, ...], stated: bool) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    b, t, n = sizes
    shapes = {"u": (b, t), "Ab": (n, n), "Bb": (n,), "C": (n,), **({"state": (b, n)} if stated else {})}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def system(given_: dict[str, Any]) -> dict[str, Any]:
    return {name: given_[name] for name in ("Ab", "Bb", "C")}


def close(a: Any, b: Any, exact: Exact) -> bool:
    limit = exact.mp.mpf(2) ** -200
    pairs = zip(a.parts[0].ravel(), b.parts[0].ravel(), strict=True)
    return a.shape == b.shape and all(abs(x - y) <= limit * (1 + abs(x)) for x, y in pairs)


@pytest.mark.parametrize("scan", SCANS, ids=lambda f: f.__name__)
@settings(max_examples=20)
@given(arguments)
def test_every_form_of_the_scan_is_the_definition(scan: Any, arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    wanted, got = (evaluate(text, exact, given_) for text in (reference.ssm_scan, reference.form(scan)))
    assert all(close(a, b, exact) for a, b in zip(wanted, got, strict=True))


@pytest.mark.parametrize("t", [64, 65, 130])
def test_chunks_are_joined(t: int) -> None:
    exact, given_ = Exact(300), drawn(t, (2, t, 2), True)
    wanted, got = (evaluate(text, exact, given_) for text in (reference.ssm_scan, reference.form(reference.chunked)))
    limit = exact.mp.mpf(2) ** -100
    for a, b in zip(wanted, got, strict=True):
        assert all(abs(x - y) <= limit * (1 + abs(x)) for x, y in zip(a.parts[0].flat, b.parts[0].flat, strict=True))


@pytest.mark.parametrize("text", KERNELS, ids=lambda f: f.__name__)
@settings(max_examples=20)
@given(arguments, st.integers(0, 20))
def test_every_form_of_the_kernel_is_the_definition(text: Any, arguments: dict[str, Any], length: int) -> None:
    exact, given_ = Exact(300), system(drawn(**arguments))
    wanted, got = (evaluate(partial(f, length=length), exact, given_)[0] for f in (reference.ssm_kernel, text))
    assert close(wanted, got, exact)
    assert got.shape == (length,)


@settings(max_examples=20)
@given(arguments)
def test_the_response_to_an_impulse_is_the_kernel(arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    t = given_["u"].shape[1]
    impulse = np.zeros((1, t))
    impulse[:, :1] = 1
    (kernel,) = evaluate(partial(reference.ssm_kernel, length=t), exact, system(given_))
    response, _ = evaluate(reference.ssm_scan, exact, system(given_) | {"u": impulse})
    assert close(kernel, response[0], exact)


@pytest.mark.parametrize("precision", ["float32", "float32-truncating"])
@pytest.mark.parametrize("order", ["forward", "pairwise"])
@pytest.mark.parametrize("name", [f.__name__ for f in (*SCANS, *KERNELS)])
def test_emulated_kernels_keep_the_bound_of_their_form(name: str, order: str, precision: str) -> None:
    """Outputs and gradients, over matrices of any kind."""
    for seed in range(6):
        given_ = drawn(seed, (2, (1, 2, 5, 9, 17, 70)[seed], 2), seed % 2 == 0)
        if name in {f.__name__ for f in SCANS}:
            text: Any = reference.form(getattr(reference, name))
        else:
            text, given_ = partial(getattr(reference, name), length=given_["u"].shape[1] + 1), system(given_)
        bounded, rounded = Bounded(PRECISIONS[precision]), Rounded(PRECISIONS[precision], order=order)
        random = np.random.default_rng(1)
        cotangents = [random.standard_normal(o.shape).astype(np.float32) for o in evaluate(text, bounded, given_)]
        runs = [differentiate(text, xp, given_, cotangents, list(given_)) for xp in (bounded, Ball(300), rounded)]
        for limit, truth, got in zip(*([*o, *g.values()] for o, g in runs), strict=True):
            wanted = np.array([float(x) for x in truth.parts[0].flat]).reshape(truth.shape)
            known, error = limit.parts[1], np.abs(got.parts[0] - wanted)
            assert (error <= known + np.abs(wanted) * 2.0**-52)[np.isfinite(known)].all()


def test_one_state_is_a_geometric_series() -> None:
    """Ab = 1/2 and Bb = C = 1: K_l = 2**-l, and y of ones is 2 - 2**-k, exactly in every arithmetic."""
    half = {"Ab": np.array([[0.5]]), "Bb": np.ones(1), "C": np.ones(1)}
    powers = 2.0 ** -np.arange(10)
    for text in KERNELS:
        assert (text(**half, length=10) == powers).all()
    for scan in SCANS:
        y, state = reference.form(scan)(np.ones((1, 10)), **half)
        assert (y == 2 - powers).all()
        assert state == 2 - powers[-1]


@pytest.mark.parametrize(("name", "shape"), [("Ab", (2, 3)), ("Bb", (3,)), ("C", (2, 1)), ("state", (2,)), ("u", (4,))])
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    given_ = drawn(0, (2, 3, 2), True) | {name: np.ones(shape)}
    with pytest.raises(ValueError, match=name):
        reference.ssm_scan(**given_)
    if name in ("Ab", "Bb", "C"):
        with pytest.raises(ValueError, match=name):
            reference.ssm_kernel(**system(given_), length=3)


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        reference.ssm_kernel(np.eye(1), np.ones(1), np.ones(1), length=-1)
