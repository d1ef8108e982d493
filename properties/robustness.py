"""What every kernel owes, whatever its operator. A contract does not have to ask for any of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from assay.properties.contract import Operator, Property
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
    about: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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
        raise Violation(f"the call changed its input {' and '.join(touched)}")
    return True


def _same_twice(trial: Trial) -> bool:
    first = trial.answer().outputs
    second = trial.subject(trial.case.arguments, None, ()).outputs
    for a, b in zip(first, second, strict=True):
        if a.tobytes() != b.tobytes():
            raise Violation("the same call, made twice, gives different bits")
    return True


AGREEMENT = Check("agrees_with_oracle", "|kernel - exact| <= derived bound, element by element", _agrees)

UNIVERSAL = (
    AGREEMENT,
    Check(
        "gradients_agree",
        "the same for every gradient, for random non-contiguous cotangents",
        _gradients_agree,
        differentiates=True,
    ),
    Check("inputs_are_untouched", "no input is changed by a call", _inputs_are_untouched),
    Check("same_twice", "the same call gives the same bits", _same_twice),
)


def checks(operator: Operator) -> tuple[Check, ...]:
    """Everything that is demanded of a kernel of this operator."""
    return (*UNIVERSAL, *(_from_property(p) for p in operator.properties))


def _from_property(rule: Property) -> Check:
    def holds(trial: Trial) -> bool:
        if not all(map(trial.subject.supports, rule.needs)):
            return False
        asked = {name: trial.case.arguments.get(name, values[0]) for name, values in trial.operator.conventions.items()}
        if any(asked[name] not in values for name, values in rule.about.items()):
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

    return Check(rule.name, rule.law, holds, universal=False, needs=rule.needs, about=rule.about)
