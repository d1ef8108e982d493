"""What kernels refuse: arguments that mean nothing, which arithmetic alone would answer."""

from __future__ import annotations

import torch


def floating(**tensors: torch.Tensor) -> None:
    """Raises: TypeError for a tensor of integers, whose result would be cut down to integers."""
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, not {x.dtype}")
