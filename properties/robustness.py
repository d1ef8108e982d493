"""What every kernel owes, whatever its operator. A contract does not have to ask for any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from assay.properties import calls, memory, shapes
from assay.properties.contract import Integers, Operator, Property, Statistic
from assay.properties.statistics import LEVEL, Samples
from assay.properties.trial import Subject, Trial, Violation, hosted
from assay.properties.truth import JUDGE
from assay.reference.arithmetic.oracle import Enclosure


Group = Literal["always", "robustness", "contract"]


@dataclass(frozen=True)
class Check:
    """One demand on a kernel, as the judge runs it."""

    name: str
    law: str
    holds: Callable[[Trial], bool]
    """False where the case is outside the domain. Raises: Violation where the kernel breaks the demand."""
    differentiates: bool = False
    group: Group = "always"
    """Tried on every case; or, with others of its group, in turn."""
    needs: tuple[str, ...] = ()
    """Keywords of the kernel."""
    hosted: bool = False
    """It says nothing of a kernel that is emulated."""
    under: str = ""
    """Owed only where the kernel claims to work under this."""
    divided: bool = True
    """It can be demanded of a kernel over several ranks."""
    of_tensors: bool = False
    """It says nothing of an operator without tensors."""

    @property
    def universal(self) -> bool:
        return self.group == "always"

    def lacking(self, subject: Subject) -> str:
        """Why it cannot be asked of a kernel; empty if it can."""
        keywords = [k for k in self.needs if not subject.supports(k)]
        host = hosted(subject)
        if self.differentiates and not subject.differentiable:
            return "the kernel claims no backward"
        if keywords:
            return f"the kernel does not have {', '.join(keywords)}"
        if self.hosted and host is None:
            return "the kernel is emulated"
        if self.under and (host is None or self.under not in host.under):
            return f"the kernel does not claim to work under {self.under}"
        if not self.divided and host is not None and host.world > 1:
            return "of a kernel over several ranks: where one raises, the others wait for it"
        return ""


def _agrees(trial: Trial) -> bool:
    trial.agree()
    return True


def _gradients_agree(trial: Trial) -> bool:
    if not trial.differentiable:
        return False
    trial.agree_in_gradients()
    return True


AGREEMENT = Check("agrees_with_oracle", "|kernel - exact| <= derived bound, element by element", _agrees)

SAME_TWICE = Check("same_twice", "the same call gives the same bits", calls.same_twice)

OF_DRAWN = (
    SAME_TWICE,
    Check(
        "random_state_is_untouched",
        "a call leaves the random numbers of others alone",
        calls.random_state_is_untouched,
        hosted=True,
    ),
)
"""What is demanded of kernels that draw random numbers, beside their distribution."""

UNIVERSAL = (
    AGREEMENT,
    Check(
        "gradients_agree",
        "the same for every gradient, for random non-contiguous cotangents",
        _gradients_agree,
        differentiates=True,
        of_tensors=True,
    ),
    Check("inputs_are_untouched", "no input is changed by a call", memory.inputs_are_untouched, of_tensors=True),
    Check(
        "nothing_is_written_outside",
        "memory beside the inputs is not changed",
        memory.nothing_is_written_outside,
        hosted=True,
        of_tensors=True,
    ),
    Check(
        "outputs_own_their_memory",
        "no output lies in the memory of an input, another output or itself",
        memory.outputs_own_their_memory,
        hosted=True,
    ),
    SAME_TWICE,
)


def _in_turn(
    name: str,
    law: str,
    holds: Callable[[Trial], bool],
    *,
    emulated: bool = False,
    under: str = "",
    divided: bool = True,
    of_tensors: bool = False,
) -> Check:
    group: Group = "robustness"
    return Check(name, law, holds, False, group, (), not emulated, under, divided, of_tensors)


_of_memory = partial(_in_turn, of_tensors=True)

ROBUSTNESS = (
    _in_turn("every_element_is_written", "fresh memory full of NaN changes nothing", memory.every_element_is_written),
    _of_memory("nothing_is_read_outside", "memory beside the inputs changes nothing", memory.nothing_is_read_outside),
    _of_memory("any_memory_layout", "strides and offsets change nothing", memory.any_memory_layout, emulated=True),
    _of_memory("repeated_elements", "an axis may have stride 0", memory.repeated_elements),
    _of_memory("far_elements", "elements may be 2**31 apart", memory.far_elements),
    _in_turn(
        "earlier_calls_have_no_effect",
        "other calls between two equal ones change nothing",
        calls.earlier_calls_have_no_effect,
    ),
    _of_memory(
        "same_memory_other_values",
        "what the same tensors held earlier changes nothing",
        calls.same_memory_other_values,
    ),
    _in_turn(
        "sizes_around_powers_of_two",
        "2**n - 1, 2**n, 2**n + 1 and prime lengths are right",
        shapes.sizes_around_powers_of_two,
    ),
    _in_turn(
        "axes_of_one_element",
        "with one element along any axis, and two along all others, it is right",
        shapes.axes_of_one_element,
    ),
    _in_turn("empty_axes", "an empty axis gives what the definition gives", shapes.empty_axes),
    _in_turn(
        "malformed_shapes_raise",
        "where the definition means nothing, the kernel raises",
        shapes.malformed_shapes_raise,
        divided=False,
    ),
    _of_memory(
        "integers_for_floats_raise",
        "an integer tensor for a real one is refused, or taken as its numbers",
        shapes.integers_for_floats_raise,
    ),
    *(
        _in_turn(
            f"works_under_{name}",
            f"the bounds hold under {name}",
            calls.works_under(name),
            under=name,
            of_tensors=name == "vmap",
        )
        for name in ("compile", "vmap", "autocast")
    ),
)
BATCHED = _in_turn(
    "batch_rows_are_independent", "NaN in other rows of b changes no row", shapes.batch_rows_are_independent
)
INTEGRAL = _in_turn(
    "integers_of_any_width", "integers of 8 to 64 bits give the same, or are refused", shapes.integers_of_any_width
)


def checks(operator: Operator) -> tuple[Check, ...]:
    """Everything that is demanded of a kernel of this operator."""
    if operator.random:
        return (*(_from_property(p, "always") for p in operator.properties), *OF_DRAWN)
    batched = any("b" in i.axes.split() for i in operator.inputs)
    integral = any(isinstance(i, Integers) for i in operator.inputs)
    own = tuple(_from_property(p, "contract") for p in operator.properties)
    every = (*UNIVERSAL, *ROBUSTNESS, *((BATCHED,) if batched else ()), *((INTEGRAL,) if integral else ()))
    return (*(c for c in every if operator.tensors or not c.of_tensors), *own)


def _from_property(rule: Property | Statistic, group: Group) -> Check:
    if isinstance(rule, Statistic):
        return _from_statistic(rule, group)

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

    return Check(rule.name, rule.law, holds, group=group, needs=rule.needs)


def _from_statistic(rule: Statistic, group: Group) -> Check:
    def holds(trial: Trial) -> bool:
        assert isinstance(trial, Samples)
        p = rule.p_value(trial)
        if p is not None and not p > LEVEL:
            told = f"a right kernel would show this with probability {p:.1e} at most"
            raise Violation(f"{told}, in {trial.operator.samples} samples")
        return p is not None

    return Check(rule.name, rule.law, holds, group=group, needs=rule.needs)
