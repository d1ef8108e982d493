"""Ways to call a kernel: plainly, in memory full of NaN, or under what torch wraps around functions."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from assay import questions


Function = Callable[..., Any]
Mode = Callable[[Function, ExitStack], Function]

DIRTY = 1 << 16
"""Bytes up to which blocks are made dirty."""
BLOCKS = 4
LARGEST = 1 << 24
"""Elements up to which new memory is filled: of a few that are far apart, memory holds no more than these few."""
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
EMPTY = ("empty", "empty_strided", "empty_like", "empty_permuted", "new_empty", "new_empty_strided")


def dirty(tensors: Iterable[torch.Tensor]) -> None:
    """Fill blocks of the sizes that a kernel will probably ask for with NaN, whatever the dtype, and give them back.

    The allocator hands them out again, and what is not written is then seen.
    """
    sizes = {t.numel() * width for t in tensors for width in (2, 4, 8)}
    device = next((t.device for t in tensors), torch.device("cpu"))
    blocks = [
        torch.full((size,), 0xFF, dtype=torch.uint8, device=device)
        for size in sizes
        if 0 < size <= DIRTY
        for _ in range(BLOCKS)
    ]
    del blocks


def as_compiled() -> None:
    """Have Triton's interpreter, once it is loaded, compute no more than a compiled kernel does.

    Of each operation on integers it also finds out whether it overflowed, and drops the answer unless it debugs: a
    third of its time.
    """
    builder: Any = getattr(sys.modules.get("triton.runtime.interpreter"), "interpreter_builder", None)
    options = getattr(builder, "options", None)
    if options is not None and options.sanitize_overflow and not options.debug:
        builder.options = replace(options, sanitize_overflow=False)


def _plain(function: Function, stack: ExitStack) -> Function:
    return function


def _poisoned(function: Function, stack: ExitStack) -> Function:
    stack.enter_context(_Poison())
    return function


class _Poison(TorchFunctionMode):
    """Whatever a kernel asks torch for is filled with NaN, or with the largest integer."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in EMPTY and isinstance(out, torch.Tensor) and out.numel() <= LARGEST:
            with torch.no_grad():
                out.fill_(torch.iinfo(out.dtype).max if out.dtype in WHOLE else torch.nan)
        return out


def _compile(function: Function, stack: ExitStack) -> Function:
    if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise NotImplementedError("torch.compile finds no compiler here")
    return _compiled(function)


@lru_cache(maxsize=8)
def _compiled(function: Function) -> Function:
    return torch.compile(function, dynamic=True)


def _vmap(function: Function, stack: ExitStack) -> Function:
    """Over a new leading axis of every floating-point input, of which the first entry is the question."""

    def called(*inputs: Any, **named: Any) -> Any:
        mapped = [isinstance(x, torch.Tensor) and x.is_floating_point() for x in inputs]
        stacked = [torch.stack([x, x * 2]) if m else x for x, m in zip(inputs, mapped, strict=True)]
        dims = tuple(0 if m else None for m in mapped)
        found = torch.func.vmap(lambda *given: function(*given, **named), in_dims=dims)(*stacked)
        return tuple(o[0].clone() for o in found) if isinstance(found, tuple | list) else found[0].clone()

    return called


def _autocast(function: Function, stack: ExitStack) -> Function:
    def called(*inputs: Any, **named: Any) -> Any:
        devices = (x.device.type for x in inputs if isinstance(x, torch.Tensor))
        with torch.autocast(next(devices, "cpu"), dtype=torch.bfloat16):
            return function(*inputs, **named)

    return called


MODES: dict[str, Mode] = dict(
    zip(questions.MODES, (_plain, _plain, _poisoned, _compile, _vmap, _autocast), strict=True)
)
"""By name: what is called instead of a kernel, and contexts that are entered for the call."""
