"""Rotary position embedding in torch, for CPU and CUDA, differentiable in x.

`rope` is right at every position: the angle is never a float32 product. position * round(theta / (2 pi) * 2**64), in
wrapping 64-bit integers, is the angle as a fraction of a turn, reduced exactly; only that fraction, in [-1/2, 1/2),
becomes a floating-point number. `rope_table` is what most codebases do: a cached table of cosines and sines.

Axes: ... leading, t position, d channel.

Source: J. Su et al., RoFormer, arXiv:2104.09864v5, equation 34.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from assay.impl.inputs import floating
from assay.impl.kernel import kernel
from assay.impl.phase import turns, turns_of


EVERY = ("float64", "float32", "bfloat16", "float16")
LONGEST_TABLE = 1 << 17


@kernel("rope", form="reduced", under=("vmap",))
def rope(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    frequencies: torch.Tensor | None = None,
    layout: str = "half",
    rotary_dim: int | None = None,
    sections: tuple[int, ...] | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """Rotate the channel pairs of x[..., t, d] by position[t] (or [t, axes]) times the frequency of the pair.

    Computes in float32 whatever the dtype of x, and rounds once at the end.

    Error: within the bound of the form `reduced` in float32, at every position up to 2**31.
    Raises: ValueError for an odd rotary_dim, an unknown layout, or sections or frequencies that do not fit it;
    NotImplementedError for a dtype other than float32, bfloat16 and float16.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise NotImplementedError(f"x must be float32, bfloat16 or float16, not {x.dtype}")
    r = _rotated(x.shape[-1], rotary_dim, layout)
    per_position = turns(float(base), r // 2) if frequencies is None else turns_of(tuple(frequencies.tolist()))
    step = torch.tensor(per_position, dtype=torch.int64, device=x.device)
    # The product wraps around on purpose: whole turns are what it drops.
    fraction = _spread(position.to(torch.int64), r // 2, sections) * step
    angle = fraction.to(torch.float32) * (2 * math.pi / 2**64)
    return _rotate(x, attention_factor * angle.cos(), attention_factor * angle.sin(), layout)


@kernel("rope", form="table", dtypes=EVERY, under=("vmap",))
def rope_table(
    x: torch.Tensor,
    position: torch.Tensor,
    *,
    base: float = 10000.0,
    layout: str = "half",
    rotary_dim: int | None = None,
    sections: tuple[int, ...] | None = None,
    attention_factor: float = 1.0,
) -> torch.Tensor:
    """The same from a table of cosines and sines, computed in double, kept in float32 and extended as needed.

    Error: within the bound of the form `table`.
    Raises: as `rope`; TypeError for an integer dtype of x; NotImplementedError for positions that are negative or
    beyond 131,071.
    """
    floating(x=x)
    r = _rotated(x.shape[-1], rotary_dim, layout)
    if position.numel() and not 0 <= int(position.min()) <= int(position.max()) < LONGEST_TABLE:
        raise NotImplementedError(f"the table holds positions from 0 to {LONGEST_TABLE - 1}")
    last = int(position.max()) if position.numel() else 0
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    length = max(64, 1 << last.bit_length())
    cos, sin = _table(length, r // 2, float(base), float(attention_factor), wide, x.device)
    position = position.long()  # torch's gather misreads an expanded index of 32 bits on the CPU
    if position.ndim == 1:
        rows = position[:, None].expand(-1, r // 2)
    else:
        rows = _spread(position, r // 2, sections)
    return _rotate(x, cos.gather(0, rows), sin.gather(0, rows), layout)


@lru_cache(maxsize=16)
def _table(
    length: int, pairs: int, base: float, factor: float, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [length, pairs]."""
    even = torch.arange(0, 2 * pairs, 2, dtype=torch.float64, device=device)
    theta = 1 / base ** (even / max(2 * pairs, 1))
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * theta
    return (factor * angle.cos()).to(dtype), (factor * angle.sin()).to(dtype)


def _rotated(d: int, rotary_dim: int | None, layout: str) -> int:
    r = d if rotary_dim is None else rotary_dim
    if r % 2 or not 0 <= r <= d:
        raise ValueError(f"rotary_dim must be even and between 0 and {d}, not {r}")
    if layout not in ("half", "interleaved"):
        raise ValueError(f"layout must be half or interleaved, not {layout!r}")
    return r


def _spread(position: torch.Tensor, pairs: int, sections: tuple[int, ...] | None) -> torch.Tensor:
    """The position of every pair: [t, pairs], or [t, 1] where all pairs share one."""
    if position.ndim == 1:
        return position[:, None]
    axes = position.shape[-1]
    if sections is None:
        sections = (pairs // axes,) * axes
    if len(sections) != axes or sum(sections) != pairs:
        raise ValueError(f"sections {sections} must be {axes} numbers that add up to {pairs} pairs")
    counts = torch.tensor(sections, device=position.device)
    return position.repeat_interleave(counts, dim=-1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: str) -> torch.Tensor:
    pairs = cos.shape[-1]
    rotated, rest = x[..., : 2 * pairs].to(cos.dtype), x[..., 2 * pairs :]
    a, b = rotated.chunk(2, dim=-1) if layout == "half" else (rotated[..., ::2], rotated[..., 1::2])
    turned = a * cos - b * sin, b * cos + a * sin
    joined = torch.cat(turned, dim=-1) if layout == "half" else torch.stack(turned, dim=-1).flatten(-2)
    return torch.cat([joined.to(x.dtype), rest], dim=-1)
