"""The kernel of S4D in torch, for CPU and CUDA, differentiable in every input and in dt.

The Vandermonde product is one of two tables, Ab**i for i < s and Ab**(s j), s about sqrt(length): no table of all lags
and states exists. (exp(z) - 1) / z is its own series near 0, so that neither it nor its derivative cancels.

Axes: l lag, n state.

Error: within the bound of the form "products": float32 at least, one rounding at the end.
Source: A. Gu et al., S4D, arXiv:2206.11893, equations 2, 6 and 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.impl.kernel import kernel


METHODS = ("zoh", "bilinear")
NEAR = 0.5
TERMS = {torch.complex64: 9, torch.complex128: 16}
"""Of the series where |z| is below NEAR: what is left out, z**k / (k + 1)!, is below a roundoff."""


@kernel("s4d_kernel", form="products", dtypes=("float64", "float32"))
def s4d_kernel(Lambda: Tensor, B: Tensor, C: Tensor, dt: float | Tensor, length: int, *, method: str = "zoh") -> Tensor:
    """K[length], real, of the complex Lambda[n], B[n] and C[n], one of each pair of conjugates given.

    Raises: ValueError for shapes that do not fit each other, a negative length or an unknown method; TypeError for an
    integer dtype.
    """
    check(Lambda, B, C, length, method)
    size = 1
    while size * size < length:
        size *= 2
    count, z = -(-length // size), dt * Lambda
    if method == "zoh":
        entered = dt * average(z) * B
        near, far = (
            exponentials(z[:, None] * torch.arange(n, device=z.device) * s) for n, s in ((size, 1), (count, size))
        )
    else:
        half = z / 2
        entered, power = dt * B / (1 - half), ((1 + half) / (1 - half))[:, None]
        near = doubled(power, size)
        for _ in range(size.bit_length() - 1):
            power = power * power
        far = doubled(power, count)
    weighted = (C * entered)[:, None] * near
    # The real part of a product of complex matrices, as one of real matrices of twice as many rows.
    left, right = torch.cat((far.real, -far.imag)), torch.cat((weighted.real, weighted.imag))
    return 2 * (left.mT @ right).flatten()[:length]


def average(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, the mean of exp from 0 to z."""
    near = z.abs() < NEAR
    small = torch.where(near, z, torch.zeros_like(z))
    series = torch.ones_like(z)
    for k in range(TERMS[z.dtype], 1, -1):  # 1 + z/2 (1 + z/3 (1 + ...
        series = 1 + small / k * series
    far = torch.where(near, torch.ones_like(z), z)
    a, b = far.real, far.imag
    grown = torch.complex(a.expm1() * b.cos() - 2 * (b / 2).sin().square(), a.exp() * b.sin())
    return torch.where(near, series, grown / far)


def exponentials(z: Tensor) -> Tensor:
    """exp(z), each part by itself."""
    return torch.polar(z.real.exp(), z.imag)


def doubled(power: Tensor, count: int) -> Tensor:
    """1, a, a**2, ..., [n, count], of a[n, 1]."""
    table = torch.ones_like(power)
    while table.shape[1] < count:
        table, power = torch.cat((table, power * table), dim=1), power * power
    return table[:, :count]


def check(Lambda: Tensor, B: Tensor, C: Tensor, length: int, method: str) -> None:
    """Raises: TypeError, ValueError, as the kernel."""
    for name, x in {"Lambda": Lambda, "B": B, "C": C}.items():
        if not x.is_complex():
            raise TypeError(f"{name} must be of a complex dtype, not {x.dtype}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if length < 0:
        raise ValueError(f"the length must not be negative, as {length} is")
    if Lambda.ndim != 1 or not Lambda.shape == B.shape == C.shape:
        shapes = f"{list(Lambda.shape)}, {list(B.shape)} and {list(C.shape)}"
        raise ValueError(f"Lambda, B and C must be [n], not {shapes}")
