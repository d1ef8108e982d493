"""What kernels refuse: arguments that mean nothing, which arithmetic alone would answer."""

from __future__ import annotations

import torch


def floating(**tensors: torch.Tensor) -> None:
    """Raises: TypeError for a tensor of integers, whose result would be cut down to integers."""
    for name, x in tensors.items():
        if not x.is_floating_point():
            raise TypeError(f"{name} must be of a floating-point dtype, not {x.dtype}")


def attending(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raises: TypeError for integers, ValueError unless the shapes are [b, h, t, d], [b, h, s, d] and [b, h, s, e]."""
    floating(q=q, k=k, v=v)
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError("q, k and v must have the axes [b, h, t, d], [b, h, s, d] and [b, h, s, e]")
    if k.shape[:2] != q.shape[:2] or k.shape[3] != q.shape[3] or v.shape[:3] != k.shape[:3]:
        raise ValueError(f"q{list(q.shape)}, k{list(k.shape)} and v{list(v.shape)} do not fit each other")


def pairs(image: torch.Tensor, text: torch.Tensor, positives: torch.Tensor | None = None) -> None:
    """Raises: TypeError for integers, ValueError unless both towers are [n, d], and positives [n, n]."""
    floating(image=image, text=text)
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text must both be [n, d], not {list(image.shape)} and {list(text.shape)}")
    n = len(image)
    if positives is not None and positives.shape != (n, n):
        raise ValueError(f"positives must be [{n}, {n}], not {list(positives.shape)}")
