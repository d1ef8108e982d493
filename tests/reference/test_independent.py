"""Storage roundings as independent errors: sharper in long rows, never exceeded, and grouped where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from assay.reference.arithmetic import independent
from assay.reference.arithmetic.array import Array, store
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.independent import Independent, quadrature
from assay.reference.arithmetic.oracle import differentiate, evaluate, gradient_oracle, oracle
from assay.reference.arithmetic.precision import PRECISIONS
from assay.reference.arithmetic.rounded import ORDERS, Rounded


BF16, TF32 = PRECISIONS["bfloat16"], PRECISIONS["tf32"]


def attention(scores: Any, v: Any) -> Any:
    """Unnormalised weights kept in the storage format, as fused kernels do; the sum divides at the end."""
    xp = scores.xp
    p = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    return store(p, "weights") @ v / xp.sum(p, axis=-1, keepdims=True)


def product(x: Any, y: Any) -> Any:
    return x @ y


def case(n: int, seed: int, spread: float = 0.5) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    scores, v = random.standard_normal((2, n)) * spread, random.standard_normal((n, 4))
    return {"scores": scores.astype(np.float32), "v": v.astype(np.float32)}


def bound(text: Any, xp: Bounded, arguments: Any) -> Any:
    return xp.certain(evaluate(text, xp, arguments)[0]).parts[1]


@pytest.mark.parametrize(("n", "part"), [(256, 0.8), (1024, 0.55), (4096, 0.45)])
def test_the_bound_of_a_long_row_is_sharper(n: int, part: float) -> None:
    """Not by sqrt(n): bfloat16 has 128 numbers to an octave, so that in long rows the groups grow instead."""
    arguments = case(n, n)
    sharp, worst = (bound(attention, xp(BF16), arguments) for xp in (Independent, Bounded))
    assert np.all(sharp < worst)
    assert np.median(sharp / worst) < part


@pytest.mark.parametrize("n", [1, 2, 16])
def test_the_worst_case_of_a_short_row_is_kept(n: int) -> None:
    arguments = case(n, n)
    sharp, worst = (bound(attention, xp(BF16), arguments) for xp in (Independent, Bounded))
    assert np.all(sharp <= worst * 1.01)


@pytest.mark.parametrize("block", range(10))
def test_two_thousand_contractions_stay_within(block: int) -> None:
    """Each of 10 blocks: 25 cases of 2 x 4 contractions of 256 to 1,200 weights, in every order."""
    for seed in range(25):
        random = np.random.default_rng((block, seed))
        arguments = case(int(random.integers(256, 1200)), 100 * block + seed, float(random.uniform(0, 4)))
        error = bound(attention, Independent(BF16), arguments)
        (exact,) = oracle(attention, arguments, [error])
        (kernel,) = evaluate(attention, Rounded(BF16, order=ORDERS[seed % 3]), arguments)
        assert np.all(np.abs(kernel.parts[0] - exact.midpoint) <= error + exact.radius)


def test_right_gradients_stay_within() -> None:
    arguments = case(300, 5)
    weight = np.random.default_rng(6).standard_normal((2, 4)).astype(np.float32)
    found = differentiate(attention, Independent(BF16), arguments, [weight], ["scores", "v"])[1]
    bounds = {name: g.xp.certain(g).parts[1] for name, g in found.items()}  # type: ignore[attr-defined]
    exact = gradient_oracle(attention, arguments, [weight], bounds)
    kernel = differentiate(attention, Rounded(BF16), arguments, [weight], ["scores", "v"])[1]
    for name, known in exact.items():
        assert np.all(np.abs(kernel[name].parts[0] - known.midpoint) <= bounds[name] + known.radius)


def test_rounded_operands_of_a_product_are_independent() -> None:
    random = np.random.default_rng(3)
    x, y = (random.standard_normal(s).astype(np.float32) for s in ((2, 2048), (2048, 3)))
    sharp, worst = (bound(product, xp(TF32), {"x": x, "y": y}) for xp in (Independent, Bounded))
    assert np.all(sharp < worst / 2)
    (kernel,) = evaluate(product, Rounded(TF32, order="pairwise"), {"x": x, "y": y})
    assert np.all(np.abs(kernel.parts[0] - x.astype(np.longdouble) @ y) <= sharp)


def equal_keys(n: int) -> dict[str, Any]:
    """One key is the maximum, all others are equal: their weights round alike, in one direction."""
    scores = np.full((1, n), -1 / 3, np.float32)
    scores[0, 0] = 0
    return {"scores": scores, "v": np.ones((n, 1), np.float32)}


def test_equal_keys_are_added_up_in_the_worst_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every weight taken as independent the bound is exceeded; grouped by what was rounded, it holds."""
    arguments = equal_keys(3000)
    (kernel,) = evaluate(attention, Rounded(BF16), arguments)
    grouped = bound(attention, Independent(BF16), arguments)
    (exact,) = oracle(attention, arguments, [grouped])
    error = np.abs(kernel.parts[0] - exact.midpoint)
    assert np.all(error <= grouped)
    monkeypatch.setattr(independent, "quadrature", lambda reach, stored: np.sqrt((reach**2).sum(axis=-1)))
    assert np.all(error > bound(attention, Independent(BF16), arguments))


def test_an_error_is_never_independent_of_itself() -> None:
    """The same weights, contracted twice: what came out of the first contraction is a certain error in the second."""
    arguments = case(300, 9)

    def twice(scores: Any, v: Any) -> Any:
        p = store(scores.xp.exp(scores), "weights")
        out = p @ v
        assert len((p + p).parts) == len(out.parts) == len((p / 3).parts) == 2
        assert len((-p).parts) == len((2 * p).parts) == len(scores.xp.concat([p, scores]).parts) == 4
        return out

    evaluate(twice, Independent(BF16), arguments)


@pytest.mark.parametrize("precision", ["bfloat16-truncating"])
def test_directed_roundings_have_a_mean_and_are_not_independent(precision: str) -> None:
    arguments = case(1024, 2)
    sharp, worst = (bound(attention, xp(PRECISIONS[precision]), arguments) for xp in (Independent, Bounded))
    assert np.array_equal(sharp, worst)


def test_what_no_input_enters_is_not_independent() -> None:
    arithmetic = Independent(PRECISIONS["bfloat16-table"])
    x = arithmetic.lift(case(64, 1)["scores"])
    assert isinstance(x, Array)
    assert len(store(x, "table").parts) == 2
    assert len(store(x, "weights").parts) == 4


def test_groups_are_added_before_they_are_squared() -> None:
    reach, stored = np.array([[1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1]]), np.array([[5, 6, 5, 7], [1, 2, 3, 4]])
    assert quadrature(reach, stored).tolist() == [6.0, 2.0]
