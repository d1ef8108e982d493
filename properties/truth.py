"""What is true of a case: its exact outputs and gradients, and how far a kernel of some claims may be off.

No kernel is called here. What is derived for one kernel holds for every other of the same form and precision, so the
truth of the cases seen lately is kept: kernels that are judged one after the other are often given the same cases.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import numpy as np

from assay.properties.contract import Definition, Operator
from assay.properties.drawing import CONTINUOUS, Case, Values
from assay.reference.arithmetic.array import Array, Uncertain
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import paired
from assay.reference.arithmetic.independent import Independent
from assay.reference.arithmetic.oracle import (
    Arguments,
    Enclosure,
    decides,
    differentiate,
    evaluate,
    gradient_oracle,
    oracle,
)
from assay.reference.arithmetic.precision import EXTENDED, FLOAT32, FORMATS, PRECISIONS, Format, Precision


@cache
def bounded(precision: str, regime: str | None = None) -> Bounded:
    """The arithmetic of bounds. Storage roundings count as independent where the regime is drawn continuously."""
    return (Independent if regime in CONTINUOUS else Bounded)(PRECISIONS[precision])


JUDGE = Bounded(Precision("judge", "extended precision: what the judge itself computes in", EXTENDED))

KEPT = 1024
"""The truth of so many cases is kept,"""
SMALL = 1024
"""if their arrays have no more elements than this together."""


class NotApplicable(Exception):
    """A demand cannot be made here; the message says why, in one line."""


class Truth:
    """One case x the claims of a kernel. Everything is derived when first asked for, and once."""

    def __init__(
        self,
        operator: Operator,
        case: Case,
        form: str | None,
        precision: str,
        *,
        cotangents: tuple[Values, ...] | None = None,
        known: Truth | None = None,
    ) -> None:
        """`form`: None for a kernel that claims none, which the loosest bounds. `cotangents`: drawn, if not given.
        `known`: the truth of the same case under other claims."""
        self.operator = operator
        self.case = case
        self.form = form
        self.precision = precision
        self.sensitivities: dict[str, Values] = {} if known is None else known.sensitivities
        """By the name of a number of the definition, how the exact output moves with it; filled where it is needed."""
        self._given = cotangents
        self._known = known
        self._errors: dict[Any, tuple[tuple[Array, ...], ...]] = {}
        self._bounds: dict[tuple[str, ...], tuple[Values, ...]] = {}
        self._gradient_bounds: dict[Any, dict[str, Values]] = {}

    def claiming(self, form: str | None, precision: str) -> Truth:
        """The same case for kernels of other claims: what does not depend on them is not computed again."""
        if (form, precision) == (self.form, self.precision):
            return self
        return Truth(self.operator, self.case, form, precision, cotangents=self.cotangents, known=self)

    def pulling(self, cotangents: tuple[Values, ...]) -> Truth:
        """The same with other cotangents."""
        other = Truth(self.operator, self.case, self.form, self.precision, cotangents=cotangents)
        other._errors, other._bounds = self._errors, self._bounds
        return other

    @property
    def forms(self) -> Mapping[str, Definition]:
        """The form that is claimed; all of them, if none is."""
        texts = self.operator.texts
        return texts if self.form is None else {self.form: texts[self.form]}

    @property
    def count(self) -> int:
        """How many outputs there are."""
        return len(self.errors({})[0])

    def errors(self, changes: Mapping[str, Any]) -> tuple[tuple[Array, ...], ...]:
        """The outputs of each form with their errors, before the last rounding, for the case with some arguments
        changed."""
        key = _key(changes)
        if key not in self._errors:
            xp = bounded(self.precision, None if changes else self.case.regime)
            arguments = self.case.with_arguments(**changes)
            self._errors[key] = tuple(evaluate(text, xp, arguments) for text in self.forms.values())
        return self._errors[key]

    def bound(self, formats: tuple[Format, ...]) -> tuple[Values, ...]:
        """How far each output, in its format, may be off."""
        key = tuple(f.name for f in formats)
        if key not in self._bounds:
            self._bounds[key] = loosest_of(self.errors({}), formats)
        return self._bounds[key]

    @cached_property
    def exact(self) -> tuple[Enclosure, ...]:
        """The exact outputs."""
        own = FORMATS[self.case.dtype]
        # The narrowest bound that a kernel may be held to.
        bound = self.bound(tuple(at_least_single(own) if i in self.operator.wide else own for i in range(self.count)))
        known = self._known.exact if self._known is not None else ()
        if known and decides(known, bound):
            return known
        with _decided():
            return oracle(self.operator.definition, self.case.arguments, bound)

    @cached_property
    def cotangents(self) -> tuple[Values, ...]:
        """What the outputs are multiplied by before they are differentiated."""
        if self._given is not None:
            return self._given
        drawn = self.drawn([e.shape for e in self.exact])
        for cotangent in drawn:
            cotangent.flags.writeable = False
        return drawn

    def drawn(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Values, ...]:
        """Random cotangents for outputs of these shapes."""
        return tuple(self.case.cotangent(shape, i) for i, shape in enumerate(shapes))

    @cached_property
    def gradient_bound(self) -> dict[str, Values]:
        """How far the gradients may be off, by the names of the arguments that have them."""
        return self._derived(self.case.arguments, self.cotangents, self.case.regime)

    def gradient_bound_at(self, changes: Mapping[str, Any], cotangents: Sequence[Values]) -> dict[str, Values]:
        """The same for the case with some arguments changed, for drawn cotangents."""
        key = _key(changes)
        if key not in self._gradient_bounds:
            self._gradient_bounds[key] = self._derived(self.case.with_arguments(**changes), cotangents)
        return self._gradient_bounds[key]

    @cached_property
    def exact_gradient(self) -> dict[str, Enclosure]:
        """The exact gradients."""
        bound = self.gradient_bound
        known = self._known.exact_gradient if self._known is not None else {}
        if known and decides(tuple(known.values()), tuple(bound[n] for n in known)):
            return known
        with _decided():
            return gradient_oracle(self.operator.definition, self.case.arguments, self.cotangents, bound)

    def _derived(
        self, arguments: Arguments, cotangents: Sequence[Values], regime: str | None = None
    ) -> dict[str, Values]:
        """The loosest over the derivatives of the forms and the gradients as kernels write them."""
        by = self.operator.differentiated_in(arguments)
        xp = bounded(self.precision, regime)
        found = [differentiate(text, xp, arguments, cotangents, by)[1] for text in self.forms.values()]
        backward = self.operator.backward
        if backward is not None:
            plain = bounded(self.precision)

            def text(**lifted: Any) -> Any:
                return backward(tuple(plain.lift(c) for c in cotangents), **lifted)

            found.append(dict(zip(by, evaluate(text, plain, arguments), strict=True)))
        return {n: loosest_of([(f[n],) for f in found], (self.format_of_gradient(n),))[0] for n in by}

    def format_of_gradient(self, name: str) -> Format:
        own = FORMATS[self.case.dtype]
        return own if name in self.operator.tensors else at_least_single(own)


@contextmanager
def _decided() -> Iterator[None]:
    """Where a definition jumps from one value to another, no digits may decide. Raises: NotApplicable."""
    try:
        yield
    except Uncertain as reason:
        raise NotApplicable(f"the exact answer is not known: {reason}") from None


def truth_of(operator: Operator, case: Case, form: str | None, precision: str) -> Truth:
    """The truth of a case: that of an equal one, if it was asked for lately."""
    if sum(v.size for v in case.arguments.values() if isinstance(v, np.ndarray)) > SMALL:
        return Truth(operator, case, form, precision)
    key = id(operator), form, precision, case.dtype, case.regime, case.seed, _key(case.arguments)
    truth = _lately.pop(key, None) or Truth(operator, case, form, precision)
    _lately[key] = truth  # the last again; it holds the operator, so that the id stays its own
    if len(_lately) > KEPT:
        _lately.popitem(last=False)
    return truth


_lately: OrderedDict[Any, Truth] = OrderedDict()


def _key(arguments: Mapping[str, Any]) -> Any:
    """Tells arguments from each other."""
    return tuple(
        (n, v.dtype.str, v.shape, v.tobytes()) if isinstance(v, np.ndarray) else (n, type(v), v)
        for n, v in arguments.items()
    )


def at_least_single(format: Format) -> Format:
    """float32 for what is narrower."""
    return FLOAT32 if format.bits < FLOAT32.bits else format


def bound_of(
    text: Definition, arguments: Arguments, precision: str, formats: Sequence[Format], regime: str | None = None
) -> tuple[Values, ...]:
    """How far a kernel of this form and precision may be off, element by element, for each output and its format.

    `regime`: that of the arguments, if they are as they were drawn.
    """
    return loosest_of([evaluate(text, bounded(precision, regime), arguments)], formats)


def loosest_of(errors: Sequence[Sequence[Array]], formats: Sequence[Format]) -> tuple[Values, ...]:
    """The loosest bound of several forms, for each output, once it is rounded to its format."""
    return loosest([[_returned(o, f) for o, f in zip(outputs, formats, strict=True)] for outputs in errors])


def loosest(bounds: Sequence[Sequence[Values]]) -> tuple[Values, ...]:
    """The largest of several bounds, for each output."""
    return tuple(np.maximum.reduce(list(output)) for output in zip(*bounds, strict=True))


def _returned(output: Array, dtype: Format) -> Values:
    """The error after the one rounding to the output's dtype. Overflow there is judged by class, not forgiven."""
    output = paired(output)
    xp = output.xp
    assert isinstance(xp, Bounded)
    value, error = xp.certain(output).parts
    with xp.context():
        return error + xp.at(dtype).charge(value, error)
