"""What a kernel owes to its caller from call to call, and to whatever wraps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from assay.properties.contract import Integers, Size
from assay.properties.drawing import COMPLEX, DTYPES, Values, place, rounded
from assay.properties.memory import same_bits, under
from assay.properties.trial import KernelError, NotCovered, Trial, Violation


def same_twice(trial: Trial) -> bool:
    if not same_bits(trial.answer().outputs, trial.second.outputs):
        raise Violation("the same call, made twice, gives different bits")
    return True


def random_state_is_untouched(trial: Trial) -> bool:
    if trial.answer().drew or trial.second.drew:
        raise Violation("the call changes torch's global random state, from which others draw")
    return True


def earlier_calls_have_no_effect(trial: Trial) -> bool:
    """Neither on what is called again, nor on what is called next."""
    first = trial.answer().outputs
    for told, arguments, cotangents in _others(trial):
        with suppress(KernelError, NotCovered):
            trial.called(arguments=arguments, cotangents=cotangents)
        if not same_bits(first, trial.called().outputs):
            raise Violation(f"after a call {told}, the same call gives other bits than before")
    for name, arguments in _with_other_parameters(trial):
        with suppress(KernelError, NotCovered):
            outputs = trial.called(arguments=arguments).outputs
            if not same_bits(first, trial.called().outputs):
                raise Violation(f"after a call with another {name}, the same call gives other bits than before")
            other = trial.at(arguments) if same_bits(first, outputs) else None
            if other is not None:  # right, if the parameter does not matter here
                under(f"with another {name}, it gives the bits of the call before", partial(other.agrees, outputs))
    return True


def _others(trial: Trial) -> Iterator[tuple[str, dict[str, Any], tuple[Values, ...] | None]]:
    """Calls that a kernel might remember something of. It need not support them."""
    given = dict(trial.case.arguments)
    tensors = trial.tensors
    for number, (letter, n) in enumerate(trial.lengths.items()):
        if n > 1 and (trial.case.seed + number) % 2:
            yield f"with one {letter} less", trial.resized({letter: n - 1}), None
        else:
            yield f"with one more {letter}", trial.resized({letter: n + 1}), None
    for dtype in COMPLEX if trial.operator.complex else DTYPES:
        if dtype != trial.case.dtype:
            with np.errstate(over="ignore"):
                cast = {n: rounded(given[n], dtype) for n in tensors}
            yield f"in {dtype}", {**given, **cast, **({"dtype": dtype} if "dtype" in given else {})}, None
    moved = {i.name: given[i.name] + 1 for i in trial.inputs if isinstance(i, Integers)}
    if moved:
        yield f"with other {' and '.join(moved)}", {**given, **moved}, None
    if tensors:
        yield "with other values", {**given, **{n: _flipped(given[n]) for n in tensors}}, None
    yield from _under_other_conventions(trial)
    if trial.differentiable:
        yield "with gradients", given, trial.cotangents


def _under_other_conventions(trial: Trial) -> Iterator[tuple[str, dict[str, Any], None]]:
    for name, values in trial.operator.conventions.items():
        for value in values:
            if trial.subject.supports(name) and value != trial.case.arguments.get(name, values[0]):
                yield f"with {name}={value!r}", trial.case.with_arguments(**{name: value}), None


def _with_other_parameters(trial: Trial) -> Iterator[tuple[str, dict[str, Any]]]:
    random = np.random.default_rng((trial.case.seed, 4))
    for parameter in trial.operator.parameters:
        if trial.subject.supports(parameter.name):
            yield parameter.name, trial.case.with_arguments(**{parameter.name: parameter.draw(random)})


def same_memory_other_values(trial: Trial) -> bool:
    """Other values at the same addresses, or such as look the same at a glance, are not taken for each other.

    Whoever lays arrays into memory alternates between the same addresses and fresh ones; so each is called twice.
    """
    first = trial.answer().outputs
    names = list(STALE)
    # Each case has its share of the values; over the cases, all of them come with each other.
    names = [names[trial.case.seed % len(names)], names[trial.case.seed // len(names) % len(names)]]
    changed = {told: _changed(trial, STALE[told]) for told in names}
    for told, arguments in changed.items():
        for _ in range(2):
            trial.called(arguments=arguments)
        if not all(same_bits(first, trial.called().outputs) for _ in range(2)):
            raise Violation(f"where other values lay before ({told}), the same call gives other bits")
    told = names[0]
    other = trial.at(changed[told])
    if other is not None:
        for outputs in [other.called().outputs for _ in range(2)]:
            under(f"after a call on other values, called on {told}", lambda o=outputs: other.agrees(o))  # type: ignore[misc]
    return True


def _changed(trial: Trial, change: Callable[[Values], Values]) -> dict[str, Any]:
    """The arguments with other values in the inputs, lying in memory as they did."""
    given = {i.name: trial.case.arguments[i.name] for i in trial.inputs if not isinstance(i, Size)}
    layouts = {n: trial.case.memory.get(n, "contiguous") for n in given}
    return trial.case.with_arguments(**{n: place(change(v), layouts[n]) for n, v in given.items()})


def _last_changed(values: Values) -> Values:
    return _one_changed(values, -1)


def _middle_changed(values: Values) -> Values:
    return _one_changed(values, values.size // 2)


def _one_changed(values: Values, index: int) -> Values:
    out = np.array(values)
    if out.size:
        out.reshape(-1)[index] = 1 if out.reshape(-1)[index] == 0 else 0
    return out


def _flipped(values: Values) -> Values:
    """In another order: the same sum, the same extremes."""
    return np.flip(values).copy()


STALE: dict[str, Callable[[Values], Values]] = {
    "zeros": np.zeros_like,
    "those in the reverse order": _flipped,
    "those with another one in the middle": _middle_changed,
    "those with another one at the end": _last_changed,
}


def works_under(wrapper: str) -> Callable[[Trial], bool]:
    """The demand that a kernel keeps its bound under a wrapper of torch."""

    def holds(trial: Trial) -> bool:
        differentiable = trial.differentiable and wrapper != "vmap"
        found = trial.called(wrapper, cotangents=trial.cotangents if differentiable else None)
        under(f"under {wrapper}", lambda: trial.agrees(found.outputs))
        if differentiable:
            under(f"under {wrapper}", lambda: trial.gradients_agree(found.gradients))
        return True

    return holds
