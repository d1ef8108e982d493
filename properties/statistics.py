"""Judging a distribution: tests whose error probability is proven, for numbers drawn by a kernel.

A kernel that draws random numbers cannot be compared with an exact answer, but its numbers have an exact law. Every
test here returns a p-value that holds for the very number of samples, heavy tails included: no central limit is taken.

    kolmogorov   the distribution function, known exactly: P(sup |F_n - F| > e) <= 2 exp(-2 n e**2)
    bennett      the mean, where mean and variance are known exactly, of numbers that are bounded on one side

A kernel is rejected where a right one would show as much with a probability of at most LEVEL, which is small enough
that all the tests of a run together reject a right kernel with a probability of at most ERROR. The errors of rounding
count for the kernel: each number may be any within its error.

Source: A. Dvoretzky, J. Kiefer, J. Wolfowitz (1956) with the constant of P. Massart, Ann. Probab. 18 (1990), 1269;
G. Bennett, J. Am. Stat. Assoc. 57 (1962), 33, inequality (8b).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from assay.properties.contract import Operator
from assay.properties.drawing import Case, Values
from assay.properties.trial import Answer, KernelError, Subject, Trial, Violation
from assay.reference.arithmetic.oracle import Enclosure
from assay.reference.arithmetic.precision import FORMATS


ERROR = 1e-9
"""The probability that a right kernel is rejected by any statistical test of a run."""
TESTS = 2**16
"""At most so many tests are made in a run."""
LEVEL = ERROR / TESTS


def kolmogorov(values: Values, cdf: Callable[[Values], Values], error: float = 0.0) -> float:
    """A bound on the p-value of independent values[n] under the distribution function `cdf`.

    Each value is known to within `error`. Error: none, the bound holds for every n.
    """
    x = np.sort(np.asarray(values, np.float64).ravel())
    n = x.size
    ranks = np.arange(n + 1) / n
    apart = max((ranks[1:] - cdf(x + error)).max(initial=0), (cdf(x - error) - ranks[:-1]).max(initial=0))
    return float(min(1.0, 2 * math.exp(-2 * n * apart * apart)))


def bennett(values: Values, mean: float, variance: float, low: float, high: float, error: float = 0.0) -> float:
    """A bound on the p-value of independent values[n] of which mean and variance are known, both sides together.

    All lie in [low, high]; infinite `high` is for heavy tails: numbers are then cut where they would hide the rest,
    which can only lower their mean and their variance. Each value is known to within `error`.
    """
    x = np.asarray(values, np.float64).ravel()
    n = x.size
    if not np.isfinite(x).all():
        return 0.0
    cut = min(high, mean + math.sqrt(n * variance / -math.log(LEVEL)))
    over = float(np.minimum(x, cut).mean()) - mean - error
    # What is cut at `cut` has a mean of at least low, and of at most `mean`.
    under = mean - float(x.mean()) - error
    tails = (_bennett(n, over, variance, cut - low), _bennett(n, under, variance, mean - low))
    return min(1.0, 2 * min(tails))


def _bennett(n: int, deviation: float, variance: float, reach: float) -> float:
    """P(mean of n numbers >= their mean + deviation), where none exceeds its mean by more than `reach`."""
    if deviation <= 0:
        return 1.0
    if variance <= 0:
        return 0.0
    u = reach * deviation / variance
    return math.exp(-n * variance / reach**2 * ((1 + u) * math.log1p(u) - u))


# Samples -------------------------------------------------------------------------------------------------------------


class Samples(Trial):
    """One setting x one kernel: what it draws for as many seeds as the contract says."""

    def under(self, subject: Subject) -> Samples:
        return Samples(self.operator, subject, self.case)

    @property
    def answered(self) -> bool:
        return False  # there is no truth that an answer could be held to

    @property
    def drew(self) -> bool:
        """Has the kernel returned a sample, of the right shape?"""
        return bool(self._answers)

    @property
    def exact(self) -> tuple[Enclosure, ...]:
        return ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample, as the sampler returns it."""
        arguments = self.case.arguments
        return tuple(np.shape(self.operator.definition(**arguments)))

    def answer(self, *, gradients: bool = False) -> Answer:
        if False not in self._answers:
            found = self.subject(self.case.arguments, None, ())
            self._check_shapes(found.outputs, (self.shape,))
            self._answers[False] = found
        return self._answers[False]

    @cached_property
    def raw(self) -> Values:
        """The samples [n, ...] in the dtype of the case."""
        first = self.answer().outputs[0]
        rest = []
        for seed in self.seeds[1:]:
            outputs = self.subject({**self.case.arguments, "seed": seed}, None, ()).outputs
            self._check_shapes(outputs, (first.shape,))
            rest.append(outputs[0])
        found = np.stack([first, *rest])
        if not np.isfinite(found.astype(np.float64)).all():
            raise Violation("a sample is not finite")
        return found

    @cached_property
    def values(self) -> Values:
        """The same in float64."""
        return self.raw.astype(np.float64)

    @property
    def seeds(self) -> range:
        first = int(self.case.arguments["seed"])
        return range(first, first + self.operator.samples)

    @property
    def unit(self) -> float:
        """The unit roundoff of what is returned."""
        return FORMATS[self.case.dtype].u


def samples(operator: Operator, subject: Subject, dtype: str, seed: int) -> list[Samples]:
    """Every setting of the contract that the kernel has the keywords for, each with seeds of its own."""
    parameters = inspect.signature(operator.definition).parameters.values()
    usual = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    out = []
    for number, setting in enumerate(operator.settings):
        if any(setting.get(n, value) != value and not subject.supports(n) for n, value in usual.items()):
            continue
        first = (seed * len(operator.settings) + number) * operator.samples % 2**31
        arguments = {**setting, "seed": first}
        if subject.supports("dtype"):
            arguments["dtype"] = dtype
        out.append(Samples(operator, subject, Case(dtype, arguments, "samples", seed)))
    return out


# Null kernels --------------------------------------------------------------------------------------------------------


class _Null:
    """A kernel that returns the same whatever it is asked."""

    name, form, precision, differentiable = "null", None, None, False

    def __init__(self, values: Values) -> None:
        self.values = values

    def supports(self, keyword: str) -> bool:
        return True

    def __call__(self, arguments: Mapping[str, Any], cotangents: Any, by: Sequence[str], mode: str = "") -> Answer:
        return Answer((self.values,))


def rejects_nulls(trial: Samples, demands: Sequence[Callable[[Trial], bool]]) -> bool:
    """Would these demands reject zeros, and the first sample returned for every seed?"""
    first = trial.answer().outputs[0]
    return all(_broken(Samples(trial.operator, _Null(v), trial.case), demands) for v in (np.zeros_like(first), first))


def _broken(trial: Samples, demands: Sequence[Callable[[Trial], bool]]) -> bool:
    for holds in demands:
        try:
            holds(trial)
        except (Violation, KernelError):
            return True
    return False
