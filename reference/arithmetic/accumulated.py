"""The adjoint bound: how far all the roundings of a run can move one number, through what follows each of them.

    |error of y|  <=  sum over roundings r of |dy / dr| |size of r|  +  second order

Running error takes the absolute value after every step, so that it grows as |A|**k along x_k = A x_{k-1} + B u_k even
where A**k is small. Here the sensitivities are those of the recurrence itself: one reverse sweep for each number asked
for, over a run in extended precision.

Second order: every rounding is sized at the exact path, and the sensitivities are taken there, while a kernel is a
little beside it. What that changes is of the size of the first-order bound times its ratio to the numbers themselves,

    theta  =  max over the numbers asked for of the first-order bound  /  max |number|

and the bound returned is (1 + theta) times the first-order one. That is an assumption (that the text is no more curved
than that, and no intermediate number less exact, relatively, than the outputs): it is refused where theta exceeds 1/16.

Source: S. Linnainmaa, BIT 16 (1976); N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 26.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from assay.reference.arithmetic.adjoint import Adjoint, Node, ordered
from assay.reference.arithmetic.array import Array, Part, Uncertain
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import paired
from assay.reference.arithmetic.formatted import EXTENDED, of
from assay.reference.arithmetic.oracle import Arguments, Definition, applied, lift
from assay.reference.arithmetic.precision import Format, Precision


SMALL = 1 / 16
"""The largest theta at which the first order is taken to tell the whole."""

_INEXACT = np.finfo(EXTENDED).tiny
"""Stands for an error that is known to be there and is accounted for elsewhere."""


def adjoint_bound(
    text: Definition, arguments: Arguments, precision: Precision, outputs: Sequence[tuple[int, ...]]
) -> Part:
    """How far a kernel in `precision` may be off at the elements `outputs` of the text's first output.

    Of a complex output, the last index is 0 for the real and 1 for the imaginary part.
    Raises: Uncertain where the first order does not tell the whole (see above).
    """
    local = Local(precision)
    tape = Everything(local)
    with local.context():
        output = paired(applied(text, tape, {name: lift(tape, value) for name, value in arguments.items()})[0])
        assert isinstance(output, Node)
        steps = dict(local.steps)
        order = ordered(output)
        first = np.array([_swept(tape, order, output, index, steps) for index in outputs])
    values = np.array([output.value.parts[0][index] for index in outputs])
    size = np.abs(values).max(initial=0)
    theta = first.max(initial=0) / size if size else EXTENDED(0 if not first.any() else np.inf)
    if not theta <= SMALL:
        raise Uncertain(f"the first-order bound is {float(theta):.3g} of the numbers: second order is not small")
    return np.asarray(first * (1 + theta))


def _swept(tape: Adjoint, order: Sequence[Node], output: Node, index: tuple[int, ...], steps: dict[int, Array]) -> Part:
    """Sum over the roundings of |d output[index] / d rounding| |rounding|."""
    start = np.zeros(output.shape)
    start[index] = 1
    moved: dict[int, Part] = {}
    for node, g in tape.sweep(order, (output, tape.below.lift(start))):
        if id(node.value) in steps:
            error = node.value.parts[1]
            # A step that changes nothing (`store` in the working format) shares the array of the one before it; that
            # one comes later in the sweep, and counts.
            moved[id(node.value)] = np.where(error == 0, 0, np.abs(g.parts[0]) * error).sum()
    return np.asarray(sum(moved.values(), EXTENDED(0)))


class Everything(Adjoint):
    """A tape that forgets nothing: whatever was computed from constants has roundings of its own."""

    def lift(self, values: Part) -> Node:
        return self.variable(self.below.lift(values))

    def constant(self, value: Array) -> Node:
        return self.variable(value)


class Local(Bounded):
    """Bounded, with the error of each step alone: what its operands brought is left out.

    `steps` holds the results that a step rounded, by identity: arrays that were only rearranged are not among them.
    """

    __name__ = "assay.local"

    def __init__(self, precision: Precision) -> None:
        super().__init__(precision)
        self.plain = Bounded(precision)
        self.steps: dict[int, Array] = {}

    def beside(self) -> Local:
        other = Local(self.precision)
        other.plain, other.steps = self.plain, self.steps
        return other

    def step(self, function: Callable[..., Array], *operands: Array) -> Array:
        """One step of `plain` on operands whose own errors are made as good as nothing."""
        out = function(
            *(Array(self.plain.at(of(x).format), (x.parts[0], np.where(x.parts[1] > 0, _INEXACT, 0))) for x in operands)
        )
        result = Array(self.at(of(out).format), out.parts)
        self.steps[id(result)] = result
        return result

    def lift(self, values: Part) -> Array:
        return self.step(lambda: self.plain.at(self.format).lift(values))

    def approximate(self, values: Part, error: Part) -> Array:
        return self.step(lambda: self.plain.at(self.format).approximate(values, error))

    def cast(self, x: Array) -> Array:
        return self.step(self.plain.at(self.format).cast, x)

    def operand(self, x: Array, kept: Format) -> Array:
        return self.step(lambda y: self.plain.at(self.format).operand(y, kept), x)

    def unary(self, name: str, x: Array) -> Array:
        if name in ("negative", "abs"):
            return super().unary(name, x)
        return self.step(lambda y: y.xp.unary(name, y), x)

    def binary(self, name: str, x: Array, y: Array) -> Array:
        if name in ("maximum", "minimum"):
            return super().binary(name, x, y)
        return self.step(lambda a, b: a.xp.binary(name, a, b), x, y)

    def scaled(self, x: Array) -> Array:
        return self.step(lambda y: y.xp.scaled(y), x)

    def matmul(self, x: Array, y: Array) -> Array:
        return self.step(lambda a, b: a.xp.matmul(a, b), x, y)

    def total(self, x: Array) -> Array:
        return self.step(lambda y: y.xp.total(y), x)
