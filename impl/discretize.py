"""Discretisation in torch, for CPU and CUDA, differentiable in A, B and dt.

Axes: n state.

The exponential is Taylor's series, scaled and squared. (torch.linalg.matrix_exp of one matrix, as of torch 2.13, has
wrong coefficients from the fifth power on where the norm is below 0.05 in float64 and 0.6 in float32.)

Error: within the derived bound: float32 at least, systems solved by elimination, one rounding at the end.
Source: A. Gu et al., HiPPO, arXiv:2008.07669, appendix B.3; C. Van Loan, IEEE Trans. Automatic Control 23 (1978);
N. J. Higham, Functions of Matrices, section 10.3, for scaling and squaring.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from assay.impl.inputs import floating
from assay.impl.kernel import kernel


ALPHAS = {"euler": 0.0, "bilinear": 0.5, "backward": 1.0}
DEGREE = {torch.float32: 8, torch.float64: 14}
"""Of the series of a matrix whose norm is below 1/2: what is left out is below a roundoff."""


@kernel("discretize", dtypes=("float64", "float32", "bfloat16", "float16"))
def discretize(
    A: Tensor, B: Tensor, *, dt: float | Tensor, method: str = "bilinear", alpha: float | None = None
) -> tuple[Tensor, Tensor]:
    """Ab[n, n] and Bb[n], of A[n, n] and B[n]; infinite or NaN where a system that is to be solved is singular.

    Raises: ValueError for an unknown method or shapes that do not fit each other, TypeError for an integer dtype.
    """
    floating(A=A, B=B)
    if method not in (*ALPHAS, "gbt", "zoh", "mamba"):
        raise ValueError(f"method must be one of {', '.join((*ALPHAS, 'gbt', 'zoh', 'mamba'))}, not {method!r}")
    if A.ndim != 2 or A.shape[0] != A.shape[1] or B.shape != A.shape[:1]:
        raise ValueError(f"A must be [n, n] and B [n], not {list(A.shape)} and {list(B.shape)}")
    wide = torch.promote_types(A.dtype, torch.float32)
    n, a, b = len(A), dt * A.to(wide), dt * B.to(wide)
    one = torch.eye(n, dtype=wide, device=A.device)
    if method == "mamba":
        found = torch.cat((exponential(a), b[:, None]), dim=1)
    elif method == "zoh":
        found = exponential(functional.pad(torch.cat((a, b[:, None]), dim=1), (0, 0, 0, 1)))[:n]
    else:
        forward = ALPHAS.get(method, 0.5 if alpha is None else alpha)
        found = torch.cat((one + (1 - forward) * a, b[:, None]), dim=1)
        if method != "euler":
            found = torch.linalg.solve_ex(one - forward * a, found).result
    return found[:, :n].to(A.dtype, copy=True), found[:, n].to(A.dtype, copy=True)


def exponential(a: Tensor) -> Tensor:
    """exp(a), of a[n, n] in float32 or float64."""
    norm = float(a.detach().abs().sum(dim=-1).amax()) if a.numel() else 0.0
    squarings = max(0, math.frexp(norm)[1] + 1) if math.isfinite(norm) else 0
    scaled = a * 2.0**-squarings
    one = torch.eye(len(a), dtype=a.dtype, device=a.device)
    out = one
    for k in range(DEGREE[a.dtype], 0, -1):
        out = torch.addmm(one, scaled / k, out)
    for _ in range(squarings):
        out = out @ out
    return out
