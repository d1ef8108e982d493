"""Causal convolution in torch by fast transforms, for CPU and CUDA, differentiable in both inputs.

Both are transformed with zeros behind them, to the first power of two from 2 t - 1 on, so that nothing comes around.

Axes: t position; the others are broadcast.

Error: within the normwise bound of the form "fft": float32 at least, one rounding at the end.
Source: A. Gu et al., S4, arXiv:2111.00396, equation 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.impl.inputs import floating
from assay.impl.kernel import kernel


@kernel("fft_convolve", form="fft", dtypes=("float64", "float32", "bfloat16", "float16"))
def fft_convolve(u: Tensor, K: Tensor) -> Tensor:
    """y[..., t] of u[..., t] and K[..., t].

    Raises: ValueError for shapes that do not fit each other, TypeError for an integer dtype.
    """
    floating(u=u, K=K)
    check(u, K)
    wide, t = torch.promote_types(u.dtype, torch.float32), u.shape[-1]
    if not t or not u.numel():
        return u + K
    n = 1 << (2 * t - 2).bit_length()
    spectrum = torch.fft.rfft(u.to(wide), n) * torch.fft.rfft(K.to(wide), n)
    y: Tensor = torch.fft.irfft(spectrum, n)
    return y[..., :t].to(u.dtype, copy=True)


def check(u: Tensor, K: Tensor) -> None:
    """Raises: ValueError, as the kernel."""
    if not (u.ndim and K.ndim) or u.shape[-1] != K.shape[-1]:
        raise ValueError(f"u and K must be as long as each other, not {list(u.shape)} and {list(K.shape)}")
    pairs = zip(reversed(u.shape[:-1]), reversed(K.shape[:-1]), strict=False)
    if any(one != two and 1 not in (one, two) for one, two in pairs):
        raise ValueError(f"the axes of u and K before the last must fit, not {list(u.shape)} and {list(K.shape)}")
