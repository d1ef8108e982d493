"""What every kernel owes, whatever its operator. A contract does not have to ask for any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from assay.properties.contract import Operator, Property, Statistic
from assay.properties.statistics import LEVEL, Samples
from assay.properties.trial import JUDGE, Trial, Violation
from assay.reference.arithmetic.oracle import Enclosure


@dataclass(frozen=True)
class Check:
    """One demand on a kernel, as the judge runs it."""

    name: str
    law: str
    holds: Callable[[Trial], bool]
    """False where the case is outside the domain. Raises: Violation where the kernel breaks the demand."""
    differentiates: bool = False
    universal: bool = True
    """Owed by every kernel, and tried on every case; the contract's own properties take turns."""
    needs: tuple[str, ...] = ()


def _agrees(trial: Trial) -> bool:
    trial.agree()
    return True


def _gradients_agree(trial: Trial) -> bool:
    if not trial.subject.differentiable:
        return False
    trial.agree_in_gradients()
    return True


def _inputs_are_untouched(trial: Trial) -> bool:
    touched = trial.answer().touched
    if touched:
        raise Violation(f"the call changed {' and '.join(touched)}")
    return True


def _same_twice(trial: Trial) -> bool:
    first = trial.answer().outputs
    second = trial.subject(trial.case.arguments, None, ()).outputs
    for a, b in zip(first, second, strict=True):
        if a.tobytes() != b.tobytes():
            raise Violation("the same call, made twice, gives different bits")
    return True


AGREEMENT = Check("agrees_with_oracle", "|kernel - exact| <= derived bound, element by element", _agrees)

OF_DRAWN = (
    Check("inputs_are_untouched", "a call changes no input and no global random state", _inputs_are_untouched),
    Check("same_twice", "the same call gives the same bits", _same_twice),
)
"""What is demanded of kernels that have no exact answer, too."""

UNIVERSAL = (
    AGREEMENT,
    Check(
        "gradients_agree",
        "the same for every gradient, for random non-contiguous cotangents",
        _gradients_agree,
        differentiates=True,
    ),
    *OF_DRAWN,
)


def checks(operator: Operator) -> tuple[Check, ...]:
    """Everything that is demanded of a kernel of this operator."""
    drawn = operator.definition is None
    own = [_from_statistic(p) if isinstance(p, Statistic) else _from_property(p, drawn) for p in operator.properties]
    return (*own, *OF_DRAWN) if drawn else (*UNIVERSAL, *own)


def _from_statistic(rule: Statistic) -> Check:
    def holds(trial: Trial) -> bool:
        if not isinstance(trial, Samples) or not all(map(trial.subject.supports, rule.needs)):
            return False
        p = rule.p_value(trial)
        if p is None:
            return False
        if not p > LEVEL:
            raise Violation(
                f"a right kernel would show this with probability {p:.1e} at most, in {trial.operator.samples} samples"
            )
        return True

    return Check(rule.name, rule.law, holds, needs=rule.needs)


def _from_property(rule: Property, universal: bool) -> Check:
    def holds(trial: Trial) -> bool:
        if not all(map(trial.subject.supports, rule.needs)):
            return False
        with JUDGE.context():
            residual = rule.residual(trial)
        if residual is None:
            return False
        value, error = residual.parts
        zero = Enclosure(np.zeros_like(value), np.zeros_like(value))
        # A residual is compared like any output: against zero, within the error that it carries.
        trial.compare("residual", value, zero, error)
        return True

    return Check(rule.name, rule.law, holds, universal=universal, needs=rule.needs)
