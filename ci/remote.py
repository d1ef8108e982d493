"""Kernels that are called in another process, and how they are found there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from assay.buffers import Misfit, Values
from assay.impl.kernel import Claims
from assay.lines import shortened
from assay.loading import UsageError
from assay.messages import asked, reply
from assay.process import Ended, Limits, Worker, started
from assay.properties.trial import Answer, GivenUp, KernelError
from assay.questions import Signature
from assay.reference.arithmetic.oracle import Arguments
from assay.runner import ClaimingSubject, answer


LOADING = 120.0
"""Seconds for importing a user's module."""
CRASHES = 3
"""So often a kernel may end its process before it is not called any more; after an overrun at once."""


@dataclass(frozen=True)
class Described:
    """A kernel as its process describes it."""

    name: str
    claims: Claims | None
    signature: Signature


@dataclass(frozen=True)
class Description:
    """What there is in a user's module."""

    kernels: tuple[Described, ...]
    operators: tuple[str, ...]
    """The names of operators that are defined there."""
    files: tuple[str, ...]
    """The module's own file, and those of its neighbours that were loaded."""


def describe(module: str, function: str, limits: Limits) -> Description:
    """Import a user's module in a process of its own. Raises: UsageError, in one line."""
    try:
        return _described(worker(module, function, limits), module, function)
    except Ended as error:
        how = str(error).replace("the call", "importing it").replace("in this call", "while it was imported")
        raise UsageError(f"{module} cannot be imported: {how}") from None


def _described(process: Worker, module: str, function: str) -> Description:
    content = process.ask({"do": "describe", "module": module, "function": function}, LOADING)
    try:
        if "problem" in content:
            raise UsageError(shortened(_is(content["problem"], str)))
        kernels = tuple(_kernel(k) for k in _is(content["kernels"], list))
        return Description(kernels, _texts(content["operators"]), _texts(content["files"]))
    except (KeyError, TypeError) as error:
        process.end()
        raise UsageError(f"{module} cannot be imported: it wrote into the channel of the judge: {error}") from None


def _kernel(content: Any) -> Described:
    claims = content["claims"]
    takes = Signature(_is(content["open"], bool), frozenset(_texts(content["keywords"])))
    if claims is not None:
        conventions = _is(claims["conventions"], dict)
        backward = _is(claims["backward"], str)
        claims = Claims(
            operator=_is(claims["operator"], str),
            form=None if claims["form"] is None else _is(claims["form"], str),
            precision=None if claims["precision"] is None else _is(claims["precision"], str),
            dtypes=_texts(claims["dtypes"]),
            conventions=dict(zip(_texts(list(conventions)), _texts(list(conventions.values())), strict=True)),
            backward="none" if backward == "none" else "autograd" if backward == "autograd" else _elsewhere,
            requires=_texts(claims["requires"]),
            interpreted=_is(claims["interpreted"], bool),
            under=_texts(claims["under"]),
            world=_is(claims["world"], int),
            ranks="mean" if claims["ranks"] == "mean" else "sum",
        )
    return Described(_is(content["name"], str), claims, takes)


def _elsewhere(*arguments: object, **named: object) -> object:
    """Stands for a backward function that is in the worker."""
    raise RuntimeError("this function is in another process")


def _is(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a description has {type(value).__name__} in place of {kind.__name__}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_is(v, str) for v in _is(value, list))


def worker(module: str, function: str, limits: Limits) -> Worker:
    """The process for a kernel: the one that runs, if it was started for the same kernel."""
    key = (*place_of(module, function), limits, os.getcwd(), *sys.path)
    if key not in _kept or not _kept[key].alive:
        for other in _kept.values():
            other.end()
        _kept.clear()
        _kept[key] = started(limits)
    return _kept[key]


def place_of(module: str, function: str) -> tuple[str, str]:
    """What shares a process. Kernels of one of assay's own modules do; those of a user's are kept apart, so that none
    can spoil the next."""
    return module, "" if module.startswith("assay.") else function


_kept: dict[Hashable, Worker] = {}
"""The one that runs."""


def _shapes(arguments: Arguments) -> str:
    arrays = ((name, value) for name, value in arguments.items() if isinstance(value, np.ndarray))
    return ", ".join(f"{name}{[*value.shape]} {value.dtype}" for name, value in arrays) or "no arrays"


class WorkerSubject(ClaimingSubject):
    """A kernel that is called in another process."""

    def __init__(
        self,
        name: str,
        place: str,
        claims: Claims,
        signature: Signature,
        known: frozenset[str],
        limits: Limits,
        *,
        device: str = "cpu",
        own: bool = True,
    ) -> None:
        """`place`: MODULE:FUNCTION. `known`: the keywords of the operator. `own`: the claims are its own; otherwise a
        backward function that it names belongs to another operator."""
        super().__init__(name, claims, signature, known, device)
        self._module, _, self._function = place.rpartition(":")
        self._limits = limits
        self._own = own
        self._crashes = 0
        self._seconds = 0.0
        self._gone = ""
        """Why it is not called any more."""

    def __call__(
        self, arguments: Arguments, cotangents: Sequence[Values] | None, by: Sequence[str], mode: str = ""
    ) -> Answer:
        if self._gone:
            raise GivenUp(self._gone)
        started = time.monotonic()
        try:
            process = self._ready()
            laid = self._laid(arguments, cotangents, by, mode, process.arena)
            seconds = self._limits.call if process.called else 3 * self._limits.call
            message = {"do": "call", "module": self._module, "function": self._function, "device": self.device}
            found = process.ask({**message, "own": self._own, **asked(laid.question)}, seconds)
            process.called = True
            try:
                told = reply(found, laid.question, process.arena)
            except Misfit as error:
                process.end()
                raise Ended(f"it wrote into the channel of the judge: {error}") from None
        except Ended as ended:
            self._crashes += 1
            if ended.overrun or self._crashes >= CRASHES:
                self._gone = f"not called again, since {ended}, given {_shapes(arguments)}"
            raise KernelError(str(ended)) from None
        self._seconds += time.monotonic() - started
        if self._seconds > self._limits.kernel:
            self._gone = f"not called again, since its calls took longer than {self._limits.kernel:g} s in all"
        return answer(told, laid, process.arena)

    def _ready(self) -> Worker:
        process = self._process()
        if self._function not in process.loaded:
            self._loaded(process)
            process.loaded.add(self._function)
        return process

    def _process(self) -> Worker:
        return worker(self._module, self._function, self._limits)

    def _loaded(self, process: Worker) -> None:
        try:
            _described(process, self._module, self._function)
        except UsageError as error:  # it could be imported before
            raise Ended(str(error)) from None
