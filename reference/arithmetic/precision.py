"""Number formats, and the precisions that kernels compute in, as data.

u is the unit roundoff: rounding to nearest changes a normal number by at most u times itself.

Source: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np


MODES: dict[str, Callable[[Any], Any]] = {"nearest": np.rint, "toward zero": np.trunc, "up": np.ceil}
"""The directions of rounding, as what becomes of the significand."""


@dataclass(frozen=True)
class Format:
    """A binary format: floating with `bits` of significand (the hidden one counted), or fixed with a quantum."""

    name: str
    bits: int
    emin: int
    """The exponent of the smallest normal number, 2**emin."""
    emax: int
    """The exponent of the largest power of two."""
    quantum: float = 0.0
    """For a fixed-point format, the spacing of its numbers; 0 for a floating one."""

    @property
    def u(self) -> float:
        return math.ldexp(1.0, -self.bits)

    @property
    def tiny(self) -> np.longdouble:
        """Half the smallest subnormal: what an underflow to nearest may lose."""
        return np.ldexp(np.longdouble(1), self.emin - self.bits)  # for float64, below what a double holds

    @property
    def normal(self) -> float:
        """The smallest normal number."""
        return math.ldexp(1.0, self.emin)

    @cached_property
    def native(self) -> np.dtype[Any] | None:
        """NumPy's dtype of this format, where its conversion from extended precision rounds once, to nearest."""
        same = (d for d in (np.dtype(np.float32), np.dtype(np.float64)) if d.name == self.name)
        return next(same, None)

    @cached_property
    def max(self) -> np.longdouble:
        return np.ldexp(np.longdouble(2) - np.ldexp(np.longdouble(1), 1 - min(self.bits, 60)), self.emax)

    def round(self, x: Any, mode: str = "nearest") -> Any:
        """x[...] (extended precision) rounded to this format: `nearest` (ties to even), `toward zero` or `up`."""
        if self.quantum:
            return MODES[mode](x / np.longdouble(self.quantum)) * np.longdouble(self.quantum)
        if mode == "nearest" and self.native is not None:
            with np.errstate(over="ignore", under="ignore"):
                return np.asarray(x, np.longdouble).astype(self.native).astype(np.longdouble)
        significand, exponent = np.frexp(x)  # |significand| in [1/2, 1)
        kept = np.minimum(self.bits, self.bits - (self.emin - (exponent - 1)))  # fewer bits below 2**emin
        out = np.ldexp(MODES[mode](np.ldexp(significand, kept)), exponent - kept)
        if mode == "toward zero":
            return np.where(np.isfinite(x), np.clip(out, -self.max, self.max), out)
        low = -self.max if mode == "up" else -np.inf
        return np.where(out > self.max, np.inf, np.where((out < -self.max) & np.isfinite(x), low, out))

    def holds(self, x: Any) -> Any:
        """Which numbers of x[...] (extended precision) are representable, element by element."""
        if self.quantum:
            scaled = x / np.longdouble(self.quantum)
            return scaled == np.rint(scaled)
        significand, exponent = np.frexp(x)  # |significand| in [1/2, 1)
        kept = np.minimum(self.bits, self.bits - (self.emin - (exponent - 1)))  # fewer bits below 2**emin
        scaled = np.ldexp(significand, np.maximum(kept, -1))
        return (scaled == np.rint(scaled)) & (np.abs(x) <= self.max)


FLOAT64 = Format("float64", 53, -1022, 1023)
FLOAT32 = Format("float32", 24, -126, 127)
TF32 = Format("tf32", 11, -126, 127)
BFLOAT16 = Format("bfloat16", 8, -126, 127)
FLOAT16 = Format("float16", 11, -14, 15)
QUAD = Format("quad", 113, -16_382, 16_383)
# A fraction of a turn as a 64-bit integer. The range that matters is that of the fraction, so no exponent bounds it.
TURN64 = Format("turn64", 64, -16_000, 16_000, quantum=math.ldexp(1.0, -64))

EXTENDED = Format("extended", int(np.finfo(np.longdouble).nmant) + 1, -16_382, 16_383)

FORMATS = {f.name: f for f in (FLOAT64, FLOAT32, TF32, BFLOAT16, FLOAT16, QUAD, TURN64)}


@dataclass(frozen=True)
class Precision:
    """What a kernel computes in. Together with a form it determines every rounding, hence the bound."""

    name: str
    meaning: str
    working: Format
    """The format of every step that is not named below."""
    product: Format | None = None
    """The format to which the operands of a contraction are rounded; None: they are taken as they are."""
    accumulator: Format | None = None
    """The format of the sums of a contraction; None: the working format."""
    storage: Mapping[str, Format] = field(default_factory=dict)
    """The format in which `store(x, kind)` keeps x, by kind; a kind that is missing is kept as it is."""

    rounding: str = "nearest"
    """The direction of every rounding, one of MODES."""
    flushes: bool = False
    """Subnormal inputs and results may become zero (flush-to-zero, denormals-are-zero)."""

    def at(self, working: Format) -> Precision:
        return replace(self, working=working)

    @property
    def spacings(self) -> int:
        """How far one rounding reaches, in half spacings: 1 to nearest, 2 in a direction."""
        return 1 if self.rounding == "nearest" else 2


def _variants(plain: Precision) -> tuple[Precision, ...]:
    """What hardware does instead of IEEE's default."""
    return (
        replace(
            plain,
            name=f"{plain.name}-truncating",
            meaning=f"{plain.meaning}, every rounding toward zero",
            rounding="toward zero",
        ),
        replace(
            plain,
            name=f"{plain.name}-flushing",
            meaning=f"{plain.meaning}, subnormal inputs and results may become zero",
            flushes=True,
        ),
    )


def _half(dtype: Format) -> tuple[Precision, ...]:
    name = dtype.name
    return (
        Precision(
            name,
            f"{name} storage, float32 products and sums, one rounding at the output",
            FLOAT32,
            storage={"weights": dtype, "output": dtype},
        ),
        Precision(
            f"{name}-table",
            f"as {name}, and tables of cosines and sines kept in {name}",
            FLOAT32,
            storage={"weights": dtype, "output": dtype, "table": dtype},
        ),
        Precision(
            f"{name}-shares",
            f"as {name}, and the gradients of a key head added up in {name} over the query heads that share it",
            FLOAT32,
            storage={"weights": dtype, "output": dtype, "shares": dtype},
        ),
        Precision(
            f"{name}-steps",
            f"every step rounded to {name}, as separate {name} tensor operations do",
            dtype,
            accumulator=FLOAT32,
            storage={"weights": dtype, "output": dtype, "shares": dtype, "table": dtype},
        ),
        Precision(
            f"{name}-angle",
            f"as {name}-steps, and the angles themselves kept in {name}",
            dtype,
            accumulator=FLOAT32,
            storage={"weights": dtype, "output": dtype, "shares": dtype, "table": dtype, "angle": dtype},
        ),
        *_variants(Precision(name, f"{name} storage, float32 products and sums", FLOAT32, storage={"weights": dtype})),
    )


SINGLE = Precision("float32", "IEEE single throughout", FLOAT32)

PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision("float64", "IEEE double throughout", FLOAT64),
        SINGLE,
        *_variants(SINGLE),
        Precision("tf32", "IEEE single, operands of products rounded to tf32", FLOAT32, product=TF32),
        *_half(BFLOAT16),
        *_half(FLOAT16),
    )
}


def published(dtype: str) -> tuple[Precision, ...]:
    """The precisions that kernels on inputs of a dtype are known to compute in.

    For half formats, those of the format alone: its one rounding at the output hides whatever is finer.
    """
    if dtype in (BFLOAT16.name, FLOAT16.name):
        return tuple(p for p in PRECISIONS.values() if p.name.partition("-")[0] == dtype)
    return tuple(PRECISIONS.values())


def natural(dtype: str) -> Precision:
    """What is expected of a kernel that claims no precision: that of its dtype."""
    return PRECISIONS[dtype]
