"""The projection of a history on Legendre polynomials in torch, LegS, sample by sample; differentiable in f.

euler, backward, bilinear: A is a triangle of products s_i s_j and a diagonal, so that a coefficient needs of the others
one prefix sum, S_{i-1}, and of the step before its own value and S'_{i-1}. What has one k + i is computed at once, in
one row of a skewed table: n numbers and five operations for each of t + n rows, O(n) for a sample, and no system
is solved. The derivative is the same with every arrow turned round.

zoh: M = exp(A log((k + 1) / k)) holds the products of Legendre polynomials on [0, k] with those on [0, k + 1], r times
the coefficients of P_i(r y) in P_j(y), r = k / (k + 1). These follow from the recurrence in i: O(n**2) for a sample.

Axes: t sample, n coefficient.

Error: within the derived bound of the form "rows"; of zoh, far below it.
Source: A. Gu et al., HiPPO, arXiv:2008.07669, proposition 3 and appendix E.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.impl.inputs import floating
from assay.impl.kernel import kernel


AHEAD = {"euler": 0.0, "backward": 1.0, "bilinear": 0.5}
"""The part of A/k that is taken at the new time."""
BLOCK = 64
"""Rows of the table of which coefficients are made at once."""
HELD = 1 << 20
"""The numbers of the matrices of zoh that are made at once."""


@kernel("hippo_project", form="rows", dtypes=("float64", "float32", "bfloat16", "float16"))
def hippo_project(f: Tensor, n: int, *, measure: str = "legs", method: str = "zoh") -> Tensor:
    """c[t, n], of f[t]: c_0 = f_0 e_0, and f_k moves the time from k to k + 1.

    Raises: ValueError for an unknown method, another measure or shapes that mean nothing, TypeError for integers.
    """
    floating(f=f)
    if measure != "legs":
        raise ValueError(f"only the measure legs is projected on, not {measure!r}")
    if method != "zoh" and method not in AHEAD:
        raise ValueError(f"method must be one of {', '.join(('zoh', *AHEAD))}, not {method!r}")
    if f.ndim != 1 or n < 0:
        raise ValueError(f"f must be [t] and n not negative, not {list(f.shape)} and {n}")
    wide = f.to(torch.promote_types(f.dtype, torch.float32))
    if not n or not len(f):
        return f.new_zeros(len(f), n) + 0 * f[:, None]
    c: Tensor
    if method == "zoh":
        c = _held(wide, n)
    else:
        c = _Projected.apply(wide, n, AHEAD[method])  # type: ignore[no-untyped-call]
    return c.to(f.dtype)


# The table ----------------------------------------------------------------------------------------------------------


def _factors(rows: range, n: int, ahead: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of each place of some rows, what multiplies its old value, and what the samples and sums; 0 for k < 1."""
    i = torch.arange(n, dtype=like.dtype, device=like.device)
    k = torch.arange(rows.start, rows.stop, dtype=like.dtype, device=like.device)[:, None] - i
    below = torch.where(k > 0, k + ahead * (i + 1), torch.inf)
    return (k - (1 - ahead) * (i + 1)) / below, (2 * i + 1).sqrt() / below


class _Projected(torch.autograd.Function):
    """c[t, n] of f[t]."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, n: int, ahead: float) -> Tensor:
        ctx.ahead = ahead
        t = len(f)
        root = (2 * torch.arange(n, dtype=f.dtype, device=f.device) + 1).sqrt()
        table, given = f.new_empty(t + n - 1, n), f.new_empty(n)
        # Row m sees f_{m - i} at place i.
        line = torch.cat((f.new_zeros(n - 1), f.flip(0), f.new_zeros(n - 1)))
        sums = f.new_zeros(3, n + 1)  # S_{i-1}, from place 1 on S_i: of this row, of the one before, of that before
        for start in range(0, t + n - 1, BLOCK):
            rows = range(start, min(start + BLOCK, t + n - 1))
            old, new = _factors(rows, n, ahead, f)
            for m, of_old, of_given in zip(rows, old.unbind(), new.unbind(), strict=True):
                now, last, older = sums[m % 3], sums[(m - 1) % 3], sums[(m - 2) % 3]
                c = table[m]
                if not m:
                    c.zero_()[0] = f[0]
                else:
                    at = t + n - 2 - m
                    torch.sub(line[at : at + n], older[:-1], alpha=1 - ahead, out=given)
                    given.sub_(last[:-1], alpha=ahead)
                    torch.mul(of_old, table[m - 1], out=c)
                    c.addcmul_(of_given, given)
                torch.addcmul(last[:-1], root, c, out=now[1:])
        return table.as_strided((t, n), (n, n + 1)).contiguous()

    @staticmethod
    def backward(ctx: Any, dc: Tensor) -> tuple[Tensor, None, None]:
        return _Pulled.apply(dc, ctx.ahead), None, None  # type: ignore[no-untyped-call]


class _Pulled(torch.autograd.Function):
    """The cotangent of f[t], of that of c[t, n].

    y_i = dc_i + (what multiplied c_i in the next step) y'_i + s_i Z_i,   q_i = (s_i / ...) y_i,   df_k = sum_i q_i
    Z_i = Z_{i+1} - a q_{i+1} - (1 - a) q'_{i+1}
    with a dash for the step after. Rows are those of the same table, from the last to the first.
    """

    @staticmethod
    def forward(ctx: Any, dc: Tensor, ahead: float) -> Tensor:
        ctx.ahead, ctx.n = ahead, dc.shape[1]
        t, n = dc.shape
        root = (2 * torch.arange(n, dtype=dc.dtype, device=dc.device) + 1).sqrt()
        table = dc.new_zeros(t + n - 1, n)
        table.as_strided((t, n), (n, n + 1)).copy_(dc)
        line = dc.new_zeros(t + 2 * n - 2)
        pulls, shares = dc.new_zeros(2, n + 1), dc.new_zeros(3, n + 1)  # Z_i and q_i, at place n nothing
        next_, next_old = dc.new_zeros(n), dc.new_zeros(n)
        for stop in range(t + n - 1, 0, -BLOCK):
            rows = range(max(stop - BLOCK, 0), stop)
            old, new = _factors(rows, n, ahead, dc)
            for m, of_old, of_given in zip(reversed(rows), old.flip(0).unbind(), new.flip(0).unbind(), strict=True):
                pull, q = pulls[m % 2], shares[m % 3]
                torch.sub(pulls[(m + 1) % 2, 1:], shares[(m + 1) % 3, 1:], alpha=ahead, out=pull[:-1])
                pull[:-1].sub_(shares[(m + 2) % 3, 1:], alpha=1 - ahead)
                # A place at which no sample is, before the first or after the last, has no cotangent.
                y = table[m]
                y.addcmul_(root, pull[:-1]).addcmul_(next_old, next_)
                if m >= t:
                    y[: m - t + 1] = 0
                torch.mul(of_given, y, out=q[:-1])
                at = t + n - 2 - m
                line[at : at + n].add_(q[:-1])
                next_, next_old = y, of_old
        df = line[n - 1 : n - 1 + t].flip(0)
        df[0] = table[0, 0]
        return df

    @staticmethod
    def backward(ctx: Any, df: Tensor) -> tuple[Tensor, None]:
        return _Projected.apply(df, ctx.n, ctx.ahead), None  # type: ignore[no-untyped-call]


# Matrices -----------------------------------------------------------------------------------------------------------


def _held(f: Tensor, n: int) -> Tensor:
    """c_k = M_k (c_{k-1} - f_k e_0) + f_k e_0."""
    first = torch.zeros(n, dtype=f.dtype, device=f.device)
    first[0] = 1
    c = f[0] * first
    found, size = [c], max(1, HELD // (n * n))
    for start in range(1, len(f), size):
        matrices = _moving(range(start, min(start + size, len(f))), n, f)
        for k, M in zip(range(start, len(f)), matrices.unbind(), strict=False):
            held = f[k] * first
            c = torch.addmv(held, M, c - held)
            found.append(c)
    return torch.stack(found)


def _moving(steps: range, n: int, like: Tensor) -> Tensor:
    """M_k[k, n, n] of some steps. Row i is r times P_i(r y), orthonormal on [0, 1], in the P_j(y)."""
    k = torch.arange(steps.start, steps.stop, dtype=torch.float64, device=like.device)[:, None]
    r = k / (k + 1)
    j = torch.arange(n + 1, dtype=torch.float64, device=like.device)
    beside = j / (2 * (4 * j * j - 1).abs().sqrt())  # y P_j = beside_{j+1} P_{j+1} + P_j / 2 + beside_j P_{j-1}
    rows = [torch.zeros(len(r), n, dtype=torch.float64, device=like.device)] * 2
    rows[1] = r * (j[:n] == 0)
    for i in range(n - 1):
        last, row = rows[-2:]
        moved = row / 2
        moved[:, 1:] += beside[1:n] * row[:, :-1]
        moved[:, :-1] += beside[1:n] * row[:, 1:]
        rows.append((r * moved - row / 2 - beside[i] * last) / beside[i + 1])
    return torch.stack(rows[1:], dim=1).to(like.dtype)
