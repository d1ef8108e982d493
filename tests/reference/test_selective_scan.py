"""The definition of the selective scan: forms and backward equal to it, figures recomputed, the bounds hold."""

from __future__ import annotations

from typing import Any

import flint
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from assay.reference import selective_scan as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate, lift, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded


SCANS = (reference.sequential, reference.associative, reference.chunked)
SINGLE = PRECISIONS["float32"]

arguments = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "sizes": st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 6), st.integers(1, 3)),
        "given_": st.sets(st.sampled_from(("D", "state"))),
    }
)


def drawn(seed: int, sizes: tuple[int, ...], given_: set[str]) -> dict[str, Any]:
    """Steps of no length, of some, and such as forget everything."""
    random = np.random.default_rng(seed)
    b, d, t, n = sizes
    shapes = {"u": (b, d, t), "A": (d, n), "B": (b, n, t), "C": (b, n, t), "D": (d,), "state": (b, d, n)}
    out = {name: random.standard_normal(shape) for name, shape in shapes.items() if name not in {"D", "state"} - given_}
    out["delta"] = random.choice((0.0, 1.0, 300.0), (b, d, t), p=(0.1, 0.8, 0.1)) * random.random((b, d, t))
    out["A"] = -np.abs(out["A"])
    return {name: x.astype(np.float32) for name, x in out.items()}


def names(arguments: dict[str, Any]) -> tuple[str, ...]:
    return tuple(n for n in ("u", "delta", "A", "B", "C", "D", "state") if n in arguments)


def close(a: Any, b: Any, exact: Exact) -> bool:
    limit = exact.mp.mpf(2) ** -200
    return all(abs(x - y) <= limit * (1 + abs(x)) for x, y in zip(a.parts[0].ravel(), b.parts[0].ravel(), strict=True))


@pytest.mark.parametrize("scan", SCANS, ids=lambda f: f.__name__)
@settings(max_examples=15)
@given(arguments)
def test_every_form_is_the_definition(scan: Any, arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    wanted, got = (evaluate(text, exact, given_) for text in (reference.selective_scan, reference.form(scan)))
    assert all(close(a, b, exact) for a, b in zip(wanted, got, strict=True))


@settings(max_examples=10)
@given(arguments)
def test_decays_are_the_same_either_way(arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    a = exact.exp(reference.exponents_and_inputs(*(exact.lift(given_[n]) for n in ("u", "delta", "A", "B")))[0])
    assert close(reference._from_the_first(a), reference._from_the_last(a), exact)


@settings(max_examples=10)
@given(arguments)
def test_the_written_backward_is_the_derivative(arguments: dict[str, Any]) -> None:
    exact, given_ = Exact(300), drawn(**arguments)
    random = np.random.default_rng(0)
    cotangents = [random.standard_normal(o.shape) for o in evaluate(reference.selective_scan, exact, given_)]
    lifted = {name: lift(exact, value) for name, value in given_.items()}
    written = reference.backward(tuple(exact.lift(c) for c in cotangents), **lifted)
    derived = differentiate(reference.selective_scan, exact, given_, cotangents, names(given_))[1]
    assert all(close(derived[n], w, exact) for n, w in zip(names(given_), written, strict=True))


@settings(max_examples=10)
@given(arguments)
def test_numpy_agrees_with_the_balls(arguments: dict[str, Any]) -> None:
    given_ = drawn(**arguments)
    bound = [b.parts[1].astype(np.float64) for b in evaluate(reference.selective_scan, Bounded(SINGLE), given_)]
    exact = oracle(reference.selective_scan, given_, bound)
    for got, truth, limit in zip(reference.selective_scan(**given_), exact, bound, strict=True):
        assert (np.abs(got - truth.midpoint) <= limit + truth.radius).all()


# Bounds --------------------------------------------------------------------------------------------------------------


def joined(size: int) -> Any:
    """Stretches of `size` positions, each as a tree, one joined to the other."""

    def tree(a: Any, x: Any) -> tuple[Any, Any]:
        """Decays since the first position, and states from 0."""
        xp, t = a.xp, a.shape[-1]
        if t == 1:
            return a, x
        (p, h), (q, g) = (tree(a[..., part], x[..., part]) for part in (slice(t // 2), slice(t // 2, None)))
        return xp.concat([p, q * p[..., -1:]], axis=-1), xp.concat([h, q * h[..., -1:] + g], axis=-1)

    def scan(z: Any, x: Any, state: Any) -> Any:
        a, states = z.xp.exp(z), []
        for start in range(0, z.shape[-1], size):
            here = slice(start, start + size)
            p, h = tree(a[..., here], x[..., here])
            states.append(h if state is None else p * state[..., None] + h)
            state = states[-1][..., -1]
        return z.xp.concat(states, axis=-1) if states else x

    return scan


def by_sums(size: int) -> Any:
    """Cumulative sums within chunks, the state before a chunk decayed by them."""

    def scan(z: Any, x: Any, state: Any) -> Any:
        states = []
        for start in range(0, z.shape[-1], size):
            here = slice(start, start + size)
            states.append(reference.weighted(reference.differences(z[..., here]), x[..., here], state))
            state = states[-1][..., -1]
        return z.xp.concat(states, axis=-1) if states else x

    return scan


@pytest.mark.parametrize("precision", ["float32", "float32-truncating"])
@pytest.mark.parametrize(("scan", "kernel"), [("associative", joined), ("chunked", by_sums), ("chunked", joined)])
@settings(max_examples=15)
@given(arguments, st.integers(1, 6))
def test_every_order_and_chunk_keeps_the_bound(
    scan: str, kernel: Any, precision: str, arguments: dict[str, Any], size: int
) -> None:
    """Honest kernels in emulated arithmetic, and their gradients by the tape."""
    given_ = drawn(**arguments)
    text, honest = reference.form(getattr(reference, scan)), reference.form(kernel(size))
    bounded, rounded = Bounded(PRECISIONS[precision]), Rounded(PRECISIONS[precision])
    random = np.random.default_rng(1)
    cotangents = [random.standard_normal(o.shape).astype(np.float32) for o in evaluate(text, bounded, given_)]
    by = names(given_)
    outputs, gradients = differentiate(text, bounded, given_, cotangents, by)
    written = reference.backward(
        tuple(bounded.lift(c) for c in cotangents), **{n: lift(bounded, v) for n, v in given_.items()}
    )
    exact = differentiate(reference.selective_scan, Ball(200), given_, cotangents, by)
    got = differentiate(honest, rounded, given_, cotangents, by)
    limits = [o.parts[1] for o in outputs]
    limits += [np.maximum(gradients[n].parts[1], w.parts[1]) for n, w in zip(by, written, strict=True)]
    truths = [*exact[0], *(exact[1][n] for n in by)]
    for value, truth, limit in zip((*got[0], *(got[1][n] for n in by)), truths, limits, strict=True):
        wanted = np.array([float(x) for x in truth.parts[0].ravel()]).reshape(truth.shape)
        assert (np.abs(value.parts[0] - wanted) <= limit + np.abs(wanted) * 2.0**-52)[np.isfinite(limit)].all()


def test_differences_of_sums_forget_what_products_keep() -> None:
    """After a step that forgets everything, a decay is known to within the roundoff of the sum, 1000 times its own."""
    step, one = np.float32([[[1000.1, 1.1, 1.1]]]), np.ones((1, 1, 3), np.float32)
    u = np.float32([[[0, 1, 1]]])
    given_ = {"u": u, "delta": step, "A": -np.ones((1, 1), np.float32), "B": one, "C": one}
    texts = [reference.form(f) for f in (reference.associative, reference.chunked)]
    by_product, by_difference = (evaluate(text, Bounded(SINGLE), given_)[1].parts[1] for text in texts)
    assert by_difference > 50 * by_product
    exact = oracle(reference.selective_scan, given_, [by_product, by_product])[1].midpoint
    got = evaluate(reference.form(by_sums(3)), Rounded(SINGLE), given_)[1].parts[0]
    assert by_product < abs(got - exact) < by_difference


# Figures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("z", "figure"), [("-0.001", ".99950"), ("-0.1", ".95163"), ("-1", ".63212"), ("-10", ".1000")]
)
def test_a_step_of_the_input_is_not_a_zero_order_hold(z: str, figure: str) -> None:
    """(exp(z) - 1) / z, by which the input of a hold is smaller."""
    with Ball(113).context():
        ratio = flint.arb(z).expm1() / flint.arb(z)
        assert abs(ratio - flint.arb(figure)) < flint.arb("0.000005" if len(figure) > 5 else "0.00005")
        assert ratio.rad() < flint.arb(1e-25)


def test_a_geometric_sum() -> None:
    """delta = B = C = u = 1, A = -log 2 as a float: y_k = (1 - a**(k + 1)) / (1 - a), with a = exp(A)."""
    rate, t = np.array([[-np.log(2)]]), 9
    one = np.ones((1, 1, t))
    ball = Ball(113)
    y, state = evaluate(reference.selective_scan, ball, {"u": one, "delta": one, "A": rate, "B": one, "C": one})
    with ball.context():
        a = flint.arb(float(rate[0, 0])).exp()
        for k, found in enumerate(y.parts[0].ravel()):
            wanted = (1 - a ** (k + 1)) / (1 - a)
            assert found.overlaps(wanted)
            assert found.rad() < flint.arb(1e-30)
        assert state.parts[0].ravel()[0].overlaps(wanted)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("delta", (1, 2, 4)),
        ("A", (3, 2)),
        ("B", (1, 3, 3)),
        ("C", (1, 2, 4)),
        ("D", (1,)),
        ("state", (1, 2, 3)),
        ("u", (2, 3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...]) -> None:
    row = np.ones((1, 2, 3))
    given_ = {
        "u": row,
        "delta": row,
        "A": np.ones((2, 2)),
        "B": row,
        "C": row,
        "D": np.ones(2),
        "state": np.ones((1, 2, 2)),
    }
    with pytest.raises(ValueError, match=r"shape|axes"):
        reference.selective_scan(**{**given_, name: np.ones(shape)})
