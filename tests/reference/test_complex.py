"""Complex numbers in every arithmetic: right, enclosed, bounded, differentiated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

from assay.reference.arithmetic.array import either, vanishes
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import ComplexArray, conj, imag, join, over, paired, real
from assay.reference.arithmetic.independent import Independent
from assay.reference.arithmetic.objects import Ball, Exact, enclosure
from assay.reference.arithmetic.oracle import differentiate, evaluate, gradient_oracle, oracle
from assay.reference.arithmetic.precision import MODES, PRECISIONS
from assay.reference.arithmetic.rounded import ORDERS, Rounded


SINGLE = PRECISIONS["float32"]


def geometric(z: Any, w: Any) -> Any:
    """A kernel of a diagonal state space: powers of a complex number, real part taken."""
    power, rows = w, []
    for _ in range(4):
        power = power * z
        rows.append(2 * real(power))
    return sum(rows[1:], rows[0])


TEXTS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda z, w: z + w - 1,
    "multiply": lambda z, w: z * w * 3,
    "divide": lambda z, w: z / w,
    "reciprocal": lambda z, w: 1 / z + w / 3,
    "real first": lambda z, w: real(z) * w - imag(w) / z,
    "exp": lambda z, w: (1 + w) / (2 - array_namespace(z).exp(-z)),
    "expm1": lambda z, w: array_namespace(z).expm1(z / 16) * w,
    "abs": lambda z, w: abs(z - w),
    "conj": lambda z, w: conj(z) * w + z[::-1],
    "matmul": lambda z, w: z @ w.mT,
    "mixed matmul": lambda z, w: real(z) @ conj(w).mT,
    "join": lambda z, w: join(imag(z) * real(w), real(z)),
    "geometric": geometric,
}


def drawn(seed: int, scale: float = 1.0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    parts = random.standard_normal((4, 3, 4)) * scale
    return {"z": (parts[0] + 1j * parts[1]).astype(np.complex64), "w": (parts[2] + 1j * parts[3]).astype(np.complex64)}


def pairs(x: Any) -> Any:
    """A complex NumPy array with real and imaginary part along a last axis."""
    return np.stack([x.real, x.imag], axis=-1) if np.iscomplexobj(x) else x


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_means_the_same_in_numpy_exact_and_ball(name: str) -> None:
    arguments = drawn(0)
    wide = {k: v.astype(np.complex128) for k, v in arguments.items()}
    (exact,), (ball,) = (evaluate(TEXTS[name], xp, arguments) for xp in (Exact(400), Ball(120)))
    with Ball(120).context():
        middle, radius = enclosure(paired(ball))
    assert np.all(np.abs(paired(exact).parts[0].astype(float) - middle.astype(float)) <= 1e-13 + radius)
    assert np.allclose(pairs(TEXTS[name](**wide)), middle.astype(float), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", ["float32", "float32-flushing", "tf32", "bfloat16-steps"])
@pytest.mark.parametrize("name", TEXTS)
def test_right_kernels_keep_their_bounds(name: str, precision: str, mode: str) -> None:
    p = replace(PRECISIONS[precision], rounding=mode)
    for seed, scale in enumerate((1.0, 30.0, 1e-3, 1e-15, 1e-25, 1e-39)):
        arguments = drawn(seed, scale)
        bound = paired(evaluate(TEXTS[name], Bounded(p), arguments)[0]).parts[1]
        (exact,) = oracle(TEXTS[name], arguments, [bound])
        judged = np.isfinite(bound) & np.isfinite(exact.radius)
        for order in ORDERS:
            kernel = paired(evaluate(TEXTS[name], Rounded(p, order=order), arguments)[0])
            with np.errstate(all="ignore"):
                error = np.abs(kernel.parts[0] - exact.midpoint)
            assert np.all((error <= bound + exact.radius)[judged])


@pytest.mark.parametrize("name", TEXTS)
def test_numpy_and_torch_keep_the_bound(name: str) -> None:
    """Their product is the textbook's, their quotient a scaled one, their matmul adds in whatever order."""
    torch = pytest.importorskip("torch")
    for seed in range(40):
        arguments = drawn(seed)
        bound = paired(evaluate(TEXTS[name], Bounded(SINGLE), arguments)[0]).parts[1]
        (exact,) = oracle(TEXTS[name], arguments, [bound])
        kernels = [TEXTS[name](**arguments)]
        if name in ("add", "multiply", "divide", "abs"):
            kernels.append(TEXTS[name](**{k: torch.from_numpy(v) for k, v in arguments.items()}).numpy())
        for got in kernels:
            assert got.dtype in (np.complex64, np.float32)
            assert np.all(np.abs(pairs(got) - exact.midpoint) <= bound + exact.radius)


@pytest.mark.parametrize("name", TEXTS)
def test_gradients_are_those_of_torch_and_within_the_bound(name: str) -> None:
    arguments = drawn(1)
    shape = evaluate(TEXTS[name], Exact(100), arguments)[0]
    random = np.random.default_rng(2)
    weight = random.standard_normal(shape.shape).astype(np.float32)
    if isinstance(shape, ComplexArray):
        weight = weight + 1j * random.standard_normal(shape.shape).astype(np.float32)
    found = differentiate(TEXTS[name], Bounded(SINGLE), arguments, [weight], ["z", "w"])[1]
    bounds = {k: paired(g).parts[1] for k, g in found.items()}
    exact = gradient_oracle(TEXTS[name], arguments, [weight], bounds)
    kernel = differentiate(TEXTS[name], Rounded(SINGLE), arguments, [weight], ["z", "w"])[1]
    for k in exact:
        assert np.all(np.abs(paired(kernel[k]).parts[0] - exact[k].midpoint) <= bounds[k] + exact[k].radius)
    # A difference quotient in double, along a drawn direction.
    wide = {k: v.astype(np.complex128) for k, v in arguments.items()}
    step = {k: random.standard_normal(v.shape) + 1j * random.standard_normal(v.shape) for k, v in wide.items()}
    ahead, behind = (TEXTS[name](**{k: v + s * 1e-6 * step[k] for k, v in wide.items()}) for s in (1, -1))
    rate = np.sum(np.real(np.conj(weight) * (ahead - behind))) / 2e-6
    along = sum(float(np.sum(exact[k].midpoint * pairs(step[k]))) for k in exact)
    assert abs(rate - along) < 1e-6 * (1 + abs(along))


@pytest.mark.parametrize("xp", [Exact(), Ball(113), Bounded(SINGLE), Independent(PRECISIONS["tf32"])])
def test_the_namespace_of_real_numbers_handles_complex_ones(xp: Any) -> None:
    """A sum asked of it, and places exchanged, as a definition does that took the namespace of another argument."""
    values = np.arange(6).reshape(2, 3) * (1 + 2j)
    with xp.context():
        z = over(xp).lift(values)
        found = [xp.sum(z), xp.sum(z, axis=0, keepdims=True), xp.concat([xp.ones((1, 3)), xp.flip(z, axis=0)])]
        numbers = [np.vectorize(float)(paired(x).parts[0]) for x in found]
    wanted = [values.sum(), values.sum(axis=0, keepdims=True), np.concatenate([np.ones((1, 3)), values[::-1]])]
    assert all((x == pairs(np.asarray(y))).all() for x, y in zip(numbers, wanted, strict=True))


def test_storage_roundings_of_complex_weights_are_independent() -> None:
    random = np.random.default_rng(4)
    z, w = random.standard_normal((2, 2, 2048, 1, 2)).astype(np.float32).view(np.complex64)[..., 0]
    arguments = {"z": z[0].T, "w": w[0].T}
    text = TEXTS["matmul"]
    sharp, worst = (
        xp.certain(paired(evaluate(text, xp, arguments)[0])).parts[1]
        for xp in (Independent(PRECISIONS["tf32"]), Bounded(PRECISIONS["tf32"]))
    )
    assert np.all(sharp < worst / 2)


def test_complex_numbers_are_not_ordered() -> None:
    z = evaluate(lambda z: z, Exact(), {"z": drawn(0)["z"]})[0]
    with pytest.raises(TypeError, match="ordered"):
        _ = z < z
    with pytest.raises(TypeError, match="tanh"):
        z.xp.tanh(z)


def test_a_reciprocal_of_a_subnormal_number_may_overflow() -> None:
    """torch divides by a product with a reciprocal; of what is larger, the quotient is bounded."""
    for size, finite in ((2.0**-140, False), (2.0**-100, True)):
        given = {"z": np.complex64([size + 0.5j * size]), "w": np.complex64([size * (1 - 1j)])}
        (bound,) = evaluate(TEXTS["divide"], Bounded(SINGLE), given)
        assert np.isfinite(paired(bound).parts[1]).all() == finite


def test_expm1_loses_nothing_near_0() -> None:
    """Normwise: each part may be of another size than the number."""
    for scale in (1e-2, 1e-5, 1e-9):
        given = {"z": (drawn(3)["z"] * scale).astype(np.complex64)}
        (bound,) = evaluate(lambda z: array_namespace(z).expm1(z), Bounded(SINGLE), given)
        size = np.abs(given["z"])[..., None]
        assert (paired(bound).parts[1] <= 32 * SINGLE.working.u * size).all()


def test_ways_of_a_complex_number_are_bounded_part_by_part() -> None:
    """(z + 1) - 1 loses digits of the real part, and none of the imaginary one."""
    given = {"z": np.complex64([1e-3 + 1e-3j])}

    def text(z: Any) -> Any:
        return either(z, lambda: z * 3 / 3, lambda: (z + 1) - 1)

    parts = [evaluate(f, Bounded(SINGLE), given)[0] for f in (text, lambda z: z * 3 / 3, lambda z: (z + 1) - 1)]
    both, one, two = (paired(p).parts[1] for p in parts)
    assert (both == np.maximum(one, two)).all()


def test_what_vanishes_has_neither_part() -> None:
    given = np.complex64([0, 1, 1j, 1 + 1j])
    for xp in (Ball(113), Bounded(SINGLE), Exact(113)):
        assert vanishes(over(xp).lift(given)).bits.tolist() == [True, False, False, False]
