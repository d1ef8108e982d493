"""Linear attention kernels of the kind that people write, right and wrong, for the suite to judge.

All take q[b, h, t, d], k[b, h, s, d], v[b, h, s, e] and the keywords of the operator, and compute in float32 where
nothing else is said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


Sums = Callable[..., Tensor]
"""(a[.., t, r], b[.., s, r], c[.., s, n], causal, state or None) -> sum_j <a_i, b_j> c_j + a_i state."""


# Features ------------------------------------------------------------------------------------------------------------


def stable(x: Tensor) -> Tensor:
    """elu(x) + 1 by the exponential itself."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def as_torch_writes(x: Tensor) -> Tensor:
    return functional.elu(x) + 1


def direction(x: Tensor) -> Tensor:
    none = ~x.any(dim=-1, keepdim=True)
    norm = x.square().sum(dim=-1, keepdim=True).masked_fill(none, 1).sqrt()
    return torch.cat((torch.ones_like(x[..., :1]), (x / norm).masked_fill(none, 0)), dim=-1)


def features(q: Tensor, k: Tensor, feature_map: str, elu: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    if feature_map == "softmax":
        return q.softmax(dim=-1), k.softmax(dim=-2)
    maps = {"elu+1": elu, "relu": torch.relu, "identity": lambda x: x, "exp": torch.exp, "1+x": direction}
    return maps[feature_map](q), maps[feature_map](k)


# Sums ----------------------------------------------------------------------------------------------------------------


def by_weights(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
    weights = a @ b.mT
    out = (weights.tril() if causal else weights) @ c
    return out if state is None else out + a @ state


def nothing(b: Tensor, c: Tensor) -> Tensor:
    """A state of zeros."""
    return b.new_zeros(*b.shape[:-2], b.shape[-1], c.shape[-1])


def by_steps(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
    """One position after the other."""
    now = nothing(b, c) if state is None else state
    outs = []
    for j in range(b.shape[-2]):
        now = now + b[..., j, :, None] * c[..., j, None, :]
        if causal:
            outs.append(a[..., j : j + 1, :] @ now)
    return torch.cat(outs, dim=-2) if causal else a @ now


def by_prefix(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
    """The states at all positions by a cumulative sum."""
    if not causal:
        return a @ (b.mT @ c if state is None else state + b.mT @ c)
    states = (b[..., :, :, None] * c[..., :, None, :]).cumsum(dim=-3)
    if state is not None:
        states = states + state[..., None, :, :]
    return (a[..., None, :] @ states)[..., 0, :]


def by_doubling(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
    """The states at all positions by a scan in log2 t rounds."""
    if not causal:
        return by_prefix(a, b, c, causal, state)
    states = b[..., :, :, None] * c[..., :, None, :]
    reach = 1
    while reach < b.shape[-2]:
        earlier = states[..., :-reach, :, :]
        states = torch.cat((states[..., :reach, :, :], states[..., reach:, :, :] + earlier), dim=-3)
        reach *= 2
    if state is not None:
        states = states + state[..., None, :, :]
    return torch.einsum("...tr,...trn->...tn", a, states)


def by_chunks(size: int) -> Sums:
    """Weights within a chunk, the state for what came before it."""

    def sums(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
        now = state
        outs = []
        for start in range(0, b.shape[-2], size):
            rows = slice(start, start + size)
            if causal:
                outs.append(by_weights(a[..., rows, :], b[..., rows, :], c[..., rows, :], True, now))
            step = b[..., rows, :].mT @ c[..., rows, :]
            now = step if now is None else now + step
        return torch.cat(outs, dim=-2) if causal else a @ now

    return sums


# Kernels -------------------------------------------------------------------------------------------------------------


def attention(
    sums: Sums,
    *,
    elu: Callable[[Tensor], Tensor] = stable,
    early: bool = False,
    wide: torch.dtype = torch.float32,
    weigh: Callable[[Tensor, Tensor], Tensor] = lambda out, total: out / total,
    maps: Callable[..., tuple[Tensor, Tensor]] = features,
    returned: Callable[[Tensor], Tensor] = lambda state: state,
) -> Callable[..., Any]:
    """A kernel whose sums are computed in one way. `early`: each weight is divided, not the sum."""

    def kernel(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        feature_map: str = "elu+1",
        causal: bool = False,
        normalize: bool = True,
        eps: float = 0.0,
        denominator: str = "plus",
        state: Tensor | None = None,
        return_state: bool = False,
    ) -> Any:
        a, b = maps(q.to(wide), k.to(wide), feature_map, elu)
        values, before = v.to(wide), None if state is None else state.to(wide)
        e = v.shape[-1]
        if normalize:
            values = torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)
        if not normalize:
            out = sums(a, b, values, causal, before)
        elif feature_map == "softmax":
            out = sums(a, b, values[..., :e], causal, None)
        else:
            out = sums(a, b, values, causal, before)
            total = out[..., e:] + eps if denominator == "plus" else out[..., e:].clamp(min=eps)
            none = total == 0
            safe = total.masked_fill(none, 1)
            if early:
                weights = a @ b.mT
                weights = (weights.tril() if causal else weights) / safe
                out = weights @ values[..., :e]
                out = out if before is None else out + (a @ before[..., :e]) / safe
            else:
                out = weigh(out[..., :e], safe)
            out = out.masked_fill(none, 0)
        if not return_state:
            return out.to(q.dtype)
        after = b.mT @ values
        return out.to(q.dtype), returned(after if before is None else before + after).to(q.dtype)

    return kernel


RIGHT: dict[str, tuple[Callable[..., Any], str | None]] = {
    "weights": (attention(by_weights), "quadratic"),
    "weights_elu": (attention(by_weights, elu=as_torch_writes), "quadratic-elu"),
    "weights_early": (attention(by_weights, early=True), "quadratic"),
    "steps": (attention(by_steps), "recurrent"),
    "prefix_elu": (attention(by_prefix, elu=as_torch_writes), "recurrent-elu"),
    "doubling": (attention(by_doubling), "recurrent"),
    "chunks_3": (attention(by_chunks(3)), "chunked"),
    "chunks_64": (attention(by_chunks(64)), "chunked"),
    "chunks_inverse": (attention(by_chunks(16), weigh=lambda out, total: out * (1 / total)), "chunked"),
    "double": (attention(by_weights, wide=torch.float64), "quadratic"),
}
"""Kernels with the form that each claims."""


# Wrong ---------------------------------------------------------------------------------------------------------------


def seeing(sees: Callable[[Tensor, Tensor], Tensor]) -> Sums:
    """Weights of the keys j that query i sees, where it is causal."""

    def sums(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
        weights = a @ b.mT
        if causal:
            i, j = torch.arange(a.shape[-2])[:, None], torch.arange(b.shape[-2])[None, :]
            weights = weights.masked_fill(~sees(i, j), 0)
        out = weights @ c
        return out if state is None else out + a @ state

    return sums


def mapped(change: Callable[[Tensor, Tensor, str], tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    def maps(q: Tensor, k: Tensor, feature_map: str, elu: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return change(*features(q, k, feature_map, elu), feature_map)

    return maps


def half_states(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
    """The state in bfloat16 after every position."""
    now = nothing(b, c) if state is None else state
    outs = []
    for j in range(b.shape[-2]):
        now = (now + b[..., j, :, None] * c[..., j, None, :]).bfloat16().float()
        outs.append(a[..., j : j + 1, :] @ now)
    return torch.cat(outs, dim=-2) if causal else a @ now


def state_dropped(a: Tensor, b: Tensor, c: Tensor, causal: bool, state: Tensor | None) -> Tensor:
    return by_weights(a, b, c, causal, None)


WRONG: dict[str, tuple[Callable[..., Any], tuple[str, str] | None]] = {
    "one_ahead": (attention(seeing(lambda i, j: j <= i + 1)), ("slip", "causal_sees_one_key_ahead")),
    "strict": (attention(seeing(lambda i, j: j < i)), ("slip", "causal_hides_the_present")),
    "leaking_chunks": (
        attention(seeing(lambda i, j: j // 16 <= i // 16)),
        ("slip", "chunks_of_16_see_their_future"),
    ),
    "lonely_chunks": (
        attention(seeing(lambda i, j: (j // 64 == i // 64) & (j <= i))),
        ("slip", "chunks_of_64_forget_what_came_before"),
    ),
    "not_divided": (attention(by_weights, weigh=lambda out, total: out), ("slip", "not_normalised")),
    "multiplied": (
        attention(by_weights, weigh=lambda out, total: out * total),
        ("slip", "multiplied_by_the_denominator"),
    ),
    "without_one": (
        attention(by_weights, maps=mapped(lambda a, b, name: (a - 1, b - 1) if name == "elu+1" else (a, b))),
        ("slip", "elu_without_one"),
    ),
    "scaled": (
        attention(by_weights, maps=mapped(lambda a, b, name: (a / (a.shape[-1] - (name == "1+x")) ** 0.5, b))),
        ("slip", "queries_scaled"),
    ),
    "state_ignored": (attention(state_dropped), None),
    "state_doubled": (attention(by_weights, returned=lambda state: 2 * state), None),
    "half_states": (attention(half_states), None),
    "half_features": (
        attention(by_weights, maps=mapped(lambda a, b, name: (a.bfloat16().float(), b.bfloat16().float()))),
        None,
    ),
    "zeros": (attention(by_weights, weigh=lambda out, total: out * 0, returned=torch.zeros_like), None),
}
"""Kernels wrong on purpose, with what the diagnosis has to say first."""


def wrong_backward(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """No gradient through the denominator."""
    return attention(by_weights, weigh=lambda out, total: out / total.detach())(q, k, v, causal=causal)  # type: ignore[no-any-return]


def state_without_gradient(
    q: Tensor, k: Tensor, v: Tensor, *, state: Tensor | None = None, return_state: bool = False
) -> Any:
    """No gradient through the state that is returned."""
    kernel = attention(by_weights, returned=lambda state: state.detach() + 0 * state)
    return kernel(q, k, v, state=state, return_state=return_state)
