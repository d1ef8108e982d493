"""Ill-conditioned ways that a kernel seems to go: it is wrong in the cases in which one of them is.

Two kernels that go such a way err by different numbers, for these are roundings, blown up; but in the same cases, where
the way is ill-conditioned. It is told only if luck does not explain it: if as many failures, dealt out over the cases
at random, would hardly meet so many of those in which the way fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np

from assay.properties.contract import Operator
from assay.properties.drawing import Values
from assay.properties.emulated import by_hazard
from assay.properties.location import CHANCE, NEARLY, Place
from assay.properties.trial import Trial, outside


def ways(operator: Operator, trials: Sequence[Trial]) -> list[Place]:
    """Those of the contract's hazards that a kernel seems to go."""
    failing = [_off(t, t.answer().outputs) > 1 for t in trials] if operator.hazards else []
    found = []
    for name, hazard in operator.hazards.items():
        there = [_off_by(hazard, t) > 1 / NEARLY for t in trials]
        both = sum(f and w for f, w in zip(failing, there, strict=True))
        if (sum(failing) - both) * NEARLY > sum(failing):
            continue
        if _chance(len(trials), sum(there), sum(failing), both) * len(operator.hazards) < CHANCE:
            found.append(Place(name, f"wrong where this is: {inspect.getdoc(hazard)}"))
    return found


def _off_by(hazard: Callable[..., Any], trial: Trial) -> float:
    found = by_hazard(hazard, trial.case.arguments)
    if found is None:
        return 0.0
    with np.errstate(all="ignore"):
        returned = [x.astype(got.dtype) for x, got in zip(found, trial.answer().outputs, strict=True)]
    return _off(trial, returned)


def _off(trial: Trial, outputs: Sequence[Values]) -> float:
    """How many bounds outputs are off at most; no more than one where they are right."""
    most = 0.0
    for got, exact, bound in zip(outputs, trial.exact, trial.bound, strict=True):
        wrong, ratio = outside(got, exact, bound, trial.case.dtype)
        most = max(most, float(np.where(wrong, np.fmax(ratio, 2), np.fmin(ratio, 1)).max(initial=0)))
    return most


def _chance(cases: int, marked: int, drawn: int, both: int) -> float:
    """The probability that of so many cases drawn at random at least `both` are marked: hypergeometric."""
    such = sum(comb(marked, k) * comb(cases - marked, drawn - k) for k in range(both, min(marked, drawn) + 1))
    return float(Fraction(such, comb(cases, drawn)))
