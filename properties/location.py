"""Where a kernel is wrong: which elements, in a phrase such as "only rows t >= 64".

Simple predicates on elements (an index, the value of an integer argument) and on cases (memory, regime, keywords,
sizes) are tried on all trials that were kept. One is told only if it separates: every wrong element satisfies it,
hardly any right one does, and luck does not explain it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.properties.contract import Integers, Operator
from assay.properties.drawing import MEMORY, REGIMES, Case, Values, parted
from assay.properties.trial import Trial, outside, shape_of


if TYPE_CHECKING:
    from assay.reference.arithmetic.oracle import Enclosure


NEARLY = 8
"""Of right elements, at most one for so many wrong ones may satisfy what is told."""
CHANCE = 0.05
"""A location is not told if failing cases that have nothing to do with it would all lie in it with this probability."""
BLOCKS = (2, 3, 4, 8, 16, 32)
"""Every so many elements: what is told of strides and vectors."""

NAMES: Mapping[str, tuple[str, str]] = {
    "b": ("batch", "batches"),
    "h": ("head", "heads"),
    "g": ("key head", "key heads"),
    "t": ("row", "rows"),
    "s": ("key", "keys"),
    "d": ("channel", "channels"),
    "e": ("value channel", "value channels"),
    "n": ("state", "states"),
    "r": ("feature", "features"),
}
FEW = ("b", "h", "g")
"""Axes along which one counts rather than measures."""

COMPACT = ("contiguous", "offset")
"""The memory layouts that leave an array contiguous."""


@dataclass(frozen=True)
class Place:
    """Where a kernel is wrong."""

    name: str
    text: str


@dataclass(frozen=True)
class _Predicate:
    name: str
    text: str
    holds: Values
    """For each element."""


@dataclass(frozen=True)
class _Elements:
    """The elements of one output over all trials, in a row."""

    wrong: Values
    telling: Values
    """Right, where neither zeros nor a copy of the input would have been right by themselves."""
    trial: Values
    """The number of the trial to which an element belongs."""
    cases: Sequence[Case]
    index: Mapping[str, Values]
    size: Mapping[str, Values]
    integers: Mapping[str, Values]
    sizes: Sequence[Mapping[str, int]]
    """Of every axis of the inputs, by trial."""

    def by_case(self, of: Callable[[int], bool]) -> Values:
        return np.array([of(i) for i in range(len(self.cases))], dtype=bool)[self.trial]


def locate(operator: Operator, trials: Sequence[Trial]) -> list[Place]:
    """Where each output is wrong, or each gradient if no output is; empty if no simple phrase tells it."""
    if len({t.case.dtype for t in trials}) != 1:
        return []
    places = []
    for what, pieces in _arrays(operator, trials):
        found = _separating(operator, _gathered(operator, pieces))
        if found is not None:
            told = f"{what}: {found.text}" if what else found.text
            places.append(Place(found.name, told))
    return places[:2]


@dataclass(frozen=True)
class _Piece:
    """One array of one trial."""

    trial: Trial
    got: Values
    exact: Enclosure
    bound: Values

    @property
    def wrong(self) -> Values:
        return outside(self.got, self.exact, self.bound, self.trial.case.dtype)[0]


def _arrays(operator: Operator, trials: Sequence[Trial]) -> Iterator[tuple[str, list[_Piece]]]:
    """The wrong outputs; the wrong gradients, if there is no wrong output."""
    outputs = [[*map(_Piece, [t] * len(t.exact), t.answer().outputs, t.exact, t.bound)] for t in trials]
    some, most = False, max(map(len, outputs))
    for number in range(most):
        pieces = [p[number] for p in outputs if number < len(p)]  # a keyword may ask for one output more
        if any(p.wrong.any() for p in pieces):
            some = True
            yield ("" if most == 1 else f"output {number}"), pieces
    asked = [t for t in trials if t.differentiated]
    if some or not asked:
        return
    for name in operator.differentiated:
        pieces = [
            _Piece(t, parted(t.answer(gradients=True).gradients[name]), t.exact_gradient[name], t.gradient_bound[name])
            for t in asked
            if name in t.by and _usable(t, name)
        ]
        if any(p.wrong.any() for p in pieces):
            yield f"gradient of {name}", pieces


def _usable(trial: Trial, name: str) -> bool:
    got = trial.answer(gradients=True).gradients.get(name)
    return got is not None and parted(got).shape == trial.exact_gradient[name].shape


# Elements ------------------------------------------------------------------------------------------------------------


def _gathered(operator: Operator, pieces: Sequence[_Piece]) -> _Elements:
    sizes = [_sizes(operator, p.trial.case) for p in pieces]
    letters = _letters(sizes, [p.got.shape for p in pieces])
    index = {
        letter: np.concatenate([np.indices(p.got.shape)[k].ravel() for p in pieces]) for k, letter in enumerate(letters)
    }
    size = {
        letter: np.concatenate([np.full(p.got.size, p.got.shape[k]) for p in pieces])
        for k, letter in enumerate(letters)
    }
    integers: dict[str, Values] = {}
    for item in operator.inputs:
        if isinstance(item, Integers) and set(item.axes.split()) <= set(letters):
            integers[item.name] = np.concatenate([_spread(p, item, letters) for p in pieces])
    return _Elements(
        wrong=np.concatenate([p.wrong.ravel() for p in pieces]),
        telling=np.concatenate([_telling(operator, p).ravel() for p in pieces]),
        trial=np.concatenate([np.full(p.got.size, i) for i, p in enumerate(pieces)]),
        cases=[p.trial.case for p in pieces],
        index=index,
        size=size,
        integers=integers,
        sizes=sizes,
    )


def _telling(operator: Operator, piece: _Piece) -> Values:
    first = piece.trial.case.arguments[operator.tensors[0]] if operator.tensors else None
    nulls = [np.zeros(piece.got.shape, piece.got.dtype)]
    if first is not None and first.shape == piece.got.shape:
        nulls.append(first.real)
    out = ~piece.wrong
    for null in nulls:
        out &= outside(null, piece.exact, piece.bound, piece.trial.case.dtype)[0]
    return out


def _sizes(operator: Operator, case: Case) -> dict[str, int]:
    """The length of each axis of the inputs; an input that took another shape does not tell any."""
    out: dict[str, int] = {}
    for item in operator.inputs:
        if item.name not in case.arguments:
            continue
        shape = shape_of(item, case.arguments)
        axes = item.axes.split()
        if len(axes) == len(shape):
            for axis, length in zip(axes, shape, strict=True):
                out.setdefault(axis, length)
    return out


def _letters(sizes: Sequence[Mapping[str, int]], shapes: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """The axes of an output: each is as long as an axis of the inputs in every case. Empty if they cannot be told."""
    if len({len(s) for s in shapes}) != 1:
        return ()
    out: list[str] = []
    for k in range(len(shapes[0])):
        fitting = (
            letter
            for letter in sizes[0]
            if letter not in out and all(s.get(letter) == shape[k] for s, shape in zip(sizes, shapes, strict=True))
        )
        found = next(fitting, None)
        if found is None:
            return ()
        out.append(found)
    return tuple(out)


def _spread(piece: _Piece, item: Integers, letters: Sequence[str]) -> Values:
    """An integer argument at each element of an output. Of several values there, that of the greatest magnitude."""
    values = np.asarray(piece.trial.case.arguments[item.name])
    axes = item.axes.split()
    if values.ndim > len(axes):
        flat = values.reshape(*values.shape[: len(axes)], -1)
        far = np.argmax(np.abs(flat), axis=-1) if flat.shape[-1] else np.zeros(flat.shape[:-1], dtype=int)
        values = np.take_along_axis(flat, far[..., None], axis=-1)[..., 0] if flat.shape[-1] else far
    indices = np.indices(piece.got.shape)
    out: Values = values[tuple(indices[letters.index(axis)] for axis in axes)].ravel()
    return out


# Predicates, the simplest first --------------------------------------------------------------------------------------


def _separating(operator: Operator, elements: _Elements) -> _Predicate | None:
    """The tightest predicate that separates, and of those that are about as tight the simplest."""
    wrong, telling = elements.wrong, elements.telling
    candidates = [*_predicates(operator, elements)]
    failing = np.unique(elements.trial[wrong])
    best: tuple[int, _Predicate] | None = None
    for predicate in candidates:
        inside = predicate.holds
        if not inside[wrong].all():
            continue
        right, excluded = int((telling & inside).sum()), int((telling & ~inside).sum())
        if right * NEARLY > int(wrong.sum()) or excluded < max(1, right):
            continue
        if _share(elements, inside) ** len(failing) * len(candidates) > CHANCE:
            continue
        if best is None or right < best[0] // 2:
            best = right, predicate
    return None if best is None else best[1]


def _share(elements: _Elements, inside: Values) -> float:
    """The part of a case that satisfies a predicate, on average over the cases."""
    total = np.bincount(elements.trial, minlength=len(elements.cases))
    part = np.bincount(elements.trial, weights=inside, minlength=len(elements.cases))
    return float((part[total > 0] / total[total > 0]).mean())


def _predicates(operator: Operator, elements: _Elements) -> Iterator[_Predicate]:
    for letter in elements.index:
        yield from _of_index(letter, elements)
    for name in elements.integers:
        yield from _of_integers(name, elements)
    yield from _of_cases(operator, elements)


def _of_index(letter: str, elements: _Elements) -> Iterator[_Predicate]:
    """The limits are those that the wrong elements themselves set."""
    one, many = NAMES.get(letter, (f"index {letter} =", "indices"))
    index, size, wrong = elements.index[letter], elements.size[letter], elements.wrong
    low, high = int(index[wrong].min()), int(index[wrong].max())
    last = int((size - index)[wrong].max())
    if low == high < index.max():
        yield _Predicate(f"{letter} == {low}", f"only {one} {low}", index == low)
    if low:
        text = f"only {one} {low} onwards" if letter in FEW else f"only {many} {letter} >= {low}"
        yield _Predicate(f"{letter} >= {low}", text, index >= low)
    if low == high == index.max():
        yield _Predicate(f"{letter} == {low}", f"only {one} {low}", index == low)
    text = f"only the last {one}" if last == 1 else f"only the last {last} {many}"
    yield _Predicate(f"last {last} of {letter}", text, size - index <= last)
    yield _Predicate(f"{letter} < {high + 1}", f"only {many} {letter} < {high + 1}", index <= high)
    yield _Predicate(f"first half of {letter}", f"only the first half of the {many}", 2 * index < size)
    yield _Predicate(f"second half of {letter}", f"only the second half of the {many}", 2 * index >= size)
    for block in BLOCKS:
        rest = int(index[wrong][0]) % block
        if block == 2:
            told = f"only {('even', 'odd')[rest]} {many} {letter}"
        else:
            told = f"only {many} {letter} = {rest} modulo {block}" if rest else f"only every {block}th {one}, from 0"
        yield _Predicate(f"{letter} % {block} == {rest}", told, index % block == rest)
    for block in BLOCKS[2:]:
        whole = size - size % block
        told = f"only {many} past the last whole block of {block}"
        yield _Predicate(f"remainder of {letter} by {block}", told, index >= whole)


def _of_integers(name: str, elements: _Elements) -> Iterator[_Predicate]:
    values, wrong = elements.integers[name], elements.wrong
    magnitude = int(np.abs(values[wrong]).min())
    above = 1 << (magnitude.bit_length() - 1) if magnitude else 0
    if magnitude > 1:
        yield _Predicate(f"{name} > {above - 1}", f"every {name} above {above - 1}", values >= above)
    yield _Predicate(f"{name} < 0", f"every negative {name}", values < 0)
    positive, negative = values[wrong & (values >= 0)], values[wrong & (values < 0)]
    least = int(positive.min()) if positive.size else 1 << 62
    if least > 1:
        for low, high in ((0, _below(least)), _signed(least, negative)):
            text = f"every {name} outside {low}..{high - 1}"
            yield _Predicate(f"{name} outside {low}..{high - 1}", text, (values < low) | (values >= high))
    if magnitude > 1:
        text = f"every {name} above {above - 1} in magnitude"
        yield _Predicate(f"|{name}| > {above - 1}", text, np.abs(values) >= above)
    yield _Predicate(f"{name} == 0", f"only at {name} 0", values == 0)


def _below(limit: int) -> int:
    return 1 << (limit.bit_length() - 1)


def _signed(least: int, negative: Values) -> tuple[int, int]:
    """-2**k .. 2**k - 1: what a signed integer holds."""
    nearest = -int(negative.max()) - 1 if negative.size else least
    reach = _below(min(least, nearest)) if min(least, nearest) > 0 else 1
    return -reach, reach


def _of_cases(operator: Operator, elements: _Elements) -> Iterator[_Predicate]:
    cases = elements.cases

    def predicate(name: str, text: str, of: Callable[[int], bool]) -> _Predicate:
        return _Predicate(name, text, elements.by_case(of))

    for regime in (*REGIMES, *operator.regimes):
        told = f"only in the regime {regime}"
        yield predicate(f"regime {regime}", told, lambda i, r=regime: cases[i].regime == r)  # type: ignore[misc]
    for tensor in operator.tensors:
        lies = [c.memory.get(tensor, "contiguous") for c in cases]
        plain = [tensor not in c.arguments or bool(c.arguments[tensor].flags.c_contiguous) for c in cases]
        for memory in dict.fromkeys(MEMORY):
            # An axis of length 1 may lie as it likes: only what a kernel can notice counts.
            noticed = [k == memory and p == (k in COMPACT) for k, p in zip(lies, plain, strict=True)]
            told = f"only where {tensor} is stored {memory}"
            yield predicate(f"{tensor} {memory}", told, noticed.__getitem__)
        strided = [not p for p in plain]
        yield predicate(f"{tensor} not contiguous", f"only where {tensor} is not contiguous", strided.__getitem__)
    for name, values in operator.conventions.items():
        for value in values:
            chosen = [c.arguments.get(name, values[0]) == value for c in cases]
            yield predicate(f"{name}={value}", f"only with {name}={value!r}", chosen.__getitem__)
    for name in dict.fromkeys(key for c in cases for key in _keywords(operator, c)):
        given = [name in _keywords(operator, c) for c in cases]
        yield predicate(f"{name} given", f"only when {name} is given", given.__getitem__)
        yield predicate(f"{name} not given", f"only when {name} is not given", [not g for g in given].__getitem__)
    for parameter in operator.parameters:
        moved = [c.arguments[parameter.name] != parameter.default for c in cases]
        usual = "its default" if parameter.default is None else f"{parameter.default:g}"
        told = f"only when {parameter.name} is not {usual}"
        yield predicate(f"{parameter.name} not default", told, moved.__getitem__)
    yield from _of_sizes(elements, predicate)


def _keywords(operator: Operator, case: Case) -> list[str]:
    """Keywords that only some cases have."""
    known = {i.name for i in operator.inputs} | {p.name for p in operator.parameters} | set(operator.conventions)
    return [name for name, value in case.arguments.items() if name not in known and value is not None]


def _of_sizes(elements: _Elements, predicate: Callable[[str, str, Callable[[int], bool]], Any]) -> Iterator[_Predicate]:
    failing = np.unique(elements.trial[elements.wrong])
    found: list[list[_Predicate]] = []
    for letter in dict.fromkeys(axis for s in elements.sizes for axis in s):
        lengths = [s.get(letter, 0) for s in elements.sizes]
        low, high = min(lengths[i] for i in failing), max(lengths[i] for i in failing)
        many = NAMES.get(letter, ("", f"indices {letter}"))[1]
        told = f"only when there are {low} {many}" if low != 1 else f"only when {letter} has length 1"
        same = predicate(f"length of {letter} == {low}", told, [n == low == high for n in lengths].__getitem__)
        told = f"only when there are at least {low} {many}"
        least = predicate(f"length of {letter} >= {low}", told, [n >= low for n in lengths].__getitem__)
        told = f"only when the number of {many} is odd"
        odd = predicate(f"length of {letter} odd", told, [n % 2 == 1 for n in lengths].__getitem__)
        told = f"only when there are at most {high} {many}"
        most = predicate(f"length of {letter} <= {high}", told, [n <= high for n in lengths].__getitem__)
        found.append([same, least, odd, most])
    # Where one axis is long the others are short, so lengths go together: kernels fail beyond a length, not below one.
    for likewise in zip(*found, strict=True):
        yield from likewise
