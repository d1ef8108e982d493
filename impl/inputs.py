"""What kernels refuse: arguments that mean nothing, which arithmetic alone would answer."""

from __future__ import annotations

import torch


def floating(**tensors: torch.Tensor) -> None:
    """Raises: TypeError for a tensor of integers, whose result would be cut down to integers."""
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, not {x.dtype}")


def pairs(image: torch.Tensor, text: torch.Tensor, positives: torch.Tensor | None = None) -> None:
    """Raises: TypeError for integers, ValueError unless both towers are [n, d], and positives [n, n]."""
    floating(image=image, text=text)
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be [n, d], not {list(image.shape)} and {list(text.shape)}")
    n = len(image)
    if positives is not None and positives.shape != (n, n):
        raise ValueError(f"positives must be [{n}, {n}], not {list(positives.shape)}")
