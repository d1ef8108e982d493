"""Asking a kernel: NumPy arrays are laid into memory, the kernel is called on them, and NumPy arrays come back.

`TorchSubject` calls it in this process; `assay.remote` has the one that calls it in another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay import buffers
from assay.buffers import Arena, Layout, Values
from assay.impl.kernel import Claims
from assay.properties.trial import Answer, KernelError, NotCovered
from assay.questions import GUARDS, MODES, Passed, Question, Reply, Signature, signature
from assay.reference.arithmetic.oracle import Arguments


@dataclass(frozen=True)
class Laid:
    """A question whose arrays lie in an arena."""

    question: Question
    arrays: dict[str, tuple[Values, Layout, Values]]
    """By name: an array, how it lies, and the memory that it lies in."""


def lay(
    arguments: Arguments,
    positional: Sequence[str],
    named: Sequence[str],
    cotangents: Sequence[Values] | None,
    by: Sequence[str],
    mode: str,
    arena: Arena,
) -> Laid:
    """Lay the arrays of a call into memory, with guards around each."""
    asked = {n: arguments[n] for n in (*positional, *named)}
    arrays = {n: v for n, v in asked.items() if isinstance(v, np.ndarray)}
    arrays |= {f"cotangent {i}": c for i, c in enumerate(cotangents or ())}
    layouts = {n: buffers.layout(v) for n, v in arrays.items()}
    starts, end = arena.places(list(layouts.values()))
    passed = {n: Passed(layout, start) for (n, layout), start in zip(layouts.items(), starts, strict=True)}
    laid = {n: (v, layouts[n], arena.region(passed[n].at, layouts[n])) for n, v in arrays.items()}
    for values, where, region in laid.values():
        buffers.write(values, where, region, other=mode == GUARDS)
    question = Question(
        positional={n: passed.get(n, asked[n]) for n in positional},
        named={n: passed.get(n, asked[n]) for n in named},
        cotangents=None if cotangents is None else [passed[f"cotangent {i}"] for i in range(len(cotangents))],
        by=tuple(by),
        room=(end, end + arena.room),
        mode=mode,
    )
    return Laid(question, laid)


def answer(reply: Reply, laid: Laid, arena: Arena) -> Answer:
    """What a kernel returned, and what it did to the memory of its arguments. Raises: NotCovered, KernelError."""
    if reply.refused is not None:
        raise NotCovered(reply.refused)
    if reply.raised is not None:
        raise KernelError(reply.raised)

    def found(passed: Passed) -> Values:
        return buffers.read(passed.where, arena.region(passed.at, passed.where))

    return Answer(
        outputs=tuple(map(found, reply.outputs)),
        gradients={n: found(g) for n, g in reply.gradients.items()},
        touched=tuple(n for n, of in laid.arrays.items() if buffers.touched(*of)),
        trespassed=()
        if laid.question.mode == GUARDS
        else tuple(n for n, (_, where, region) in laid.arrays.items() if buffers.trespassed(where, region)),
        aliased=tuple(reply.aliased),
        drew=reply.drew,
    )


class ClaimingSubject:
    """A kernel as the judge sees it: what it claims, and how its arguments are laid into memory."""

    def __init__(self, name: str, claims: Claims, takes: Signature, known: frozenset[str], device: str) -> None:
        """`known`: the keywords of the operator; a kernel need not have all of them."""
        self.name = name
        self.claims = claims
        self.device = device
        self._takes = takes
        self._known = known

    @property
    def form(self) -> str | None:
        return self.claims.form

    @property
    def precision(self) -> str | None:
        return self.claims.precision

    @property
    def under(self) -> tuple[str, ...]:
        return self.claims.under

    @property
    def world(self) -> int:
        return self.claims.world

    @property
    def differentiable(self) -> bool:
        return self.claims.backward != "none"

    def supports(self, keyword: str) -> bool:
        return self._takes.supports(keyword)

    def _laid(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str, arena: Arena
    ) -> Laid:
        if mode not in MODES:
            raise ValueError(f"there is no mode {mode!r}")
        # The inputs, in the operator's order; a kernel may give them names of its own.
        positional = [n for n in arguments if n not in self._known]
        named = [n for n in arguments if n in self._known and self.supports(n)]
        return lay(arguments, positional, named, cotangents, by, mode, arena)


class TorchSubject(ClaimingSubject):
    """A Python function on torch tensors, called in this process."""

    def __init__(
        self, name: str, function: Callable[..., Any], claims: Claims, known: frozenset[str], *, device: str = "cpu"
    ) -> None:
        super().__init__(name, claims, signature(function), known, device)
        self.function = function

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        from assay.call import ask

        arena = buffers.own()
        laid = self._laid(arguments, cotangents, by, mode, arena)
        reply, error = ask(self.function, self.claims.backward, laid.question, arena, self.device)
        if isinstance(error, KeyboardInterrupt):
            raise error
        try:
            return answer(reply, laid, arena)
        except (NotCovered, KernelError) as told:
            raise told from error
