"""The kernel of S4 in torch, for CPU and CUDA, differentiable in every input and in dt.

As a real system of twice as many states, discretised by one elimination. `s4_kernel` multiplies rows C Ab**i with
columns Ab**(s j) Bb, each by repeated squaring: for kernels one at a time it is the fastest, and the most exact.
`s4_kernel_by_cauchy` goes by the generating function, in chunks of the roots of unity; a backward pass computes each
chunk again, so that no table of all nodes and states is kept.

Axes: l lag or node, n state.

Error: within the bounds of the forms "doubling" and "cauchy": float32 at least.
Source: A. Gu et al., S4, arXiv:2111.00396, section 3 and appendix C.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from assay.impl.kernel import kernel
from assay.impl.state_space import ssm_kernel


NODES = 1 << 16
"""So many numbers are the nodes and states of a chunk."""


@kernel("s4_kernel", form="doubling", dtypes=("float64", "float32"))
def s4_kernel(Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: float | Tensor, length: int) -> Tensor:
    """K[length], real, of the complex Lambda[n], P[n], Q[n], B[n] and C[n], all eigenvalues given.

    Raises: ValueError for shapes that do not fit each other or a negative length, TypeError for a dtype that is not
    complex.
    """
    check(Lambda, P, Q, B, C, length)
    return ssm_kernel(*system(Lambda, P, Q, B, C, dt), length)


@kernel("s4_kernel", form="cauchy", dtypes=("float64", "float32"))
def s4_kernel_by_cauchy(
    Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: float | Tensor, length: int
) -> Tensor:
    """The same."""
    check(Lambda, P, Q, B, C, length)
    n, wide = len(Lambda), torch.float64
    if not length:
        return Lambda.real.new_zeros(0)
    power, _, row = system(Lambda, P, Q, B, C, dt)
    after = row
    for i in range(length.bit_length()):
        after = after @ power if length >> i & 1 else after
        power = power @ power if length >> (i + 1) else power
    left = row - after
    Ct = torch.complex(left[:n], -left[n:])
    angle = torch.arange(length, dtype=wide, device=Lambda.device) * (2 * torch.pi / length)
    z = torch.complex(angle.cos(), -angle.sin()).to(Lambda.dtype)
    h = (1 + z) * (dt / 2)
    products = torch.stack((Ct * B, Ct * P, Q.conj() * B, Q.conj() * P))
    size = max(1, NODES // max(n, 1))
    sums = [_cauchy(products, Lambda, z[k : k + size], h[k : k + size]) for k in range(0, length, size)]
    cb, cp, qb, qp = torch.cat(sums, dim=1)
    spectrum: Tensor = dt * (cb - h * cp * qb / (1 + h * qp))
    lags: Tensor = torch.fft.ifft(spectrum)
    return lags.real.contiguous()


def _cauchy(products: Tensor, Lambda: Tensor, z: Tensor, h: Tensor) -> Tensor:
    """sum_n products[., n] / ((1 - z) - h Lambda_n), [4, l]."""

    def summed(products: Tensor, Lambda: Tensor, h: Tensor) -> Tensor:
        poles = (1 - z)[:, None] - h[:, None] * Lambda
        return torch.stack([(one / poles).sum(dim=-1) for one in products])

    if not torch.is_grad_enabled():
        return summed(products, Lambda, h)
    return checkpoint(summed, products, Lambda, h, use_reentrant=False)  # type: ignore[no-any-return]


def system(
    Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, dt: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Ab[2 n, 2 n], Bb[2 n] and C[2 n] of the real system, whose states are real and imaginary parts."""
    rank = P[:, None] * Q.conj()[None, :]
    a, b = torch.diag(Lambda.real) - rank.real, torch.diag(Lambda.imag) - rank.imag
    step = dt * torch.cat((torch.cat((a, -b), dim=1), torch.cat((b, a), dim=1)))
    entered = dt * torch.cat((B.real, B.imag))
    one = torch.eye(len(step), dtype=step.dtype, device=step.device)
    right = torch.cat((one + 0.5 * step, entered[:, None]), dim=1)
    found = torch.linalg.solve_ex(one - 0.5 * step, right).result
    return found[:, :-1], found[:, -1], torch.cat((C.real, -C.imag))


def check(Lambda: Tensor, P: Tensor, Q: Tensor, B: Tensor, C: Tensor, length: int) -> None:
    """Raises: TypeError, ValueError, as the kernels."""
    for name, x in {"Lambda": Lambda, "P": P, "Q": Q, "B": B, "C": C}.items():
        if not x.is_complex():
            raise TypeError(f"{name} must be of a complex dtype, not {x.dtype}")
    if length < 0:
        raise ValueError(f"the length must not be negative, as {length} is")
    if Lambda.ndim != 1 or not Lambda.shape == P.shape == Q.shape == B.shape == C.shape:
        raise ValueError("Lambda, P, Q, B and C must be [n], and as long as each other")
