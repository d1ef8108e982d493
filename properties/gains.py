"""The size of gradients: whether one is off by a factor that no element of it shows.

As `shifts` does for parameters, over many cases the signed error of a gradient is regressed on the gradient itself,

    got_i - exact_i = delta * exact_i + noise_i,

weighted by 1 / bound_i**2, with a standard error that is clustered by case. In half precision the bound of an element
is many roundoffs wide where features or weights are stored; the factor of all of them together is known far better.

A factor counts only if it is significant and illegal: more than SIGMAS standard errors off, and more than it would be
if all elements of one step moved together by the unit roundoff of the claimed precision, summed over the steps of the
gradient, as a derivative of a form that the kernel may follow or as kernels write it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from assay.properties.contract import Definition
from assay.properties.drawing import Values, parted
from assay.properties.shifts import SIGMAS, moved_together
from assay.properties.trial import Trial
from assay.properties.truth import bounded
from assay.reference.arithmetic.adjoint import Adjoint, Node
from assay.reference.arithmetic.complex import ComplexArray, paired
from assay.reference.arithmetic.oracle import applied, each, lift


FEWEST = 20
"""Cases below which nothing is said: a standard error of fewer is not known well enough for so few false alarms."""


MOST = 24
"""The smallest cases, so many, say it well enough; what is legal takes tens of milliseconds for each."""


@dataclass(frozen=True)
class Gain:
    """By how much a gradient is too large, relative to itself."""

    name: str
    value: float
    error: float
    """One standard error, clustered by case."""
    legal: float
    """What roundings of a right kernel may make of it together, or less where that is enough."""
    cases: int

    @property
    def sigma(self) -> float:
        return abs(self.value) / self.error if self.error else np.inf

    @property
    def counts(self) -> bool:
        return self.sigma > SIGMAS and abs(self.value) > self.legal

    def __str__(self) -> str:
        accuracy = f"+- {self.error + self.legal:.1g}, {self.sigma:.0f} standard errors"
        return f"the gradient of {self.name} is {1 + self.value:.9g} times what it should be ({accuracy})"


def gains(trials: Sequence[Trial]) -> list[Gain]:
    """The factor by which each gradient is off, over the trials whose kernel has returned gradients."""
    names = dict.fromkeys(name for trial in trials for name in trial.by)
    return [gain for name in names if (gain := _fitted(name, trials)) is not None]


def _fitted(name: str, trials: Sequence[Trial]) -> Gain | None:
    """The weighted least-squares factor; None where too few cases tell anything."""
    told = (row for t in sorted(trials, key=_size) if (row := _row(name, t)) is not None)
    rows = list(islice(told, MOST))
    information = sum(float((w * g * g).sum()) for _, g, w, _ in rows)
    if len(rows) < FEWEST or not 0 < information < np.inf:
        return None
    value = sum(float((w * g * left).sum()) for _, g, w, left in rows) / information
    scores = [float((w * g * (left - g * value)).sum()) for _, g, w, left in rows]
    correction = len(rows) / (len(rows) - 1)
    error = float(np.sqrt(correction * sum(s * s for s in scores)) / information)
    if abs(value) <= SIGMAS * error:
        return Gain(name, value, error, np.inf, len(rows))  # noise: what would be legal is not worth its price
    legal = 0.0
    for t, g, w, _ in rows:
        legal += _legal(name, t, w * g / information)
        if legal >= abs(value):
            break  # more is not worth its price either
    return Gain(name, value, error, legal, len(rows))


def _size(trial: Trial) -> int:
    return sum(np.size(value) for value in trial.case.arguments.values())


def _row(name: str, trial: Trial) -> tuple[Trial, Values, Values, Values] | None:
    """A trial, its exact gradient, the weights of the elements, and what is off."""
    if name not in trial.by:
        return None
    found = trial.answer(gradients=True).gradients
    if name not in found:
        return None
    exact, bound, got = trial.exact_gradient[name], trial.gradient_bound[name], parted(found[name])
    if got.shape != exact.shape:
        return None
    with np.errstate(all="ignore"):
        off = (got.astype(np.longdouble) - exact.midpoint).astype(np.float64)
        g, limit = exact.midpoint.astype(np.float64), bound.astype(np.float64)
        weight = 1 / limit**2
        usable = np.isfinite(off) & np.isfinite(g) & np.isfinite(weight) & (limit > 0) & np.isfinite(exact.radius)
        usable &= np.isfinite(weight * g * g)
    g, weight, off = (np.where(usable, x, 0.0) for x in (g, weight, off))
    return (trial, g, weight, off) if (weight * g).any() else None


def _legal(name: str, trial: Trial, projection: Values) -> float:
    """The part that one case has in the legal factor: the largest over the ways in which the kernel may compute it."""
    ways: list[Callable[..., Any]] = [_derivative(text, trial, name) for text in trial.truth.forms.values()]
    if trial.operator.backward is not None:
        ways.append(_written(trial.operator.backward, trial, name))
    return max(_coherent(way, trial, name, projection) for way in ways)


def _derivative(text: Definition, trial: Trial, name: str) -> Callable[..., Any]:
    """The gradient of a text, by a tape upon the arithmetic that it is given."""

    def gradient(outer: Adjoint, lifted: dict[str, Any]) -> Any:
        tape = Adjoint(outer)
        given = {n: each(v, tape.variable) if _recorded(v) else v for n, v in lifted.items()}
        outputs = applied(text, tape, given)
        pulled = [
            (tape._node(part), outer.lift(np.asarray(parts)))
            for output, cotangent in zip(outputs, trial.cotangents, strict=True)
            for part, parts in zip(_reals(output), _halves(cotangent), strict=True)
        ]
        found = iter(tape.gradients(pulled, list(_reals(given[name]))))
        return each(given[name], lambda _: next(found))

    return gradient


def _written(backward: Definition, trial: Trial, name: str) -> Callable[..., Any]:
    """The same as kernels write it."""

    def gradient(outer: Adjoint, lifted: dict[str, Any]) -> Any:
        found = backward(tuple(lift(outer, np.asarray(c)) for c in trial.cotangents), **lifted)
        return dict(zip(trial.by, found, strict=True))[name]

    return gradient


def _coherent(way: Callable[..., Any], trial: Trial, name: str, projection: Values) -> float:
    below = bounded(trial.precision)
    tape = Adjoint(below)
    with below.context():
        lifted = {n: lift(tape, v) for n, v in trial.case.arguments.items()}
        lifted = {n: each(v, lambda x: tape.variable(x.value)) if _recorded(v) else v for n, v in lifted.items()}
        output = tape._node(paired(way(tape, lifted)))
    return moved_together(output, below, projection, trial.truth.format_of_gradient(name).u)


def _recorded(x: Any) -> bool:
    return isinstance(x, Node | ComplexArray)


def _reals(x: Any) -> tuple[Any, ...]:
    return (x.real, x.imag) if isinstance(x, ComplexArray) else (x,)


def _halves(values: Values) -> tuple[Values, ...]:
    return (values.real, values.imag) if np.iscomplexobj(values) else (values,)
