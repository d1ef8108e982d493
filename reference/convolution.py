"""Causal convolution, as state spaces and long convolutions have it: y_i = sum_{j <= i} K_j u_{i-j}.

Computed by transforms it is normwise accurate: an element of a row may be off by what the norm of the row allows,
however small the element is.

Axes: t position; the others are broadcast.

Source: A. Gu et al., S4, arXiv:2111.00396, equation 5; N. J. Higham, Accuracy and Stability of Numerical Algorithms,
2nd ed., section 24.1.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic import transform


def fft_convolve(u: Any, K: Any) -> Any:
    """y[..., t] of u[..., t] and K[..., t].

    Error: none in exact arithmetic. Raises: ValueError for shapes that do not fit each other.

    >>> import numpy as np
    >>> fft_convolve(np.array([1.0, 0.0, 2.0]), np.array([1.0, 10.0, 100.0])).tolist()
    [1.0, 10.0, 102.0]
    """
    check(u, K)
    return transform.direct(u, K)


def by_transform(u: Any, K: Any) -> Any:
    """Transforms of both with zeros behind them, their product, and one transform back."""
    check(u, K)
    return transform.convolve(u, K)


def backward(cotangents: tuple[Any, ...], u: Any, K: Any) -> tuple[Any, Any]:
    """du_j = sum_{i >= j} K_{i-j} dy_i and dK_l = sum_{b, i >= l} dy_i u_{i-l}, for u[b, d, t] and K[d, t]: each sum in
    any order, so that rows are summed before or after positions."""
    check(u, K)
    (dy,), xp, (b, d, t) = cotangents, array_namespace(u), u.shape
    du, lags = xp.flip(transform.direct(xp.flip(dy, axis=-1), K), axis=-1), []
    for lag in range(t):
        products = xp.permute_dims(dy[..., lag:] * u[..., : t - lag], (1, 0, 2))
        lags.append(xp.sum(xp.reshape(products, (d, b * (t - lag))), axis=-1))
    return du, xp.stack(lags, axis=-1) if lags else xp.zeros((d, 0), dtype=u.dtype)


def check(u: Any, K: Any) -> None:
    """Raises: ValueError, as `fft_convolve`."""
    lead = list(zip(reversed(u.shape[:-1]), reversed(K.shape[:-1]), strict=False))
    if not (u.shape and K.shape) or u.shape[-1] != K.shape[-1] or any(a != b and 1 not in (a, b) for a, b in lead):
        raise ValueError(
            f"u and K must be as long as each other, the other axes broadcast, not {u.shape} and {K.shape}"
        )
