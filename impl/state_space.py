"""Linear state spaces in torch, for CPU and CUDA, differentiable in every input and through the last state.

    x_k = Ab x_{k-1} + Bb u_k,    y_k = C x_k;        K_l = C Ab**l Bb

Powers of Ab come from repeated squaring. The scan goes in chunks: within one it is a product with the matrix of the
kernel, from one to the next the recurrence of a power of Ab. So the matrix meets a state once for a chunk and not once
for a position, and no more of the states is kept than one for a chunk. The kernel is a product of rows C Ab**i with
columns Ab**(s j) Bb, of about sqrt(length) each.

Axes: b batch, t position or lag, n state.

Error: within the bounds of the forms "chunked" and "doubling": float32 at least, one rounding at the end.
Source: A. Gu et al., S4, arXiv:2111.00396, equations 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assay.impl.inputs import floating
from assay.impl.kernel import kernel
from assay.impl.strides import answered_nearby


EVERY = ("float64", "float32", "bfloat16", "float16")
CHUNK = 64
"""Positions of a chunk: a power of two."""


@kernel("ssm_scan", form="chunked", dtypes=EVERY)
def ssm_scan(u: Tensor, Ab: Tensor, Bb: Tensor, C: Tensor, *, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y[b, t] and the last state[b, n], of u[b, t], Ab[n, n], Bb[n], C[n] and the state[b, n] before the first.

    Raises: ValueError for shapes that do not fit each other, TypeError for an integer dtype.
    """
    check(Ab, Bb, C, u=u) if state is None else check(Ab, Bb, C, u=u, state=state)
    if u.ndim != 2 or (state is not None and state.shape != (len(u), len(C))):
        raise ValueError("u must have the axes [b, t], and state [b, n]")
    wide, (b, t), n = torch.promote_types(u.dtype, torch.float32), u.shape, len(C)
    x = u.new_zeros(b, n, dtype=wide) if state is None else state.to(wide)
    if not t:
        return torch.empty_like(u), x.to(u.dtype, copy=True)
    values, a, columns, rows = u.to(wide), Ab.to(wide), Bb.to(wide).contiguous(), C.to(wide).contiguous()
    size = min(CHUNK, 1 << (t - 1).bit_length())
    powers = squares(a, size)
    into = doubled(powers, columns[:, None], size)
    out = a.mT @ doubled([p.mT for p in powers], rows[:, None], size)
    response, backwards = toeplitz(rows @ into), into.flip(1).mT
    whole, rest = divmod(t, size)
    pieces = []
    if whole:
        chunks = values[:, : whole * size].reshape(b, whole, size)
        before = []
        for entered in (chunks @ backwards).unbind(1):
            before.append(x)
            x = torch.addmm(entered, x, powers[-1].mT)
        pieces.append((chunks @ response.mT + torch.stack(before, dim=1) @ out).flatten(1))
    if rest:
        last, kept = values[:, whole * size :], x
        pieces.append(last @ response[:rest, :rest].mT + x @ out[:, :rest])
        for i, power in enumerate(powers):
            kept = kept @ power.mT if rest >> i & 1 else kept
        x = last @ backwards[size - rest :] + kept
    return answered_nearby(torch.cat(pieces, dim=1).to(u.dtype)), answered_nearby(x.to(u.dtype))


@kernel("ssm_kernel", form="doubling", dtypes=EVERY)
def ssm_kernel(Ab: Tensor, Bb: Tensor, C: Tensor, length: int) -> Tensor:
    """K[length], of Ab[n, n], Bb[n] and C[n].

    Raises: ValueError for shapes that do not fit each other or a negative length, TypeError for an integer dtype.
    """
    check(Ab, Bb, C)
    if length < 0:
        raise ValueError(f"the length must not be negative, as {length} is")
    wide = torch.promote_types(Ab.dtype, torch.float32)
    a, columns, rows = Ab.to(wide), Bb.to(wide).contiguous(), C.to(wide).contiguous()
    size = 1
    while size * size < length:
        size *= 2
    near, count = squares(a, size), -(-length // size)
    near_rows = doubled([p.mT for p in near], rows[:, None], size)
    far = doubled(squares(near[-1], count), columns[:, None], count)
    return (far.mT @ near_rows).flatten()[:length].to(Ab.dtype, copy=True)


def squares(a: Tensor, count: int) -> list[Tensor]:
    """a, a**2, a**4, ..., up to the first power that is `count` or more."""
    found = [a]
    while 1 << (len(found) - 1) < count:
        found.append(found[-1] @ found[-1])
    return found


def doubled(powers: Sequence[Tensor], x: Tensor, count: int) -> Tensor:
    """The first `count` of the columns x, a x, a**2 x, ..., [n, count], of x[n, 1] and the squares of a."""
    for power in powers:
        if x.shape[1] < count:
            x = torch.cat((x, power @ x), dim=1)
    return x[:, :count]


def toeplitz(response: Tensor) -> Tensor:
    """T[t, t] with T_kj = response[k - j], 0 above the diagonal."""
    t = len(response)
    line = torch.cat((response.flip(0), response.new_zeros(t)))
    return line.unfold(0, t, 1)[:t].flip(0)


def check(Ab: Tensor, Bb: Tensor, C: Tensor, **others: Tensor) -> None:
    """Raises: TypeError, ValueError, as the kernels."""
    floating(Ab=Ab, Bb=Bb, C=C, **others)
    n = len(Bb) if Bb.ndim == 1 else -1
    if Ab.shape != (n, n) or C.shape != (n,):
        raise ValueError(f"Ab must be [n, n], Bb and C [n], not {list(Ab.shape)}, {list(Bb.shape)} and {list(C.shape)}")
