"""What a kernel owes to its caller from call to call, and to whatever wraps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from assay.properties.contract import Integers
from assay.properties.drawing import DTYPES, Values
from assay.properties.memory import same_bits, under
from assay.properties.trial import KernelError, NotCovered, Trial, Violation


def same_twice(trial: Trial) -> bool:
    second = trial.subject(trial.case.arguments, None, ()).outputs
    if not same_bits(trial.answer().outputs, second):
        raise Violation("the same call, made twice, gives different bits")
    return True


def earlier_calls_have_no_effect(trial: Trial) -> bool:
    first = trial.answer().outputs
    for told, arguments, cotangents in _others(trial):
        with suppress(KernelError, NotCovered):
            trial.called(arguments=arguments, cotangents=cotangents)
        if not same_bits(first, trial.called().outputs):
            raise Violation(f"after a call {told}, the same call gives other bits than before")
    return True


def _others(trial: Trial) -> Iterator[tuple[str, dict[str, Any], tuple[Values, ...] | None]]:
    """Calls that a kernel might remember something of. It need not support them."""
    given = dict(trial.case.arguments)
    tensors = trial.operator.tensors
    for letter, n in trial.lengths.items():
        yield f"with one more {letter}", trial.resized({letter: n + 1}), None
        if n > 1:
            yield f"with one {letter} less", trial.resized({letter: n - 1}), None
    for dtype in DTYPES:
        if dtype != trial.case.dtype:
            with np.errstate(over="ignore"):
                cast = {n: given[n].astype(DTYPES[dtype]) for n in tensors}
            yield f"in {dtype}", {**given, **cast}, None
    moved = {i.name: given[i.name] + 1 for i in trial.operator.inputs if isinstance(i, Integers)}
    if moved:
        yield f"with other {' and '.join(moved)}", {**given, **moved}, None
    yield "with other values", {**given, **{n: _flipped(given[n]) for n in tensors}}, None
    if trial.subject.differentiable:
        yield "with gradients", given, trial.cotangents


def same_memory_other_values(trial: Trial) -> bool:
    """Other values lay at the same addresses before: nothing may be remembered by what looks the same.

    Whoever lays arrays into memory alternates between the same addresses and fresh ones; so each is called twice.
    """
    first = trial.answer().outputs
    for told, change in STALE.items():
        earlier = trial.case.with_arguments(
            **{i.name: change(trial.case.arguments[i.name]) for i in trial.operator.inputs}
        )
        for _ in range(2):
            trial.called(arguments=earlier)
        if not all(same_bits(first, trial.called().outputs) for _ in range(2)):
            raise Violation(f"where other values lay before ({told}), the same call gives other bits")
    return True


def _last_changed(values: Values) -> Values:
    return _changed(values, -1)


def _middle_changed(values: Values) -> Values:
    return _changed(values, values.size // 2)


def _changed(values: Values, index: int) -> Values:
    out = np.array(values)
    if out.size:
        out.reshape(-1)[index] = 1 if out.reshape(-1)[index] == 0 else 0
    return out


def _flipped(values: Values) -> Values:
    """In another order: the same sum, the same extremes."""
    return np.flip(values).copy()


STALE: dict[str, Callable[[Values], Values]] = {
    "zeros": np.zeros_like,
    "the same in the reverse order": _flipped,
    "different in the middle alone": _middle_changed,
    "different at the end alone": _last_changed,
}


def works_under(wrapper: str) -> Callable[[Trial], bool]:
    """The demand that a kernel keeps its bound under a wrapper of torch."""

    def holds(trial: Trial) -> bool:
        differentiable = trial.subject.differentiable and wrapper != "vmap"
        found = trial.called(wrapper, cotangents=trial.cotangents if differentiable else None)
        under(f"under {wrapper}", lambda: trial.agrees(found.outputs))
        if differentiable:
            under(f"under {wrapper}", lambda: trial.gradients_agree(found.gradients))
        return True

    return holds
