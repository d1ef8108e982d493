"""Rotary position encoding: one Triton kernel for forward and backward, both layouts, and q and k in one launch.

    x'[..., t, i]  = A (x[..., t, i]  cos phi - x[..., t, i*] sin phi)
    x'[..., t, i*] = A (x[..., t, i*] cos phi + x[..., t, i]  sin phi),    phi = position[t] theta_j

A is attention_factor. Pair j of r/2 is (i, i*) = (j, j + r/2) in the layout "half" and (2j, 2j + 1) in "interleaved".
Channels r and beyond pass through, bit for bit. The vector-Jacobian product is the same law with -sin for sin, hence
the same kernel.

The angle is reduced exactly, in integers (`assay.impl.phase`): position times w_j in wrapping 64-bit arithmetic is the
angle in units of 2**-64 turn. The nearest quarter turn swaps and negates; what is left, in [-pi/4, pi/4], is the first
number that is ever rounded. The two polynomials that follow have no branch, where a library's sine carries a reduction
of its own for huge arguments.

Axes: b batch, h query head, g key head, t position, d channel, r rotary channel, j pair.

Error: cos and sin within 1.5e-7 for |position| up to 2**31; then float32, and one rounding to the dtype of x.
Source: Su et al., RoFormer, arXiv:2104.09864, equation 34. Sections: Wang et al., Qwen2-VL, arXiv:2409.12191, section
    2.1. The polynomials are those of Moshier's Cephes, single/sinf.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, repeat
from math import pi, prod
from typing import Any

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.impl import phase
from assay.impl.kernel import kernel
from assay.impl.triton.halves import narrowed, widened


DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("half", "interleaved")
RADIANS = tl.constexpr(2 * pi / 2**64)

# Pairs in the tile of a program, and in one head of it. On a GPU, what the registers of 128 threads hold, with heads
# enough to share an angle: a thread has the same pairs of four or eight of them (compiled for sm_90: 80 registers and
# 16-byte accesses in bfloat16, 120 in float32, no spills). In the interpreter a program costs a millisecond whatever
# its size.
GPU_TILE, GPU_TILE_OF_A_HEAD = 4096, 512
INTERPRETER_TILE = 2**17


@triton.jit
def _cos_sin(
    position, turns, axis, t, position_t, position_a, length,
    R: tl.constexpr, PAIRS: tl.constexpr, SECTIONED: tl.constexpr,
):  # fmt: skip
    """Return cos phi and sin phi, [T, PAIRS]."""
    pair = tl.arange(0, PAIRS)
    real = pair < R // 2
    unit = tl.load(turns + pair, mask=real)
    if SECTIONED:
        column = tl.load(axis + pair, mask=real)
        place = t[:, None] * position_t + column[None, :] * position_a
        product = tl.load(position + place, mask=(t < length)[:, None] & real[None, :]).to(tl.int64) * unit[None, :]
    else:
        product = tl.load(position + t * position_t, mask=t < length).to(tl.int64)[:, None] * unit[None, :]
    # Modulo 4, for the addition may wrap like the product before it.
    quarter = (product + (1 << 61)) >> 62
    angle = (product - (quarter << 62)).to(tl.float32) * RADIANS
    z = angle * angle
    sin = angle + angle * z * (-1.6666654611e-1 + z * (8.3321608736e-3 + z * -1.9515295891e-4))
    cos = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5))
    odd = (quarter & 1) != 0
    turned_cos = tl.where(odd, sin, cos)
    turned_sin = tl.where(odd, cos, sin)
    return (
        tl.where(((quarter + 1) & 2) != 0, -turned_cos, turned_cos),
        tl.where((quarter & 2) != 0, -turned_sin, turned_sin),
    )


@triton.jit
def _rotate_heads(
    x, rotated, x_b, x_h, x_t, x_d, heads, batch, group, t, length, cos, sin,
    D: tl.constexpr, R: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, ROWS: tl.constexpr, T: tl.constexpr,
    INTERLEAVED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Rotate the heads group * ROWS and following of x[b, heads, t, D] at the positions t into a contiguous tensor."""
    head = group * ROWS + tl.arange(0, ROWS)
    source = x + batch * x_b + (head * x_h)[:, None, None] + (t * x_t)[None, :, None]
    target = rotated + (((batch * heads + head) * length)[:, None, None] + t[None, :, None]) * D
    real = (head < heads)[:, None, None] & (t < length)[None, :, None]
    if R > 0:
        cos = cos[None, :, :]
        sin = sin[None, :, :]
        if INTERLEAVED:
            # Whole rows are loaded and stored, and taken apart in registers: a thread has both channels of a pair.
            channel = tl.arange(0, 2 * PAIRS)[None, None, :].to(tl.int64)
            mask = real & (channel < R)
            row = widened(tl.load(source + channel * x_d, mask=mask), INTERPRETED)
            first, second = tl.split(tl.reshape(row, (ROWS, T, PAIRS, 2)))
            row = tl.join(first * cos - second * sin, second * cos + first * sin)
            row = narrowed(tl.reshape(row, (ROWS, T, 2 * PAIRS)), rotated.dtype.element_ty, INTERPRETED)
            tl.store(target + channel, row, mask=mask)
        else:
            channel = tl.arange(0, PAIRS)[None, None, :].to(tl.int64)
            mask = real & (channel < R // 2)
            first = widened(tl.load(source + channel * x_d, mask=mask), INTERPRETED)
            second = widened(tl.load(source + (channel + R // 2) * x_d, mask=mask), INTERPRETED)
            turned_first = narrowed(first * cos - second * sin, rotated.dtype.element_ty, INTERPRETED)
            turned_second = narrowed(second * cos + first * sin, rotated.dtype.element_ty, INTERPRETED)
            tl.store(target + channel, turned_first, mask=mask)
            tl.store(target + channel + R // 2, turned_second, mask=mask)
    if R < D:
        channel = R + tl.arange(0, REST)[None, None, :].to(tl.int64)
        mask = real & (channel < D)
        tl.store(target + channel, tl.load(source + channel * x_d, mask=mask), mask=mask)


@triton.jit
def _rotate(
    q, rotated_q, k, rotated_k, position, turns, axis, cos_factor, sin_factor,
    length, q_heads, k_heads, blocks, groups,
    q_b, q_h, q_t, q_d, k_b, k_h, k_t, k_d, position_t, position_a,
    D: tl.constexpr, R: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
    Q_ROWS: tl.constexpr, K_ROWS: tl.constexpr, T: tl.constexpr,
    INTERLEAVED: tl.constexpr, SECTIONED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Program (batch, group, block): a group of heads of q, and of k if K_ROWS > 0, at a block of T positions."""
    program = tl.program_id(0)
    # In 64 bits, for each index meets a stride, and their product may pass 2**31.
    block = (program % blocks).to(tl.int64)
    group = (program // blocks % groups).to(tl.int64)
    batch = (program // blocks // groups).to(tl.int64)
    t = block * T + tl.arange(0, T)
    cos, sin = _cos_sin(position, turns, axis, t, position_t, position_a, length, R, PAIRS, SECTIONED)
    cos *= cos_factor
    sin *= sin_factor
    _rotate_heads(
        q, rotated_q, q_b, q_h, q_t, q_d, q_heads, batch, group, t, length, cos, sin,
        D, R, PAIRS, REST, Q_ROWS, T, INTERLEAVED, INTERPRETED,
    )  # fmt: skip
    if K_ROWS > 0:
        _rotate_heads(
            k, rotated_k, k_b, k_h, k_t, k_d, k_heads, batch, group, t, length, cos, sin,
            D, R, PAIRS, REST, K_ROWS, T, INTERLEAVED, INTERPRETED,
        )  # fmt: skip


INTERPRETED = not isinstance(_rotate, triton.JITFunction)


@dataclass(frozen=True)
class _Rotation:
    """A rotation of every position, but for the position."""

    turns: Tensor
    """w[r/2], in 2**-64 turn per position."""
    axis: Tensor | None
    """The axis of position [t, axes] that pair j follows, [r/2]; None: position is [t]."""
    interleaved: bool
    cos_factor: float
    sin_factor: float

    @property
    def adjoint(self) -> _Rotation:
        """The rotation by the opposite angle, with the same factor."""
        return replace(self, sin_factor=-self.sin_factor)


class _Rotated(torch.autograd.Function):
    """Any tensors -> their rotations. Linear, so its derivative is itself once more, with the adjoint."""

    @staticmethod
    def forward(position: Tensor, rotation: _Rotation, *tensors: Tensor) -> tuple[Tensor, ...]:
        rotated = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors)
        _launch(position, rotation, [(x, y) for x, y in zip(tensors, rotated, strict=True) if x.numel()])
        return rotated

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        position, ctx.rotation, *_ = inputs
        ctx.save_for_backward(position)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        (position,) = ctx.saved_tensors
        wanted = [
            cotangent if needed else None
            for cotangent, needed in zip(cotangents, ctx.needs_input_grad[2:], strict=True)
        ]
        given = [cotangent for cotangent in wanted if cotangent is not None]
        gradients = iter(_rotated(position, ctx.rotation.adjoint, *given) if given else ())
        return (None, None, *(None if cotangent is None else next(gradients) for cotangent in wanted))


def _rotated(position: Tensor, rotation: _Rotation, *tensors: Tensor) -> tuple[Tensor, ...]:
    return _Rotated.apply(position, rotation, *tensors)  # type: ignore[no-any-return]


def _launch(position: Tensor, rotation: _Rotation, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Rotate one or two x[..., t, d] into contiguous tensors of the same shape, which share t, d and all but heads."""
    if not pairs:
        return
    folded = [_by_head(*pair) for pair in pairs]
    # Batch and heads are one axis where strides allow, so that the tile has no need to end with a batch.
    if all(_folds(x) for x, _ in folded):
        folded = [(x.flatten(0, 1)[None], y.flatten(0, 1)[None]) for x, y in folded]
    (q, rotated_q), (k, rotated_k) = folded[0], folded[-1]
    paired = len(folded) == 2

    batch, q_heads, length, d = q.shape
    k_heads = k.shape[1]
    r = 2 * rotation.turns.shape[0]
    width = max(triton.next_power_of_2(r // 2), triton.next_power_of_2(d - r) // 2, 1)
    tile, tile_of_a_head = (INTERPRETER_TILE, INTERPRETER_TILE) if INTERPRETED else (GPU_TILE, GPU_TILE_OF_A_HEAD)
    block = min(triton.next_power_of_2(length), max(1, tile_of_a_head // width))
    rows = max(1, tile // (block * width))
    groups = triton.cdiv(max(q_heads, k_heads), rows)
    blocks = triton.cdiv(length, block)
    # A tile of one head gets another layout from the compiler than its companion, and with it angles of its own.
    q_rows, k_rows = (
        triton.next_power_of_2(max(triton.cdiv(heads, groups), 1 + paired)) for heads in (q_heads, k_heads)
    )

    axis = rotation.axis
    device = torch.cuda.device(q.device) if q.is_cuda else nullcontext()
    # The interpreter computes with NumPy, which would warn of the infinities and NaNs that float arithmetic is to pass.
    with device, numpy.errstate(all="ignore"):
        _rotate[(batch * groups * blocks,)](
            q, rotated_q, k, rotated_k,
            position, rotation.turns, rotation.turns if axis is None else axis,
            rotation.cos_factor, rotation.sin_factor,
            length, q_heads, k_heads, blocks, groups,
            *q.stride(), *k.stride(),
            position.stride(0), 0 if axis is None else position.stride(1),
            D=d, R=r, PAIRS=max(1, triton.next_power_of_2(r // 2)), REST=triton.next_power_of_2(d - r),
            Q_ROWS=q_rows, K_ROWS=k_rows if paired else 0, T=block,
            INTERLEAVED=rotation.interleaved, SECTIONED=axis is not None, INTERPRETED=INTERPRETED,
        )  # fmt: skip


def _by_head(x: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """View x[..., t, d] and its result as [b, h, t, d]; x is copied only where the axes that make b do not fold."""
    *leading, length, d = x.shape
    shape = (prod(leading[:-1]), *(leading[-1:] or [1]), length, d)
    return x.reshape(shape), rotated.view(shape)


def _folds(x: Tensor) -> bool:
    """Say whether batch and head of x[b, h, t, d] are one axis, of one stride."""
    batch, heads = x.shape[:2]
    return batch == 1 or heads == 1 or x.stride(0) == heads * x.stride(1)


@lru_cache(maxsize=64)
def _table(entries: tuple[int, ...], device: torch.device) -> Tensor:
    """Integers on a device, copied there once."""
    return torch.tensor(entries, dtype=torch.int64, device=device)


def _rotation(
    d: int,
    device: torch.device,
    base: float,
    frequencies: Sequence[float] | Tensor | None,
    layout: str,
    rotary_dim: int | None,
    sections: Sequence[int] | None,
    attention_factor: float,
) -> _Rotation:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, got {layout!r}")
    r = d if rotary_dim is None else rotary_dim
    if r % 2 or not 0 <= r <= d:
        raise ValueError(f"the rotary channels must be even in number and between 0 and d = {d}, got {r}")
    if frequencies is None:
        turns = phase.turns(float(base), r // 2)
    else:
        given = frequencies.tolist() if isinstance(frequencies, Tensor) else frequencies
        turns = phase.turns_of(tuple(map(float, given)))
        if len(turns) != r // 2:
            raise ValueError(f"{r} rotary channels need {r // 2} frequencies, got {len(turns)}")
    axis = None
    if sections is not None:
        if min(sections, default=0) < 0 or sum(sections) != r // 2:
            raise ValueError(f"sections must sum to the {r // 2} pairs, got {tuple(sections)}")
        axis = _table(tuple(chain.from_iterable(map(repeat, range(len(sections)), sections))), device)
    factor = float(attention_factor)
    return _Rotation(_table(turns, device), axis, layout == "interleaved", cos_factor=factor, sin_factor=factor)


def _checked(position: Tensor, sections: Sequence[int] | None, *tensors: Tensor) -> Tensor:
    """Return position on the device of the tensors, if they are what the kernel can rotate."""
    for x in tensors:
        if x.dtype not in DTYPES:
            raise NotImplementedError(f"the Triton kernel rotates {DTYPES}, got {x.dtype}")
        if not (x.is_cuda or INTERPRETED):
            raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1 before triton is imported")
    position = torch.as_tensor(position, device=tensors[0].device)
    if position.is_floating_point() or position.is_complex() or position.dtype == torch.bool:
        raise ValueError(f"position must be of an integer dtype, got {position.dtype}")
    shape = (tensors[0].shape[-2],) if sections is None else (tensors[0].shape[-2], len(sections))
    if position.shape != shape:
        raise ValueError(f"position must have shape {shape}, got {tuple(position.shape)}")
    return position


@kernel("rope", form="reduced", requires=("triton",), interpreted=True)
def rope(
    x: Tensor,
    position: Tensor,
    *,
    base: float = 10000.0,
    frequencies: Sequence[float] | Tensor | None = None,
    layout: str = "half",
    rotary_dim: int | None = None,
    sections: Sequence[int] | None = None,
    attention_factor: float = 1.0,
) -> Tensor:
    """Rotate x[..., t, d] by position[t], or position[t, axes] with sections; differentiable with respect to x.

    `frequencies` (theta[r/2], in radians per position, each taken exactly) replace base**(-2 j / r); as a tensor on a
    GPU they are waited for at every call. `rotary_dim` is r, d unless given. `sections` sum to r/2: pair j follows the
    axis of its section. The result is contiguous, whatever the strides of x.

    Raises:
        ValueError: r is odd, or beyond d; a shape, the layout or the dtype of position does not fit.
        NotImplementedError: x is not float32, bfloat16 or float16; or there is neither a GPU nor the interpreter.
    """
    if x.ndim < 2:
        raise ValueError(f"x must be [..., t, d], got {tuple(x.shape)}")
    position = _checked(position, sections, x)
    rotation = _rotation(x.shape[-1], x.device, base, frequencies, layout, rotary_dim, sections, attention_factor)
    (rotated,) = _rotated(position, rotation, x)
    return rotated


def rope_pair(
    q: Tensor,
    k: Tensor,
    position: Tensor,
    *,
    base: float = 10000.0,
    frequencies: Sequence[float] | Tensor | None = None,
    layout: str = "half",
    rotary_dim: int | None = None,
    sections: Sequence[int] | None = None,
    attention_factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Rotate q[b, h, t, d] and k[b, g, t, d] in one launch: (rope(q), rope(k)).

    h and g are free, and so are the two dtypes. Both share position[t] (or [t, axes]) and so every angle.

    Raises:
        ValueError, NotImplementedError: as `rope`; or q and k differ in b, t or d.
    """
    if q.ndim != 4 or k.ndim != 4 or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q must be [b, h, t, d] and k [b, g, t, d], got {tuple(q.shape)} and {tuple(k.shape)}")
    position = _checked(position, sections, q, k)
    rotation = _rotation(q.shape[-1], q.device, base, frequencies, layout, rotary_dim, sections, attention_factor)
    rotated_q, rotated_k = _rotated(position, rotation, q, k)
    return rotated_q, rotated_k
