"""What BLAS cannot address: it multiplies strides in 32 bits, and torch passes on to it vectors whose elements lie
farther apart than that, of which the product with a matrix is then wrong, or ends the process (torch 2.13.0, CPU)."""

from __future__ import annotations

from typing import Any

import torch


class _Near(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g.contiguous()


def answered_nearby(x: torch.Tensor) -> torch.Tensor:
    """The same, whose cotangent is copied to where its elements are neighbours, if they are not."""
    out: torch.Tensor = _Near.apply(x)  # type: ignore[no-untyped-call]
    return out
