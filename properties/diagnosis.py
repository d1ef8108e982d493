"""What a kernel really does: the form and precision that it follows, and what is wrong when it is wrong.

Discrete: its outputs are compared with the definition under other conventions, with named slips, and with each
parameter doubled, halved, negated or left out. Continuous: `shifts` tells by how much a parameter is off.
An explanation is given only if every output that was kept lies within the bound of what is explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np

from assay.properties.contract import Definition, Operator, Real
from assay.properties.drawing import Values
from assay.properties.emulated import Emulated
from assay.properties.hazards import ways
from assay.properties.location import locate
from assay.properties.shifts import Shift
from assay.properties.trial import KernelError, Trial, outside
from assay.properties.truth import bound_of
from assay.reference.arithmetic.precision import PRECISIONS, natural, published


Kind = Literal["convention", "form", "slip", "parameter", "hazard", "location", "precision", "property", "error"]


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
    # Most are rejected by one small case, and need no rank.
    telling = max(trials, key=lambda t: (t.headroom > 1, -t.exact[0].midpoint.size))
    for form, text in operator.texts.items():
        for precision in (p.name for p in published(dtype)):
            if _headroom([telling], text, precision) is None:
                continue
            tightness = float(
                np.mean([_size(bound_of(text, t.case.arguments, precision, t.formats, t.case.regime)) for t in sample])
            )
            candidates.append((round(tightness, 6), precision != natural(dtype).name, len(candidates), form, precision))
    trials = sorted(trials, key=lambda t: -t.headroom)  # what rejects a candidate is met early
    for *_, form, precision in sorted(candidates):
        headroom = _headroom(trials, operator.texts[form], precision)
        if headroom is not None and not _refuted(operator, trials, form, precision):
            return Inferred(form, precision, headroom)
    return None


def _refuted(operator: Operator, trials: Sequence[Trial], form: str, precision: str) -> bool:
    """A loose bound has many a wrong answer within it. Some trials speak for it, those that the usual precision misses
    in whichever form; against it speak those where a kernel that did compute so would be seen to, and this is not."""
    usual = natural(trials[0].case.dtype).name
    if precision == usual:
        return False
    text, met = max(
        ((text, [t for t in trials if _headroom([t], text, usual) is not None]) for text in operator.texts.values()),
        key=lambda found: len(found[1]),
    )
    kernel, speak_for = Emulated(operator, trials[0].case.dtype, form=form, precision=precision), len(trials) - len(met)
    against = 0
    for trial in met if speak_for < len(met) else ():
        bounds = bound_of(text, trial.case.arguments, usual, trial.formats, trial.case.regime)
        try:
            outputs = kernel(trial.case.arguments, None, ()).outputs
        except KernelError:
            continue
        told = zip(outputs, trial.exact, bounds, strict=True)
        against += any(bool(outside(got, exact, bound, trial.case.dtype)[0].any()) for got, exact, bound in told)
        if against > speak_for:
            return True
    return False


def _size(bounds: Sequence[Values]) -> float:
    """The mean logarithm of a bound: what tighter means when bounds differ from element to element."""
    floor = np.finfo(np.float64).tiny
    with np.errstate(over="ignore"):
        return float(np.mean([np.log2(np.clip(b.astype(np.float64), floor, 1e300)).mean() for b in bounds]))


def _headroom(trials: Sequence[Trial], text: Definition, precision: str) -> float | None:
    """max |error| / bound over the trials; None if an output lies outside."""
    worst = 0.0
    for trial in trials:
        bounds = bound_of(text, trial.case.arguments, precision, trial.formats, trial.case.regime)
        for got, exact, bound in zip(trial.answer().outputs, trial.exact, bounds, strict=True):
            wrong, ratio = outside(got, exact, bound, trial.case.dtype)
            if wrong.any():
                return None
            worst = max(worst, float(ratio.max(initial=0)))
    return worst


def diagnose(
    operator: Operator, trials: Sequence[Trial], inferred: Inferred | None, shifts: Sequence[Shift] = ()
) -> list[Finding]:
    """Every explanation that fits all the trials kept, likeliest first. `shifts`: those of parameters that count."""
    if not trials:
        return []
    claimed = trials[0].precision
    failing = [t for t in trials if t.headroom > 1] or list(trials)
    telling = (failing + [t for t in trials if t not in failing])[:12]
    findings = [finding for finding, other in _alternatives(operator, trials[0]) if _explains(telling, other)]
    if not findings and shifts and all(shifts[0].explains(t) for t in telling):
        findings = [_shifted(shift) for shift in shifts]
    if not findings and inferred is not None:
        form = trials[0].subject.form
        if inferred.precision != claimed:
            text = f"passes as {inferred}: {PRECISIONS[inferred.precision].meaning}"
            findings.append(Finding("precision", inferred.precision, text))
        elif form is not None and inferred.form != form and _headroom(trials, operator.texts[form], claimed) is None:
            findings.append(Finding("form", inferred.form, f"fails the claimed form {form}, passes as {inferred.form}"))
    # Another function that explains every output leaves nothing to be located; another precision explains too much.
    if all(f.kind in ("precision", "form") for f in findings):
        findings += [Finding("hazard", way.name, way.text) for way in ways(operator, trials)]
        findings += [Finding("location", place.name, place.text) for place in locate(operator, trials)]
    return findings


def agrees(
    operator: Operator, trials: Sequence[Trial], conventions: Mapping[str, str], misses: int = 0
) -> tuple[Inferred, int] | None:
    """The tightest form and precision under other conventions than the trials were judged under; where none has all of
    them within its bound, that which misses the fewest, and at most so many. With the number of those it has."""
    moved = []
    for trial in trials:
        case = replace(trial.case, arguments={**trial.case.arguments, **conventions})
        other = Trial(operator, trial.subject, case)
        other._answers = dict(trial._answers)
        moved.append(other)
    try:
        inferred = infer(operator, moved)
        if inferred is None and misses:
            moved = _most(operator, moved, misses)
            inferred = infer(operator, moved)
    except ValueError:  # the definition does not know the conventions in one of the cases
        return None
    return None if inferred is None else (inferred, len(moved))


def _most(operator: Operator, trials: Sequence[Trial], misses: int) -> list[Trial]:
    """The trials that one form and precision has within its bound, where it misses the fewest; none if more."""
    best: list[Trial] = []
    trials = sorted(trials, key=lambda t: -t.headroom)  # what rejects is met early
    for (form, text), precision in product(operator.texts.items(), published(trials[0].case.dtype) if trials else ()):
        left, missed = [], 0
        for trial in trials:
            if _headroom([trial], text, precision.name) is not None:
                left.append(trial)
            elif (missed := missed + 1) > misses:
                break
        else:
            if not _refuted(operator, left, form, precision.name):
                best, misses = left, missed - 1
    return best


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
    """Do all outputs agree with the other function, and somewhere with no kernel that is right? What is bounded so
    loosely that right kernels agree with it as well explains nothing."""
    differs = False
    for trial in sorted(trials, key=lambda t: t.exact[0].midpoint.size):  # most are rejected by a small case, soon
        found = trial.fits(other.definition, other.change(dict(trial.case.arguments)), own=other.own)
        if found is None:
            return False
        for wrong, right, bound in zip(found, trial.exact, trial.bound, strict=True):
            with np.errstate(invalid="ignore"):
                apart = np.abs(wrong.midpoint - right.midpoint) > np.maximum(bound, wrong.radius)
            differs = differs or bool(apart.any())
    return differs


def _shifted(shift: Shift) -> Finding:
    value = shift.value + (0 if shift.direction.parameter is None else 1)
    return Finding("parameter", shift.direction.name, str(shift), value=value, sigma=shift.sigma)
