"""Evaluating a definition in an arithmetic, and the certified oracle.

`evaluate` and `differentiate` run a definition (or a form: any text with the definition's signature) in any arithmetic.
`oracle` runs it over balls, with as many digits as the question needs: it returns the exact value, as a midpoint and
a radius that encloses what is not known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.reference.arithmetic.adjoint import Adjoint
from assay.reference.arithmetic.array import Arithmetic, Array, Mask, Part, Uncertain
from assay.reference.arithmetic.bounded import Bounded
from assay.reference.arithmetic.complex import ComplexArray, over, paired
from assay.reference.arithmetic.objects import Ball, enclosure
from assay.reference.arithmetic.precision import EXTENDED, Precision


Definition = Callable[..., Any]
Arguments = Mapping[str, Any]
"""By name: NumPy arrays and Python floats are lifted into the arithmetic; integers, strings, tuples and None say which
function is meant and are passed as they are."""

MANY = 1 << 18
"""Cases with more numbers are first computed in extended precision, and over balls if its own bound is too wide."""
FIRST_BITS = 113
LAST_BITS = 1 << 14
TIGHTER = 64
"""The oracle's radius is at most the judge's bound divided by this, so that it never decides a verdict."""


@dataclass(frozen=True)
class Enclosure:
    """The exact value of an array, element by element: |exact - midpoint[...]| <= radius[...].

    `midpoint` is in extended precision. Where the exact value is not a finite number (a logarithm of zero), `radius`
    is infinite.
    """

    midpoint: Part
    radius: Part

    @property
    def shape(self) -> tuple[int, ...]:
        return self.midpoint.shape


OWN = Bounded(Precision("extended", "what the values beside running errors are computed in", EXTENDED))


def lift(xp: Arithmetic, value: Any) -> Any:
    """One argument, lifted into an arithmetic if it is a number and left alone if it is a choice."""
    if isinstance(value, np.ndarray):
        if np.iscomplexobj(value):
            return over(xp).lift(value)
        return Mask(value) if value.dtype == bool else xp.lift(value)
    return xp.parameter(value) if isinstance(value, float) else value


def applied(definition: Definition, xp: Arithmetic, lifted: Arguments) -> tuple[Any, ...]:
    """The outputs of a definition at arguments that are lifted. One that makes its arrays from sizes alone has the
    keyword `xp`, and is told the arithmetic."""
    return as_tuple(definition(**lifted, xp=xp) if _makes(definition) else definition(**lifted))


def _makes(definition: Definition) -> bool:
    code = getattr(definition, "__code__", None)  # asked for every evaluation, and inspect takes its time
    if code is None:
        return "xp" in inspect.signature(definition).parameters
    return "xp" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def evaluate(definition: Definition, xp: Arithmetic, arguments: Arguments) -> tuple[Array, ...]:
    """The outputs of a definition in the arithmetic xp."""
    with xp.context():
        return applied(definition, xp, {name: lift(xp, value) for name, value in arguments.items()})


def differentiate(
    definition: Definition,
    below: Arithmetic,
    arguments: Arguments,
    cotangents: Sequence[Part],
    by: Sequence[str],
    taped: Callable[[Arithmetic], Adjoint] = Adjoint,
) -> tuple[tuple[Array, ...], dict[str, Array]]:
    """Outputs, and the vector-Jacobian product with the cotangents for each argument named in `by`.

    Of complex numbers, both parts count: the gradient of z = x + iy is d/dx + i d/dy of sum Re(conj(cotangent) output).
    """
    tape = taped(below)
    with below.context():
        lifted = {name: lift(tape, value) for name, value in arguments.items()}
        for name in by:
            lifted[name] = each(lifted[name], lambda node: tape.variable(node.value))
        variables = [node for name in by for node in _reals(lifted[name])]
        outputs = applied(definition, tape, lifted)
        pulled = [
            pair
            for output, cotangent in zip(outputs, cotangents, strict=True)
            for pair in zip(_reals(output), _reals(lift(below, np.asarray(cotangent))), strict=True)
        ]
        rest = iter(tape.gradients(pulled, variables))
        found = {name: each(lifted[name], lambda _: next(rest)) for name in by}
    return tuple(each(o, lambda node: node.value) for o in outputs), found


def _reals(x: Any) -> tuple[Any, ...]:
    return (x.real, x.imag) if isinstance(x, ComplexArray) else (x,)


def each(x: Any, function: Callable[[Any], Array]) -> Array:
    """A function of the real and of the imaginary part, or of what has only one."""
    return ComplexArray(function(x.real), function(x.imag)) if isinstance(x, ComplexArray) else function(x)


def oracle(definition: Definition, arguments: Arguments, bounds: Sequence[Part]) -> tuple[Enclosure, ...]:
    """The exact outputs, each known to within 1/64 of the bound it will be compared with. A complex output has a last
    axis of two, for its real and imaginary part.

    Over balls; where there are many numbers, in extended precision with its running error if that is known so well.

    Raises: Uncertain if 16,384 bits do not suffice (a definition that branches on a tie, for instance).
    """
    if sum(a.size for a in arguments.values() if isinstance(a, np.ndarray) and not np.iscomplexobj(a)) > MANY:
        known = tuple(Enclosure(*o.parts) for o in evaluate(definition, OWN, arguments))
        if decides(known, bounds):
            return known
    return _sharpened(lambda ball: evaluate(definition, ball, arguments), bounds)


def gradient_oracle(
    definition: Definition, arguments: Arguments, cotangents: Sequence[Part], bounds: Mapping[str, Part]
) -> dict[str, Enclosure]:
    """The exact gradients for each argument named in `bounds`, likewise."""
    names = tuple(bounds)

    def gradients(ball: Ball) -> tuple[Array, ...]:
        found = differentiate(definition, ball, arguments, cotangents, names)[1]
        return tuple(found[name] for name in names)

    return dict(zip(names, _sharpened(gradients, tuple(bounds.values())), strict=True))


def _sharpened(compute: Callable[[Ball], tuple[Array, ...]], bounds: Sequence[Part]) -> tuple[Enclosure, ...]:
    bits = FIRST_BITS
    while True:
        ball = Ball(bits)
        try:
            balls = compute(ball)
            with ball.context():
                known = tuple(Enclosure(*enclosure(paired(b))) for b in balls)
            if decides(known, bounds):
                return known
            reason = "the balls stay wider than 1/64 of the bound"
        except Uncertain as error:
            reason = str(error)
        bits *= 2
        if bits > LAST_BITS:
            raise Uncertain(f"{bits // 2} bits do not decide: {reason}")


def decides(known: Sequence[Enclosure], bounds: Sequence[Part]) -> bool:
    """Is everything known so well that it decides what is compared with these bounds?"""
    return all(bool(np.all(k.radius * TIGHTER <= bound)) for k, bound in zip(known, bounds, strict=True))


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
