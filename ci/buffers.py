"""Arrays as raw memory: how they lie there, and guards around them that show who reads or writes beside them.

An array is laid into memory as it lies in its own buffer, with the same strides and the same offset. On both sides of
it, and between its elements where it has gaps, lies a canary: a NaN for floating-point numbers, so that whoever reads
it has it in his result, and a number far out of range for integers. A canary that has changed was written over. Of an
array with huge strides only the neighbourhood of its elements is touched, so it costs no more memory than that.

Nothing here knows torch. The memory is one sparse file without a name, which two processes can map.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np


Values: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

GUARD = 4096
"""Bytes on both sides of an array: several rows of a block of any kernel."""
ALIGNED = 64
"""Where a buffer begins: as allocators align them."""
PAGE = 4096
KEPT = 1 << 20
"""Bytes at the addresses that every second call uses, which are not given back in between."""

HARMLESS = 0x3D
"""A byte of which small floating-point numbers consist, in every dtype."""

_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
DTYPES: dict[str, np.dtype[Any]] = {
    **{n: np.dtype(n) for n in ("float64", "float32", "float16", "complex64", "complex128", "bool", *_INTEGERS)},
    **{n: np.dtype(getattr(ml_dtypes, n)) for n in ("bfloat16", "float8_e4m3fn", "float8_e5m2")},
}

_CANARIES: dict[str, tuple[str, int]] = {
    "float64": ("u8", 0x7FF8_A55A_A55A_A55A),
    "float32": ("u4", 0x7FE5_A55A),
    "float16": ("u2", 0x7E5A),
    "bfloat16": ("u2", 0x7FE5),
    "float8_e4m3fn": ("u1", 0x7F),
    "float8_e5m2": ("u1", 0x7F),
    "complex64": ("u4", 0x7FE5_A55A),
    "complex128": ("u8", 0x7FF8_A55A_A55A_A55A),
    "bool": ("u1", 0x5A),
    "int8": ("u1", 0x5A),
    "int16": ("u2", 0x7A5A),
    "int32": ("u4", 0x7FA5_5A5A),
    "int64": ("u8", 0x7FA5_5A5A_A55A_5A5A),
}
"""NaNs with a payload, by their bits; for integers, unsigned ones too, a number beyond every size."""


class Misfit(ValueError):
    """A layout that does not describe an array within its memory; the message says why, in one line."""


@dataclass(frozen=True)
class Layout:
    """How an array lies in a buffer: counts of elements in `shape`, bytes everywhere else."""

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    """From the beginning of the buffer to the first element."""
    size: int
    """Of the buffer, up to the last element."""

    @property
    def width(self) -> int:
        return DTYPES[self.dtype].itemsize

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def reach(self) -> int:
        """Bytes of the buffer with its guards."""
        return GUARD + self.size + GUARD


def layout(values: Values) -> Layout:
    """How an array lies in the buffer that it is a view of."""
    dtype = str(values.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"an array of {dtype} cannot be passed to a kernel")
    if not values.size:
        return Layout(dtype, values.shape, values.strides, 0, 0)
    base = values.base if isinstance(values.base, np.ndarray) else values
    low, high = np.lib.array_utils.byte_bounds(values)
    offset = _address(values) - min(_address(base), low)
    return Layout(dtype, values.shape, values.strides, offset, offset + high - _address(values))


def contiguous(dtype: str, shape: Sequence[int]) -> Layout:
    """An array without gaps at the beginning of its buffer. Raises: Misfit."""
    if dtype not in DTYPES:
        raise Misfit(f"there is no dtype {str(dtype)[:40]!r}")
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 64:
        raise Misfit("a shape must be a list of at most 64 lengths")
    width = DTYPES[dtype].itemsize
    strides = tuple(width * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Layout(dtype, tuple(shape), strides, 0, width * math.prod(shape))


def _address(values: Values) -> int:
    return int(values.__array_interface__["data"][0])


# Writing and reading. `region` is the memory of a layout with its guards, as bytes: Layout.reach of them. ------------


def write(values: Values, where: Layout, region: Values, *, other: bool = False) -> None:
    """Lay an array into memory, with canaries around it; `other`: with harmless small numbers around it instead."""
    for span in _spans(where):
        region[span.start : span.stop] = HARMLESS if other else span.canary
    elements(where, region)[...] = _bits(values)


def elements(where: Layout, region: Values) -> Values:
    """The elements of an array in memory as unsigned integers, a view."""
    return np.ndarray(where.shape, _unsigned(where.width), region, GUARD + where.offset, where.strides)


def read(where: Layout, region: Values) -> Values:
    """A copy of an array in memory."""
    return elements(where, region).copy().view(DTYPES[where.dtype]).reshape(where.shape)


def touched(values: Values, where: Layout, region: Values) -> bool:
    """Were the elements changed since this array was written?"""
    return not np.array_equal(elements(where, region), _bits(values))


def trespassed(where: Layout, region: Values) -> int:
    """How many bytes beside the elements were changed."""
    return sum(int(np.count_nonzero((region[s.start : s.stop] != s.canary) & s.beside)) for s in _spans(where))


def spans(where: Layout) -> list[tuple[int, int]]:
    """The stretches of a region in which anything lies, from byte to byte."""
    return [(s.start, s.stop) for s in _spans(where)]


def _bits(values: Values) -> Values:
    return values.view(_unsigned(values.dtype.itemsize))


@cache
def _unsigned(width: int) -> np.dtype[Any]:
    return np.dtype(f"u{width}" if width <= 8 else f"V{width}")


@dataclass(frozen=True, eq=False)
class _Span:
    """A stretch of a region, and what lies there apart from elements."""

    start: int
    stop: int
    canary: Values
    beside: Values
    """True where no element lies."""


def _spans(where: Layout) -> Sequence[_Span]:
    return _remembered(where) if where.size <= 1 << 16 else _found(where)


@lru_cache(maxsize=256)
def _remembered(where: Layout) -> Sequence[_Span]:
    return _found(where)


def _found(where: Layout) -> Sequence[_Span]:
    """The whole region; or, where there are few elements far apart, the neighbourhoods of them."""
    if where.size <= 4 * where.count * where.width + (1 << 20):
        beside = np.ones(where.reach, np.bool_)
        if where.count:
            at = np.ndarray((*where.shape, where.width), np.bool_, beside, GUARD + where.offset, (*where.strides, 1))
            at[...] = False
        return [_Span(0, where.reach, _canary(where, 0, where.reach), beside)]
    at = np.full((), GUARD + where.offset, np.int64)
    for length, stride in zip(where.shape, where.strides, strict=True):
        at = at[..., None] + (np.arange(length) * stride if stride else np.zeros(1, np.int64))
    at = np.unique(at)
    out = []
    for run in np.split(at, 1 + np.flatnonzero(np.diff(at) > 2 * GUARD)):
        start, stop = int(run[0]) - GUARD, int(run[-1]) + where.width + GUARD
        beside = np.ones(stop - start, np.bool_)
        beside[(run - start)[:, None] + np.arange(where.width)] = False
        out.append(_Span(start, stop, _canary(where, start, stop), beside))
    return out


def _canary(where: Layout, start: int, stop: int) -> Values:
    """Canaries in step with the elements, from one byte of the region to another."""
    dtype = where.dtype.removeprefix("u")
    kind, pattern = _CANARIES[dtype]
    one = np.array([pattern], kind).view(np.uint8)
    ahead = (start - GUARD - where.offset) % len(one)
    return np.resize(np.roll(one, -ahead), stop - start)


# Memory --------------------------------------------------------------------------------------------------------------


class Arena:
    """Sparse memory that a second process can map: pages cost something once they are touched.

    Calls alternate between the same addresses, with new data in them, and addresses that were not used before: a kernel
    that takes either for an old question is found out.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        """`descriptor`: that of the arena of another process; None: a new one."""
        self.descriptor, self.memory = _new() if descriptor is None else (descriptor, _mapped(descriptor))
        self.bytes: Values = np.frombuffer(self.memory, np.uint8)
        self.room = len(self.memory) // 4
        """What the arrays of one call may span, and what it returns likewise."""
        self._calls = 0
        self._fresh = 2 * self.room

    def places(self, layouts: Sequence[Layout]) -> tuple[list[int], int]:
        """Where the regions of arrays begin in a new call, and where what it returns may lie. What lay there is gone.

        Raises: MemoryError where they span more than the arena has.
        """
        reaches = [-(-where.reach // ALIGNED) * ALIGNED for where in layouts]
        if sum(reaches) > self.room:
            raise MemoryError(f"the arrays of a call span {sum(reaches):,} bytes; there is room for {self.room:,}")
        self._forget()
        fresh = self._calls % 2 == 1
        self._calls += 1
        if fresh and self._fresh + sum(reaches) > 3 * self.room:
            self._fresh = 2 * self.room
        *starts, end = itertools.accumulate(reaches, initial=self._fresh if fresh else 0)
        if fresh:
            self._fresh = -(-end // PAGE) * PAGE
        self._last = (starts[0] if starts else end) // PAGE * PAGE
        return starts, end

    def region(self, start: int, where: Layout) -> Values:
        """The memory of an array, with its guards. Raises: Misfit where it is not all within the arena."""
        if start < 0 or start + where.reach > len(self.memory):
            raise Misfit("an array must lie within the memory that is there for it")
        return self.bytes[start : start + where.reach]

    def _forget(self) -> None:
        """Give back the pages of the last call, but for the few that every second call uses."""
        if self._calls and hasattr(mmap, "MADV_REMOVE"):
            kept = KEPT if self._calls % 2 else 0
            self.memory.madvise(mmap.MADV_REMOVE, self._last + kept, 2 * self.room - kept)


def _new() -> tuple[int, mmap.mmap]:
    """A sparse file without a name, as large as this system allows. Its length is fixed: who cut it would kill the
    other."""
    for bits in (38, 36, 34, 32):
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("assay", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, 1 << bits)
            if hasattr(os, "memfd_create"):
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            return descriptor, _mapped(descriptor)
        except (OSError, ValueError, OverflowError):
            os.close(descriptor)
    raise MemoryError("this system does not map 4 GiB of sparse memory")


def _mapped(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, os.fstat(descriptor).st_size)


@cache
def own() -> Arena:
    """The arena of this process, for kernels that run in it."""
    return Arena()
