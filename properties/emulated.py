"""Emulated kernels: a form of an operator in rounded arithmetic, right as it stands, wrong where one thing is changed.

`Emulated` needs no hardware and no torch, and is what a kernel of that form and precision computes. `Wrong` is the
same with one change, in what is read, in the arithmetic, on the tape of the backward pass, or in what is written.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, singledispatch
from types import CodeType
from typing import Any

import numpy as np

from assay.properties.contract import Definition, Operator, Tensor
from assay.properties.drawing import COMPLEX, DTYPES, Values
from assay.properties.trial import Answer, KernelError
from assay.properties.truth import at_least_single
from assay.reference import arithmetic
from assay.reference.arithmetic.adjoint import Adjoint, Node, Rule
from assay.reference.arithmetic.array import Arithmetic, Array, Part
from assay.reference.arithmetic.complex import paired
from assay.reference.arithmetic.formatted import EXTENDED
from assay.reference.arithmetic.oracle import Arguments, differentiate, evaluate
from assay.reference.arithmetic.precision import FORMATS, PRECISIONS, Format, Precision, natural
from assay.reference.arithmetic.rounded import Rounded


# Places in the text of a form --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """One operation in the text of a form: all its executions, as in every turn of a loop."""

    code: CodeType
    position: tuple[int | None, ...]
    """Lines and columns. (The number of the instruction would not do: the interpreter changes it as it specialises.)"""
    name: str


BACKWARD = Site((lambda: None).__code__, (), "backward")
"""Every step of the backward pass."""


@cache
def _positions(code: CodeType) -> list[tuple[int | None, ...]]:
    return list(code.co_positions())


def site(name: str) -> Site:
    """Where in the text of a form we are: the innermost frame outside the arithmetics."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename in _inside():
        if frame.f_code is Adjoint.gradients.__code__:
            return BACKWARD
        assert frame.f_back is not None
        frame = frame.f_back
    return Site(frame.f_code, _positions(frame.f_code)[frame.f_lasti // 2], name)


_FILES: set[str] = set()


def _inside() -> set[str]:
    """The files whose frames are no text of a form."""
    if not _FILES:
        _FILES.update(m.__file__ for n, m in sys.modules.items() if n.startswith(arithmetic.__name__) and m.__file__)
        _FILES.add(__file__)
        _FILES.update((inspect.getfile(contextmanager), inspect.getfile(singledispatch)))
    return _FILES


@dataclass(frozen=True)
class Fault:
    """What one site does instead of rounding to nearest in its own format."""

    site: Site | None
    format: Format | None = None
    mode: str = "nearest"
    coherent: bool = False
    """Nothing is rounded anywhere; but every result of the site is 1 + u times what it should be."""


SITED_UNARY = ("sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh")
SITED_BINARY = ("add", "subtract", "multiply", "divide", "pow")


class _Step:
    """While a step runs, whether it is the one at fault: `here` says so to whatever rounds."""

    __slots__ = ("before", "here", "wrong")

    def __init__(self, here: list[bool], wrong: bool) -> None:
        self.here, self.wrong, self.before = here, wrong, here[0]

    def __enter__(self) -> None:
        self.here[0] = self.before or self.wrong

    def __exit__(self, *exception: object) -> None:
        self.here[0] = self.before


class Faulty(Rounded):
    """Rounded arithmetic with a fault at one site; without a fault it lists the sites that it passes."""

    def __init__(
        self,
        precision: Precision,
        fault: Fault | None = None,
        sites: dict[Site, None] | None = None,
        order: str = "forward",
    ) -> None:
        super().__init__(precision, order=order)
        self.fault = fault
        self.sites = sites
        self.here = [False]

    def beside(self) -> Faulty:
        other = Faulty(self.precision, self.fault, self.sites, self.order)
        other.here = self.here
        return other

    def _step(self, name: str) -> _Step:
        place = site(name)
        if self.sites is not None:
            self.sites.setdefault(place)
        return _Step(self.here, self.fault is not None and self.fault.site == place)

    @property
    def plain(self) -> bool:
        return super().plain and not (self.fault is not None and (self.here[0] or self.fault.coherent))

    def rounded(self, value: Part) -> Array:
        fault = self.fault
        if fault is not None and fault.coherent:
            value = np.asarray(value, EXTENDED)
            return Array(self, (value * (1 + EXTENDED(self.format.u)) if self.here[0] else value,))
        if fault is None or not self.here[0]:
            return super().rounded(value)
        value = np.asarray(value, EXTENDED)
        if fault.format is not None and fault.format.bits < self.format.bits:
            value = fault.format.round(value, fault.mode)
        return Array(self, (self.format.round(value, fault.mode),))

    def store(self, x: Array, kind: str) -> Array:
        if kind not in self.precision.storage:
            return super().store(x, kind)
        with self._step("store"):
            return super().store(x, kind)

    def narrow(self, x: Array) -> Array:
        with self._step("narrow"):
            return super().narrow(x)

    def unary(self, name: str, x: Array) -> Array:
        if name not in SITED_UNARY:
            return super().unary(name, x)
        with self._step(name):
            return super().unary(name, x)

    def binary(self, name: str, x: Array, y: Array) -> Array:
        if name not in SITED_BINARY:
            return super().binary(name, x, y)
        with self._step(name):
            return super().binary(name, x, y)

    def total(self, x: Array) -> Array:
        with self._step("sum"):
            return super().total(x)


@dataclass(frozen=True)
class Term:
    """One use of a variable: operand number `operand` of the operation at a site."""

    site: Site
    operand: int


class Forgetful(Adjoint):
    """A tape on which one term is lost; without one it lists the terms that it records."""

    def __init__(self, below: Arithmetic, lost: Term | None = None, terms: dict[Term, None] | None = None) -> None:
        super().__init__(below)
        self.lost = lost
        self.terms = terms

    def record(self, value: Array, *sources: tuple[Node, Rule], step: str = "") -> Node:
        place = site("term")
        kept = []
        for operand, (node, rule) in enumerate(sources):
            term = Term(place, operand)
            if node.sources and self.terms is not None:
                self.terms.setdefault(term)
            kept.append((node, self._nothing(node) if term == self.lost else rule))
        return super().record(value, *kept, step=step)

    def _nothing(self, node: Node) -> Rule:
        return lambda g: g.xp.zeros(node.shape)


# The right kernel --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Emulated:
    """A right kernel: the text of a form, each step rounded, each output rounded once to the dtype; or a sampler."""

    operator: Operator
    dtype: str
    name: str = "right"
    form: str | None = None
    """The form that it claims, and computes unless `text` says otherwise."""
    precision: str | None = None
    """The precision that it claims; None: the natural one."""
    text: Definition | None = None
    """What it computes instead of its form."""
    computes_in: Precision | None = None
    """What it computes in instead of the precision that it claims."""
    fault: Fault | None = None
    lost: Term | None = None
    order: str = "forward"
    keeps: Format | None = None
    """The format of what it returns, if narrower than the dtype."""
    mode: str = "nearest"
    """The direction of the last rounding."""
    differentiable: bool = True
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def supports(self, keyword: str) -> bool:
        return True

    @property
    def definition(self) -> Definition:
        texts = self.operator.texts
        return self.text or texts[self.form if self.form is not None else next(iter(texts))]

    def but(self, **changes: Any) -> Emulated:
        """The same kernel with some fields changed."""
        return replace(self, **changes, _known={})

    def arithmetic(self, sites: dict[Site, None] | None = None) -> Rounded:
        precision = self.computes_in or (PRECISIONS[self.precision] if self.precision else natural(self.dtype))
        if self.fault is None and sites is None:
            return Rounded(precision, order=self.order)
        return Faulty(precision, self.fault, sites, self.order)

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        if self.operator.random:
            return Answer((self.returned(self.definition(**arguments), 0),))
        arrays = [v for v in (*arguments.values(), *(cotangents or ())) if isinstance(v, np.ndarray)]
        if any(a.flags.writeable for a in arrays):
            return self._answer(arguments, cotangents, by)
        # Cases are shared between mutants, many of which change only what becomes of the answer.
        key = (*(id(v) if isinstance(v, np.ndarray) else v for v in arguments.values()), *arguments, *by)
        key = (*key, *map(id, cotangents or ()), cotangents is None)
        if key not in self._known:
            self._known[key] = (arrays, self._answer(arguments, cotangents, by))  # holds them, so that ids stay theirs
        return self._known[key][1]

    def answer(self, arguments: Arguments, cotangents: Sequence[Values] | None) -> Answer:
        """The call with gradients for every tensor, for mutants by hand."""
        return self(arguments, cotangents, self.operator.differentiated_in(arguments))

    def _answer(self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str]) -> Answer:
        outputs, gradients = self.raw(arguments, cotangents, by)
        return Answer(
            tuple(self.returned(o, number) for number, o in enumerate(outputs)),
            {n: self.joined(self.returned(g, n), n) for n, g in gradients.items()},
        )

    def kept(self, what: int | str) -> Format:
        """The format of an output, by number, or of a gradient, by name: float32 at least where that is accepted."""
        own = FORMATS[self.dtype]
        wide = what in self.operator.wide if isinstance(what, int) else what not in self.operator.tensors
        return at_least_single(own) if wide else own

    def raw(
        self, arguments: Arguments, cotangents: Sequence[Values] | None = None, by: Sequence[str] = ()
    ) -> tuple[tuple[Part, ...], dict[str, Part]]:
        """Outputs and gradients before they are rounded to the dtype; complex ones in parts, along a last axis."""
        xp = self.arithmetic()
        try:
            if cotangents is None:
                return tuple(paired(o).parts[0] for o in evaluate(self.definition, xp, arguments)), {}
            taped = Adjoint if self.lost is None else lambda below: Forgetful(below, self.lost)
            outputs, gradients = differentiate(self.definition, xp, arguments, cotangents, by, taped)
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            raise KernelError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        return tuple(paired(o).parts[0] for o in outputs), {n: paired(g).parts[0] for n, g in gradients.items()}

    def joined(self, parts: Values, name: str) -> Values:
        """The gradient of a tensor as it is returned, of complex numbers where the tensor has such."""
        if not any(isinstance(i, Tensor) and i.complex and i.name == name for i in self.operator.inputs):
            return parts
        return np.ascontiguousarray(parts).view(COMPLEX[self.dtype])[..., 0]

    def returned(self, value: Part, what: int | str) -> Values:
        """Extended numbers of an output or a gradient, rounded once to what is returned, and writable."""
        last = self.kept(what)
        with np.errstate(all="ignore"):
            kept = np.asarray(value, EXTENDED)
            if self.keeps is not None:
                kept = self.keeps.round(kept, self.mode)
            kept = last.round(kept, self.mode)
            return np.array(kept.astype(np.float64).astype(DTYPES[last.name]))


# The wrong one -----------------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """What a kernel must not have: its earlier calls."""

    calls: int = 0
    previous: dict[tuple[int, ...], Values] = field(default_factory=dict)
    """The last output of each shape."""
    notes: dict[Any, Any] = field(default_factory=dict)
    """For mutants by hand."""


Read = Callable[[dict[str, Any]], dict[str, Any]]
Write = Callable[[Values, Memory, Arguments], Values]
ByHand = Callable[[Emulated, Arguments, "Sequence[Values] | None", Memory], Answer]


@dataclass(eq=False)
class Wrong:
    """A kernel with one thing changed."""

    name: str
    base: Emulated
    """The arithmetic, the text and the tape, at fault or not."""
    read: Read | None = None
    """Arguments as it reads them."""
    write: Write | None = None
    """What it writes into output number `output`."""
    output: int = 0
    pull: Callable[[Sequence[Values]], Sequence[Values]] | None = None
    """Cotangents as it reads them."""
    gradients: Callable[[dict[str, Values]], dict[str, Values]] | None = None
    touched: tuple[str, ...] = ()
    by_hand: ByHand | None = None
    memory: Memory = field(default_factory=Memory)

    form = property(lambda self: self.base.form)
    precision = property(lambda self: self.base.precision)
    differentiable = True

    def supports(self, keyword: str) -> bool:
        return True

    def arguments(self, arguments: Arguments) -> Arguments:
        return arguments if self.read is None else self.read(dict(arguments))

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        self.memory.calls += 1
        if cotangents is not None and self.pull is not None:
            cotangents = self.pull(cotangents)
        try:
            if self.by_hand is not None:
                found = self.by_hand(self.base, arguments, cotangents, self.memory)
            else:
                found = self.base(self.arguments(arguments), cotangents, by)
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            raise KernelError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        outputs, gradients = list(found.outputs), dict(found.gradients)
        if self.write is not None and self.output < len(outputs):
            honest = outputs[self.output]
            with np.errstate(all="ignore"):
                outputs[self.output] = self.write(np.array(honest), self.memory, arguments)
            self.memory.previous[honest.shape] = honest
        if gradients and self.gradients is not None:
            gradients = self.gradients(gradients)
        return Answer(tuple(outputs), gradients, self.touched or found.touched)


def keeping(kind: str, kept: Format, text: Definition | None = None) -> ByHand:
    """A mutant that keeps in a coarse format what its form (or `text`) stores as `kind`."""

    def mutant(kernel: Emulated, arguments: Arguments, cotangents: Sequence[Values] | None, memory: Memory) -> Answer:
        own = natural(kernel.dtype)
        coarse = replace(own, storage={**own.storage, kind: kept})
        return kernel.but(computes_in=coarse, text=text or kernel.text).answer(arguments, cotangents)

    mutant.__doc__ = f"keeps each {kind} in {kept.name}"
    return mutant


def computing(form: str) -> ByHand:
    """A mutant that computes one form and claims another."""

    def mutant(kernel: Emulated, arguments: Arguments, cotangents: Sequence[Values] | None, memory: Memory) -> Answer:
        return kernel.but(text=kernel.operator.texts[form]).answer(arguments, cotangents)

    mutant.__doc__ = f"computes the form {form} and claims another"
    return mutant


def going(hazard: Callable[..., Any]) -> ByHand:
    """A mutant that goes an ill-conditioned way, forward."""

    def mutant(kernel: Emulated, arguments: Arguments, cotangents: Sequence[Values] | None, memory: Memory) -> Answer:
        found, outputs = kernel.answer(arguments, cotangents), by_hazard(hazard, arguments)
        if outputs is None:
            return found
        return replace(found, outputs=tuple(kernel.returned(x, number) for number, x in enumerate(outputs)))

    mutant.__doc__ = inspect.getdoc(hazard)
    return mutant


def by_hazard(hazard: Callable[..., Any], arguments: Arguments) -> tuple[Values, ...] | None:
    """What an ill-conditioned way returns; None where there is no such way."""
    with np.errstate(all="ignore"):
        try:
            found = hazard(**arguments)
        except np.linalg.LinAlgError:
            return None
    return found if found is None or isinstance(found, tuple) else (found,)


def passed(
    kernel: Emulated, arguments: Arguments, cotangents: Sequence[Values] | None
) -> tuple[list[Site], list[Term]]:
    """The sites of the forward pass and the terms of the backward pass of one call, in order."""
    sites: dict[Site, None] = {}
    evaluate(kernel.definition, kernel.arithmetic(sites), arguments)
    terms: dict[Term, None] = {}
    if cotangents is not None:
        by = kernel.operator.differentiated_in(arguments)
        differentiate(
            kernel.definition, kernel.arithmetic(), arguments, cotangents, by, lambda b: Forgetful(b, terms=terms)
        )
    return list(sites), list(terms)


def misread(values: Values, strides: Sequence[int], offset: int | None = None) -> Values:
    """What a kernel reads that takes an array's strides (in elements) for others: its buffer, wherever they lead.

    `offset`, in elements from the start of the buffer, is that of the array unless given. A place outside the buffer
    stands for memory of somebody else: the buffer is taken as a circle.
    """
    root = values
    while isinstance(root.base, np.ndarray):
        root = root.base
    if not root.flags.c_contiguous:
        root = np.ascontiguousarray(values)
        values = root
    flat = root.reshape(-1)
    if not flat.size:
        return values
    if offset is None:
        offset = (values.ctypes.data - root.ctypes.data) // values.itemsize
    places = np.full(values.shape, offset)
    for axis, (length, stride) in enumerate(zip(values.shape, strides, strict=True)):
        places = places + (np.arange(length) * stride).reshape(-1, *(1,) * (values.ndim - axis - 1))
    return np.asarray(flat[places % flat.size])


def strides_of(values: Values) -> list[int]:
    """The strides of an array, in elements."""
    return [s // values.itemsize for s in values.strides]


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
