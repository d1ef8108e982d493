"""What the machine can do at most: kernels whose speed is known to be that of the machine, timed beside all others.

A case that must move so many bytes is held against a copy that moves as many, between two buffers that are there
already; so the roof of a case that fits into a cache is the cache's. Products and exponentials are of a fixed size,
which fits into the second-level cache of most machines. These are roofs as torch reaches them, not a data sheet's: a
kernel may be faster.

Run by the stopwatch from this file: nothing of assay is imported.
"""

from __future__ import annotations

import torch


PRODUCT = 512
"""The matrices of the product are square and of this size."""
SWEEP = 1 << 17
"""Elements of the sweep of exponentials."""
STEADY = 192
"""Rows and columns of the steady kernel's matrices."""


def copy(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """target := source; moves twice the bytes of one."""
    return target.copy_(source)


def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out := a b; 2 n^3 floating-point operations."""
    return torch.mm(a, b, out=out)


def sweep(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """out := exp(x); one exponential an element."""
    return torch.exp(x, out=out)


def steady(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The kernel to which histories relate all others: products, exponentials and sums. Its text never changes."""
    scores = a @ b
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return (weights / weights.sum(dim=-1, keepdim=True)) @ a
