"""A trial: one case and one kernel. Here the kernel is called, and its answer compared with the truth.

A kernel is seen through one narrow interface, `Subject`: NumPy arrays go in, NumPy arrays come out. Whoever runs it (in
this process or another, on a CPU or a GPU) is no business of this room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np

from assay.properties.contract import Definition, Input, Operator, Size
from assay.properties.drawing import DTYPES, Case, Values, parted, rounded
from assay.properties.truth import (
    JUDGE,
    NotApplicable,
    Truth,
    at_least_single,
    bound_of,
    loosest,
    loosest_of,
    truth_of,
)
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.oracle import Arguments, Enclosure, evaluate, oracle
from assay.reference.arithmetic.precision import FORMATS, Format, natural


@dataclass(frozen=True)
class Answer:
    """What a kernel returned, as NumPy arrays."""

    outputs: tuple[Values, ...]
    gradients: Mapping[str, Values] = field(default_factory=dict)
    touched: tuple[str, ...] = ()
    """The inputs, and `cotangent 0` and so on, that were found changed after the call."""
    trespassed: tuple[str, ...] = ()
    """Those beside whose elements, in gaps or in the guards around them, memory was written."""
    aliased: tuple[str, ...] = ()
    """The inputs in whose memory an output lies."""
    drew: bool = False
    """The call changed the state of the global random generator."""


class Subject(Protocol):
    """A kernel under judgement, as the judge sees it."""

    @property
    def name(self) -> str: ...

    @property
    def form(self) -> str | None: ...

    @property
    def precision(self) -> str | None: ...

    @property
    def differentiable(self) -> bool: ...

    def supports(self, keyword: str) -> bool: ...

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        """Run it. With cotangents, also return the gradients for the arguments named in `by`. `mode`: how it is called,
        a name that whoever runs it knows; the empty one is a plain call.

        Raises: NotCovered where the kernel does not support the arguments; KernelError for anything that it raised.
        """
        ...


class Hosted(Subject, Protocol):
    """A kernel that runs in memory of its own, as against one that is emulated."""

    @property
    def under(self) -> tuple[str, ...]:
        """What it claims to work under: `compile`, `vmap`, `autocast`."""
        ...

    @property
    def world(self) -> int:
        """On how many ranks it is called at once, each with some of the rows."""
        ...


def hosted(subject: Subject) -> Hosted | None:
    """The same subject, if it runs in memory of its own."""
    return cast("Hosted", subject) if hasattr(subject, "under") else None


class NotCovered(Exception):
    """The kernel said (NotImplementedError) that it does not support these arguments."""


class KernelError(Exception):
    """The kernel raised an exception: its type and message in one line."""


class GivenUp(KernelError):
    """The kernel is not called any more, after all that happened when it was; the message says what."""


@dataclass(frozen=True)
class Miss:
    """The element that is furthest outside its bound."""

    what: str
    """Which array: `output`, `gradient of x`."""
    index: tuple[int, ...]
    exact: float
    got: float
    bound: float
    wrong: int
    """How many elements are outside their bounds, of `size`."""
    size: int

    def __str__(self) -> str:
        where = ", ".join(map(str, self.index))
        return (
            f"{self.what}[{where}] is {self.got:.9g}, exact {self.exact:.9g}: "
            f"off by {abs(self.got - self.exact):.3g}, bound {self.bound:.3g} "
            f"({self.wrong} of {self.size} elements are outside)"
        )


class Violation(Exception):
    """The kernel breaks its contract; the message says how, in one line."""

    def __init__(self, message: str, miss: Miss | None = None) -> None:
        super().__init__(message)
        self.miss = miss


class Trial:
    """One case x one kernel. Everything is computed when first asked for, and once."""

    def __init__(self, operator: Operator, subject: Subject, case: Case, truth: Truth | None = None) -> None:
        """`truth`: of the case and the claims of the kernel, if it is known already."""
        self.operator = operator
        self.subject = subject
        self.case = case
        self.truth = truth_of(operator, case, *_claims(subject, case)) if truth is None else truth
        self.headroom = 0.0
        """The largest |error| / bound seen so far in this trial."""
        self.broken = False
        """A demand was broken in it."""
        self.undecided = False
        """Its exact answer is not known, and nothing is demanded of it."""
        self._answers: dict[bool, Answer] = {}

    def under(self, subject: Subject) -> Trial:
        """The same case for another kernel. What is true of the case is not computed again."""
        return Trial(self.operator, subject, self.case, self.truth.claiming(*_claims(subject, self.case)))

    @property
    def precision(self) -> str:
        return self.truth.precision

    @property
    def formats(self) -> tuple[Format, ...]:
        """The format of each output: that of the case, or a wider one that the operator allows and the kernel chose."""
        answer = next(iter(self._answers.values()), None)
        if answer is None:
            return (FORMATS[self.case.dtype],) * self.truth.count
        return tuple(FORMATS[str(o.dtype)] for o in answer.outputs)

    @property
    def by(self) -> tuple[str, ...]:
        """The arguments whose gradients the kernel owes."""
        operator = self.operator
        owed = operator.differentiated_in(self.case.arguments)
        return tuple(n for n in owed if n in operator.tensors or self.subject.supports(n))

    @property
    def tensors(self) -> tuple[str, ...]:
        """The inputs of the case that take gradients."""
        return tuple(n for n in self.operator.tensors if self.case.arguments.get(n) is not None)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs of the case."""
        return tuple(i for i in self.operator.inputs if self.case.arguments.get(i.name) is not None)

    @property
    def differentiable(self) -> bool:
        """Does the kernel owe gradients?"""
        return self.subject.differentiable and bool(self.by)

    # The kernel --------------------------------------------------------------------------------------------------

    @property
    def answered(self) -> bool:
        """Did the kernel return something of the right shape for the case itself?"""
        return bool(self._answers)

    @property
    def differentiated(self) -> bool:
        """Did the kernel return gradients for the case itself?"""
        return True in self._answers

    def answer(self, *, gradients: bool = False) -> Answer:
        """What the kernel returns for the case itself."""
        if gradients not in self._answers:
            cotangents = self.cotangents if gradients else None
            answer = self.subject(self.case.arguments, cotangents, self.by if gradients else ())
            self._checked(answer.outputs, self.exact)
            self._answers[gradients] = answer
        return self._answers[gradients]

    @property
    def second(self) -> Answer:
        """What it returns when it is called so again."""
        if not hasattr(self, "_second"):
            self._second = self.subject(self.case.arguments, None, ())
        return self._second

    def call(self, **changes: Any) -> Array:
        """The kernel's first output for the case's arguments with some changed, carrying the derived bound.

        For a property: the array is in the judge's arithmetic, its error is the bound.
        """
        return self.calls(**changes)[0]

    def calls(self, **changes: Any) -> tuple[Array, ...]:
        """The same with all outputs."""
        arguments = self.case.with_arguments(**changes)
        errors = self.truth.errors(changes)
        outputs = self.subject(arguments, None, ()).outputs
        self._check_shapes(outputs, tuple(e.shape for e in errors[0]))
        bounds = loosest_of(errors, [FORMATS[str(o.dtype)] for o in outputs])
        return tuple(JUDGE.approximate(o, b) for o, b in zip(outputs, bounds, strict=True))

    def gradients(self, **changes: Any) -> dict[str, Array] | None:
        """The kernel's gradients likewise; None where it has none. The cotangents are random."""
        if not self.differentiable:
            return None
        if changes:
            arguments = self.case.with_arguments(**changes)
            cotangents = self.truth.drawn([e.shape for e in self.truth.errors(changes)[0]])
            bounds = self.truth.gradient_bound_at(changes, cotangents)
            found = self.subject(arguments, cotangents, self.by).gradients
        else:
            bounds, found = self.gradient_bound, self.answer(gradients=True).gradients
        self._check_gradients(found, {n: b.shape for n, b in bounds.items()})
        return {n: JUDGE.approximate(parted(found[n]), bounds[n]) for n in self.by}

    # Its arguments -------------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> dict[str, int]:
        """The length of each axis, by its letter, but for the axes of an input to which a structure gave others."""
        found: dict[str, int] = {}
        changed: set[str] = set()
        for item in self.inputs:
            letters, shape = item.axes.split(), shape_of(item, self.case.arguments)
            if len(letters) == len(shape):
                found |= dict(zip(letters, shape, strict=True))
            else:
                changed |= set(letters)
        return {letter: n for letter, n in found.items() if letter not in changed}

    def along(self, letter: str) -> list[tuple[str, int]]:
        """The inputs that have an axis, and which it is of each."""
        inputs = [(i.name, i.axes.split()) for i in self.inputs if not isinstance(i, Size)]
        return [
            (name, axes.index(letter))
            for name, axes in inputs
            if letter in axes and self.case.arguments[name].ndim == len(axes)
        ]

    def resized(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The arguments with some axes of other lengths: cut, or repeated from the start."""
        arguments = dict(self.case.arguments)
        arguments |= {i.name: sizes[i.axes] for i in self.inputs if isinstance(i, Size) and i.axes in sizes}
        for letter, size in sizes.items():
            for name, axis in self.along(letter):
                arguments[name] = np.take(arguments[name], np.arange(size) % self.lengths[letter], axis)
        return arguments

    def called(
        self, mode: str = "", arguments: Arguments | None = None, cotangents: Sequence[Values] | None = None
    ) -> Answer:
        """What the kernel returns, called in some mode; with cotangents, also the gradients. Nothing is compared."""
        by = self.by if cotangents is not None else ()
        arguments = self.case.arguments if arguments is None else arguments
        return self.subject(arguments, cotangents, by, mode) if mode else self.subject(arguments, cotangents, by)

    def at(self, arguments: Arguments) -> Trial | None:
        """A trial of the same kernel at other arguments; None where the definition has no meaning there."""
        other = Trial(self.operator, self.subject, replace(self.case, arguments=arguments, regime="changed", memory={}))
        try:
            _ = other.exact
        except (ArithmeticError, AssertionError, IndexError, NotApplicable, TypeError, ValueError):
            return None
        return other

    def pulled(self, *cotangents: Values) -> tuple[Values, ...]:
        """The same, after these have become the cotangents of the trial."""
        self.truth = self.truth.pulling(cotangents)
        return cotangents

    def outputs(self, **changes: Any) -> tuple[Values, ...]:
        """What the kernel returns for the case's arguments with some changed; for laws that hold bit for bit."""
        outputs = self.subject(self.case.with_arguments(**changes), None, ()).outputs
        self._checked(outputs, self.exact)
        return tuple(outputs)

    def given(self, values: Values) -> Array:
        """Exact numbers, in the arithmetic in which properties compute."""
        return JUDGE.lift(values)

    def rounded(self, values: Values) -> Values:
        """Numbers rounded to the dtype of the case, to be passed to the kernel."""
        return rounded(np.asarray(values), self.case.dtype)

    def carried(self, x: Array, name: str, **changes: Any) -> Values:
        """How far the definition carries the error of x, if x, rounded to the dtype, takes the place of the argument
        `name`: a state may be returned in a wider format than it is taken in."""
        arguments = self.case.with_arguments(**changes)
        arguments.pop(name, None)

        def at(value: Array) -> Array:
            return evaluate(lambda **rest: self.operator.definition(**{name: value}, **rest), JUDGE, arguments)[0]

        passed = np.asarray(self.rounded(x.parts[0]), x.parts[0].dtype)
        blurred = Array(JUDGE, (passed, x.parts[1] + abs(x.parts[0] - passed)))
        sharp = Array(JUDGE, (passed, np.zeros_like(x.parts[1])))
        return at(blurred).parts[1] - at(sharp).parts[1]

    # The truth -----------------------------------------------------------------------------------------------------

    @property
    def exact(self) -> tuple[Enclosure, ...]:
        return self.truth.exact

    @property
    def bound(self) -> tuple[Values, ...]:
        """How far each output of the kernel may be off, under the form and precision that it claims."""
        return self.truth.bound(self.formats)

    @property
    def cotangents(self) -> tuple[Values, ...]:
        return self.truth.cotangents

    @property
    def exact_gradient(self) -> dict[str, Enclosure]:
        return self.truth.exact_gradient

    @property
    def gradient_bound(self) -> dict[str, Values]:
        return self.truth.gradient_bound

    @property
    def sensitivities(self) -> dict[str, Values]:
        return self.truth.sensitivities

    # Comparing -------------------------------------------------------------------------------------------------------

    def agree(self) -> None:
        """The outputs are of the right class and within their bounds; raises Violation otherwise."""
        self.headroom = max(self.headroom, self.agrees(self.answer().outputs))

    def agree_in_gradients(self) -> None:
        self.headroom = max(self.headroom, self.gradients_agree(self.answer(gradients=True).gradients))

    def agrees(self, outputs: Sequence[Values]) -> float:
        """The headroom of these outputs. Raises: Violation where they are not those of the case."""
        self._checked(outputs, self.exact)
        bounds = self.truth.bound(tuple(FORMATS[str(o.dtype)] for o in outputs))
        found = zip(outputs, self.exact, bounds, strict=True)
        return max(self.compare(_named(n, len(self.exact)), *parts) for n, parts in enumerate(found))

    def gradients_agree(self, gradients: Mapping[str, Values]) -> float:
        """The same for gradients. Of what an output does not depend on, torch has none: that is zero."""
        for name in self.by:
            exact = self.exact_gradient[name]
            if name not in gradients and not (exact.midpoint.any() or exact.radius.any()):
                gradients = {**gradients, name: np.zeros(exact.shape, DTYPES[self.truth.format_of_gradient(name).name])}
        self._check_gradients(gradients, {n: self.exact_gradient[n].shape for n in self.by})
        return max(
            self.compare(f"gradient of {n}", parted(gradients[n]), self.exact_gradient[n], self.gradient_bound[n])
            for n in self.by
        )

    def fits(
        self, definition: Definition, arguments: Arguments, *, own: bool = True, slack: Values | float = 0.0
    ) -> tuple[Enclosure, ...] | None:
        """The outputs of a definition at some arguments, exact but for how far a kernel may be off, if those of this
        one lie within; otherwise None.

        `own`: the forms that the kernel claims bound it; otherwise the definition's own text does. `slack` is added to
        the bound of the first output.
        """
        texts = self.truth.forms.values() if own else (definition,)
        try:
            bounds = loosest([bound_of(text, arguments, self.precision, self.formats) for text in texts])
            exact = oracle(definition, arguments, bounds)
        except (ArithmeticError, ValueError):
            return None
        bounds = (bounds[0] + slack, *bounds[1:])
        for got, truth, bound in zip(self.answer().outputs, exact, bounds, strict=True):
            if outside(got, truth, bound, self.case.dtype)[0].any():
                return None
        return tuple(Enclosure(e.midpoint, e.radius + bound) for e, bound in zip(exact, bounds, strict=True))

    def compare(self, what: str, got: Values, exact: Enclosure, bound: Values) -> float:
        """The headroom, max |got - exact| / bound. Raises: Violation where it exceeds 1."""
        wrong, ratio = outside(got, exact, bound, self.case.dtype)
        if wrong.any():
            worst = np.unravel_index(int(np.argmax(np.where(wrong, ratio, -1))), got.shape)
            miss = Miss(
                what=what,
                index=tuple(int(i) for i in worst),
                exact=float(exact.midpoint[worst]),
                got=float(got[worst]),
                bound=float(bound[worst]),
                wrong=int(wrong.sum()),
                size=got.size,
            )
            raise Violation(str(miss), miss)
        return float(ratio.max(initial=0.0))

    def _checked(self, outputs: Sequence[Values], exact: Sequence[Enclosure]) -> None:
        self._check_shapes(outputs, tuple(e.shape for e in exact))

    def _check_shapes(self, outputs: Sequence[Values], shapes: Sequence[tuple[int, ...]]) -> None:
        if len(outputs) != len(shapes):
            raise Violation(f"it returns {len(outputs)} arrays instead of {len(shapes)}")
        own = FORMATS[self.case.dtype]
        for number, (got, shape) in enumerate(zip(outputs, shapes, strict=True)):
            wider = at_least_single(own) if number in self.operator.wide else own
            _check_array(_named(number, len(shapes)), got, shape, (own, wider))

    def _check_gradients(self, gradients: Mapping[str, Values], shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name in self.by:
            if name in shapes and name not in gradients:
                raise Violation(f"there is no gradient of {name}")
            if name in shapes:
                format, got = self.truth.format_of_gradient(name), gradients[name]
                _check_array(f"gradient of {name}", parted(got), shapes[name], (format,))


def shape_of(item: Input, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """The lengths of the axes of an input."""
    value = arguments[item.name]
    return (int(value),) if isinstance(item, Size) else tuple(value.shape)


def _claims(subject: Subject, case: Case) -> tuple[str | None, str]:
    """The form and the precision that a kernel claims: the latter is that of the dtype if it says none."""
    return subject.form, subject.precision or natural(case.dtype).name


def _check_array(what: str, got: Values, shape: tuple[int, ...], formats: Sequence[Format]) -> None:
    if got.shape != shape:
        raise Violation(f"the {what} has shape {got.shape} instead of {shape}")
    if str(got.dtype) not in (f.name for f in formats):
        raise Violation(f"the {what} has dtype {got.dtype} instead of {formats[0].name}")


def outside(got: Values, exact: Enclosure, bound: Values, dtype: str) -> tuple[Values, Values]:
    """Which elements are outside their bounds, and |error| / bound of each.

    Classes first: a NaN or an infinity is right only where the exact value, give or take the bound, is one. Where the
    bound is infinite nothing can be demanded.
    """
    with np.errstate(invalid="ignore"):
        wide = got.astype(np.longdouble)  # what was never written may hold a signaling NaN
        error = np.abs(wide - exact.midpoint)
        limits = bound + exact.radius
    if np.isfinite(error).all() and np.isfinite(limits).all():
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = np.where(error <= exact.radius, 0, error / bound).astype(np.float64)
        return error > limits, ratio
    infinite = np.isinf(exact.midpoint) & (exact.radius == 0) & np.isfinite(bound)
    judged = np.isfinite(bound) & np.isfinite(exact.radius) & ~infinite
    limit = FORMATS.get(str(got.dtype), FORMATS[dtype]).max
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = np.where(error <= exact.radius, 0, error / bound)
        wrong = ~(error <= limits)
        # Past the largest number of the dtype, plus half a spacing, rounding gives an infinity of that sign.
        overflown = np.isinf(wide) & (np.sign(wide) * exact.midpoint + bound >= limit)
        wrong = judged & np.where(overflown, False, wrong)
        ratio = np.where(judged & ~overflown, np.where(np.isnan(ratio), np.inf, ratio), 0).astype(np.float64)
    missed = infinite & (wide != exact.midpoint)
    return wrong | missed, np.where(missed, np.inf, ratio)


def _named(number: int, of: int) -> str:
    return "output" if of == 1 else f"output {number}"
