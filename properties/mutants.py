"""Mutants: kernels wrong on purpose, derived from a contract. A suite that lets one pass cannot be trusted.

Every mutant is the emulated kernel of a form with one change. Nothing here knows an operator: conventions, slips,
parameters, inputs and outputs come from the contract, operations and terms from running its text once.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from assay.properties.contract import Integers, Operator, Size, Tensor
from assay.properties.drawing import DTYPES, LONGEST, NEVER_LONG, Values
from assay.properties.emulated import (
    BACKWARD,
    ByHand,
    Emulated,
    Fault,
    Memory,
    Read,
    Site,
    Write,
    Wrong,
    contiguous_strides,
    going,
    misread,
    passed,
    strides_of,
)
from assay.properties.judgement import prepare
from assay.properties.run import QUICK
from assay.properties.trial import Trial
from assay.reference.arithmetic.oracle import Arguments
from assay.reference.arithmetic.precision import BFLOAT16, FLOAT16, FORMATS, TF32, Format


Kind = Literal[
    "convention",
    "slip",
    "keyword",
    "parameter",
    "step",
    "index",
    "memory",
    "write",
    "gradient",
    "class",
    "null",
    "by hand",
]

FLOAT8 = Format("float8_e4m3", 4, -6, 8)
FORMATS_OF_STEPS = (BFLOAT16, FLOAT16, TF32, FLOAT8)
SHIFTS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
BLOCKS = (16, 64)
FEW = 2 * max(LONGEST[axis] for axis in NEVER_LONG)
"""An axis that never has more rows is one of those that nobody works on in blocks."""
SITES = 24
TERMS = 24
"""So many operations and terms at most, evenly spread over the text as it runs under each convention."""
WRAPPED = (8, 16, 31)
"""Integers are wrapped to so many bits."""


@dataclass(frozen=True)
class Mutant:
    """A wrong kernel."""

    name: str
    kind: Kind
    text: str
    """What it does, in one line."""
    base: Emulated = field(repr=False)
    change: dict[str, Any] = field(default_factory=dict, repr=False)
    """The fields of `Wrong` that differ."""
    parameter: str = ""
    """The parameter that is shifted, by a relative `shift`."""
    shift: float = 0.0
    scaled: str = ""
    """The input whose gradient is too large by a factor."""

    def kernel(self) -> Wrong:
        """A fresh one, which remembers no earlier call."""
        return Wrong(self.name, self.base, **self.change)


def right(operator: Operator, dtype: str) -> Emulated:
    """The kernel that mutants are made from: the first form, in the natural precision, claiming that form."""
    return Emulated(operator, dtype, form=next(iter(operator.texts)))


def right_kernels(operator: Operator, dtype: str) -> tuple[Emulated, ...]:
    """Kernels that must pass: every form, with sums in another order."""
    return tuple(
        Emulated(operator, dtype, f"{form} {order}", form, order=order)
        for form in operator.texts
        for order in ("forward", "pairwise")
    )


def mutants(operator: Operator, dtype: str, trials: Sequence[Trial] | None = None) -> list[Mutant]:
    """Every mutant of an operator in a dtype. `trials`, of the right kernel, show the ranks and what the text does."""
    base = right(operator, dtype)
    if operator.random:
        return list(_by_hand(operator, base))
    trials = prepare(operator, base, dtype, QUICK) if trials is None else trials
    outputs = max(len(t.exact) for t in trials)  # a case may ask for fewer

    def richness(trial: Trial) -> tuple[bool, bool, int, int, int]:
        case, exact = trial.case, trial.exact
        size = exact[0].midpoint.size
        return case.regime == "ordinary", len(exact) == outputs, len(trial.tensors), -len(case.arguments), size

    rich = max(trials, key=richness)
    texts = _under_each_convention(operator, sorted(trials, key=richness, reverse=True))
    found = [
        *_conventions(operator, base),
        *_slips(operator, base),
        *_keywords(operator, base, trials),
        *_parameters(operator, base),
        *_steps(base, texts),
        *_integers(operator, base),
        *_indices(operator, base, trials),
        *_written(operator, base, trials),
        *(_gradients(operator, base, rich, texts) if operator.differentiated else ()),
        *_classes(operator, base, trials),
        *_by_hand(operator, base),
    ]
    twice = [name for name, count in Counter(m.name for m in found).items() if count > 1]
    assert not twice, f"two mutants of {operator.name} are called {twice}"
    return found


def _under_each_convention(operator: Operator, trials: Sequence[Trial]) -> list[Trial]:
    """The first of the trials, and the first under each other value of a convention, where the text may take another
    way."""
    firsts = [
        next((t for t in trials if t.case.arguments.get(name, values[0]) == value), trials[0])
        for name, values in operator.conventions.items()
        for value in values
    ]
    return list(dict.fromkeys((trials[0], *firsts)))


# What the contract names -------------------------------------------------------------------------------------------


def _conventions(operator: Operator, base: Emulated) -> Iterator[Mutant]:
    for name, values in operator.conventions.items():
        for value in values:
            text = f"computes {name}={value!r} whatever is asked"
            yield Mutant(f"always {name}={value}", "convention", text, base, {"read": _set(name, value)})


def _slips(operator: Operator, base: Emulated) -> Iterator[Mutant]:
    for name, slip in operator.slips.items():
        yield Mutant(name, "slip", f"the slip '{name.replace('_', ' ')}'", base.but(text=slip))


def _keywords(operator: Operator, base: Emulated, trials: Sequence[Trial]) -> Iterator[Mutant]:
    """Keywords that are neither parameters nor conventions, ignored."""
    known = {*operator.conventions, *(p.name for p in operator.parameters), *(i.name for i in operator.inputs), "dtype"}
    drawn = dict.fromkeys(name for t in trials for name in t.case.arguments if name not in known)
    defaults = {n: p.default for n, p in inspect.signature(operator.definition).parameters.items()}
    for name in drawn:
        yield Mutant(
            f"{name} ignored", "keyword", f"leaves {name} at its default", base, {"read": _set(name, defaults[name])}
        )


def _parameters(operator: Operator, base: Emulated) -> Iterator[Mutant]:
    for p in operator.parameters:
        text = f"takes {p.name} at its default whatever is passed"
        yield Mutant(f"{p.name} ignored", "parameter", text, base, {"read": _set(p.name, p.default)})
        for shift in SHIFTS:
            yield Mutant(
                f"{p.name} shifted by {shift:g}",
                "parameter",
                f"takes {p.name} times 1 + {shift:g}",
                base,
                {"read": _mapped(p.name, partial(_stretched, shift))},
                parameter=p.name,
                shift=shift,
            )


def _stretched(shift: float, value: float) -> float:
    return value * (1 + shift)


def _set(name: str, value: Any) -> Read:
    return lambda arguments: {**arguments, name: value}


def _mapped(name: str, function: Callable[[Any], Any]) -> Read:
    return lambda arguments: {**arguments, name: function(arguments[name])} if name in arguments else arguments


# Roundings ---------------------------------------------------------------------------------------------------------


def _steps(base: Emulated, trials: Sequence[Trial]) -> Iterator[Mutant]:
    sites = dict.fromkeys(s for t in trials for s in passed(base, t.case.arguments, None)[0])
    for place, title in _titled(_spread(list(sites), SITES)):
        for coarse in FORMATS_OF_STEPS:
            if coarse.bits < FORMATS[base.dtype].bits or coarse.emax < FORMATS[base.dtype].emax:
                yield _faulty(base, f"{title} in {coarse.name}", f"rounds {title} to {coarse.name}", place, coarse)
        yield _faulty(base, f"{title} truncated", f"rounds {title} toward zero", place, None, "toward zero")
    own = FORMATS[base.dtype]
    for coarse in FORMATS_OF_STEPS:
        if coarse.bits < own.bits or coarse.emax < own.emax:
            text = f"rounds what it returns to {coarse.name} first"
            yield Mutant(f"result in {coarse.name}", "step", text, base.but(keeps=coarse))
    yield Mutant("result truncated", "step", "rounds what it returns toward zero", base.but(mode="toward zero"))
    if not base.operator.differentiated:
        return
    for coarse in FORMATS_OF_STEPS:
        text = f"rounds every step of the backward pass to {coarse.name}"
        yield _faulty(base, f"backward in {coarse.name}", text, BACKWARD, coarse)
    text = "rounds every step of the backward pass toward zero"
    yield _faulty(base, "backward truncated", text, BACKWARD, None, "toward zero")


def _faulty(base: Emulated, name: str, text: str, place: Site, coarse: Format | None, mode: str = "nearest") -> Mutant:
    return Mutant(name, "step", text, base.but(fault=Fault(place, coarse, mode)))


def _titled(sites: Sequence[Site]) -> Iterator[tuple[Site, str]]:
    """Sites with names that a person can find in the text: `multiply 2 of rotate`."""
    seen: Counter[tuple[str, str]] = Counter()
    for place in sites:
        key = (place.name, place.code.co_name.strip("<>"))
        seen[key] += 1
        yield place, f"{key[0]} {seen[key]} of {key[1]}"


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[i] for i in sorted({round(k * (len(items) - 1) / (most - 1)) for k in range(most)})]


# Reading -----------------------------------------------------------------------------------------------------------


def _integers(operator: Operator, base: Emulated) -> Iterator[Mutant]:
    def mutant(name: str, text: str, item: Integers, function: Callable[[Values], Values]) -> Mutant:
        return Mutant(
            f"{item.name} {name}", "index", f"takes {item.name} {text}", base, {"read": _mapped(item.name, function)}
        )

    for item in operator.inputs:
        if not isinstance(item, Integers):
            continue
        yield mutant("one more", "plus 1", item, lambda p: p + 1)
        yield mutant("one less", "minus 1", item, lambda p: p - 1)
        yield mutant("from zero", "counted from its first element", item, lambda p: p - p[:1])
        for bits in WRAPPED:
            if max(-item.low, item.high) >= 2**bits:
                yield mutant(f"modulo 2**{bits}", f"modulo 2**{bits}", item, partial(_modulo, 2**bits))
        for coarse in (FORMATS["float32"], BFLOAT16, FLOAT16):
            yield mutant(f"in {coarse.name}", f"rounded to {coarse.name}", item, partial(_whole, coarse))


def _modulo(modulus: int, values: Values) -> Values:
    return values % modulus


def _whole(coarse: Format, values: Values) -> Values:
    limit = min(float(coarse.max), 2.0**62)
    return np.asarray(coarse.round(np.clip(values, -limit, limit).astype(np.longdouble))).astype(np.int64)


def _indices(operator: Operator, base: Emulated, trials: Sequence[Trial]) -> Iterator[Mutant]:
    for item in operator.inputs:
        if isinstance(item, Size):
            for name, text, by in (("more", "plus", 1), ("less", "less", -1)):
                read = _mapped(item.name, partial(_plus, by))
                yield Mutant(f"{item.name} one {name}", "index", f"takes {item.name} {text} 1", base, {"read": read})
            continue
        shapes = [t.case.arguments[item.name].shape for t in trials if item.name in t.case.arguments]
        letters = item.axes.split()
        for axis, letter in enumerate(letters):
            if max((s[axis] for s in shapes if len(s) > axis), default=0) < 2:
                continue
            for name, text, function in (
                ("rolled", "rolled by one", _rolled),
                ("first twice", "with every element one late, the first twice", _late),
                ("last twice", "with every element one early, the last twice", _early),
            ):
                read = _mapped(item.name, partial(function, axis))
                yield Mutant(
                    f"{item.name} {letter} {name}",
                    "index",
                    f"reads {item.name} {text} along {letter}",
                    base,
                    {"read": read},
                )
            for other in range(axis):
                text = f"reads {item.name} with the strides of {letters[other]} and {letter} exchanged"
                read = _mapped(item.name, partial(_exchanged, other, axis))
                yield Mutant(
                    f"{item.name} {letters[other]} and {letter} exchanged", "index", text, base, {"read": read}
                )
        yield Mutant(
            f"{item.name} taken as contiguous",
            "memory",
            f"reads the buffer of {item.name} as if it were contiguous",
            base,
            {"read": _mapped(item.name, lambda v: misread(v, contiguous_strides(v.shape)))},
        )
        yield Mutant(
            f"{item.name} from the start of its buffer",
            "memory",
            f"ignores where in its buffer {item.name} begins",
            base,
            {"read": _mapped(item.name, lambda v: misread(v, strides_of(v), 0))},
        )


def _plus(by: int, size: int) -> int:
    return max(size + by, 0)


def _rolled(axis: int, values: Values) -> Values:
    return np.roll(values, 1, axis) if values.ndim > axis else values


def _late(axis: int, values: Values) -> Values:
    if values.ndim <= axis:
        return values
    return np.take(values, np.maximum(np.arange(values.shape[axis]) - 1, 0), axis)


def _early(axis: int, values: Values) -> Values:
    if values.ndim <= axis:
        return values
    return np.take(values, np.minimum(np.arange(values.shape[axis]) + 1, values.shape[axis] - 1), axis)


def _exchanged(i: int, j: int, values: Values) -> Values:
    strides = strides_of(values)
    if values.ndim <= max(i, j):
        return values
    strides[i], strides[j] = strides[j], strides[i]
    return misread(values, strides)


# Writing -----------------------------------------------------------------------------------------------------------

Where = Callable[[tuple[int, ...]], Any]
"""A part of an array of a shape, as an index; None where there is no such part."""


def _written(operator: Operator, base: Emulated, trials: Sequence[Trial]) -> Iterator[Mutant]:
    count = max(len(t.exact) for t in trials)
    for number in range(count):
        shapes = [t.exact[number].shape for t in trials if len(t.exact) > number]
        rank = max(map(len, shapes))
        of = "" if count == 1 else f" of output {number}"
        parts: list[tuple[str, Where]] = [(f"the last element{of}", lambda shape: (-1,) * len(shape))]
        for axis in range(rank):
            longest = max(s[axis] for s in shapes if len(s) == rank)
            if longest > 1:
                parts.append((f"the last row of axis {axis}{of}", _last_block(axis, 1)))
            parts += [
                (f"the last block of {block} of axis {axis}{of}", _last_block(axis, block))
                for block in BLOCKS
                if longest > FEW
            ]
        for title, where in parts:
            for verb, told, write in (
                ("dropped", "leaves out (zero)", _zeroed),
                ("stale", "leaves as the previous call left it", _stale),
                ("doubled", "adds twice", _doubled),
            ):
                change = {"write": _at(where, write), "output": number}
                yield Mutant(f"{title} {verb}", "write", f"{told} {title}", base, change)


def _last_block(axis: int, block: int) -> Where:
    def where(shape: tuple[int, ...]) -> Any:
        if len(shape) <= axis or shape[axis] <= block:
            return None
        start = block * ((shape[axis] - 1) // block)
        return (slice(None),) * axis + (slice(start, None),)

    return where


def _at(where: Where, write: Callable[[Values, Any, Memory], None]) -> Write:
    def written(out: Values, memory: Memory, arguments: Arguments) -> Values:
        index = where(out.shape)
        if index is not None and out.size:
            write(out, index, memory)
        return out

    return written


def _zeroed(out: Values, index: Any, memory: Memory) -> None:
    out[index] = 0


def _stale(out: Values, index: Any, memory: Memory) -> None:
    previous = memory.previous.get(out.shape)
    out[index] = 0 if previous is None else previous[index]


def _doubled(out: Values, index: Any, memory: Memory) -> None:
    out[index] = out[index] + out[index]


# Classes of numbers, shapes, and what a call leaves behind --------------------------------------------------------


def _classes(operator: Operator, base: Emulated, trials: Sequence[Trial]) -> Iterator[Mutant]:
    limits = FORMATS[base.dtype]
    first = next(iter(operator.tensors), "")
    large = 2.0 ** (limits.emax // 2)
    other = DTYPES["float64" if base.kept(0).name == "float32" else "float32"]

    def mutant(name: str, text: str, write: Write, kind: Kind = "class") -> Mutant:
        return Mutant(name, kind, text, base, {"write": write})

    yield mutant("NaN", "writes NaN into the last element", lambda o, m, a: _put(o, np.nan))
    if any(_reaches(t, large) for t in trials):
        text = f"overflows to infinity above {large:.3g}"
        yield mutant(
            "infinity for large",
            text,
            lambda o, m, a: np.where(np.abs(o) > o.dtype.type(large), o * np.inf, o).astype(o.dtype),
        )
    yield mutant("another dtype", f"returns {other}", lambda o, m, a: o.astype(other))
    yield mutant("one more axis", "returns a shape that broadcasts", lambda o, m, a: o[None])
    yield mutant("zeros", "returns zeros", lambda o, m, a: np.zeros_like(o), "null")
    if any(t.exact[0].midpoint.size > 1 for t in trials):
        yield mutant("mean", "returns the mean of the right answer", lambda o, m, a: _mean(o), "null")
    yield mutant("stale", "returns what the previous call of that shape returned", _whole_stale, "null")
    if first and any(t.case.arguments[first].shape == t.exact[0].shape for t in trials):
        yield mutant(
            "copy", f"returns {first}", lambda o, m, a: np.array(a[first]) if a[first].shape == o.shape else o, "null"
        )
    if first:
        yield Mutant("input overwritten", "memory", f"writes its result over {first}", base, {"touched": (first,)})
    yield mutant("other bits at each call", "moves another element by one unit at each call", _flicker, "memory")


def _reaches(trial: Trial, large: float) -> bool:
    """Is there a finite result above `large` of which something is demanded?"""
    exact, bound = trial.exact[0].midpoint, trial.bound[0]
    limit = trial.formats[0].max
    return bool(((np.abs(exact) > 2 * large) & (np.abs(exact) + bound < limit)).any())


def _put(out: Values, value: float) -> Values:
    out[(-1,) * out.ndim] = value
    return out


def _mean(out: Values) -> Values:
    return np.full(out.shape, out.astype(np.float64).mean()).astype(out.dtype)


def _whole_stale(out: Values, memory: Memory, arguments: Arguments) -> Values:
    return memory.previous.get(out.shape, np.zeros_like(out))


def _flicker(out: Values, memory: Memory, arguments: Arguments) -> Values:
    flat = out.reshape(-1)
    which = memory.calls % (out.size + 2)  # of two calls with one between them, one at least moves another element
    if which < out.size:
        flat[which] = np.nextafter(flat[which], flat.dtype.type(np.inf))
    return out


# Gradients ---------------------------------------------------------------------------------------------------------


def _gradients(operator: Operator, base: Emulated, trial: Trial, texts: Sequence[Trial]) -> Iterator[Mutant]:
    def mutant(
        name: str, text: str, function: Callable[[dict[str, Values]], dict[str, Values]], scaled: str = ""
    ) -> Mutant:
        return Mutant(name, "gradient", text, base, {"gradients": function}, scaled=scaled)

    def of(name: str, function: Callable[[Values], Values]) -> Callable[[dict[str, Values]], dict[str, Values]]:
        return lambda g: {**g, name: function(np.array(g[name]))} if name in g else g

    for name in operator.differentiated:
        title = f"gradient of {name}"
        yield mutant(f"{title} zero", f"returns zeros as the {title}", of(name, np.zeros_like))
        for factor, told in ((0.5, "halved"), (-1.0, "negated"), (1 + 2.0**-6, "times 1 + 1/64")):
            grown = of(name, partial(_times, factor))
            yield mutant(f"{title} {told}", f"returns the {title} {told}", grown, name)
    tensors = [i for i in operator.inputs if isinstance(i, Tensor)]
    for item in tensors:
        title = f"gradient of {item.name}"
        for axis, letter in enumerate(item.axes.split()):
            dropped = of(item.name, partial(_without_last, axis))
            yield mutant(f"last {letter} of the {title}", f"leaves out the last {letter} of the {title}", dropped)
        for other in tensors:
            if other is not item:
                swapped = _swapped_gradient(item.name, other.name)
                yield mutant(
                    f"{title} is that of {other.name}", f"returns the gradient of {other.name} as the {title}", swapped
                )
    pull: dict[str, Any]
    if any(e.shape for e in trial.exact):  # a single number has no strides
        text = "reads the cotangent as if it were contiguous"
        pull = {"pull": lambda given: tuple(misread(c, contiguous_strides(c.shape)) for c in given)}
        yield Mutant("cotangent taken as contiguous", "gradient", text, base, pull)
    for number in range(len(trial.exact) if len(trial.exact) > 1 else 0):
        pull = {"pull": partial(_silenced, number)}
        yield Mutant(f"cotangent {number} ignored", "gradient", f"ignores the cotangent of output {number}", base, pull)
    terms = dict.fromkeys(term for t in texts for term in passed(base, t.case.arguments, t.cotangents)[1])
    for number, term in enumerate(_spread(list(terms), TERMS)):
        text = f"loses operand {term.operand} of an operation of {term.site.code.co_name} in the backward pass"
        yield Mutant(f"term {number} lost", "gradient", text, base.but(lost=term))


def _times(factor: float, gradient: Values) -> Values:
    return gradient * gradient.dtype.type(factor)


def _silenced(number: int, cotangents: Sequence[Values]) -> tuple[Values, ...]:
    return tuple(c * 0 if i == number else c for i, c in enumerate(cotangents))


def _without_last(axis: int, gradient: Values) -> Values:
    if gradient.ndim > axis and gradient.size:
        gradient[(slice(None),) * axis + (-1,)] = 0
    return gradient


def _swapped_gradient(name: str, other: str) -> Callable[[dict[str, Values]], dict[str, Values]]:
    def swapped(g: dict[str, Values]) -> dict[str, Values]:
        return {**g, name: np.resize(g[other], g[name].shape)} if name in g and other in g else g

    return swapped


# By hand -----------------------------------------------------------------------------------------------------------


def _by_hand(operator: Operator, base: Emulated) -> Iterator[Mutant]:
    for name, function in {**operator.mutants, **{n: going(h) for n, h in operator.hazards.items()}}.items():
        text = (inspect.getdoc(function) or name.replace("_", " ")).partition("\n")[0]
        hand: ByHand = function
        yield Mutant(name, "by hand", text, base, {"by_hand": hand})
