"""Performer attention: Triton kernels for forward and backward, whose sums and projection stay in registers.

A program walks over the chunks of one head, for a block of features: within a chunk by weights, what came before it by
the sums, S = sum_j phi(k_j) (v_j, 1). Sums of blocks of features add up, one launch after the other, so that no feature
is ever stored. With G_i the cotangent of the sums of query i, u_j = (v_j, 1), and j <= i where causal,

    dphi(q_i) = sum_j <G_i, u_j> phi(k_j),   dphi(k_j) = sum_i <u_j, G_i> phi(q_i),
    dv_j = sum_i <phi(k_j), phi(q_i)> G_i

and the gradients of x and W follow where the features are computed again. Exponents are relative to the greatest of a
query, and to the greatest of the keys so far, found by a launch of their own; the sums are rescaled where it grows.

Axes: b batch, h head, t query position, s key position, d channel, e value channel, r random feature; in a program f is
a feature, of which two-sided kinds have two for each row of W.

Error: float32 throughout, one rounding at the end: within the bound of the form "shifted".
Source: K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, lemma 1, equations 5 and 6.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from assay.impl import performer as plain
from assay.impl.kernel import kernel
from assay.impl.triton.halves import loaded


KINDS = {"positive": 0, "trigonometric": 1, "hyperbolic": 2}
CHUNK = 64
FEATURES = 64
"""Of one launch: with 64 value channels, 4096 numbers of the sums in registers."""
WIDEST = 256


# Features ------------------------------------------------------------------------------------------------------------


@triton.jit
def _directions(w, f, r, d, D: tl.constexpr, KIND: tl.constexpr, INTERPRETED: tl.constexpr):
    """The rows of W of some features, negative for the second side of hyperbolic ones."""
    rows = loaded(w, tl.where(f < r, f, f - r), d, tl.arange(0, D), 1, r, d, INTERPRETED)
    return tl.where((f >= r)[:, None], -rows, rows) if KIND == 2 else rows


@triton.jit
def _power(y, phase, QUERIES: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr):
    """The exponents. That of |y|^2 / 2 is common to the features of a query, and cancels unless eps is added."""
    half = tl.sum(y * y, 1)[:, None] / 2
    if KIND == 1:
        return half + tl.zeros_like(phase) if EPS or not QUERIES else tl.zeros_like(phase)
    return phase if QUERIES and not EPS else phase - half


@triton.jit
def _features(
    x, rows, x_t, x_d, t, d, scale, directions, f, r, count, top, eps,
    D: tl.constexpr, QUERIES: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """y = scale x [C, D]; the features without eps, their derivatives by the phase, and the features, [C, F]."""
    y = loaded(x, rows, x_t, tl.arange(0, D), x_d, t, d, INTERPRETED) * scale
    phase = tl.dot(y, tl.trans(directions), input_precision="ieee")
    real = (rows < t)[:, None] & (f < count)[None, :]
    grown = tl.where(real, tl.exp(_power(y, phase, QUERIES, KIND, EPS) - top), 0.0)
    turned = grown
    if KIND == 1:
        cos, sin, second = tl.cos(phase), tl.sin(phase), (f >= r)[None, :]
        turned = grown * tl.where(second, cos, -sin)
        grown = grown * tl.where(second, sin, cos)
    return y, grown, turned, tl.where(real, grown + eps, 0.0) if EPS else grown


@triton.jit
def _pulled(dphi, y, grown, turned, directions, QUERIES: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr):
    """The gradients of y [C, D] and of the directions [F, D]. What is subtracted from exponents has no part in it."""
    dphase = dphi * turned
    dy = tl.dot(dphase, directions, input_precision="ieee")
    if EPS or not QUERIES:
        length = tl.sum(dphi * grown, 1)[:, None] * y
        dy = dy + length if KIND == 1 else dy - length
    return dy, tl.dot(tl.trans(dphase), y, input_precision="ieee")


@triton.jit
def _greatest(
    x, w, out, x_p, x_t, x_d, t, d, r, count, scale,
    QUERIES: tl.constexpr, KIND: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, F: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The greatest exponent of each row."""
    head = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * C + tl.arange(0, C)
    y = loaded(x + head * x_p, rows, x_t, tl.arange(0, D), x_d, t, d, INTERPRETED) * scale
    top = tl.full((C,), float("-inf"), tl.float32)
    for first in range(0, count, F):
        f = first + tl.arange(0, F)
        phase = tl.dot(y, tl.trans(_directions(w, f, r, d, D, KIND, INTERPRETED)), input_precision="ieee")
        power = tl.where((f < count)[None, :], _power(y, phase, QUERIES, KIND, False), float("-inf"))
        top = tl.maximum(top, tl.max(power, 1))
    tl.store(out + head * t + rows, top, mask=rows < t)


# Forward and backward, of a block of features ------------------------------------------------------------------------


@triton.jit
def _of_all_keys(
    k, v, k_t, k_d, v_t, v_e, s, d, e, scale, directions, f, r, count, top, eps,
    KIND: tl.constexpr, EPS: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, F: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """sum_j phi(k_j) v_j [F, E], and sum_j phi(k_j) [F]."""
    sums, weights = tl.zeros((F, E), tl.float32), tl.zeros((F,), tl.float32)
    for number in range(tl.cdiv(s, C)):
        rows = number * C + tl.arange(0, C)
        _, _, _, of_k = _features(
            k, rows, k_t, k_d, s, d, scale, directions, f, r, count, top, eps, D, False, KIND, EPS, INTERPRETED
        )
        of_v = loaded(v, rows, v_t, tl.arange(0, E), v_e, s, e, INTERPRETED)
        sums += tl.dot(tl.trans(of_k), of_v, input_precision="ieee")
        weights += tl.sum(of_k, 0)
    return sums, weights


@triton.jit
def _forward(
    q, k, v, w, top_q, top_k, out,
    q_p, q_t, q_d, k_p, k_t, k_d, v_p, v_t, v_e,
    t, s, d, e, r, count, first, scale, eps,
    CAUSAL: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, F: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add to `out`, contiguous, [t, e + 1] of each head: the last column is that of the weights."""
    head = tl.program_id(0).to(tl.int64)
    q, k, v, out = q + head * q_p, k + head * k_p, v + head * v_p, out + head * t * (e + 1)
    chunks = tl.cdiv(s, C)
    top_q, top_k = top_q + head * t, top_k + head * chunks
    f, n, place = first + tl.arange(0, F), tl.arange(0, E), tl.arange(0, C)
    directions = _directions(w, f, r, d, D, KIND, INTERPRETED)
    sums, weights = tl.zeros((F, E), tl.float32), tl.zeros((F,), tl.float32)
    if not CAUSAL:
        top = tl.load(top_k + chunks - 1)
        sums, weights = _of_all_keys(
            k, v, k_t, k_d, v_t, v_e, s, d, e, scale, directions, f, r, count, top, eps, KIND, EPS, C, D, E, F,
            INTERPRETED,
        )  # fmt: skip
    before = tl.load(top_k)
    for number in range(tl.cdiv(t, C)):
        rows = number * C + place
        own = tl.load(top_q + rows, mask=rows < t, other=0.0)[:, None]
        _, _, _, of_q = _features(
            q, rows, q_t, q_d, t, d, scale, directions, f, r, count, own, eps, D, True, KIND, EPS, INTERPRETED
        )
        if CAUSAL:
            top = tl.load(top_k + number)
            sums, weights = sums * tl.exp(before - top), weights * tl.exp(before - top)
            before = top
        value = tl.dot(of_q, sums, input_precision="ieee")
        weight = tl.sum(of_q * weights[None, :], 1)
        if CAUSAL:
            _, _, _, of_k = _features(
                k, rows, k_t, k_d, s, d, scale, directions, f, r, count, top, eps, D, False, KIND, EPS, INTERPRETED
            )
            of_v = loaded(v, rows, v_t, n, v_e, s, e, INTERPRETED)
            within = tl.dot(of_q, tl.trans(of_k), input_precision="ieee")
            within = tl.where(place[:, None] >= place[None, :], within, 0.0)
            value += tl.dot(within, of_v, input_precision="ieee")
            weight += tl.sum(within, 1)
            sums += tl.dot(tl.trans(of_k), of_v, input_precision="ieee")
            weights += tl.sum(of_k, 0)
        at = out + rows[:, None] * (e + 1) + n[None, :]
        real = (rows < t)[:, None] & (n < e)[None, :]
        tl.store(at, tl.load(at, mask=real, other=0.0) + value, mask=real)
        at = out + rows * (e + 1) + e
        tl.store(at, tl.load(at, mask=rows < t, other=0.0) + weight, mask=rows < t)


@triton.jit
def _of_queries(
    q, k, v, w, top_q, top_k, g, dq, dw,
    q_p, q_t, q_d, k_p, k_t, k_d, v_p, v_t, v_e,
    t, s, d, e, r, count, first, scale, eps,
    CAUSAL: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, F: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add to dq [t, d] of each head, and write what queries give to dw [count, d] of each head; these and g [t, e + 1]
    are contiguous. Chunks are gone through from the first."""
    head = tl.program_id(0).to(tl.int64)
    q, k, v, g, dq = q + head * q_p, k + head * k_p, v + head * v_p, g + head * t * (e + 1), dq + head * t * d
    chunks = tl.cdiv(s, C)
    top_q, top_k = top_q + head * t, top_k + head * chunks
    f, n, c, place = first + tl.arange(0, F), tl.arange(0, E), tl.arange(0, D), tl.arange(0, C)
    directions = _directions(w, f, r, d, D, KIND, INTERPRETED)
    sums, weights = tl.zeros((F, E), tl.float32), tl.zeros((F,), tl.float32)
    of_w = tl.zeros((F, D), tl.float32)
    if not CAUSAL:
        top = tl.load(top_k + chunks - 1)
        sums, weights = _of_all_keys(
            k, v, k_t, k_d, v_t, v_e, s, d, e, scale, directions, f, r, count, top, eps, KIND, EPS, C, D, E, F,
            INTERPRETED,
        )  # fmt: skip
    before = tl.load(top_k)
    for number in range(tl.cdiv(t, C)):
        rows = number * C + place
        own = tl.load(top_q + rows, mask=rows < t, other=0.0)[:, None]
        y, grown, turned, _ = _features(
            q, rows, q_t, q_d, t, d, scale, directions, f, r, count, own, eps, D, True, KIND, EPS, INTERPRETED
        )
        of_g = loaded(g, rows, e + 1, n, 1, t, e, INTERPRETED)
        last = tl.load(g + rows * (e + 1) + e, mask=rows < t, other=0.0)
        if CAUSAL:
            top = tl.load(top_k + number)
            sums, weights = sums * tl.exp(before - top), weights * tl.exp(before - top)
            before = top
        dphi = tl.dot(of_g, tl.trans(sums), input_precision="ieee") + last[:, None] * weights[None, :]
        if CAUSAL:
            _, _, _, of_k = _features(
                k, rows, k_t, k_d, s, d, scale, directions, f, r, count, top, eps, D, False, KIND, EPS, INTERPRETED
            )
            of_v = loaded(v, rows, v_t, n, v_e, s, e, INTERPRETED)
            of_weights = tl.dot(of_g, tl.trans(of_v), input_precision="ieee") + last[:, None]
            of_weights = tl.where(place[:, None] >= place[None, :], of_weights, 0.0)
            dphi += tl.dot(of_weights, of_k, input_precision="ieee")
            sums += tl.dot(tl.trans(of_k), of_v, input_precision="ieee")
            weights += tl.sum(of_k, 0)
        dy, more = _pulled(dphi, y, grown, turned, directions, True, KIND, EPS)
        of_w += more
        at, real = dq + rows[:, None] * d + c[None, :], (rows < t)[:, None] & (c < d)[None, :]
        tl.store(at, tl.load(at, mask=real, other=0.0) + scale * dy, mask=real)
    real = (f < count)[:, None] & (c < d)[None, :]
    tl.store(dw + head * count * d + f[:, None] * d + c[None, :], of_w, mask=real)


@triton.jit
def _of_keys(
    q, k, v, w, top_q, top_k, g, dk, dv, dw,
    q_p, q_t, q_d, k_p, k_t, k_d, v_p, v_t, v_e,
    t, s, d, e, r, count, first, scale, eps,
    CAUSAL: tl.constexpr, KIND: tl.constexpr, EPS: tl.constexpr,
    C: tl.constexpr, D: tl.constexpr, E: tl.constexpr, F: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add to dk [s, d] and dv [s, e] of each head, and what keys give to dw. Chunks are gone through from the last."""
    head = tl.program_id(0).to(tl.int64)
    q, k, v, g = q + head * q_p, k + head * k_p, v + head * v_p, g + head * t * (e + 1)
    dk, dv = dk + head * s * d, dv + head * s * e
    chunks = tl.cdiv(s, C)
    top_q, top_k = top_q + head * t, top_k + head * chunks
    f, n, c, place = first + tl.arange(0, F), tl.arange(0, E), tl.arange(0, D), tl.arange(0, C)
    directions = _directions(w, f, r, d, D, KIND, INTERPRETED)
    sums, weights = tl.zeros((F, E), tl.float32), tl.zeros((F,), tl.float32)
    of_w = tl.zeros((F, D), tl.float32)
    if not CAUSAL:
        for number in range(tl.cdiv(t, C)):
            rows = number * C + place
            own = tl.load(top_q + rows, mask=rows < t, other=0.0)[:, None]
            _, _, _, of_q = _features(
                q, rows, q_t, q_d, t, d, scale, directions, f, r, count, own, eps, D, True, KIND, EPS, INTERPRETED
            )
            of_g = loaded(g, rows, e + 1, n, 1, t, e, INTERPRETED)
            last = tl.load(g + rows * (e + 1) + e, mask=rows < t, other=0.0)
            sums += tl.dot(tl.trans(of_q), of_g, input_precision="ieee")
            weights += tl.sum(of_q * last[:, None], 0)
    top = tl.load(top_k + chunks - 1)
    after = top
    for back in range(chunks):
        number = chunks - 1 - back
        rows = number * C + place
        if CAUSAL:
            top = tl.load(top_k + number)
            sums, weights = sums * tl.exp(top - after), weights * tl.exp(top - after)
            after = top
        y, grown, turned, of_k = _features(
            k, rows, k_t, k_d, s, d, scale, directions, f, r, count, top, eps, D, False, KIND, EPS, INTERPRETED
        )
        of_v = loaded(v, rows, v_t, n, v_e, s, e, INTERPRETED)
        dphi = tl.dot(of_v, tl.trans(sums), input_precision="ieee") + weights[None, :]
        value = tl.dot(of_k, sums, input_precision="ieee")
        if CAUSAL:
            own = tl.load(top_q + rows, mask=rows < t, other=0.0)[:, None]
            _, _, _, of_q = _features(
                q, rows, q_t, q_d, t, d, scale, directions, f, r, count, own, eps, D, True, KIND, EPS, INTERPRETED
            )
            of_g = loaded(g, rows, e + 1, n, 1, t, e, INTERPRETED)
            last = tl.load(g + rows * (e + 1) + e, mask=rows < t, other=0.0)
            seen = place[:, None] <= place[None, :]
            of_weights = tl.dot(of_v, tl.trans(of_g), input_precision="ieee") + last[None, :]
            dphi += tl.dot(tl.where(seen, of_weights, 0.0), of_q, input_precision="ieee")
            within = tl.dot(of_k, tl.trans(of_q), input_precision="ieee")
            value += tl.dot(tl.where(seen, within, 0.0), of_g, input_precision="ieee")
            sums += tl.dot(tl.trans(of_q), of_g, input_precision="ieee")
            weights += tl.sum(of_q * last[:, None], 0)
        dy, more = _pulled(dphi, y, grown, turned, directions, False, KIND, EPS)
        of_w += more
        at, real = dk + rows[:, None] * d + c[None, :], (rows < s)[:, None] & (c < d)[None, :]
        tl.store(at, tl.load(at, mask=real, other=0.0) + scale * dy, mask=real)
        at, real = dv + rows[:, None] * e + n[None, :], (rows < s)[:, None] & (n < e)[None, :]
        tl.store(at, tl.load(at, mask=real, other=0.0) + value, mask=real)
    at = dw + head * count * d + f[:, None] * d + c[None, :]
    real = (f < count)[:, None] & (c < d)[None, :]
    tl.store(at, tl.load(at, mask=real, other=0.0) + of_w, mask=real)


INTERPRETED = not isinstance(_forward, triton.JITFunction)


# Launches ------------------------------------------------------------------------------------------------------------


class _Heads:
    """The inputs with batch and heads in one axis, and what all launches are told of them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, kind: str, causal: bool, eps: float):
        self.q, self.k, self.v = (x.flatten(0, 1) for x in (q, k, v))
        self.w = projection.float().contiguous()
        (self.r, d), self.sides = projection.shape, 1 if kind == "positive" else 2
        self.scale, self.causal, self.eps = d**-0.25, causal, float(eps)
        self.sizes = q.shape[-2], k.shape[-2], d, v.shape[-1], self.r, self.r * self.sides
        self.count = len(self.q)
        self.block = {
            "KIND": KINDS[kind],
            "C": CHUNK,
            "D": max(16, triton.next_power_of_2(d)),
            "F": FEATURES,
            "INTERPRETED": INTERPRETED,
        }

    def made(self, *shape: int) -> Tensor:
        return torch.zeros(self.count, *shape, dtype=torch.float32, device=self.q.device)

    def greatest(self) -> tuple[Tensor, Tensor]:
        """The greatest exponent of each query [., t], and of the keys so far, by chunk [., s / CHUNK]."""
        t, s, d, _, r, count = self.sizes
        of_queries, of_keys = self.made(t), self.made(s)
        if self.eps:
            return of_queries, self.made(triton.cdiv(s, CHUNK))
        for x, out, queries in ((self.q, of_queries, True), (self.k, of_keys, False)):
            n = x.shape[1]
            given = x, self.w, out, *x.stride(), n, d, r, count, self.scale
            self.run(_greatest, (self.count, triton.cdiv(n, CHUNK)), *given, QUERIES=queries)
        rows = torch.nn.functional.pad(of_keys, (0, -s % CHUNK), value=-torch.inf)
        return of_queries, rows.unflatten(-1, (-1, CHUNK)).amax(dim=-1).cummax(dim=-1).values

    def launch(self, program: Any, tops: tuple[Tensor, Tensor], *rest: Tensor) -> None:
        """One launch for each block of features: what they add to is theirs in turn."""
        e = max(16, triton.next_power_of_2(self.v.shape[-1]))
        strides = (*self.q.stride(), *self.k.stride(), *self.v.stride())
        for first in range(0, self.r * self.sides, FEATURES):
            given = *strides, *self.sizes, first, self.scale, self.eps
            chosen = {"CAUSAL": self.causal, "EPS": self.eps != 0, "E": e}
            self.run(program, (self.count,), self.q, self.k, self.v, self.w, *tops, *rest, *given, **chosen)

    def run(self, program: Any, grid: tuple[int, ...], *given: Any, **chosen: Any) -> None:
        device = torch.cuda.device(self.q.device) if self.q.is_cuda else nullcontext()
        # The interpreter computes with NumPy, which would warn of the infinities that float arithmetic is to pass.
        with device, numpy.errstate(all="ignore"):
            program[grid](*given, **chosen, **self.block)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, projection: Tensor, kind: str, causal: bool, eps: float
    ) -> Tensor:
        heads = _Heads(q, k, v, projection, kind, causal, eps)
        sums = heads.made(q.shape[-2], v.shape[-1] + 1)
        tops = heads.greatest()
        heads.launch(_forward, tops, sums)
        ctx.save_for_backward(q, k, v, projection, sums, *tops)
        ctx.chosen = kind, causal, eps
        out: Tensor = plain.quotient(sums)[0].to(q.dtype).unflatten(0, q.shape[:2])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, projection, sums, *tops = ctx.saved_tensors
        heads = _Heads(q, k, v, projection, *ctx.chosen)
        (t, s, d, e, r, count), of_sums = heads.sizes, plain.of_sums(g.flatten(0, 1).float(), sums)
        dq, dk, dv, dw = heads.made(t, d), heads.made(s, d), heads.made(s, e), heads.made(count, d)
        heads.launch(_of_queries, tops, of_sums, dq, dw)
        heads.launch(_of_keys, tops, of_sums, dk, dv, dw)
        rows = dw.sum(dim=0)
        if heads.sides == 2:
            rows = rows[:r] + (-rows[r:] if ctx.chosen[0] == "hyperbolic" else rows[r:])
        gradients = (dx.to(x.dtype).unflatten(0, x.shape[:2]) for dx, x in ((dq, q), (dk, k), (dv, v)))
        return (*gradients, rows.to(projection.dtype), None, None, None)


@kernel("performer_attention", form="shifted", requires=("triton",), interpreted=True)
def performer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    *,
    kind: str = "positive",
    causal: bool = False,
    eps: float = 0.0,
) -> Tensor:
    """out[b, h, t, e] of q[b, h, t, d], k[b, h, s, d], v[b, h, s, e], projection[r, d]. `eps` is added to each feature.

    Raises: ValueError and TypeError as `assay.impl.performer`; NotImplementedError without a GPU or the interpreter,
    for float64, and from 256 channels on.
    """
    plain.check(q, k, v, projection, kind, causal)
    if not (q.is_cuda or INTERPRETED):
        raise NotImplementedError("needs a GPU, or TRITON_INTERPRET=1 before triton is imported")
    if q.dtype == torch.float64 or max(q.shape[-1], v.shape[-1]) >= WIDEST:
        raise NotImplementedError(f"takes float32, bfloat16 and float16, and fewer than {WIDEST} channels")
    if not k.shape[-2]:
        return plain.performer_attention(q, k, v, projection, kind=kind, causal=causal, eps=eps)
    out: Tensor = _Attention.apply(q, k, v, projection, kind, causal, eps)
    return out
