"""Drawing cases: the inputs on which kernels are judged.

Hypothesis draws what is discrete (sizes, conventions, regime, memory layout, a few planted values) and a seed; the bulk
of the numbers comes from the seed. So a failing case shrinks to small sizes, a simple regime, few planted values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.internal.constants_ast import Constants

from assay.properties.contract import Integers, Operator, Size, Structure, Tensor
from assay.reference.arithmetic.precision import FORMATS, Format


Values: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}

COMPLEX: dict[str, np.dtype[Any]] = {"float64": np.dtype(np.complex128), "float32": np.dtype(np.complex64)}
"""Complex numbers whose parts are of a dtype."""

LONGEST = {"b": 2, "h": 3, "g": 3, "d": 16, "e": 16}
"""The greatest length drawn for an axis; other axes go to 9."""
LONG = (64, 70)
"""In every other case, one axis is as long as this, and the others are short: kernels that work in blocks meet
their second block."""
SELDOM = 4
"""An axis whose length counts squared in the work is so many times less often the long one."""
NEVER_LONG = ("b", "h", "g")
"""Nobody works in blocks along these; that there are two is enough."""

POOLED_REACH = 256
"""The greatest integer of a pooled case: so small that what depends on it stays linear in a small shift."""

READABLE = 16
"""Elements of an array that is told as it is."""

PLANTED = (0.0, 1.0, -1.0, 3.0, 2.0**-10, -(2.0**12))


@dataclass(frozen=True, eq=False)
class Case:
    """One drawn input. `arguments` are those of the definition, by name, and are never written to."""

    dtype: str
    arguments: Mapping[str, Any]
    regime: str
    seed: int
    memory: Mapping[str, str] = field(default_factory=dict)
    """How each input lies in memory."""

    def shapes(self) -> str:
        """One line for a person: what is in the case."""
        parts = []
        for name, value in self.arguments.items():
            if isinstance(value, np.ndarray):
                parts.append(f"{name}[{', '.join(map(str, value.shape))}]")
            else:
                parts.append(f"{name}={value!r}")
        layouts = {f"{name} {memory}" for name, memory in self.memory.items() if memory != "contiguous"}
        return ", ".join([*parts, self.dtype, f"regime {self.regime}", *sorted(layouts)])

    def small(self) -> dict[str, str]:
        """The arrays that a person can read at a glance, by name, each in one line."""
        arrays = {n: v for n, v in self.arguments.items() if isinstance(v, np.ndarray) and 0 < v.size <= READABLE}
        return {n: np.array2string(v, max_line_width=1 << 16).replace("\n", "") for n, v in arrays.items()}

    def with_arguments(self, **changes: Any) -> dict[str, Any]:
        return {**self.arguments, **changes}

    def cotangent(self, shape: tuple[int, ...], number: int = 0) -> Values:
        """What the output is multiplied by before it is differentiated: random, and never contiguous."""
        random = np.random.default_rng((self.seed, 1 + number))
        return place(random.standard_normal(shape).astype(DTYPES[self.dtype]), "sliced")


def rounded(values: Values, dtype: str) -> Values:
    """Numbers rounded to a dtype; complex ones to the complex numbers of it. Raises: KeyError where it has none."""
    return values.astype((COMPLEX if np.iscomplexobj(values) else DTYPES)[dtype])


def parted(values: Values) -> Values:
    """Complex numbers as real ones with a last axis of two, real and imaginary part; real ones as they are."""
    return np.stack([values.real, values.imag], axis=-1) if np.iscomplexobj(values) else values


# Regimes of numbers. Each returns float64 values of the given shape, to be rounded to the dtype of the case. ----------


def _ordinary(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    return random.standard_normal(shape)


def _integers(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    return random.integers(-4, 5, shape).astype(np.float64)


def _one_hot(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    out = np.zeros(shape)
    if out.size:
        out.ravel()[random.integers(out.size, size=max(1, out.size // 16))] = 1.0
    return out


def _zeros(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    return np.zeros(shape)


def _constant(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    return np.full(shape, random.standard_normal())


def _wide_range(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    reach = min(20, dtype.emax // 2)
    return random.standard_normal(shape) * np.exp2(random.integers(-reach, reach // 2 + 1, shape))


def _near_ties(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    return random.standard_normal() * (1 + 2 * dtype.u * random.integers(-2, 3, shape))


def _cancellation(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    """Large numbers in neighbouring pairs that nearly cancel, with a small part that matters."""
    large = random.standard_normal(shape) * 1024
    if shape and shape[-1] > 1:
        half = shape[-1] // 2
        large[..., half : 2 * half] = -large[..., :half]
    return large + random.standard_normal(shape)


def _subnormal(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    return random.integers(-(2 ** (dtype.bits - 1)), 2 ** (dtype.bits - 1), shape) * float(2 * dtype.tiny)


def _huge(random: np.random.Generator, shape: tuple[int, ...], dtype: Format) -> Values:
    return random.uniform(-1, 1, shape) * float(dtype.max) / 16


REGIMES: dict[str, Callable[[np.random.Generator, tuple[int, ...], Format], Values]] = {
    "ordinary": _ordinary,
    "integers": _integers,
    "one-hot": _one_hot,
    "zeros": _zeros,
    "constant": _constant,
    "wide range": _wide_range,
    "near ties": _near_ties,
    "cancellation": _cancellation,
    "subnormal": _subnormal,
    "huge": _huge,
}

CONTINUOUS = frozenset({"ordinary", "wide range"})
"""Regimes with a density: numbers computed from them are rounded in directions of their own."""

# Ordinary numbers come up most often: there the headroom means something.
FREQUENT = ("ordinary",) * 4 + tuple(REGIMES)
MEMORY = ("contiguous", "contiguous", "transposed", "sliced", "offset")


def place(values: Values, memory: str) -> Values:
    """The same values, lying in memory as named: never a copy of the caller's buffer."""
    shape = values.shape
    if memory == "transposed" and values.ndim > 1:
        return np.swapaxes(np.ascontiguousarray(np.swapaxes(values, -1, -2)), -1, -2)
    if memory == "sliced" and values.ndim:
        buffer = np.zeros((*shape[:-1], 2 * shape[-1] + 1), dtype=values.dtype)
        buffer[..., 1::2] = values
        return buffer[..., 1::2]
    if memory == "offset":
        buffer = np.zeros(values.size + 1, dtype=values.dtype)
        buffer[1:] = values.ravel()
        return buffer[1:].reshape(shape)
    return np.ascontiguousarray(values).reshape(shape)


class Independent(HypothesisProvider):
    """Draws each case afresh, as Hypothesis draws, and from nothing but the seed.

    By itself Hypothesis spends most of a small budget on variations of earlier cases, and mixes in constants of
    whatever modules happen to be loaded, so that a verdict could depend on what was judged before.
    """

    @property
    def _local_constants(self) -> Constants:
        return Constants()


AVAILABLE_PROVIDERS["assay"] = f"{Independent.__module__}.{Independent.__qualname__}"


@st.composite
def cases(
    draw: Callable[[Any], Any],
    operator: Operator,
    dtype: str,
    supports: Callable[[str], bool],
    conventions: Mapping[str, tuple[str, ...]],
    *,
    pooled: bool = False,
    thin: bool = False,
) -> Case:
    """Cases of an operator in a dtype. `supports` tells which keywords the kernel takes; `conventions` which values
    of each convention it is judged under. `pooled`: small and ordinary, every parameter drawn, to be taken together.
    `thin`: where an axis is long, there is one of everything along which nobody works in blocks.

    Raises: ValueError for an operator of complex numbers in a dtype of which there are none.
    """
    if operator.complex and dtype not in COMPLEX:
        raise ValueError(f"{operator.name} takes complex numbers, of which there are none in {dtype}")
    sizes = _sizes(draw, operator, long=not pooled, thin=thin)
    chosen = {
        n: draw(st.sampled_from(choices)) if len(choices) > 1 else choices[0] for n, choices in conventions.items()
    }
    structure = operator.structure(draw, sizes, supports, chosen) if operator.structure else Structure()
    sizes = {**sizes, **structure.sizes}
    arguments: dict[str, Any] = dict(structure.keywords)
    for name, choices in conventions.items():
        if len(choices) > 1 or choices[0] != operator.conventions[name][0]:
            arguments[name] = chosen[name]
    regime = "ordinary" if pooled else draw(st.sampled_from((*FREQUENT, *2 * tuple(operator.regimes))))
    memory: dict[str, str] = {}
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    given = [i for i in operator.inputs if not (isinstance(i, Tensor) and i.optional) or i.name in structure.given]
    axes = {i.name: structure.axes.get(i.name, i.axes).split() for i in given}
    shapes = {name: tuple(sizes[axis] for axis in letters) for name, letters in axes.items()}
    if not operator.tensors and supports("dtype"):
        arguments["dtype"] = dtype
    own: Mapping[str, Any] = {}
    if regime in operator.regimes:
        own = operator.regimes[regime](random, {n: shapes[n] for n in operator.tensors if n in shapes}, FORMATS[dtype])
    for item in given:
        shape = shapes[item.name]
        if isinstance(item, Size):
            (arguments[item.name],) = shape
        elif isinstance(item, Integers):
            memory[item.name] = "contiguous" if pooled else draw(st.sampled_from(MEMORY))
            drawn = _drawn_integers(draw, random, item, shape, reach=POOLED_REACH if pooled else None)
            arguments[item.name] = place(drawn, memory[item.name])
        else:
            memory[item.name] = "contiguous" if pooled else draw(st.sampled_from(MEMORY))
            if item.name in own:
                values = np.array(own[item.name], dtype=np.complex128 if item.complex else np.float64)
            else:
                values = REGIMES.get(regime, _ordinary)(random, shape, FORMATS[dtype])
                if item.complex:
                    values = values + 1j * REGIMES.get(regime, _ordinary)(random, shape, FORMATS[dtype])
            for place_in, value in () if pooled or own else draw(st.lists(_PLANTS, max_size=2)):
                if values.size:
                    values.ravel()[place_in % values.size] = value
            with np.errstate(over="ignore"):
                arguments[item.name] = place(rounded(values, dtype), memory[item.name])
    for parameter in operator.parameters:
        if supports(parameter.name) and parameter.name in own:
            arguments[parameter.name] = float(own[parameter.name])
        elif supports(parameter.name) and (pooled or draw(st.booleans())):
            arguments[parameter.name] = parameter.draw(random)
        else:
            arguments[parameter.name] = None if parameter.default is None else float(parameter.default)
    for value in arguments.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return Case(dtype, arguments, regime, seed, memory)


_PLANTS = st.tuples(st.integers(0, 2**16), st.sampled_from(PLANTED))


def _sizes(draw: Callable[[Any], Any], operator: Operator, *, long: bool, thin: bool) -> dict[str, int]:
    even = {axis for item in operator.inputs if isinstance(item, Tensor) for axis in item.even.split()}
    required = [item for item in operator.inputs if not (isinstance(item, Tensor) and item.optional)]
    letters = dict.fromkeys(axis for item in required for axis in item.axes.split())
    candidates = [axis for axis in letters if axis not in NEVER_LONG]
    if operator.paired:
        candidates = [axis for axis in candidates for _ in range(1 if axis in operator.paired else SELDOM)]
    stretched = draw(st.sampled_from((*(None,) * len(candidates), *candidates))) if candidates and long else None
    sizes = {}
    for axis in letters:
        few = 1 if thin and axis in NEVER_LONG else 2
        low, high = (1, LONGEST.get(axis, 9)) if stretched is None else (LONG if axis == stretched else (1, few))
        sizes[axis] = (
            2 * draw(st.integers(max(1, low // 2), high // 2)) if axis in even else draw(st.integers(low, high))
        )
    return sizes


def _drawn_integers(
    draw: Callable[[Any], Any],
    random: np.random.Generator,
    item: Integers,
    shape: tuple[int, ...],
    *,
    reach: int | None,
) -> Values:
    """Consecutive numbers, mostly, as positions are; of every magnitude up to `reach` or the limits."""
    kind = draw(st.sampled_from(("consecutive", "from an offset", "from an offset", "arbitrary", "negative")))
    reach = reach or 2 ** draw(st.integers(0, 31))
    start = 0 if kind == "consecutive" else int(random.integers(0, reach, endpoint=True))
    if kind == "arbitrary":
        out = random.integers(-reach if item.low < 0 else 0, reach, shape, endpoint=True)
    else:
        out = np.broadcast_to(np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)), shape) + start
        if len(shape) > 1:  # each further axis has positions of its own
            out = out + random.integers(0, 9, (1, *shape[1:]))
        if kind == "negative":
            out = -out
    return np.ascontiguousarray(np.clip(out, item.low, item.high)).astype(np.int64)
