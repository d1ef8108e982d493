"""What several packages want as inputs: exactly four axes, an integer offset, a table of cosines and sines."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    import torch


LONGEST_TABLE = 131072
"""Rows of the longest table that an adapter builds; who needs positions beyond it does not tabulate them."""


def four_axes(x: torch.Tensor) -> torch.Tensor:
    """x[..., t, d] as [b, h, t, d]: a view wherever one exists, so that an in-place kernel is seen to be one."""
    return x[(None,) * (4 - x.ndim)] if x.ndim <= 4 else x.flatten(0, x.ndim - 4)


def rotated_dim(x: torch.Tensor, rotary_dim: int | None) -> int:
    """How many channels of x rotate.

    Raises: NotImplementedError for none, which no package has a way to ask for.
    """
    if rotary_dim == 0:
        raise NotImplementedError("some channel must rotate")
    return x.shape[-1] if rotary_dim is None else rotary_dim


def offset(position: torch.Tensor, x: torch.Tensor) -> int:
    """The one number that positions offset, offset + 1, ... of the rows of x[..., t, d] amount to.

    Raises: NotImplementedError where positions are not contiguous; ValueError where there are more or fewer than rows,
    which a package that is told the offset alone cannot see.
    """
    if position.numel() != x.shape[-2]:
        raise ValueError(f"x has {x.shape[-2]} rows, and there are {position.numel()} positions")
    start = int(position[0]) if position.numel() else 0
    if position.tolist() != list(range(start, start + position.numel())):
        raise NotImplementedError("takes an offset, so positions must be contiguous")
    return start


def table_rows(position: torch.Tensor, *, least: int, most: int = LONGEST_TABLE) -> int:
    """How long a user would make the table: the package's default, doubled until the positions fit.

    Raises: NotImplementedError where a position is negative or beyond the longest table.
    """
    if position.numel() and (int(position.min()) < 0 or int(position.max()) >= most):
        raise NotImplementedError(f"reads a table, so positions must lie in 0..{most - 1}")
    rows = least
    while position.numel() and rows <= int(position.max()):
        rows *= 2
    return rows


def cosines_and_sines(position: torch.Tensor, r: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of position[t] * base**(-2j/r), [t, r/2] in float64, for kernels that leave them to their user."""
    import torch

    exponent = torch.arange(0, r, 2, dtype=torch.float64, device=position.device) / r
    angle = position[:, None] * float(base) ** -exponent
    return angle.cos(), angle.sin()


@lru_cache(maxsize=4)
def table(rows: int, r: int, base: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for every position 0..rows-1, in `dtype`."""
    import torch

    cos, sin = cosines_and_sines(torch.arange(rows), r, base)
    return cos.to(dtype), sin.to(dtype)


def runs_triton(x: torch.Tensor) -> None:
    """Raises: NotImplementedError where a Triton kernel could not run on x."""
    if x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET", "0").lower() not in ("1", "true", "on", "yes"):
        raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1")


def features(x: torch.Tensor, feature_map: str) -> torch.Tensor:
    """phi(x), rounded once to the dtype of x, for kernels that take features and leave the map to their user.

    Raises: NotImplementedError for maps that are not element by element.
    """
    import torch

    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if feature_map == "elu+1":
        return (wide.clamp(max=0).exp() + wide.relu()).to(x.dtype)
    if feature_map == "relu":
        return x.relu()
    if feature_map == "exp":
        return wide.exp().to(x.dtype)
    if feature_map == "identity":
        return x
    raise NotImplementedError(f"takes features; {feature_map!r} is not a map of single numbers")


def as_long(u: torch.Tensor, K: torch.Tensor) -> bool:
    """Is there anything to convolve? Raises: ValueError unless u and K have as many positions: packages take a shorter
    kernel for one with zeros behind it."""
    if u.shape[-1] != K.shape[-1]:
        raise ValueError(f"u and K must be as long as each other, not {list(u.shape)} and {list(K.shape)}")
    return bool(u.numel())
