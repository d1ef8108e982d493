"""To and from float32 in a Triton kernel, on a GPU as in the interpreter, which computes on the bits of bfloat16."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widened(value, INTERPRETED: tl.constexpr):
    """Return the float32 of the same value."""
    # The interpreter keeps bfloat16 as its bits, and widens subnormal ones wrongly: here the bits are moved by hand.
    if INTERPRETED and value.dtype == tl.bfloat16:
        return (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def loaded(x, rows, row_stride, columns, column_stride, t, width, INTERPRETED: tl.constexpr):
    """x at rows and columns, in float32; zero outside of t rows and `width` columns."""
    real = (rows < t)[:, None] & (columns < width)[None, :]
    # Elements may be farther apart than int32 reaches, though no stride by itself is.
    place = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    return widened(tl.load(x + place, mask=real, other=0.0), INTERPRETED)


@triton.jit
def narrowed(value, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Return the nearest value of a dtype, ties to even."""
    # The interpreter truncates to bfloat16. What is added to the bits carries where the nearest value is away from
    # zero; a NaN is kept out of it, for it would carry into infinity or into the sign.
    if INTERPRETED and dtype == tl.bfloat16:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(value == value, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(dtype)
