"""scipy: `scipy.signal.cont2discrete((A, B, C, D), dt, method, alpha)`, in NumPy.

It discretises all four matrices: of "gbt" and its special cases C and D change too, which models of this family leave
as they are; the adapter hands over any C and D, and returns A and B alone. Its state runs ahead of ours, x_{k+1} =
Ab x_k + Bb u_k, which is the same Ab and Bb. Whatever the dtype is, it computes and returns in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from assay.impl.kernel import kernel


if TYPE_CHECKING:
    import torch


METHODS = {"bilinear": "bilinear", "euler": "euler", "backward": "backward_diff", "gbt": "gbt", "zoh": "zoh"}


@kernel("discretize", dtypes=("float64",), backward="none", requires=("scipy",))
def cont2discrete(
    A: torch.Tensor, B: torch.Tensor, *, dt: float, method: str = "bilinear", alpha: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    import numpy as np
    import torch
    from scipy import signal

    if method not in METHODS:
        raise NotImplementedError(f"has no method {method!r}")
    a, b = A.numpy(), B.numpy()[:, None]
    system = a, b, np.zeros((1, len(a)), a.dtype), np.zeros((1, 1), a.dtype)
    ad, bd, *_ = signal.cont2discrete(system, dt, METHODS[method], alpha=alpha if method == "gbt" else None)
    return torch.from_numpy(ad), torch.from_numpy(bd[:, 0].copy())
