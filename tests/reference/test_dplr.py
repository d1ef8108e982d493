"""The definition of S4's kernel: forms equal to it, z = -1 and what lies beside it, and bounds that hold."""

from __future__ import annotations

from functools import partial
from typing import Any

import flint
import numpy as np
import pytest

from assay.properties.dplr import S4_KERNEL
from assay.reference import dplr as reference
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import paired
from assay.reference.arithmetic.objects import Ball, Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import Rounded


FORMS = (reference.s4_kernel, reference.by_doubling, reference.by_cauchy)
SHAPES = ("Lambda", "P", "Q", "B", "C")


def legs(n: int, seed: int = 0) -> dict[str, Any]:
    made = S4_KERNEL.regimes["legs"](
        np.random.default_rng(seed), dict.fromkeys(SHAPES, (n,)), PRECISIONS["float32"].working
    )
    return {name: np.asarray(x, np.complex64) for name, x in made.items()} | {"dt": np.asarray(0.25)}


def numbers(x: Any) -> Any:
    x = paired(x)
    return np.array([float(v) for v in x.parts[0].flat]).reshape(x.shape)


@pytest.mark.parametrize("length", [0, 1, 2, 3, 8, 9])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_every_form_is_the_definition_and_has_its_gradients(form: Any, length: int) -> None:
    """Even lengths have a node at z = -1."""
    exact, given = Exact(300), legs(2, length)
    weight = [np.random.default_rng(length).standard_normal(length)]
    runs = [
        differentiate(partial(f, length=length), exact, given, weight, list(given)) for f in (reference.s4_kernel, form)
    ]
    for one, two in zip(*([*o, *g.values()] for o, g in runs), strict=True):
        assert one.shape == two.shape
        assert np.abs(numbers(one) - numbers(two)).max(initial=0) <= 2.0**-45 * np.abs(numbers(one)).max(initial=1)


@pytest.mark.parametrize("n", [1, 3])
def test_it_is_powers_of_the_discretised_matrix(n: int) -> None:
    """Over complex balls, by Arb's own elimination."""
    given, length, ball = legs(n, 5), 6, Ball(300)
    (found,) = evaluate(partial(reference.s4_kernel, length=length), ball, given)
    with ball.context():
        Lambda, P, Q, B, C = ([flint.acb(float(z.real), float(z.imag)) for z in given[name]] for name in SHAPES)
        half = flint.acb(float(given["dt"])) / 2
        A = [[(Lambda[i] if i == j else 0) - P[i] * Q[j].conjugate() for j in range(n)] for i in range(n)]
        left = flint.acb_mat([[(i == j) - half * A[i][j] for j in range(n)] for i in range(n)])
        right = flint.acb_mat([[(i == j) + half * A[i][j] for j in range(n)] for i in range(n)])
        x = left.solve(flint.acb_mat([[2 * half * b] for b in B]))
        for lag in range(length):
            wanted = sum((C[i] * x[i, 0] for i in range(n)), flint.acb(0)).real
            assert found.parts[0][lag].overlaps(wanted)
            assert found.parts[0][lag].rad() < flint.arb(1e-30)
            x = left.solve(right * x)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_emulated_kernels_keep_the_bound_of_their_form(form: Any, precision: str) -> None:
    for seed, length in enumerate((1, 2, 8, 13)):
        given, text = legs(1 + seed % 3, seed), partial(form, length=length)
        weight = [np.random.default_rng(seed).standard_normal(length).astype(np.float32)]
        chosen, by = PRECISIONS[precision], list(given)
        (limit,), slopes = differentiate(text, Bounded(chosen), given, weight, by)
        (truth,), exact = differentiate(partial(reference.s4_kernel, length=length), Ball(300), given, weight, by)
        (got,), found = differentiate(text, Rounded(chosen), given, weight, by)
        triples = zip((limit, *slopes.values()), (truth, *exact.values()), (got, *found.values()), strict=True)
        for bound, right, own in triples:
            wanted = numbers(right)
            assert (np.abs(paired(own).parts[0] - wanted) <= paired(bound).parts[1] + np.abs(wanted) * 2.0**-52).all()


def test_without_a_low_rank_it_is_half_the_diagonal_kernel() -> None:
    """S4D gives one of each pair of conjugates, and twice the real part."""
    from assay.reference.s4 import s4d_kernel

    exact, given = Exact(200), legs(3)
    given["P"] = 0 * given["P"]
    (full,) = evaluate(partial(reference.s4_kernel, length=7), exact, given)
    rest = {name: given[name] for name in ("Lambda", "B", "C", "dt")}
    (half,) = evaluate(partial(s4d_kernel, length=7, method="bilinear"), exact, rest)
    assert np.abs(2 * numbers(full) - numbers(half)).max() < 2.0**-45


@pytest.mark.parametrize("change", [{"P": np.ones(4)}, {"Lambda": np.ones((3, 3))}, {"length": -1}])
def test_wrong_arguments_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|negative"):
        reference.s4_kernel(**{**legs(3), "length": 3, **change})
