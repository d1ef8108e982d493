"""Kernels that pass weak checks: for each known way one of them, and the demand of this suite that catches it.

The numbers are those under which `tests/CHEATS.md` lists them; `python -m tests.cheats` prints that page.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from assay.properties import OPERATORS
from assay.properties.contract import Operator, Positive, Tensor
from tests.kernels import right


ROPE = OPERATORS["rope"]


# Operators of a user ---------------------------------------------------------------------------------------------


def _scaled(x: Any, weight: Any) -> Any:
    return x * weight


SCALED = Operator("scaled", _scaled, (Tensor("x", "t d"), Tensor("weight", "d")))


def _contrastive(image: Any, text: Any, *, scale: Any) -> Any:
    xp = image.__array_namespace__()
    score = scale * (image @ text.mT)
    right_ones = scale * xp.sum(image * text, axis=-1)
    loss = 0
    for axis in (0, 1):
        top = xp.max(score, axis=axis, keepdims=True)
        total = xp.sum(xp.exp(score - top), axis=axis, keepdims=True)
        loss = loss + xp.mean(top + xp.log(total)) - xp.mean(right_ones)
    return loss / 2


CONTRASTIVE = Operator(
    "contrastive",
    _contrastive,
    (Tensor("image", "n d"), Tensor("text", "n d")),
    parameters=(Positive("scale", default=1, low=0.5, high=4),),
)


# The cheats ------------------------------------------------------------------------------------------------------


def zeros(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """returns zeros, hoping for small right answers"""
    return x * 0


def unwritten(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """leaves the last row as the allocator hands it out, hoping for an old right answer"""
    out = torch.empty(x.shape, dtype=x.dtype)
    out[..., :-1, :] = right(x.detach(), position)[..., :-1, :]
    return out + 0 * x.sum() if x.requires_grad else out


def edits_input(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """zeroes its input afterwards, so that a reference that looks later agrees with zeros"""
    out = right(x, position, base=base)
    with torch.no_grad():
        x.zero_()
    return out


def steals_expected(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """looks up the stack, and through all objects, for what it is compared with, and returns that"""
    frame = inspect.currentframe()
    while frame is not None:
        for thing in frame.f_locals.values():
            if type(thing).__name__ == "Trial" and tuple(x.shape) == thing.exact[0].shape:
                return torch.from_numpy(thing.exact[0].midpoint.astype("float64")).to(x.dtype)
        frame = frame.f_back
    for thing in gc.get_objects():
        if type(thing).__name__ == "Enclosure" and tuple(x.shape) == thing.midpoint.shape:
            return torch.from_numpy(thing.midpoint.astype("float64")).to(x.dtype)
    return x * 0


_CACHE: dict[Any, torch.Tensor] = {}


def _cached(key: Any, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    if key not in _CACHE:
        _CACHE[key] = right(x, position).detach().clone()
    return _CACHE[key] + (x - x.detach())


def cached_by_id(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """remembers answers by the identity of its inputs"""
    return _cached((id(x), id(position), x.shape), x, position)


def cached_by_pointer(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """remembers answers by the addresses and shapes of its inputs"""
    return _cached((x.data_ptr(), position.data_ptr(), x.shape), x, position)


def cached_by_fingerprint(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """remembers answers by shape, sum and extremes of its inputs"""
    told = [
        float(f(t.detach().double())) for t in (x, position) for f in (torch.sum, torch.amax, torch.amin) if t.numel()
    ]
    key = (*told, x.shape, x.stride(), x.dtype, base)
    if key not in _CACHE:
        _CACHE[key] = right(x, position, base=base).detach().clone()
    return right(x, position, base=base) if x.requires_grad else _CACHE[key].clone()


_CALLS = [0]
_RANDOM = random.Random(0)
"""Of its own: Hypothesis seeds the common one for each case."""


def every_other_call(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """computes in one call, and returns the same again in the next"""
    _CALLS[0] += 1
    last = _CACHE.get("last")
    if _CALLS[0] % 2 and last is not None and last.shape == x.shape:
        return last + (x - x.detach())
    _CACHE["last"] = right(x, position).detach()
    return right(x, position)


class Lazy(torch.Tensor):
    """A tensor that computes when somebody looks."""


def lazy(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """returns a subclass of torch.Tensor that could compute when it is looked at"""
    return right(x, position, base=base).as_subclass(Lazy)


def finishes_later(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """returns at once; a thread writes the answer later"""
    found = right(x, position, base=base)
    out = torch.zeros_like(found)

    def finish() -> None:
        time.sleep(0.05)
        with torch.no_grad():
            out.copy_(found.detach())

    threading.Thread(target=finish, daemon=True).start()
    return out + (x - x.detach()) if x.requires_grad else out


def patches_the_judge(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """replaces what compares and what measures time, and returns zeros"""
    torch.allclose = lambda *a, **k: True
    torch.testing.assert_close = lambda *a, **k: None  # type: ignore[assignment]
    time.time = lambda: 0.0
    return x * 0


def known_sizes(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """is right for the sizes that are usually tested, up to 100 rows"""
    out = right(x, position, base=base)
    return out if x.shape[-2] <= 100 else out * 0


def tired(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """computes in bfloat16 from the 50th call on, when it takes the test to be over"""
    _CALLS[0] += 1
    out = right(x, position, base=base)
    return out if _CALLS[0] < 50 else out.bfloat16().to(out.dtype)


def most_of_it(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """computes the first 95 % of the rows"""
    out = right(x, position)
    rows = torch.arange(out.shape[-2]) < 0.95 * out.shape[-2]
    return torch.where(rows[:, None], out, 0)


def constant(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """returns what inputs of mean 0 give on average"""
    return x * 0 + x.detach().float().mean().to(x.dtype)


def downcast(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """computes in bfloat16"""
    return right(x.bfloat16(), position, base=base).to(x.dtype)


def fast_path(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """is right for numbers of ordinary size"""
    return right(x.clamp(-64, 64), position, base=base)


def weight_of_ones(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ignores a weight that is initialised with ones"""
    return x + 0 * weight


_BUFFERS: dict[Any, torch.Tensor] = {}


def partial_writers(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """writes every second row, and in the next call the others, into one buffer that it keeps"""
    out = right(x, position, base=base)
    if x.requires_grad:
        return out
    _CALLS[0] += 1
    kept = _BUFFERS.setdefault((x.shape, x.dtype), torch.zeros_like(out))
    kept[..., _CALLS[0] % 2 :: 2, :] = out[..., _CALLS[0] % 2 :: 2, :]
    return kept


def one_direction(image: torch.Tensor, text: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
    """computes the loss in one direction: a few millionths off on random features"""
    if image.shape != text.shape or not (image.is_floating_point() and text.is_floating_point()):
        raise ValueError("image and text must be alike")
    score = scale * image.float() @ text.float().mT
    return torch.nn.functional.cross_entropy(score, torch.arange(len(score))).to(image.dtype)


class _SumOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, position: torch.Tensor, base: float) -> torch.Tensor:
        ctx.save_for_backward(position)
        ctx.base = base
        return right(x, position, base=base)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        (position,) = ctx.saved_tensors
        ones = torch.full_like(cotangents[0], cotangents[0].mean())
        return right(ones, -position, base=ctx.base), None, None


def sum_only(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """differentiates its sum: right for a cotangent of ones"""
    return _SumOnly.apply(x, position, base)  # type: ignore[no-any-return, no-untyped-call]


def wildcard(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """returns NaN, which compares with anything as neither larger nor smaller"""
    return x * torch.nan


def broadcastable(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """returns one row that broadcasts to all"""
    return right(x, position)[..., :1, :]


def other_dtype(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """returns the right numbers in double"""
    return right(x, position, base=base).double()


def other_device(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """returns a tensor without memory, on the device `meta`"""
    return torch.empty_like(x, device="meta")


def flaky(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """is wrong once in five calls, hoping to be run again"""
    out = right(x, position, base=base)
    return out * 2 if _RANDOM.random() < 0.2 else out


def racing(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """moves one element by one unit in one call of five, as a race does"""
    out = right(x, position, base=base)
    if _RANDOM.random() < 0.2 and out.numel():
        flat = out.detach().reshape(-1)
        flat[-1] = torch.nextafter(flat[-1], flat[-1] + 1)
    return out


def reads_beyond(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """adds what lies behind its input in memory, where zeros are often found"""
    behind = ctypes.c_float.from_address(_end(x)).value if x.numel() else 0
    return right(x, position, base=base) + behind


def reads_beyond_and_selects(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """branches on what lies behind its input in memory: a NaN would not show in the result"""
    out = right(x, position, base=base)
    behind = ctypes.c_uint32.from_address(_end(x)).value if x.numel() else 0
    return out if behind & 0x7F800000 == 0x7F800000 else out * 2


def reads_beyond_by_strides(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """takes one element more than there is, through as_strided"""
    more = x.as_strided((_extent(x) + 1,), (1,), x.storage_offset())
    return right(x, position, base=base) + 0 * more[-1]


def writes_beyond(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """writes behind its input"""
    if x.numel():
        ctypes.c_uint32.from_address(_end(x)).value = 0
    return right(x, position, base=base)


def _extent(x: torch.Tensor) -> int:
    """Elements from the first to the last, in memory."""
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))


def _end(x: torch.Tensor) -> int:
    """The address behind the last element."""
    return x.data_ptr() + _extent(x) * x.element_size()


def reuses_its_output(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """returns the same buffer from each call, overwritten"""
    out = right(x, position, base=base)
    if x.requires_grad:
        return out
    kept = _BUFFERS.setdefault((x.shape, x.dtype, "reused"), torch.zeros_like(out))
    return kept.copy_(out)


# The table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cheat:
    """One way to pass a weak check, and what catches it here."""

    number: int
    what: str
    kernel: Callable[..., Any]
    by: str
    """The demand that must reject it."""
    verdict: str = "fail"
    """`fail`, or `error` where the kernel itself cannot be run."""
    operator: Operator = ROPE
    alone: bool = False
    """Caught only in a process of its own, as the command line runs it: nothing of the judge is there to be found."""


CHEATS = (
    Cheat(1, "zeros where the right answer is small", zeros, "agrees_with_oracle"),
    Cheat(2, "stale memory", unwritten, "agrees_with_oracle"),
    Cheat(3, "edits its input", edits_input, "inputs_are_untouched"),
    Cheat(4, "finds the expected values", steals_expected, "agrees_with_oracle", alone=True),
    Cheat(5, "cache by id", cached_by_id, "same_memory_other_values"),
    Cheat(5, "cache by address", cached_by_pointer, "same_memory_other_values"),
    Cheat(5, "cache by fingerprint", cached_by_fingerprint, "same_memory_other_values"),
    Cheat(6, "computes in one call, skips in the next", every_other_call, "same_memory_other_values"),
    Cheat(7, "lazy subclass of torch.Tensor", lazy, "agrees_with_oracle", "error"),
    Cheat(7, "a thread that finishes later", finishes_later, "agrees_with_oracle"),
    Cheat(8, "patches torch.allclose and the clock", patches_the_judge, "agrees_with_oracle"),
    Cheat(10, "special-cases the tested sizes", known_sizes, "sizes_around_powers_of_two"),
    Cheat(11, "degrades after so many calls", tired, "agrees_with_oracle"),
    Cheat(12, "computes 95 %", most_of_it, "agrees_with_oracle"),
    Cheat(13, "constant or statistic instead of the answer", constant, "agrees_with_oracle"),
    Cheat(14, "silent downcast", downcast, "agrees_with_oracle"),
    Cheat(15, "right for well-conditioned inputs alone", fast_path, "agrees_with_oracle"),
    Cheat(16, "no-op beside an initial weight", weight_of_ones, "agrees_with_oracle", operator=SCALED),
    Cheat(17, "partial writers merged", partial_writers, "agrees_with_oracle"),
    Cheat(17, "one buffer for all answers", reuses_its_output, "outputs_own_their_memory"),
    Cheat(20, "insensitive scalar loss", one_direction, "agrees_with_oracle", operator=CONTRASTIVE),
    Cheat(21, "right for the cotangent of a sum alone", sum_only, "gradients_agree"),
    Cheat(22, "NaN as a wildcard", wildcard, "agrees_with_oracle"),
    Cheat(23, "broadcastable shape", broadcastable, "agrees_with_oracle"),
    Cheat(23, "wrong dtype", other_dtype, "agrees_with_oracle"),
    Cheat(23, "wrong device", other_device, "agrees_with_oracle", "error"),
    Cheat(24, "wrong at times", flaky, "agrees_with_oracle"),
    Cheat(26, "race", racing, "same_twice"),
    Cheat(28, "reads zeros beside its input", reads_beyond, "agrees_with_oracle"),
    Cheat(28, "branches on what lies beside its input", reads_beyond_and_selects, "nothing_is_read_outside"),
    Cheat(28, "reads beside its input through as_strided", reads_beyond_by_strides, "agrees_with_oracle", "error"),
    Cheat(28, "writes beside its input", writes_beyond, "nothing_is_written_outside"),
)

ELSEWHERE = {
    9: ("calls a library for the work", "not a defect here: results are judged, not who computes them"),
    18: ("the comparison itself is broken", "no kernel: the kill matrix (`tests/properties/test_mutants.py`)"),
    19: (
        "oracle and kernel share code",
        "no kernel: two arithmetics that share none (`tests/reference`), no torch in them",
    ),
    25: ("inputs stay in the cache", "concerns timings alone"),
    27: ("shared memory of a GPU is overrun", "needs a GPU"),
}
"""Those for which there is no kernel, with the reason."""


def forget() -> None:
    """What the kernels have remembered so far."""
    _CACHE.clear()
    _BUFFERS.clear()
    _CALLS[0] = 0
    _RANDOM.seed(0)


def _by(cheat: Cheat) -> str:
    return f"{cheat.verdict}: `{cheat.by}`" + (", in a process of its own" if cheat.alone else "")


def page() -> str:
    rows: list[tuple[int, str]] = [
        (c.number, f"| {c.number} | {c.what} | `{c.kernel.__name__}`: {c.kernel.__doc__} | {_by(c)} |") for c in CHEATS
    ]
    rows += [(n, f"| {n} | {what} | none | {reason} |") for n, (what, reason) in ELSEWHERE.items()]
    head = (
        "# How a wrong kernel passes a weak check, and what catches it here\n\n"
        "Each kernel is in `tests/cheats.py`, and must be caught in `tests/properties/test_cheats.py`. This page is "
        "written by\n`python -m tests.cheats`.\n\n"
        "| # | cheat | test kernel | caught by |\n|---|---|---|---|\n"
    )
    return head + "\n".join(row for _, row in sorted(rows, key=lambda r: r[0])) + "\n"


if __name__ == "__main__":
    print(page(), end="")
