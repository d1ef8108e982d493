"""What a kernel owes for inputs of any shape and integer width, and for those that mean nothing.

The arguments are derived from the axes in the contract. Whether they mean something is asked of the definition: where
it answers, the kernel owes the same answer; where it raises, the kernel must raise too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from assay.properties.contract import Integers, Size, Tensor
from assay.properties.drawing import NEVER_LONG, Values
from assay.properties.memory import under
from assay.properties.trial import KernelError, NotCovered, Trial, Violation, outside


SIZES = (31, 32, 33, 127, 128, 129, 255, 256, 257)
"""Around powers of two, and prime: 31, 127, 257."""
EVEN_SIZES = (30, 32, 34, 62, 64, 66, 126, 128, 130)
CHANNELS = ("d", "e")
"""Nobody has tensors without channels."""
WIDTHS = tuple(map(np.dtype, ("int64", "int32", "int16", "int8", "uint8")))


def sizes_around_powers_of_two(trial: Trial) -> bool:
    """One axis after the other is long, the others are as short as can be."""
    random = np.random.default_rng((trial.case.seed, 2))
    even = _even(trial)
    short = {letter: 2 if letter in even else 1 for letter in trial.lengths}
    found = False
    for letter in (one for one in short if one not in NEVER_LONG):
        sizes = EVEN_SIZES if letter in even else SIZES
        size = int(random.choice(sizes[:3] if letter in trial.operator.paired else sizes))
        other = trial.at(trial.resized({**short, letter: size}))
        if other is not None:
            found = True
            under(f"with {size} {letter}", other.agree)
    return found


def axes_of_one_element(trial: Trial) -> bool:
    """One axis after the other has one element, the others have two: how far apart the elements of the one lie means
    nothing, and who takes it for how far apart those of another lie is wrong here at the latest."""
    even, found = _even(trial), False
    for letter in trial.lengths:
        sizes = {**dict.fromkeys(trial.lengths, 2), letter: 1}
        other = None if letter in even else trial.at(_told_apart(trial, sizes))
        if other is None:
            continue
        found = True
        told = f"with one {letter} and two of everything else"
        under(told, other.agree)
        if other.differentiable:
            under(told, other.agree_in_gradients)
    return found


def _told_apart(trial: Trial, sizes: dict[str, int]) -> dict[str, Any]:
    """The arguments of other lengths; what is repeated for that is half of what it repeats, as near as it can be."""
    arguments = trial.resized(sizes)
    for letter, size in sizes.items():
        for name, axis in trial.along(letter):
            if name in trial.tensors and size > trial.lengths[letter]:
                halves = (np.arange(size) < trial.lengths[letter]) / 2 + 0.5
                scaled = arguments[name] * halves.reshape(-1, *(1,) * (arguments[name].ndim - axis - 1))
                arguments[name] = trial.rounded(scaled)
    return arguments


def empty_axes(trial: Trial) -> bool:
    found = False
    for letter in trial.lengths:
        other = None if letter in CHANNELS else trial.at(trial.resized({letter: 0}))
        if other is None:
            continue
        found = True
        try:
            under(f"with no {letter}", other.agree)
        except KernelError as error:
            raise Violation(f"with no {letter} it raises {error}") from None
    return found


def batch_rows_are_independent(trial: Trial) -> bool:
    """Whatever the other rows hold, NaN included, a row stays within its bound."""
    rows = trial.lengths.get("b", 0)
    if rows < 2:
        return False
    row = trial.case.seed % rows
    arguments = dict(trial.case.arguments)
    alone = dict(arguments)
    for name, axis in trial.along("b"):
        alone[name] = np.take(arguments[name], [row], axis)
        if name in trial.tensors:
            others = np.full_like(arguments[name], np.nan)
            place = (slice(None),) * axis + (row,)
            others[place] = arguments[name][place]
            arguments[name] = others
    other = trial.at(alone)
    if other is None:
        return False
    outputs = trial.called(arguments=arguments).outputs
    found = []
    for got, whole, one in zip(outputs, trial.exact, other.exact, strict=True):
        axes = [axis for axis, (n, m) in enumerate(zip(whole.shape, one.shape, strict=True)) if n != m]
        if len(axes) != 1 or whole.shape[axes[0]] != rows:
            return False
        with np.errstate(invalid="ignore"):  # infinities of one sign
            same = np.take(whole.midpoint, [row], axes[0]) - one.midpoint
        if (np.abs(same) > np.take(whole.radius, [row], axes[0]) + one.radius).any():
            return False  # the definition itself mixes the rows
        if got.shape != whole.shape:
            raise Violation(f"with NaN in the other rows of the batch, it returns shape {got.shape}")
        found.append(np.take(got, [row], axes[0]))
    under(f"row {row} of the batch, with NaN in the others", lambda: other.agrees(found))
    return True


def integers_of_any_width(trial: Trial) -> bool:
    """A kernel may refuse a width; it may not answer wrongly."""
    names = [i.name for i in trial.inputs if isinstance(i, Integers)]
    for width in WIDTHS:
        limits = np.iinfo(width)
        given = {n: trial.case.arguments[n] for n in names}
        if any(v.size and not limits.min <= v.min() <= v.max() <= limits.max for v in given.values()):
            continue
        arguments = trial.case.with_arguments(**{n: v.astype(width) for n, v in given.items()})
        try:
            outputs = trial.called(arguments=arguments).outputs
        except (KernelError, NotCovered):
            continue
        under(f"with {' and '.join(names)} in {width}", lambda o=outputs: trial.agrees(o))  # type: ignore[misc]
    return True


# Inputs without a meaning ------------------------------------------------------------------------------------------


def malformed_shapes_raise(trial: Trial) -> bool:
    found = False
    for told, arguments in _malformed(trial):
        if trial.at(arguments) is not None:
            continue
        found = True
        try:
            outputs = trial.called(arguments=arguments).outputs
        except (KernelError, NotCovered):
            continue
        shapes = " and ".join(str(o.shape) for o in outputs)
        raise Violation(f"with {told}, which means nothing, it answers with shape {shapes} instead of raising")
    return found


def _malformed(trial: Trial) -> Iterator[tuple[str, dict[str, Any]]]:
    given = trial.case.arguments
    for item in trial.inputs:
        if isinstance(item, Size):
            yield f"{item.name} = -1", {**given, item.name: -1}
    for letter, n in trial.lengths.items():
        sharing = trial.along(letter)
        for name, axis in sharing if len(sharing) > 1 and n > 1 else ():  # one is broadcast by many, and means it
            longer = np.take(given[name], np.arange(n + 1) % n, axis)
            yield f"{n + 1} {letter} in {name} and {n} elsewhere", {**given, name: longer}
    for letter in _even(trial):
        n = trial.lengths.get(letter, 0)
        if n > 1:
            yield f"{n - 1} {letter}", trial.resized({letter: n - 1})
    for name in trial.tensors:
        values = given[name]
        # Nor what an axis of length 1 would broadcast to, or the right length by chance.
        if values.ndim > 1 and min(values.shape[:-1]) > 1 and values.shape[-1] != values.shape[-2]:
            yield f"{name} without its last axis", {**given, name: values[..., 0]}


def _even(trial: Trial) -> list[str]:
    found = [letter for i in trial.inputs if isinstance(i, Tensor) for letter in i.even.split()]
    return list(dict.fromkeys(found))


def integers_for_floats_raise(trial: Trial) -> bool:
    """Integers are numbers: a kernel that returns the right floating-point numbers for them is right too."""
    names = trial.tensors
    name = names[trial.case.seed % len(names)]
    whole = np.random.default_rng((trial.case.seed, 3)).integers(-4, 5, trial.case.arguments[name].shape)
    other = trial.at({**trial.case.arguments, name: trial.rounded(whole)})
    if other is None:
        return False
    try:
        outputs = trial.called(arguments={**trial.case.arguments, name: whole}).outputs
    except (KernelError, NotCovered):
        return True
    for got, exact, bound in zip(outputs, other.exact, other.bound, strict=False):
        if got.shape != exact.shape or outside(_wide(got), exact, bound, trial.case.dtype)[0].any():
            told = f"given integers for {name}, it answers with {got.dtype} of shape {got.shape}, and wrongly"
            raise Violation(f"{told}, instead of raising")
    return True


def _wide(values: Values) -> Values:
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64)
