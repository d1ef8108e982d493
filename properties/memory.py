"""What a kernel owes to memory: its own, that of its inputs, and that of others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assay.properties.drawing import Values, place
from assay.properties.trial import Answer, Trial, Violation
from assay.properties.truth import NotApplicable


FAR = 2**31
"""Elements between the first and the last of an array whose offsets overflow 32 bits."""
FEW = 9


# The answer as it stands -------------------------------------------------------------------------------------------


def inputs_are_untouched(trial: Trial) -> bool:
    touched = _told(trial, lambda answer: answer.touched)
    if touched:
        raise Violation(f"the call changed its input {' and '.join(touched)}")
    return True


def nothing_is_written_outside(trial: Trial) -> bool:
    trespassed = _told(trial, lambda answer: answer.trespassed)
    if trespassed:
        raise Violation(f"the call wrote beside the elements of {' and '.join(trespassed)}")
    return True


def outputs_own_their_memory(trial: Trial) -> bool:
    """Later writes to one would change the other. Where the function is the identity, the input itself is honest."""
    aliased = [name for name in _told(trial, lambda answer: answer.aliased) if not _is_identity(trial, name)]
    if aliased:
        raise Violation(f"an output lies in the memory of {' and '.join(aliased)}")
    return True


def _told(trial: Trial, what: Callable[[Answer], tuple[str, ...]]) -> list[str]:
    """What is known of the calls that are made for the case itself."""
    answers = [trial.answer(), trial.second]
    if trial.differentiated:
        answers.append(trial.answer(gradients=True))
    return list(dict.fromkeys(name for answer in answers for name in what(answer)))


def _is_identity(trial: Trial, name: str) -> bool:
    value = trial.case.arguments.get(name)
    exact = trial.exact[0]
    if not isinstance(value, np.ndarray) or value.shape != exact.shape or exact.radius.any():
        return False
    return bool((exact.midpoint == value.astype(np.longdouble)).all())


# Called again ------------------------------------------------------------------------------------------------------


def every_element_is_written(trial: Trial) -> bool:
    differentiable = trial.differentiable
    found = trial.called("poison", cotangents=trial.cotangents if differentiable else None)
    under("in memory that held NaN", lambda: trial.agrees(found.outputs))
    if differentiable:
        under("in memory that held NaN", lambda: trial.gradients_agree(found.gradients))
    return True


def nothing_is_read_outside(trial: Trial) -> bool:
    """What lies beside the inputs, NaN so far, is something else, and the bits stay."""
    differentiable = trial.differentiable
    cotangents = trial.cotangents if differentiable else None
    one = trial.answer(gradients=differentiable)
    two = trial.called("guards", cotangents=cotangents)
    if not same_bits(one.outputs, two.outputs):
        raise Violation("what lies beside its inputs in memory changes what it returns")
    if not same_bits(tuple(one.gradients.values()), tuple(two.gradients.values())):
        raise Violation("what lies beside its arguments in memory changes its gradients")
    return True


LAYOUTS = ("transposed", "sliced", "offset", "gapped", "lone")


def any_memory_layout(trial: Trial) -> bool:
    for layout in LAYOUTS:
        arguments = {n: _laid(v, layout) if isinstance(v, np.ndarray) else v for n, v in trial.case.arguments.items()}
        under(f"with inputs {layout}", lambda a=arguments: trial.agrees(trial.called(arguments=a).outputs))  # type: ignore[misc]
    return True


def _laid(values: Values, layout: str) -> Values:
    if layout == "gapped":  # along every axis
        buffer = np.zeros([2 * n + 1 for n in values.shape], dtype=values.dtype)
        inner = buffer[(slice(1, None, 2),) * values.ndim]
        inner[...] = values
        return inner
    if layout == "lone":  # what the stride of an axis of length 1 is means nothing
        kept = np.ascontiguousarray(values).reshape(values.shape)
        strides = [s if n != 1 else 11 * kept.itemsize for n, s in zip(kept.shape, kept.strides, strict=True)]
        return np.lib.stride_tricks.as_strided(kept, kept.shape, strides)
    return place(values, layout)


def repeated_elements(trial: Trial) -> bool:
    """An axis with stride zero: `expand`. The cotangent is what `sum().backward()` gives."""
    letters = [letter for letter, n in trial.lengths.items() if n > 1]
    if not letters:
        return False
    letter = letters[trial.case.seed % len(letters)]
    arguments = dict(trial.case.arguments)
    for name, axis in trial.along(letter):
        first = np.take(arguments[name], [0], axis)
        arguments[name] = np.broadcast_to(first, arguments[name].shape)
    other = trial.at(arguments)
    if other is None:
        return False
    told = f"with {letter} expanded"
    if not trial.differentiable:
        under(told, other.agree)
        return True
    one = trial.rounded(np.asarray(1.0))
    found = trial.called(
        arguments=arguments, cotangents=other.pulled(*(np.broadcast_to(one, e.shape) for e in other.exact))
    )
    under(told, lambda: other.agrees(found.outputs))
    under(f"{told}, and an expanded cotangent of ones", lambda: other.gradients_agree(found.gradients))
    return True


def far_elements(trial: Trial) -> bool:
    """Offsets beyond 2**31 elements, over memory of which only the elements exist."""
    names = [n for n in trial.tensors if _short(trial.case.arguments[n])]
    if not names:
        return False
    name = names[trial.case.seed % len(names)]
    arguments = {**trial.case.arguments, name: _apart(trial.case.arguments[name], trial.case.seed)}
    cotangents = None
    told = f"with {name} spread over 2**31 elements"
    if trial.differentiable:
        cotangents = [_apart(c, trial.case.seed) if _short(c) else c for c in trial.cotangents]
        told = f"with {name} and the cotangents spread over 2**31 elements"
    try:
        found = trial.called(arguments=arguments, cotangents=cotangents)
    except MemoryError as error:
        raise NotApplicable(f"there is not enough address space: {error}") from None
    under(told, lambda: trial.agrees(found.outputs))
    if trial.differentiable:
        under(told, lambda: trial.gradients_agree(found.gradients))
    return True


def _short(values: Values) -> list[int]:
    """The axes along which a few elements may lie far apart: each touches pages of its own."""
    return [axis for axis, n in enumerate(values.shape) if 1 < n <= FEW]


def _apart(values: Values, seed: int) -> Values:
    """The same values, the last of one axis 2**31 elements from the first. Raises: NotApplicable."""
    axis = _short(values)[seed % len(_short(values))]
    rest = np.moveaxis(values, axis, 0)
    inner = int(np.prod(rest.shape[1:]))
    step = FAR // (rest.shape[0] - 1) + 1
    try:
        # Never written to but where there are elements: the system gives no page for the rest.
        buffer = np.empty(step * (rest.shape[0] - 1) + inner, dtype=values.dtype)
    except MemoryError:
        raise NotApplicable("the system does not lend 2**31 elements of address space") from None
    strides = [step * buffer.itemsize, *np.empty(rest.shape[1:], np.bool_).strides]
    strides[1:] = [s * buffer.itemsize for s in strides[1:]]
    view = np.lib.stride_tricks.as_strided(buffer, rest.shape, strides)
    view[...] = rest
    return np.moveaxis(view, 0, axis)


# Helpers -----------------------------------------------------------------------------------------------------------


def under(circumstance: str, compare: Callable[[], object]) -> None:
    """A comparison whose complaint begins with the circumstance under which it was made."""
    try:
        compare()
    except Violation as violation:
        raise Violation(f"{circumstance}: {violation}", violation.miss) from None


def same_bits(one: tuple[Values, ...], two: tuple[Values, ...]) -> bool:
    return len(one) == len(two) and all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))
