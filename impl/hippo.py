"""HiPPO's matrices in torch.

Made on the CPU in float64, whatever is asked for, and rounded once.

Axes: n state.

Error: within the derived bound; where the dtype is narrower than float64, hardly more than one rounding.
Source: A. Gu et al., HiPPO, arXiv:2008.07669, theorem 2 and appendix D; A. Gu et al., arXiv:2206.12037, section 4; A.
Voelker et al., Legendre Memory Units, NeurIPS 2019, equations 1 and 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.impl.kernel import kernel


MEASURES = ("legs", "legt", "lagt", "fout", "lmu")


@kernel("hippo_matrices", form="products", dtypes=("float64", "float32", "bfloat16", "float16"), under=("autocast",))
def hippo_matrices(
    n: int,
    *,
    measure: str = "legs",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """A[n, n] and B[n] of x' = A x + B u, or (A x + B u) / t for "legs"; the windows of the others have the length 1.

    Raises: ValueError for an unknown measure, or a negative n.

    >>> hippo_matrices(2)[0].tolist()
    [[-1.0, 0.0], [-1.7320507764816284, -2.0]]
    """
    if measure not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, not {measure!r}")
    if n < 0:
        raise ValueError(f"n must not be negative, as {n} is")
    i = torch.arange(n, dtype=torch.float64)
    if measure == "fout":
        even = 1 - i % 2
        squares = 2 * even - (i == 0).double()
        turns = torch.diag(2 * math.pi * (i / 2).floor() * even, -1)[:n, :n]
        A, B = turns - turns.mT - 2 * (squares[:, None] * squares).sqrt(), 2 * squares.sqrt()
    elif measure == "lagt":
        A, B = torch.eye(n, dtype=torch.float64) / 2 - torch.ones(n, n, dtype=torch.float64).tril(), torch.ones_like(i)
    else:
        odd, sign = 2 * i + 1, 1 - 2 * (i % 2)
        roots = (odd[:, None] * odd).sqrt()
        if measure == "legs":
            A, B = -(roots.tril(-1) + torch.diag(i + 1)), odd.sqrt()
        elif measure == "legt":
            A, B = -(roots.tril() + (roots * sign[:, None] * sign).triu(1)), odd.sqrt()
        else:
            rows = odd[:, None].expand(n, n)
            A, B = -((rows * sign[:, None] * sign).tril() + rows.triu(1)), odd * sign
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return A.to(device=device, dtype=dtype), B.to(device=device, dtype=dtype)
