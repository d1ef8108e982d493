"""What a kernel really does: the form and precision that it follows, and what is wrong when it is wrong.

Discrete: its outputs are compared with the definition under other conventions, with named slips, and with each
parameter doubled, halved, negated or left out. Continuous: the parameter shift is fitted that explains its error best.
An explanation is given only if every output that was kept lies within the bound of what is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from assay.properties.contract import Definition, Operator, Real
from assay.properties.drawing import DTYPES, Values
from assay.properties.trial import Trial, bound_of, outside
from assay.reference.arithmetic.oracle import as_tuple, oracle
from assay.reference.arithmetic.precision import PRECISIONS, natural, published


Kind = Literal["convention", "form", "slip", "parameter", "location", "precision", "property", "error"]


@dataclass(frozen=True)
class Inferred:
    """The tightest published form and precision within whose bound every kept output lies."""

    form: str
    precision: str
    headroom: float

    def __str__(self) -> str:
        return f"{self.form}, {self.precision}"


@dataclass(frozen=True)
class Finding:
    """One explanation of a failure, likeliest first in a list."""

    kind: Kind
    name: str
    text: str
    value: float | None = None
    sigma: float | None = None


def infer(operator: Operator, trials: Sequence[Trial]) -> Inferred | None:
    """The tightest form and precision that the kernel meets on these trials; None if it meets none."""
    trials = [t for t in trials if t.exact[0].midpoint.size]
    if not trials:
        return None
    dtype = trials[0].case.dtype
    # Bounds are ranked where they differ: on ordinary numbers, in arrays of some size.
    sample = sorted(trials, key=lambda t: (t.case.regime != "ordinary", -t.exact[0].midpoint.size))[:3]
    candidates: list[tuple[float, bool, int, str, str]] = []
    for form, text in operator.texts.items():
        for precision in (p.name for p in published(dtype)):
            tightness = float(np.mean([_size(bound_of(text, t.case.arguments, precision, dtype)) for t in sample]))
            candidates.append((round(tightness, 6), precision != natural(dtype).name, len(candidates), form, precision))
    trials = sorted(trials, key=lambda t: -t.headroom)  # what rejects a candidate is met early
    for *_, form, precision in sorted(candidates):
        headroom = _headroom(trials, operator.texts[form], precision)
        if headroom is not None:
            return Inferred(form, precision, headroom)
    return None


def _size(bounds: Sequence[Values]) -> float:
    """The mean logarithm of a bound: what tighter means when bounds differ from element to element."""
    floor = np.finfo(np.float64).tiny
    with np.errstate(over="ignore"):
        return float(np.mean([np.log2(np.clip(b.astype(np.float64), floor, 1e300)).mean() for b in bounds]))


def _headroom(trials: Sequence[Trial], text: Definition, precision: str) -> float | None:
    """max |error| / bound over the trials; None if an output lies outside."""
    worst = 0.0
    for trial in trials:
        bounds = bound_of(text, trial.case.arguments, precision, trial.case.dtype)
        for got, exact, bound in zip(trial.answer().outputs, trial.exact, bounds, strict=True):
            wrong, ratio = outside(got, exact, bound, trial.case.dtype)
            if wrong.any():
                return None
            worst = max(worst, float(ratio.max(initial=0)))
    return worst


def diagnose(operator: Operator, trials: Sequence[Trial], inferred: Inferred | None) -> list[Finding]:
    """Every explanation that fits all the trials kept, likeliest first."""
    if not trials:
        return []
    claimed = trials[0].precision
    failing = [t for t in trials if t.headroom > 1] or list(trials)
    telling = (failing + [t for t in trials if t not in failing])[:12]
    findings = [finding for finding, other in _alternatives(operator, trials[0]) if _explains(telling, other)]
    if not findings:
        findings = list(_shifts(operator, telling))
    if not findings and inferred is not None:
        form = trials[0].subject.form
        if inferred.precision != claimed:
            text = f"passes as {inferred}: {PRECISIONS[inferred.precision].meaning}"
            findings.append(Finding("precision", inferred.precision, text))
        elif form is not None and inferred.form != form:
            findings.append(Finding("form", inferred.form, f"fails the claimed form {form}, passes as {inferred.form}"))
    return findings


def agrees(operator: Operator, trials: Sequence[Trial], conventions: Mapping[str, str]) -> Inferred | None:
    """The tightest form and precision under other conventions than the trials were judged under."""
    moved = []
    for trial in trials:
        case = replace(trial.case, arguments={**trial.case.arguments, **conventions})
        other = Trial(operator, trial.subject, case)
        other._answers = dict(trial._answers)
        moved.append(other)
    return infer(operator, moved)


# Discrete ----------------------------------------------------------------------------------------------------------


def _alternatives(operator: Operator, trial: Trial) -> Iterator[tuple[Finding, _Other]]:
    for name, values in operator.conventions.items():
        judged = trial.case.arguments.get(name, values[0])
        for value in values:
            if value != judged:
                text = f"this is {operator.name} with {name}={value!r}, judged as {name}={judged!r}"
                yield Finding("convention", f"{name}={value}", text), _replaced(operator, name, value)
    for name, slip in operator.slips.items():
        yield Finding("slip", name, f"the slip '{name.replace('_', ' ')}'"), _Other(slip)
    for parameter in operator.parameters:
        for change, function in CHANGES.items():
            text = f"the parameter {parameter.name} is {change}"
            yield (
                Finding("parameter", parameter.name, text),
                _mapped(operator, parameter, function),
            )


CHANGES: Mapping[str, Callable[[float], float]] = {
    "doubled": lambda p: 2 * p,
    "halved": lambda p: p / 2,
    "negated": lambda p: -p,
    "left out (zero)": lambda p: 0.0,
    "left out (one)": lambda p: 1.0,
    "squared": lambda p: p * p,
    "inverted": lambda p: 1 / p if p else 0.0,
}


@dataclass(frozen=True)
class _Other:
    """Another function that a kernel may compute: other arguments, or another definition."""

    definition: Definition
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict
    own: bool = False
    """The definition is the operator's own, so the forms that the kernel claims bound it; otherwise its own text."""


def _replaced(operator: Operator, name: str, value: Any) -> _Other:
    return _Other(operator.definition, lambda a: {**a, name: value}, own=True)


def _mapped(operator: Operator, parameter: Real, function: Callable[[float], float]) -> _Other:
    return _Other(operator.definition, lambda a: {**a, parameter.name: function(parameter.given(a))}, own=True)


def _explains(trials: Sequence[Trial], other: _Other) -> bool:
    """Do all outputs agree with the other function, which differs from the operator's somewhere?"""
    differs = False
    for trial in trials:
        arguments = other.change(dict(trial.case.arguments))
        try:
            bounds = _loosest_bound(trial, other, arguments)
            exact = oracle(other.definition, arguments, bounds)
        except (ArithmeticError, ValueError):
            return False
        for got, truth, right, bound in zip(trial.answer().outputs, exact, trial.exact, bounds, strict=True):
            if outside(got, truth, bound, trial.case.dtype)[0].any():
                return False
            with np.errstate(invalid="ignore"):
                differs = differs or bool((np.abs(truth.midpoint - right.midpoint) > bound).any())
    return differs


def _loosest_bound(trial: Trial, other: _Other, arguments: Mapping[str, Any]) -> tuple[Values, ...]:
    texts = tuple(trial.forms.values()) if other.own else (other.definition,)
    bounds = [bound_of(text, arguments, trial.precision, trial.case.dtype) for text in texts]
    return tuple(np.maximum.reduce(list(output)) for output in zip(*bounds, strict=True))


# Continuous --------------------------------------------------------------------------------------------------------


def _shifts(operator: Operator, trials: Sequence[Trial]) -> Iterator[Finding]:
    """For each parameter, the relative shift that fits the errors best, if it explains every output."""
    for parameter in operator.parameters:
        shift = _fitted(operator, parameter, trials)
        if shift is None or not _explains(
            trials,
            _mapped(operator, parameter, lambda p, s=shift: p * (1 + s)),  # type: ignore[misc]
        ):
            continue
        values = {parameter.given(t.case.arguments) for t in trials}
        if len(values) == 1:
            passed = values.pop()
            told = f"as if {parameter.name} were {passed * (1 + shift):.9g} instead of {passed:.9g}"
        else:
            told = f"as if {parameter.name} were {1 + shift:.9g} times what was passed"
        yield Finding("parameter", parameter.name, f"it behaves {told}", value=1 + shift)


def _fitted(operator: Operator, parameter: Real, trials: Sequence[Trial]) -> float | None:
    """Gauss-Newton on the relative shift of one parameter, in double: |error / bound| is minimised.

    The sensitivity is a difference quotient: it only steers; what is found is judged by `_explains`.
    """

    def outputs(trial: Trial, shift: float) -> list[Values]:
        arguments = {
            key: value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype in WIDENED else value
            for key, value in trial.case.arguments.items()
        }
        arguments[parameter.name] = parameter.given(arguments) * (1 + shift)
        return [np.asarray(o) for o in as_tuple(operator.definition(**arguments))]

    shift = 0.0
    step = 2.0**-20
    for _ in range(8):
        slope = error = 0.0
        for trial in trials:
            with np.errstate(all="ignore"):
                here, beside = outputs(trial, shift), outputs(trial, shift + step)
                for got, a, b, bound in zip(trial.answer().outputs, here, beside, trial.bound, strict=True):
                    weight = np.where(bound > 0, 1 / bound.astype(np.float64), 0)
                    rate = (b - a) / step * weight
                    off = (got.astype(np.float64) - a) * weight
                    usable = np.isfinite(rate) & np.isfinite(off)
                    slope += float((rate[usable] ** 2).sum())
                    error += float((rate[usable] * off[usable]).sum())
        if not slope or not np.isfinite(slope):
            return None
        change = error / slope
        shift += change
        if not np.isfinite(shift) or not -0.99 < shift < 1e6:
            return None
        if abs(change) < 1e-12:
            break
    return shift if shift else None


WIDENED = tuple(DTYPES.values())
