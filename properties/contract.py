"""The contract of an operator: what it is, what it takes, and what every right kernel of it satisfies.

A contract needs a name, a definition and inputs; the oracle, the bound, the gradients, the diagnosis and the null
kernels follow from those. An operator without tensors makes its arrays from sizes: its definition takes the namespace
of arrays as the keyword `xp`, and its kernels a `dtype`. One that draws random numbers has no exact answer: it has
settings, and is judged by its distribution. Everything here is data: frozen dataclasses, tuples and functions, in one
literal table per operator. `properties/__init__.py` lists the contracts of assay itself; a user's own stand in the
user's file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import numpy as np

    from assay.properties.statistics import Samples
    from assay.properties.trial import Trial
    from assay.reference.arithmetic.array import Array
    from assay.reference.arithmetic.precision import Format


Definition = Callable[..., Any]
Draw = Callable[[Any], Any]
"""Hypothesis's `draw`."""
Regime = Callable[["np.random.Generator", Mapping[str, tuple[int, ...]], "Format"], Mapping[str, Any]]
"""(random, shapes of the tensors by name, format of the case) -> float64 or complex128 values of tensors, and
parameters, by name.
What is missing is drawn as usual."""
Sizes = Mapping[str, int]
"""The length of each axis, by its letter."""


@dataclass(frozen=True)
class Tensor:
    """A floating-point array that takes gradients. `axes` are letters of the one alphabet, "b h t d"."""

    name: str
    axes: str
    complex: bool = field(default=False, kw_only=True)
    """Its numbers are complex: complex64 in float32, complex128 in float64. There are none in half precision, in which
    an operator of such inputs is not judged. Gradients are d/dx + i d/dy of z = x + i y, as torch's."""
    even: str = ""
    """The axes of even length."""
    optional: bool = False
    """A keyword of the definition that a case need not have: `Structure.given` says where it is."""


@dataclass(frozen=True)
class Integers:
    """An array of integers, such as positions."""

    name: str
    axes: str
    low: int = -(2**31)
    high: int = 2**31


@dataclass(frozen=True)
class Size:
    """A length that is an argument of its own: of an axis of the output, named by its letter."""

    name: str
    axes: str


@dataclass(frozen=True)
class Real:
    """A real parameter, a keyword of the definition. Drawn between low and high, uniformly."""

    name: str
    default: float | None
    """None: the definition has a default of its own, which depends on other arguments."""
    low: float
    high: float
    implied: Callable[[Mapping[str, Any]], float] | None = None
    """What a default of None amounts to, given the other arguments; for the diagnosis alone."""
    differentiated: bool = False
    """Kernels owe its gradient too. Where gradients are asked for, they receive it as an array without axes, in
    float32 at least."""

    def given(self, arguments: Mapping[str, Any]) -> float:
        """Its value among the arguments of a case."""
        value = arguments.get(self.name, self.default)
        if value is None and self.implied is not None:
            return self.implied(arguments)
        return float(value)

    def draw(self, random: np.random.Generator) -> float:
        return float(random.uniform(self.low, self.high))


@dataclass(frozen=True)
class Positive(Real):
    """A positive parameter: a scale or an eps. Drawn uniformly in its logarithm."""

    def draw(self, random: np.random.Generator) -> float:
        import numpy as np

        return float(np.exp(random.uniform(np.log(self.low), np.log(self.high))))


Input = Tensor | Integers | Size


@dataclass(frozen=True)
class Work:
    """The least that any kernel must do for a case: each is a lower bound by itself.

    Every array that goes in is read once, every array that comes out is written once; nothing is computed twice.
    """

    bytes: int
    flops: int
    exponentials: int = 0


@dataclass(frozen=True)
class Structure:
    """What a contract's `structure` adds to a case, or one of its `timed` cases is made of: keywords, the axes of
    inputs that take another shape, and sizes."""

    keywords: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, str] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=dict)
    given: tuple[str, ...] = ()
    """The optional inputs that the case has."""
    regime: str = ""
    """Of a timed case: the regime, one of the contract's own, whose numbers it has; ordinary ones otherwise."""


@dataclass(frozen=True)
class Property:
    """One thing that every right kernel satisfies.

    `residual` receives a trial and returns an array that must be zero to within the error that it carries, or None
    where the case is outside the property's domain. It calls the kernel through `trial.call`, whose outputs carry the
    derived bound, and computes on in running-error arithmetic: so the tolerance of an identity is derived too.
    """

    name: str
    law: str
    """The law, as a formula that a person reads."""
    residual: Callable[[Trial], Array | None]
    needs: tuple[str, ...] = ()
    """Keywords without which a kernel cannot be asked."""
    about: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The conventions that it is about, by name, where it is not about all: other values are outside its domain."""


@dataclass(frozen=True)
class Statistic:
    """One thing that the distribution of every right kernel satisfies.

    `p_value` receives samples and returns a bound, proven for their very number, on the probability that a right kernel
    returns these or any that speak against it as much; None where they are outside the domain.
    """

    name: str
    law: str
    """The law, as a formula that a person reads."""
    p_value: Callable[[Samples], float | None]
    needs: tuple[str, ...] = ()
    """Keywords without which a kernel cannot be asked."""


@dataclass(frozen=True)
class Operator:
    """A function that the suite knows."""

    name: str
    definition: Definition
    """Of an operator that draws random numbers: a right kernel in NumPy, whose numbers follow from its `seed`."""
    inputs: tuple[Input, ...] = ()
    parameters: tuple[Real, ...] = ()
    conventions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keywords on which honest codebases differ, with their values; the first is the default."""
    forms: Mapping[str, Definition] = field(default_factory=dict)
    """Other texts of the same function, by name. Without any, the definition's own text is the one form."""
    backward: Definition | None = None
    """The gradients as kernels write them, (cotangents, *inputs, **keywords) -> one for each Tensor. They are bounded
    by the looser of this text and the derivative of the form."""
    slips: Mapping[str, Definition] = field(default_factory=dict)
    """Named mistakes, each a definition of what a kernel that makes it computes."""
    strays: Mapping[str, Definition] = field(default_factory=dict)
    """Numbers that a kernel may have and the operator has not, such as an eps in a denominator: by name, a definition
    that takes one as a keyword of that name and is the operator's own at 0."""
    mutants: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Wrong kernels that no definition describes, each a function (right kernel, arguments, cotangents or None, memory)
    -> Answer, whose docstring says in one line what it does."""
    hazards: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    """Ways to compute the same function that are so ill-conditioned that none may be claimed, each a function of the
    arguments -> outputs in NumPy, or None where there is no other way; its docstring says in one line what it does.
    Each is a mutant, and a kernel that is wrong where one of them is, is said to be."""
    survivors: Mapping[str, str] = field(default_factory=dict)
    """Why a mutant is rightly not rejected: a pattern for `name dtype`, and the reason."""
    properties: tuple[Property | Statistic, ...] = ()
    settings: tuple[Mapping[str, Any], ...] = ()
    """Of an operator that draws random numbers: the arguments, without the seed, under which it is judged."""
    samples: int = 0
    """So many samples, of successive seeds, are drawn in each setting."""
    regimes: Mapping[str, Regime] = field(default_factory=dict)
    """Inputs that matter to this operator, and that no regime of single arrays gives."""
    paired: tuple[str, ...] = ()
    """Axes whose length counts squared in the work, since each position meets every other: they are long less often."""
    wide: tuple[int, ...] = ()
    """The numbers of the outputs that a kernel may return in float32 where its inputs are narrower: losses, states."""
    structure: Callable[[Draw, Sizes, Callable[[str], bool], Mapping[str, str]], Structure] | None = None
    """Draws what depends on sizes or conventions: (draw, sizes, supports keyword?, conventions) -> Structure."""
    row: Callable[[Mapping[str, Any], int], Mapping[str, Any]] | None = None
    """(arguments, i) -> those of a case whose one row is row i of the output, with no more than this row depends on:
    so kernels are judged on sequences of which the whole output is too much."""
    work: Callable[..., Work] | None = None
    """The least work of a case, from the length of every axis by its letter and the keywords of the case, `itemsize`,
    and `backward`: whether the gradients of all Tensors are had as well as the outputs."""
    timed: Mapping[str, Structure] = field(default_factory=dict)
    """The cases on which kernels are timed, by name: sizes, and keywords that every kernel timed on it must have. The
    first takes about a millisecond at most: it is the one on which regressions are looked for."""
    source: str = ""
    """Paper and equation."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"an operator's name must be an identifier, not {self.name!r}")
        if self.random and (self.samples < 2 or self.inputs or self.parameters):
            raise ValueError(f"operator {self.name}: settings need samples, and neither inputs nor parameters")
        if not self.random and not any(isinstance(i, Tensor | Size) for i in self.inputs):
            raise ValueError(f"operator {self.name}: at least one input must be a Tensor or a Size")
        names = [i.name for i in self.inputs] + [p.name for p in self.parameters] + list(self.conventions)
        if len(set(names)) < len(names):
            raise ValueError(f"operator {self.name}: two arguments have the same name")
        if self.timed and self.work is None:
            raise ValueError(f"operator {self.name}: what is timed needs `work`")

    @property
    def random(self) -> bool:
        """Does it draw random numbers? Then it has no exact answer, and is judged by its distribution."""
        return bool(self.settings)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The inputs that take gradients."""
        return tuple(i.name for i in self.inputs if isinstance(i, Tensor))

    @property
    def differentiated(self) -> tuple[str, ...]:
        """The tensors, and the parameters whose gradients count."""
        return (*self.tensors, *(p.name for p in self.parameters if p.differentiated))

    def differentiated_in(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The same, without the optional tensors that a case has not."""
        return tuple(n for n in self.differentiated if n not in self.tensors or arguments.get(n) is not None)

    @property
    def complex(self) -> bool:
        """Are there inputs of complex numbers? Then it is judged in float32 and float64 alone."""
        return any(isinstance(i, Tensor) and i.complex for i in self.inputs)

    @property
    def texts(self) -> Mapping[str, Definition]:
        """The forms that a kernel may follow."""
        return self.forms or {"definition": self.definition}
