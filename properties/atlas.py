"""The error atlas of a kernel: how near to its bound it comes, and where.

Every element that was compared is counted, of outputs and of gradients, by three things that errors grow with: its
position, its magnitude, and the size of its array. Each is cut into classes, octaves or decades, so that the atlas of a
kernel stays small however long it was judged, and those of two kernels can be laid beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from assay.properties.contract import Integers, Operator
from assay.properties.drawing import Values
from assay.properties.location import Piece, gradients, letters_of, outputs, sizes_of, spread
from assay.properties.trial import Trial
from assay.reference.arithmetic.precision import FORMATS


What = Literal["outputs", "gradients"]
WHAT: tuple[What, ...] = ("outputs", "gradients")
Against = Literal["position", "magnitude", "size"]

ALONG = ("t", "s", "n", "r", "d", "e")
"""The axis along which an element has its position, where no integer argument gives one: the first that there is."""
DIGITS = 4
"""Significant ones that are kept."""


@dataclass(frozen=True)
class Class:
    """Elements that are alike."""

    low: float
    """The least value of the class: 0, or a power of two or, of magnitudes, of ten. What a dtype cannot hold is 0."""
    elements: int
    middle: float
    """The median of |error| / bound."""
    worst: float
    """The greatest."""


@dataclass(frozen=True)
class Curve:
    """|error| / bound of a kernel's outputs or gradients, against one thing."""

    what: What
    against: Against
    classes: tuple[Class, ...]


def atlas(operator: Operator, trials: Sequence[Trial]) -> tuple[Curve, ...]:
    """The curves of a kernel over the trials that it answered; without elements to compare there are none."""
    found: dict[What, list[tuple[str, list[Piece]]]] = {
        "outputs": list(outputs(trials)),
        "gradients": list(gradients(operator, trials)),
    }
    curves = []
    for what, arrays in found.items():
        columns = [values for _, pieces in arrays for values in _columns(operator, pieces)]
        for against, least in LEAST.items():
            given = [c for c in columns if against in c]
            if given:
                values, ratios = (np.concatenate([c[key] for c in given]) for key in (against, "ratio"))
                classes = tuple(_classes(least(values), ratios))
                curves += [Curve(what, against, classes)] if classes else []
    return tuple(curves)


def _columns(operator: Operator, pieces: Sequence[Piece]) -> Iterator[dict[str, Values]]:
    """For each array its elements in a row: |error| / bound of each, and what it is held against."""
    pieces = [p for p in pieces if p.got.size]
    letters = letters_of([sizes_of(operator, p.trial.case) for p in pieces], [p.got.shape for p in pieces])
    integers = [i for i in operator.inputs if isinstance(i, Integers) and set(i.axes.split()) <= set(letters)]
    axis = next((letters.index(letter) for letter in ALONG if letter in letters), None)
    for piece in pieces:
        size, exact = piece.got.size, np.abs(piece.exact.midpoint.ravel()).astype(np.float64)
        column = {
            "ratio": piece.compared[1].ravel(),
            "magnitude": np.where(exact < FORMATS[piece.trial.case.dtype].tiny, 0, exact),
            "size": np.full(size, float(size)),
        }
        if integers and integers[0].name in piece.trial.case.arguments:
            column["position"] = np.abs(spread(piece, integers[0], letters).astype(np.float64))
        elif axis is not None:
            column["position"] = np.indices(piece.got.shape)[axis].ravel().astype(np.float64)
        yield column


def _octave(values: Values) -> Values:
    return np.where(values > 0, np.exp2(np.frexp(values)[1] - 1), 0)


def _decade(values: Values) -> Values:
    """Infinities and what is not a number are of no class."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Values = np.where(values > 0, 10.0 ** np.floor(np.log10(values)), values)
        return found


LEAST: Mapping[Against, Callable[[Values], Values]] = {"position": _octave, "magnitude": _decade, "size": _octave}
"""The class of each value, by its least one."""


def _classes(lows: Values, ratios: Values) -> Iterator[Class]:
    for low in np.unique(lows[np.isfinite(lows)]):
        here = ratios[lows == low]
        low = float(f"{low:.15g}")  # a power of ten is not quite one
        yield Class(low, int(here.size), _short(np.median(here)), _short(here.max()))


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
