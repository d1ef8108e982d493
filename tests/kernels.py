"""RoPE kernels of the kind that people write, right and wrong, for the suite to judge."""

from __future__ import annotations

import torch


def channels(x: torch.Tensor) -> int:
    """d, if x means something."""
    if x.shape[-1] % 2 or not x.is_floating_point():
        raise ValueError("x must have an even number of channels and a floating-point dtype")
    return x.shape[-1]


def table(x: torch.Tensor, position: torch.Tensor, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    d = channels(x)
    theta = 1.0 / (base ** (torch.arange(0, d, 2).float() / d))
    angle = position[:, None].float() * theta
    return angle.cos(), angle.sin()


def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def right(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    return turn(x.float(), *table(x, position, base)).to(x.dtype)


def fused(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """As a complex product."""
    cos, sin = table(x, position, base)
    a, b = x.float().chunk(2, dim=-1)
    out = torch.complex(a, b) * torch.complex(cos, sin)
    return torch.cat([out.real, out.imag], dim=-1).to(x.dtype)


def rotate_half(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    cos, sin = (torch.cat([t, t], dim=-1) for t in table(x, position, base))
    wide = x.float()
    a, b = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-b, a], dim=-1) * sin).to(x.dtype)


def exponential(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """Frequencies through exp and log."""
    d = channels(x)
    theta = torch.exp(torch.arange(0, d, 2).float() * -(torch.log(torch.tensor(base)) / d))
    angle = position[:, None].float() * theta
    return turn(x.float(), angle.cos(), angle.sin()).to(x.dtype)


def matrix(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """One 2x2 matrix product for each pair."""
    cos, sin = table(x, position, base)
    pairs = torch.stack(x.float().chunk(2, dim=-1), dim=-1)
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    out = (rotation @ pairs[..., None])[..., 0]
    return torch.cat([out[..., 0], out[..., 1]], dim=-1).to(x.dtype)


def double(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """Everything in double, rounded once."""
    d = channels(x)
    theta = base ** (-torch.arange(0, d, 2).double() / d)
    angle = position[:, None].double() * theta
    return turn(x.double(), angle.cos(), angle.sin()).to(x.dtype)


RIGHT = (right, fused, rotate_half, exponential, matrix, double)


def interleaved(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    cos, sin = table(x, position, base)
    a, b = x.float()[..., ::2], x.float()[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


def base_10001(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position, base=10001.0)


def off_by_one(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    return right(x, position + 1, base=base)


def bf16_table(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    cos, sin = (t.bfloat16().float() for t in table(x, position, base))
    return turn(x.float(), cos, sin).to(x.dtype)


def eager(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """Every step in the dtype of x, but for the angles."""
    cos, sin = (t.to(x.dtype) for t in table(x, position, base))
    return turn(x, cos, sin)


def raises(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("the device\nis on fire")


def writes_to_its_input(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    out = right(x, position, base=base)
    with torch.no_grad():
        x.mul_(2)
    return out


def zeros(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return x * 0


def copy(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return x.clone()


def wrong_shape(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position)[..., :1]


def wrong_dtype(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return right(x, position).double()


def not_a_number(x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    out = right(x, position)
    return torch.where(torch.arange(out.shape[-1]) == 0, torch.nan, out)


def wrong_gradient(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    out = right(x, position, base=base)
    return out + (x - x.detach()) / 64


def dead_tail(x: torch.Tensor, position: torch.Tensor, *, base: float = 10000.0) -> torch.Tensor:
    """Rows from 64 on are left as they were: a kernel that works in blocks and forgets the second."""
    return torch.cat([right(x[..., :64, :], position[:64], base=base), x[..., 64:, :]], dim=-2)
