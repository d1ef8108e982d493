"""Selective scans of the kind that people write, right and wrong, for the suite to judge.

All take the arguments of the operator, and compute in float32 at least.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


Scan = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z[b, d, n, t], x[b, d, n, t], state[b, d, n]) -> h[b, d, n, t]."""


def one_by_one(z: Tensor, x: Tensor, state: Tensor) -> Tensor:
    a, states = z.exp(), []
    for k in range(z.shape[-1]):
        state = a[..., k] * state + x[..., k]
        states.append(state)
    return torch.stack(states, dim=-1)


def by_doubling(z: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """In log2 t rounds, each of which doubles how far back a position has seen."""
    a, h, reach = z.exp(), x, 1
    while reach < z.shape[-1]:
        h = torch.cat((h[..., :reach], h[..., reach:] + a[..., reach:] * h[..., :-reach]), dim=-1)
        a = torch.cat((a[..., :reach], a[..., reach:] * a[..., :-reach]), dim=-1)
        reach *= 2
    return h + a * state[..., None]


def by_differences(size: int) -> Scan:
    """Cumulative sums of the logarithms of decays in chunks of `size`, and their differences."""

    def scan(z: Tensor, x: Tensor, state: Tensor) -> Tensor:
        states = []
        for start in range(0, z.shape[-1], size):
            to, entered = z[..., start : start + size].cumsum(dim=-1), x[..., start : start + size]
            hidden = torch.ones(to.shape[-1], to.shape[-1], dtype=torch.bool).triu(1)
            weights = (to[..., :, None] - to[..., None, :]).masked_fill(hidden, -torch.inf).exp()
            states.append((weights @ entered[..., None])[..., 0] + to.exp() * state[..., None])
            state = states[-1][..., -1]
        return torch.cat(states, dim=-1)

    return scan


def by_quotients(z: Tensor, x: Tensor, state: Tensor) -> Tensor:
    """exp(S_k) sum_j x_j / exp(S_j), with S the sum so far: what has decayed away divides by 0."""
    decay = z.cumsum(dim=-1).exp()
    return decay * (state[..., None] + (x / decay).cumsum(dim=-1))


def kernel(
    scan: Scan,
    *,
    entering: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda u, delta, B: (
        delta[:, :, None] * u[:, :, None] * B[:, None]
    ),
    wide: torch.dtype = torch.float32,
    change: Callable[..., dict[str, Any]] = lambda **given: {},
    returned: Callable[[Tensor, Tensor], Tensor] = lambda h, state: h[..., -1],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A kernel whose states are computed in one way."""

    def function(
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        D: Tensor | None = None,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        dtype, at_least = u.dtype, torch.promote_types(u.dtype, wide)
        given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "state": state}
        given = {n: None if x is None else x.to(at_least) for n, x in given.items()}
        given |= change(**given)
        u, delta, A, B, C, D, state = given.values()  # type: ignore[assignment]
        start = u.new_zeros(*u.shape[:2], A.shape[1]) if state is None else state
        h = scan(delta[:, :, None] * A[:, :, None], entering(u, delta, B), start)
        y = torch.einsum("bdnt,bnt->bdt", h, C)
        y = y if D is None else y + u * D[:, None]
        return y.to(dtype), returned(h, start).to(dtype)

    return function


steps = kernel(one_by_one)

RIGHT: dict[str, tuple[Callable[..., Any], str]] = {
    "steps": (steps, "sequential"),
    "reference_of_mamba": (
        kernel(one_by_one, entering=lambda u, delta, B: torch.einsum("bdl,bnl,bdl->bdnl", delta, B, u)),
        "sequential",
    ),
    "double": (kernel(one_by_one, wide=torch.float64), "sequential"),
    "doubling": (kernel(by_doubling), "associative"),
    "differences_7": (kernel(by_differences(7)), "chunked"),
    "differences_64": (kernel(by_differences(64)), "chunked"),
}
"""Kernels with the form that each claims."""


def held(u: Tensor, delta: Tensor, B: Tensor) -> Tensor:
    """Without the step."""
    return u[:, :, None] * B[:, None]


WRONG: dict[str, tuple[Callable[..., Any], tuple[str, str] | None]] = {
    "without_step": (kernel(one_by_one, entering=held), ("slip", "input_without_step")),
    "softplus": (
        kernel(one_by_one, change=lambda delta, **rest: {"delta": torch.nn.functional.softplus(delta)}),
        ("slip", "softplus_of_delta"),
    ),
    "logarithm": (kernel(one_by_one, change=lambda A, **rest: {"A": -A.exp()}), ("slip", "minus_exponential_of_A")),
    "exchanged": (kernel(one_by_one, change=lambda B, C, **rest: {"B": C, "C": B}), ("slip", "B_and_C_exchanged")),
    "no_skip": (kernel(one_by_one, change=lambda **rest: {"D": None}), ("slip", "skip_left_out")),
    "no_state": (kernel(one_by_one, change=lambda **rest: {"state": None}), ("slip", "state_ignored")),
    "first_state": (kernel(one_by_one, returned=lambda h, state: state), ("slip", "state_before_is_returned")),
    "quotients": (kernel(by_quotients), None),
    "half_decays": (kernel(lambda z, x, state: one_by_one(z.bfloat16().float(), x, state)), None),
    "half_states": (kernel(lambda z, x, state: one_by_one(z, x, state).bfloat16().float()), None),
}
"""Kernels wrong on purpose, with what the diagnosis has to say first."""


def state_without_gradient(*given: Tensor, D: Tensor | None = None, state: Tensor | None = None) -> Any:
    """No gradient through the state that is returned."""
    y, after = steps(*given, D=D, state=state)
    return y, after.detach() + 0 * after


def step_without_gradient(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Any:
    """The step decays, and is taken for a constant where it multiplies the input."""
    return kernel(one_by_one, entering=lambda u, delta, B: held(u * delta.detach(), delta, B))(u, delta, A, B, C)
