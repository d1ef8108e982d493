"""The definition of causal convolution: forms and backward equal to it, figures, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from assay.reference import convolution as reference
from assay.reference.arithmetic.objects import Exact
from assay.reference.arithmetic.oracle import differentiate, evaluate


@pytest.mark.parametrize("t", [0, 1, 2, 5])
def test_the_form_and_the_written_backward_are_the_definition(t: int) -> None:
    random, exact = np.random.default_rng(t), Exact(300)
    given = {"u": random.standard_normal((2, 3, t)), "K": random.standard_normal((3, t))}
    weight = random.standard_normal((2, 3, t))
    (wanted,), slopes = differentiate(reference.fft_convolve, exact, given, [weight], list(given))
    (form,) = evaluate(reference.by_transform, exact, given)
    written = reference.backward((exact.lift(weight),), **{name: exact.lift(x) for name, x in given.items()})
    for one, two in zip((wanted, *slopes.values()), (form, *written), strict=True):
        assert one.shape == two.shape
        assert all(abs(x - y) < 2.0**-200 for x, y in zip(one.parts[0].flat, two.parts[0].flat, strict=True))


def test_an_impulse_at_the_last_position_does_not_come_around() -> None:
    u, K = np.zeros(8), np.arange(1.0, 9)
    u[-1] = 1
    assert reference.fft_convolve(u, K).tolist() == [0] * 7 + [1]


@pytest.mark.parametrize(("u", "K"), [((3,), (4,)), ((2, 3), (4, 3)), ((), (3,)), ((3,), ())])
def test_shapes_that_do_not_fit_are_refused(u: tuple[int, ...], K: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="as long as each other"):
        reference.fft_convolve(np.ones(u), np.ones(K))
