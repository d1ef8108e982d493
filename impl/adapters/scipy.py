"""scipy: `scipy.signal`, in NumPy.

`cont2discrete((A, B, C, D), dt, method, alpha)` discretises all four matrices: of "gbt" and its special cases C and D
change too, which models of this family leave as they are; the adapter hands over any C and D, and returns A and B
alone. Its state runs ahead of ours, x_{k+1} = Ab x_k + Bb u_k, which is the same Ab and Bb. Whatever the dtype is, it
computes and returns in float64.

`dlsim` and `dimpulse` have y_k = C x_k + D u_k of that state, one position behind ours: a position more is asked for,
whose input does not matter, and the first, which is D u_0 and what the state before it says, is left out.

`fftconvolve` and `oaconvolve` return all 2 t - 1 positions, `lfilter` those of its input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from assay.impl.adapters._inputs import as_long
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

    if not f.is_floating_point():  # the loop is ours, and so is its contract
        raise TypeError(f"f must be floating-point numbers, not {f.dtype}")
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
    return torch.from_numpy(out).to(f.dtype)


@kernel("ssm_scan", form="recurrence", dtypes=("float64",), backward="none", requires=("scipy",))
def dlsim(
    u: torch.Tensor, Ab: torch.Tensor, Bb: torch.Tensor, C: torch.Tensor, *, state: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    import numpy as np
    import torch
    from scipy import signal

    system, values = _delayed(Ab, Bb, C), np.pad(u.numpy(), ((0, 0), (0, 1)))
    y, after = np.empty(u.shape), np.empty((len(u), len(C)))
    starts = np.zeros(after.shape) if state is None else state.numpy()
    for row, (one, before) in enumerate(zip(values, starts, strict=True)):
        _, out, states = signal.dlsim(system, one[:, None], x0=before)
        y[row], after[row] = out[1:, 0], states[-1]
    return torch.from_numpy(y), torch.from_numpy(after)


@kernel("ssm_kernel", form="recurrence", dtypes=("float64",), backward="none", requires=("scipy",))
def dimpulse(Ab: torch.Tensor, Bb: torch.Tensor, C: torch.Tensor, length: int) -> torch.Tensor:
    import torch
    from scipy import signal

    _, (out,) = signal.dimpulse(_delayed(Ab, Bb, C), n=length + 1)
    return torch.from_numpy(out[1:, 0].copy())


def _delayed(Ab: torch.Tensor, Bb: torch.Tensor, C: torch.Tensor) -> tuple[Any, ...]:
    """As scipy has a system: A, B, C, D and the length of a step."""
    import numpy as np

    return Ab.numpy(), Bb.numpy()[:, None], C.numpy()[None, :], np.zeros((1, 1)), 1


def _convolved(function: Callable[..., Any], u: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """The positions that a causal convolution has, of the full one."""
    import torch

    if not as_long(u, K):
        return u + K
    full = function(u.numpy(), K.expand(u.shape).numpy(), axes=-1)
    return torch.from_numpy(full[..., : u.shape[-1]].copy())


@kernel("fft_convolve", dtypes=("float64", "float32"), backward="none", requires=("scipy",))
def fftconvolve(u: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    from scipy import signal

    return _convolved(signal.fftconvolve, u, K)


@kernel("fft_convolve", dtypes=("float64", "float32"), backward="none", requires=("scipy",))
def oaconvolve(u: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    from scipy import signal

    return _convolved(signal.oaconvolve, u, K)


@kernel("fft_convolve", form="direct", dtypes=("float64", "float32"), backward="none", requires=("scipy",))
def lfilter(u: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """A filter of as many taps as there are positions, channel by channel."""
    import numpy as np
    import torch
    from scipy import signal

    if not as_long(u, K):
        return u + K
    channels = [signal.lfilter(k, np.ones(1, k.dtype), x) for k, x in zip(K.numpy(), u.unbind(1), strict=True)]
    return torch.from_numpy(np.stack(channels, axis=1))
