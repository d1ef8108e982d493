"""What a kernel is asked and what it replies: their form, without torch, which only the process that calls needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.buffers import Layout


GUARDS = "guards"
"""A plain call, with something other than NaN beside the arguments in memory."""
MODES = ("", GUARDS, "poison", "compile", "vmap", "autocast")
"""How a kernel is called: plainly, in memory full of NaN, or under what torch wraps around functions."""
TWIN, EARLIER, ITSELF = SHARED = ("another output", "an output of an earlier call", "another element of its own")
"""In whose memory an output may lie, beside that of an input."""


@dataclass(frozen=True)
class Signature:
    """Which keywords a function takes."""

    open: bool
    """It takes any."""
    keywords: frozenset[str]

    def supports(self, keyword: str) -> bool:
        return self.open or keyword in self.keywords


def signature(function: Callable[..., Any]) -> Signature:
    parameters = inspect.signature(function).parameters.values()
    named = frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD))
    return Signature(any(p.kind is p.VAR_KEYWORD for p in parameters), named)


@dataclass(frozen=True)
class Passed:
    """An array, and where its region begins in the arena."""

    where: Layout
    at: int


@dataclass(frozen=True)
class Question:
    """What a kernel is asked. Values are numbers, texts, tuples of them, or arrays in the arena."""

    positional: Mapping[str, Any]
    """The inputs by name, in the operator's order."""
    named: Mapping[str, Any]
    cotangents: Sequence[Passed] | None
    """None: no gradients are asked."""
    by: Sequence[str]
    """The inputs for which gradients are asked."""
    room: tuple[int, int]
    """From where to where in the arena what is returned may lie."""
    mode: str = ""
    """How it is called, one of MODES."""


@dataclass(frozen=True)
class Reply:
    """What came of it: arrays, or why there are none."""

    outputs: Sequence[Passed] = ()
    gradients: Mapping[str, Passed] = field(default_factory=dict)
    aliased: Sequence[str] = ()
    """In whose memory an output lies: of an input, by its name, or one of SHARED."""
    drew: bool = False
    """It changed torch's global random state."""
    refused: str | None = None
    """It raised NotImplementedError, with this message."""
    raised: str | None = None
    """It raised another exception: type and message in one line."""
