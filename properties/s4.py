"""The contract of `s4d_kernel`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Definition, Operator, Positive, Property, Sizes, Structure, Tensor, Work
from assay.properties.drawing import LONG, Values
from assay.properties.emulated import computing
from assay.properties.laws import adds_in, few_bits, longer
from assay.properties.trial import Trial
from assay.reference import s4 as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.complex import conj, imag, join, real
from assay.reference.arithmetic.precision import Format


LARGEST = 6
"""States of a case."""
FEW = 2
"""States where there are many lags."""
ZOH = {"method": ("zoh",)}


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """Short kernels, and now and then one that is long."""
    long = draw(st.integers(0, 3)) == 3
    n = min(sizes["n"], FEW if long else LARGEST)
    return Structure({"length": draw(st.integers(*LONG) if long else st.integers(1, 12))}, sizes={"n": n})


# Regimes: eigenvalues as models initialise them, and such near 0. -----------------------------------------------------


def _of(eigenvalues: Callable[[np.random.Generator, int], Values]) -> Callable[..., dict[str, Any]]:
    """Lambda as made, B and C ordinary."""

    def regime(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Any]:
        out: dict[str, Any] = {name: _ordinary(random, shapes[name]) for name in ("B", "C")}
        return out | {"Lambda": eigenvalues(random, shapes["Lambda"][0])}

    return regime


def _ordinary(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    return np.asarray(random.standard_normal(shape) + 1j * random.standard_normal(shape))


def _lin(random: np.random.Generator, n: int) -> Values:
    return np.asarray(-0.5 + 1j * np.pi * np.arange(n))


def _inv(random: np.random.Generator, n: int) -> Values:
    return np.asarray(-0.5 + 1j * n / np.pi * (n / (2 * np.arange(n) + 1) - 1))


def _real(random: np.random.Generator, n: int) -> Values:
    return np.asarray(-(1.0 + np.arange(n)) + 0j)


def _legs(random: np.random.Generator, n: int) -> Values:
    """Of the normal part of HiPPO's matrix of 2 n states, one of each pair: -1/2 and the roots of its skew part."""
    odd = np.sqrt(2 * np.arange(2 * n) + 1.0)
    full = odd[:, None] * odd / 2
    skew = np.triu(full, 1) - np.tril(full, -1)
    turns = np.linalg.eigvalsh(1j * skew)
    return np.asarray(-0.5 + 1j * turns[turns > 0])


def _small(random: np.random.Generator, n: int) -> Values:
    """Down to 0: where exp(dt Lambda) - 1 has hardly a digit left."""
    size = np.where(random.random(n) < 0.2, 0, np.exp2(-random.uniform(4, 20, n)))
    return np.asarray(size * np.exp(1j * random.uniform(np.pi / 2, 3 * np.pi / 2, n)))


# Slips ----------------------------------------------------------------------------------------------------------------


def _at(change: Callable[..., dict[str, Any]]) -> Definition:
    """The definition at other arguments."""

    def slip(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
        given = {"Lambda": Lambda, "B": B, "C": C, "dt": dt, "length": length, "method": method}
        return reference.s4d_kernel(**given | change(**given))

    return slip


def _once(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    return reference.s4d_kernel(Lambda, B, C, dt=dt, length=length, method=method) / 2


def _late(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    return reference.s4d_kernel(Lambda, B, C, dt=dt, length=length + 1, method=method)[1:]


def _held_by_euler(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    """dt B for every method, as Mamba has it."""
    return reference._read(
        reference._exponentials, lambda Lambda, B, dt, method: dt * B, Lambda, B, C, dt, length, method
    )


def _exponential_of_parts(Lambda: Any, B: Any, C: Any, *, dt: Any, length: int, method: str = "zoh") -> Any:
    """exp(Re) + i exp(Im), to each power."""
    if method != "zoh":
        return reference.s4d_kernel(Lambda, B, C, dt=dt, length=length, method=method)
    reference.check(Lambda, B, C, length, method)
    xp, z = Lambda.xp, (dt * Lambda)[None, :]
    lags = xp.arange(length)[:, None] * z
    powers = join(real(lags).xp.exp(real(lags)), imag(lags).xp.exp(imag(lags)))
    return 2 * real(powers @ (C * reference._held(Lambda, B, dt, method))[:, None])[:, 0]


# Properties -----------------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> tuple[Values, Values, Values]:
    return tuple(trial.case.arguments[name] for name in ("Lambda", "B", "C"))


def _integrates(trial: Trial) -> Array | None:
    """Lambda = 0: 2 dt Re sum B C, at every lag."""
    n, dt = len(_arrays(trial)[0]), trial.case.arguments["dt"]
    B, C = trial.rounded(few_bits(trial, (n,), complex=True)), trial.rounded(few_bits(trial, (n,), 1, complex=True))
    level = 2 * float((B.astype(np.complex128) @ C.astype(np.complex128)).real)
    found = trial.call(Lambda=np.zeros_like(B), B=B, C=C)
    return found - trial.given(np.full(found.shape, level)) * trial.given(np.asarray(dt, np.float64))


def _conjugated(trial: Trial) -> Array | None:
    """The other one of each pair."""
    return (
        trial.call(**{n: np.conj(x) for n, x in zip(("Lambda", "B", "C"), _arrays(trial), strict=True)}) - trial.call()
    )


def _exchanged(trial: Trial) -> Array | None:
    _, B, C = _arrays(trial)
    return trial.call(B=C, C=B) - trial.call()


def _states_add(trial: Trial) -> Array | None:
    Lambda, B, C = _arrays(trial)
    if len(B) < 2:
        return None
    cut = 1 + trial.case.seed % (len(B) - 1)
    parts = (slice(cut), slice(cut, None))
    one, two = (trial.call(Lambda=Lambda[part], B=B[part], C=C[part]) for part in parts)
    return trial.call() - one - two


def _products(trial: Trial) -> Array | None:
    """Twice Lambda and B in steps of half the length."""
    Lambda, B, _ = _arrays(trial)
    with np.errstate(all="ignore"):
        changes = {"Lambda": 2 * Lambda, "B": 2 * B}
    if not all(np.isfinite(x).all() for x in changes.values()):
        return None
    return trial.call(**changes, dt=trial.case.arguments["dt"] / 2) - trial.call()


def _halves(trial: Trial) -> Array | None:
    """What enters over a step enters over its two halves."""
    length, dt = int(trial.case.arguments["length"]), trial.case.arguments["dt"]
    halves = trial.call(dt=dt / 2, length=2 * length)
    return halves[::2] + halves[1::2] - trial.call()


def _work(*, n: int, length: int, itemsize: int, backward: bool, **rest: Any) -> Work:
    """Everything is read and written once, complex numbers as two; an exponential for each state at least."""
    passes = 2 if backward else 1
    return Work(bytes=passes * (length + 6 * n) * itemsize, flops=passes * 2 * length, exponentials=n)


FORMS: dict[str, Definition] = {
    "exponentials": reference.s4d_kernel,
    "products": reference.products,
    "recurrence": reference.one_by_one,
    "naive": reference.naive,
}

S4D_KERNEL = Operator(
    name="s4d_kernel",
    definition=reference.s4d_kernel,
    inputs=(
        Tensor("Lambda", "n", complex=True),
        Tensor("B", "n", complex=True),
        Tensor("C", "n", complex=True),
    ),
    parameters=(Positive("dt", default=0.1, low=1e-3, high=1, differentiated=True),),
    conventions={"method": reference.METHODS},
    forms=FORMS,
    slips={
        "real_part_once": _once,
        "starts_one_lag_late": _late,
        "input_by_euler": _held_by_euler,
        "C_conjugated": _at(lambda C, **rest: {"C": conj(C)}),
        "Lambda_negated": _at(lambda Lambda, **rest: {"Lambda": -Lambda}),
        "imaginary_part_of_Lambda_left_out": _at(
            lambda Lambda, **rest: {"Lambda": join(real(Lambda), 0 * imag(Lambda))}
        ),
        "half_a_step": _at(lambda dt, **rest: {"dt": dt / 2}),
        "exponential_of_each_part": _exponential_of_parts,
    },
    mutants={f"unclaimed form {name}": computing(name) for name in ("naive",)},
    structure=_structure,
    regimes={
        "lin": _of(_lin),
        "inv": _of(_inv),
        "real": _of(_real),
        "legs": _of(_legs),
        "small": _of(_small),
    },
    properties=(
        Property("without_decay_it_integrates", "Lambda = 0: K_l = 2 dt Re sum B C", _integrates),
        Property("conjugates_are_meant", "of each pair, the other one has the same kernel", _conjugated),
        Property("B_and_C_commute", "K(B, C) = K(C, B)", _exchanged),
        Property("states_add", "K is the sum of that of some states and of that of the others", _states_add),
        Property("rows_add", "K(C + C') = K(C) + K(C')", adds_in("C")),
        Property("a_longer_kernel_begins_alike", "K(l) begins with K(m) for m < l, and so does K(l + 3)", longer),
        Property("only_products_with_dt_matter", "2 Lambda, 2 B and dt / 2 give what Lambda, B and dt give", _products),
        Property("half_steps_add", "K_l(dt) = K_{2l}(dt / 2) + K_{2l+1}(dt / 2)", _halves, about=ZOH),
    ),
    work=_work,
    timed={
        "short": Structure({"length": 1024}, sizes={"n": 32}, regime="lin"),
        "long": Structure({"length": 16_384}, sizes={"n": 64}, regime="lin"),
    },
    source="A. Gu et al., S4D, arXiv:2206.11893, equations 2, 6 and 7",
)
