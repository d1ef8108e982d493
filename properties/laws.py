"""Laws that several operators satisfy, and the numbers on which laws are tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from assay.properties.drawing import Values
from assay.properties.trial import Trial
from assay.reference.arithmetic.array import Array


Changes = Callable[[Trial], dict[str, Any]]
"""What else is asked of a kernel than the arguments of the case."""


def few_bits(trial: Trial, shape: tuple[int, ...], number: int = 0, *, most: int = 4, complex: bool = False) -> Values:
    """Multiples of 1/4 up to most/4, of complex numbers both parts: sums of which are exact in every dtype. float64 or
    complex128; each number of a trial has its own."""
    parts = np.random.default_rng((trial.case.seed, number)).integers(
        -most, most + 1, (2, *shape) if complex else shape
    )
    return np.asarray(parts[0] + 1j * parts[1] if complex else parts) / 4


def adds_in(name: str, changes: Changes = lambda trial: {}) -> Callable[[Trial], Array | None]:
    """y(x + x') = y(x) + y(x'), for one of the arguments."""

    def residual(trial: Trial) -> Array | None:
        given, rest = trial.case.arguments[name], changes(trial)
        one, two = (few_bits(trial, given.shape, number, complex=np.iscomplexobj(given)) for number in (0, 1))
        both, first, second = (trial.call(**rest, **{name: trial.rounded(x)}) for x in (one + two, one, two))
        return both - first - second

    return residual


def longer(trial: Trial) -> Array | None:
    """Of so many lags as `length` says: a longer kernel begins with a shorter one."""
    length = int(trial.case.arguments["length"])
    short = trial.case.seed % length
    if not short:
        return None
    parts = [trial.call(length=size)[:short] - trial.call()[:short] for size in (short, length + 3)]
    return parts[0].xp.concat(parts, axis=0)
