"""Parameter shifts: what a kernel behaves as if it had been passed.

A kernel whose every element is within its bound may still compute with a scale that is off by a millionth: rounding
noise hides it from each element, not from all of them together. Over many small cases, with the parameters drawn for
each, the signed error is regressed on the sensitivities of the definition,

    got_i - exact_i = delta * g_i + noise_i,    g_i = p dy_i/dp  (dy_i/dp where p is 0 in the operator),

weighted by 1 / bound_i**2. The standard error is clustered by case, since the noise within a case is not independent.

A shift counts only if it is significant and illegal: more than 8 standard errors, and more than the legal coherent
shift, the one that would be fitted if all elements of one step moved together by the unit roundoff of the claimed
precision, summed over the steps. Right kernels do show such shifts: a constant such as log2(e) is rounded the same way
in every element, truncation and hardware exp2 have a bias.

Source: K.-Y. Liang and S. L. Zeger, Longitudinal data analysis using generalized linear models, Biometrika 73 (1986),
for the clustered ("sandwich") standard error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from assay.properties.contract import Definition, Operator, Real
from assay.properties.drawing import Values
from assay.properties.trial import Trial
from assay.properties.truth import bounded
from assay.reference.arithmetic.adjoint import Adjoint, Node, ordered
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import ComplexArray
from assay.reference.arithmetic.formatted import of
from assay.reference.arithmetic.objects import Ball, enclosure
from assay.reference.arithmetic.oracle import applied, each, evaluate, lift


SIGMAS = 8
"""A shift within so many standard errors is noise."""
CONFIDENT = 5
"""The fitted value is taken to be right to so many standard errors, beside the legal shift."""
REFITS = 6
"""At most; each refit makes what is left about as many times smaller as the shift is small."""
FEWEST = 12
"""Clusters below which a standard error means nothing."""

BITS = 320
STEP = 64
"""Sensitivities are central differences over balls, at a relative distance of 2**-STEP: off by about 2**-128."""


@dataclass(frozen=True)
class Direction:
    """A number of the definition that may be off."""

    name: str
    definition: Definition
    parameter: Real | None
    """None: a stray, which the operator has not, and which is 0 in it."""

    def value(self, arguments: Mapping[str, Any]) -> float:
        """The number itself."""
        return 0.0 if self.parameter is None else self.parameter.given(arguments)


@dataclass(frozen=True)
class Shift:
    """The shift of one number that fits the errors of a kernel best: relative to it, or absolute where it is 0."""

    direction: Direction
    value: float
    error: float
    """One standard error of `value`, clustered by case."""
    legal: float
    """The largest shift that a right kernel of the claimed precision may show."""
    passed: float | None = None
    """The number itself, if it was the same in all cases."""

    @property
    def sigma(self) -> float:
        return abs(self.value) / self.error if self.error else np.inf

    @property
    def counts(self) -> bool:
        return self.sigma > SIGMAS and abs(self.value) > self.legal

    def __str__(self) -> str:
        name, accuracy = self.direction.name, f"+- {self.error + self.legal:.1g}, {self.sigma:.0f} standard errors"
        if self.direction.parameter is not None and self.passed is not None:
            moved = self.passed * (1 + self.value)
            return f"it behaves as if {name} were {moved:.9g} instead of {self.passed:.9g} ({accuracy})"
        if self.direction.parameter is not None:
            return f"it behaves as if {name} were {1 + self.value:.10g} times what was passed ({accuracy})"
        return f"it behaves as if {name} were {self.value:.6g} instead of 0 ({accuracy})"

    def applied(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that the kernel seems to have been passed."""
        passed = self.direction.value(arguments)
        moved = self.value if self.direction.parameter is None else passed * (1 + self.value)
        return {**arguments, self.direction.name: moved}

    def explains(self, trial: Trial) -> bool:
        """Do the outputs agree with the definition at the shifted number, which is known only so well?"""
        arguments = self.applied(trial.case.arguments)
        unsure = np.abs(_sensitivity(self.direction, trial.case.arguments)) * (CONFIDENT * self.error + self.legal)
        unsure = np.where(np.isfinite(unsure), unsure, 0)
        own = self.direction.parameter is not None
        return trial.fits(self.direction.definition, arguments, own=own, slack=unsure) is not None


def directions(operator: Operator, trials: Sequence[Trial]) -> tuple[Direction, ...]:
    """The parameters of an operator, but for those that are 0 in every case, and its strays."""
    there = [p for p in operator.parameters if any(p.given(t.case.arguments) for t in trials)]
    return (
        *(Direction(p.name, operator.definition, p) for p in there),
        *(Direction(name, definition, None) for name, definition in operator.strays.items()),
    )


def shifts(operator: Operator, trials: Sequence[Trial]) -> list[Shift]:
    """The shifts that count, the one that explains most first; each of the others in what the first ones leave."""
    found: list[Shift] = []
    candidates = list(directions(operator, trials))
    fits = [_Fit(trial) for trial in trials]
    while candidates:
        fitted = [shift for d in candidates if (shift := _fitted(d, fits)) is not None and shift.counts]
        if not fitted:
            break
        best = max(fitted, key=lambda s: s.sigma)
        candidates.remove(best.direction)
        if not found:
            best = _refined(best, fits)
        if best.counts:
            for fit in fits:
                fit.left = fit.beyond(best) if not found else fit.left - best.value * fit.sensitivity(best.direction)
            found.append(best)
    return found


def standing(operator: Operator, trials: Sequence[Trial]) -> list[Shift]:
    """The shift of each number by itself, whether it counts or not: what the rounding noise of a kernel looks like."""
    fits = [_Fit(trial) for trial in trials]
    return [shift for d in directions(operator, trials) if (shift := _fitted(d, fits)) is not None]


class _Fit:
    """One case: what the kernel returned, and what is left to explain of its error."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.arguments: dict[str, Any] = dict(trial.case.arguments)
        got = trial.answer().outputs[0].astype(np.longdouble)
        bound = trial.bound[0]
        self.got = got
        with np.errstate(all="ignore"):
            self.usable = np.isfinite(got) & np.isfinite(bound) & (bound > 0) & np.isfinite(trial.exact[0].radius)
            self.weight = np.where(self.usable, 1 / bound.astype(np.float64) ** 2, 0)
        self.definition = trial.operator.definition
        self.left = self.off(trial.exact[0].midpoint)

    def off(self, exact: Values) -> Values:
        return np.where(self.usable, self.got - exact, 0).astype(np.float64)

    def beyond(self, shift: Shift) -> Values:
        """The error that is left if the kernel was passed the shifted number."""
        moved = _exact(shift.direction.definition, shift.applied(self.trial.case.arguments))
        return self.off(moved) if np.isfinite(moved).all() else self.left

    def sensitivity(self, direction: Direction) -> Values:
        """g[...], which is zero where the case does not have the number."""
        known = self.trial.sensitivities
        if direction.name not in known:
            known[direction.name] = _sensitivity(direction, self.trial.case.arguments)
        g = known[direction.name]
        return np.where(self.usable & np.isfinite(g), g, 0)


def _fitted(direction: Direction, fits: Sequence[_Fit]) -> Shift | None:
    """The weighted least-squares shift in what is left, linearly."""
    rows = [(fit, fit.sensitivity(direction)) for fit in fits]
    rows = [(fit, g) for fit, g in rows if np.any(g)]
    information = sum(float((fit.weight * g * g).sum()) for fit, g in rows)
    if len(rows) < FEWEST or not 0 < information < np.inf:
        return None
    value = sum(float((fit.weight * g * fit.left).sum()) for fit, g in rows) / information
    scores = [float((fit.weight * g * (fit.left - g * value)).sum()) for fit, g in rows]
    correction = len(rows) / (len(rows) - 1)
    error = float(np.sqrt(correction * sum(s * s for s in scores)) / information)
    if abs(value) <= SIGMAS * error:
        return Shift(direction, value, error, legal=np.inf)  # noise: what would be legal is not worth its price
    legal = sum(_legal(direction, fit, fit.weight * g / information) for fit, g in rows)
    own = bounded(rows[0][0].trial.precision).format.u  # the number itself is rounded when it meets the arrays
    passed = {direction.value(fit.trial.case.arguments) for fit, _ in rows}
    return Shift(
        direction,
        value,
        error,
        legal=legal + (0.0 if direction.parameter is None else own),
        passed=passed.pop() if len(passed) == 1 else None,
    )


def _refined(shift: Shift, fits: Sequence[_Fit]) -> Shift:
    """The same, refitted at the fitted value: sensitivities are those of a small shift."""
    value = shift.value
    for _ in range(REFITS):
        here = replace(shift, value=value)
        rows = [(fit, fit.sensitivity(shift.direction), fit.beyond(here)) for fit in fits]
        information = sum(float((fit.weight * g * g).sum()) for fit, g, _ in rows)
        if not 0 < information < np.inf:
            return shift
        change = sum(float((fit.weight * g * left).sum()) for fit, g, left in rows) / information
        value += change
        if abs(change) <= abs(value) * 2**-40:
            break
    scores = [float((fit.weight * g * left).sum()) for fit, g, left in rows]
    error = float(np.sqrt(sum(s * s for s in scores)) / information)
    return replace(shift, value=value, error=error)


def _exact(definition: Definition, arguments: Mapping[str, Any]) -> Values:
    ball = Ball(BITS)
    (first, *_) = evaluate(definition, ball, arguments)
    with ball.context():
        return enclosure(first)[0]


def _sensitivity(direction: Direction, arguments: Mapping[str, Any]) -> Values:
    """p dy/dp, or dy/dp at 0, of the first output."""
    ball = Ball(BITS)

    def at(sign: int) -> Array:
        with ball.context():
            step = ball.asarray(sign) / 2**STEP
            passed = ball.parameter(direction.value(arguments))
            moved = step if direction.parameter is None else passed * (1 + step)
        return evaluate(direction.definition, ball, {**arguments, direction.name: moved})[0]

    up, down = at(1), at(-1)
    with ball.context():
        return enclosure((up - down) * 2 ** (STEP - 1))[0].astype(np.float64)


def _legal(direction: Direction, fit: _Fit, projection: Values) -> float:
    """The part that one case has in the legal coherent shift: the largest over the forms that the kernel may follow."""
    return max(_coherent(text, fit, projection) for text in fit.trial.truth.forms.values())


def _coherent(text: Definition, fit: _Fit, projection: Values) -> float:
    """Sum over the steps of |sum over elements of d fitted / d step * unit roundoff * step|."""
    below = bounded(fit.trial.precision)
    tape = Adjoint(below)
    with below.context():
        lifted = {name: lift(tape, value) for name, value in fit.arguments.items()}
        for name, value in lifted.items():
            if isinstance(value, Node | ComplexArray):
                lifted[name] = each(value, lambda node: tape.variable(node.value))
        output = applied(text, tape, lifted)[0]
    return moved_together(output, below, projection, fit.trial.formats[0].u)


def moved_together(output: Node, below: Bounded, projection: Values, kept: float) -> float:
    """Sum over the steps on the tape of |sum over elements of projection d output / d step * unit roundoff * step|;
    `kept` is the roundoff of the last step, which is not on the tape."""
    total = 0.0
    with below.context():
        cotangent = below.lift(projection)
        for node, g in Adjoint(below).sweep(ordered(output), (output, cotangent)):
            total += of(node.value).roundoff(node.step) * _moved(node.value, g)
        return total + kept * _moved(output.value, cotangent)


def _moved(value: Array, g: Array) -> float:
    with np.errstate(all="ignore"):
        product = value.parts[0] * g.parts[0]
    return float(abs(np.where(np.isfinite(product), product, 0).sum()))
