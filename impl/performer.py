"""Random features and Performer attention in torch, for CPU and CUDA, differentiable in every tensor.

The attention works through positions in chunks, forward and backward: the features of a chunk are computed when they
are needed and never kept, so that memory grows with t (d + e) and not with the number of features. Exponents are
shifted: those of a query by the greatest of its own, those of keys by the greatest so far, with the sums rescaled where
it grows, so that nothing overflows, and nothing that counts underflows.

Axes: b batch, h head, t query position, s key position, d channel, e value channel, r random feature.

Source: K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, lemma 1, equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from assay.impl.inputs import attending, floating
from assay.impl.kernel import kernel


KINDS = ("positive", "trigonometric", "hyperbolic")
EVERY = ("float64", "float32", "bfloat16", "float16")
CHUNK = 64
"""Positions of a chunk, and a quarter of those of a chunk of a long sequence."""


@kernel("random_features", form="exponent", dtypes=EVERY)
def random_features(x: torch.Tensor, projection: torch.Tensor, *, kind: str = "positive") -> torch.Tensor:
    """phi[..., t, r], or [..., t, 2 r] for two-sided kinds, of x[..., t, d] and projection[r, d].

    Raises: ValueError for an unknown kind, or shapes that do not fit each other; TypeError for an integer dtype.
    """
    _fit(x, projection, kind)
    wide = torch.promote_types(x.dtype, torch.float32)
    y, rows = x.to(wide), projection.to(wide)
    phase, half = y @ rows.mT, y.square().sum(dim=-1, keepdim=True) / 2
    count = rows.shape[0] * (2 if kind == "hyperbolic" else 1)
    if kind == "positive":
        phi = (phase - half).exp()
    elif kind == "hyperbolic":
        phi = torch.cat([phase - half, -phase - half], dim=-1).exp()
    else:
        phi = torch.cat([phase.cos(), phase.sin()], dim=-1) * half.exp()
    out: torch.Tensor = (phi / count**0.5).to(x.dtype)
    return out


@kernel("performer_attention", form="shifted", dtypes=EVERY)
def performer_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    projection: torch.Tensor,
    *,
    kind: str = "positive",
    causal: bool = False,
    eps: float = 0.0,
) -> torch.Tensor:
    """out[b, h, t, e] of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e], projection[r, d]. `eps` is added to each feature.

    Raises: ValueError for an unknown kind, t != s where causal, or shapes that do not fit each other; TypeError for an
    integer dtype.
    """
    check(q, k, v, projection, kind, causal)
    out: torch.Tensor = _Attention.apply(q, k, v, projection, kind, causal, eps)  # type: ignore[no-untyped-call]
    return out


def check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor, kind: str, causal: bool) -> None:
    """Raises: as `performer_attention`."""
    attending(q, k, v)
    _fit(q, projection, kind)
    if causal and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal attention needs as many keys as queries, not {k.shape[-2]} and {q.shape[-2]}")


def _fit(x: torch.Tensor, projection: torch.Tensor, kind: str) -> None:
    floating(x=x, projection=projection)
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if x.ndim < 2 or projection.ndim != 2 or not projection.shape[0] or projection.shape[1] != x.shape[-1]:
        raise ValueError(f"projection{list(projection.shape)} must have rows of as many channels as x{list(x.shape)}")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        projection: torch.Tensor,
        kind: str,
        causal: bool,
        eps: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(q, k, v, projection)
        ctx.chosen = kind, causal, eps
        return forward(q, k, v, projection, kind, causal, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (*backward(g, *ctx.saved_tensors, *ctx.chosen), None, None, None)


# Features of a chunk -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Features:
    """phi = exp(exponent - top) * factor + eps of the rows of a chunk, and what its gradient needs."""

    kind: str
    projection: torch.Tensor
    scale: float
    eps: float

    def of(self, x: torch.Tensor, top: torch.Tensor | None, queries: bool) -> _Chunk:
        """`top`, of keys: the greatest exponent so far; that of a query is its own. With eps nothing is shifted."""
        y = x.to(self.projection.dtype) * self.scale
        phase, half = y @ self.projection.mT, y.square().sum(dim=-1, keepdim=True) / 2
        if self.kind == "hyperbolic":
            phase = torch.cat([phase, -phase], dim=-1)
        power = half if self.kind == "trigonometric" else phase - half
        if self.eps:
            top = torch.zeros_like(half[..., :1, :])
        elif queries:  # |y|^2 / 2 is common to the features of a query, and cancels
            power = torch.zeros_like(half) if self.kind == "trigonometric" else phase
            top = power.amax(dim=-1, keepdim=True)
        else:
            here = power.amax(dim=(-1, -2), keepdim=True)
            top = here if top is None else torch.maximum(top, here)
        grown = (power - top).exp()
        if self.kind == "trigonometric":
            grown = grown * torch.cat([phase.cos(), phase.sin()], dim=-1)
        return _Chunk(
            self, y, grown, grown + self.eps if self.eps else grown, top, lengths=not queries or bool(self.eps)
        )


@dataclass(frozen=True)
class _Chunk:
    features: _Features
    y: torch.Tensor
    """x times its scale."""
    grown: torch.Tensor
    """The features without eps."""
    phi: torch.Tensor
    top: torch.Tensor
    lengths: bool
    """Do the features depend on the length of x by themselves?"""

    def gradients(self, dphi: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of x, and of the projection. What is subtracted from exponents has no part in it."""
        own, moved = self.features, dphi * self.grown
        if own.kind == "trigonometric":
            cos, sin = self.grown.chunk(2, dim=-1)
            dcos, dsin = dphi.chunk(2, dim=-1)
            dphase = dsin * cos - dcos * sin
        elif own.kind == "hyperbolic":
            up, down = moved.chunk(2, dim=-1)
            dphase = up - down
        else:
            dphase = moved
        dy = dphase @ own.projection
        if self.lengths:
            total = moved.sum(dim=-1, keepdim=True)
            dy = dy + (total if own.kind == "trigonometric" else -total) * self.y
        return own.scale * dy, (dphase.mT @ self.y).flatten(0, -3).sum(dim=0)


# Forward and backward ------------------------------------------------------------------------------------------------


def _chunks(n: int) -> Iterator[slice]:
    size = CHUNK if n < 16 * CHUNK else 4 * CHUNK
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _with_ones(v: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
    """(v, 1): the sum of the weights is summed like a value."""
    return torch.cat([v.to(wide), torch.ones_like(v[..., :1], dtype=wide)], dim=-1)


@dataclass
class _Sums:
    """sum_j phi(k_j) (v_j, 1), [..., r, e + 1], over the keys so far, relative to exp(top)."""

    total: torch.Tensor
    top: torch.Tensor | None = None

    def reaches(self, chunk: _Chunk) -> None:
        """Relative to the greatest exponent with those of a chunk."""
        if self.top is not None:
            self.total *= (self.top - chunk.top).exp()
        self.top = chunk.top


def quotient(sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The values, and what they were divided by; 0 where that is 0."""
    weight = sums[..., -1:]
    none = weight == 0
    return (sums[..., :-1] / weight.masked_fill(none, 1)).masked_fill(none, 0), weight


def of_sums(g: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """The cotangent of the sums, of that of the output."""
    out, weight = quotient(sums)
    none = weight == 0
    both = torch.cat([g, -(g * out).sum(dim=-1, keepdim=True)], dim=-1) / weight.masked_fill(none, 1)
    return both.masked_fill(none, 0)


def _prepared(
    q: torch.Tensor, v: torch.Tensor, projection: torch.Tensor, kind: str, eps: float
) -> tuple[_Features, _Sums]:
    wide = torch.promote_types(q.dtype, torch.float32)
    features = _Features(kind, projection.to(wide), q.shape[-1] ** -0.25, eps)
    rows = projection.shape[0] * (1 if kind == "positive" else 2)
    return features, _Sums(torch.zeros(*v.shape[:-2], rows, v.shape[-1] + 1, dtype=wide, device=v.device))


def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor, kind: str, causal: bool, eps: float
) -> torch.Tensor:
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    for rows, _, _, _, sums in _scanned(q, k, v, projection, kind, causal, eps):
        out[..., rows, :] = quotient(sums)[0].to(q.dtype)
    return out


Step = tuple[slice, _Chunk, "_Chunk | None", torch.Tensor, torch.Tensor]
"""Rows, features of the queries, those of the keys if they are the same rows, sums before, sums of the queries."""


def _scanned(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, projection: torch.Tensor, kind: str, causal: bool, eps: float
) -> Iterator[Step]:
    """Chunk by chunk of queries. The sums before are changed afterwards: use them at once."""
    features, state = _prepared(q, v, projection, kind, eps)
    wide = state.total.dtype
    if not causal:
        for rows in _chunks(k.shape[-2]):
            keys = features.of(k[..., rows, :], state.top, queries=False)
            state.reaches(keys)
            state.total += keys.phi.mT @ _with_ones(v[..., rows, :], wide)
    for rows in _chunks(q.shape[-2]):
        queries = features.of(q[..., rows, :], None, queries=True)
        if not causal:
            yield rows, queries, None, state.total, queries.phi @ state.total
            continue
        keys = features.of(k[..., rows, :], state.top, queries=False)
        state.reaches(keys)
        values = _with_ones(v[..., rows, :], wide)
        within = (queries.phi @ keys.phi.mT).tril()
        yield rows, queries, keys, state.total, queries.phi @ state.total + within @ values
        state.total += keys.phi.mT @ values


def backward(
    g: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    projection: torch.Tensor,
    kind: str = "positive",
    causal: bool = False,
    eps: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of q, k, v and projection: one pass over the queries, then one back over the keys."""
    features, later = _prepared(q, v, projection, kind, eps)
    wide = later.total.dtype
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    dw = torch.zeros_like(features.projection)
    # Of the sums of each query; relative to the greatest exponent of its chunk, as these are.
    given = torch.empty(*q.shape[:-1], v.shape[-1] + 1, dtype=wide, device=q.device)
    tops: list[torch.Tensor] = []
    top = None
    for rows, queries, keys, before, sums in _scanned(q, k, v, projection, kind, causal, eps):
        given[..., rows, :] = both = of_sums(g[..., rows, :].to(wide), sums)
        dphi = both @ before.mT
        if keys is None:
            later.total += queries.phi.mT @ both
        else:
            dphi = dphi + (both @ _with_ones(v[..., rows, :], wide).mT).tril() @ keys.phi
            tops.append(keys.top)
        dx, more = queries.gradients(dphi)
        dq[..., rows, :] = dx.to(q.dtype)
        dw += more
    if not causal:
        for rows in _chunks(k.shape[-2]):
            keys = features.of(k[..., rows, :], top, queries=False)
            top = keys.top
    for number, rows in reversed(list(enumerate(_chunks(k.shape[-2])))):
        values = _with_ones(v[..., rows, :], wide)
        keys = features.of(k[..., rows, :], tops[number] if causal else top, queries=False)
        dphi, into = values @ later.total.mT, keys.phi @ later.total
        if causal:
            queries = features.of(q[..., rows, :], None, queries=True)
            both = given[..., rows, :]
            dphi = dphi + (values @ both.mT).triu() @ queries.phi
            into = into + (keys.phi @ queries.phi.mT).triu() @ both
            later.total += queries.phi.mT @ both
            if number:
                later.total *= (tops[number - 1] - tops[number]).exp()
        dx, more = keys.gradients(dphi)
        dk[..., rows, :], dv[..., rows, :] = dx.to(k.dtype), into[..., :-1].to(v.dtype)
        dw += more
    return dq, dk, dv, dw.to(projection.dtype)
