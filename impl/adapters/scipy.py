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


@kernel("hippo_project", form="eliminated", dtypes=("float64", "float32"), backward="none", requires=("scipy",))
def cont2discrete_steps(f: torch.Tensor, n: int, *, method: str = "zoh") -> torch.Tensor:
    """A call of `cont2discrete` for each sample, of A/k and B/k; zoh over the logarithm of the ratio of times."""
    import math

    import numpy as np
    import torch
    from scipy import signal

    if n < 1:
        raise NotImplementedError("takes a state at least")
    i = np.arange(n)
    root = np.sqrt(2 * i + 1)
    a, b = -(np.tril(np.outer(root, root), -1) + np.diag(i + 1.0)), root[:, None]
    given = f.numpy()
    out = np.zeros((len(given), n))
    out[:1, :1] = given[:1, None]
    for k in range(1, len(given)):
        scale, dt = (1, math.log1p(1 / k)) if method == "zoh" else (k, 1.0)
        system = a / scale, b / scale, np.zeros((1, n)), np.zeros((1, 1))
        ad, bd, *_ = signal.cont2discrete(system, dt, METHODS[method])
        out[k] = ad @ out[k - 1] + bd[:, 0] * given[k]
    return torch.from_numpy(out).to(torch.promote_types(f.dtype, torch.float32))  # of integers, of real numbers too
