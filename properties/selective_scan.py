"""The contract of `selective_scan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Definition, Operator, Property, Sizes, Structure, Tensor, Work
from assay.properties.drawing import Values, place
from assay.properties.emulated import computing
from assay.properties.laws import adds_in, few_bits
from assay.properties.trial import Trial
from assay.properties.truth import JUDGE
from assay.reference import selective_scan as reference
from assay.reference.arithmetic.array import Array, vanishes
from assay.reference.arithmetic.precision import Format


CHUNKS = (16, 64)
FORGETS = 1024.0
"""A step so long that exp(-FORGETS) is 0 in every dtype."""


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """With D and a state, or without."""
    return Structure(given=tuple(name for name in ("D", "state") if supports(name) and draw(st.booleans())))


# Regimes: A is negative and delta is not, in all of them, as in Mamba. --------------------------------------------


def _steps(draw_steps: Callable[..., Values], draw_rates: Callable[..., Values]) -> Callable[..., dict[str, Values]]:
    """delta and A as drawn, and ordinary numbers for the rest."""

    def regime(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Values]:
        out = {name: random.standard_normal(shape) for name, shape in shapes.items()}
        return out | {"delta": draw_steps(random, shapes["delta"]), "A": -draw_rates(random, shapes["A"])}

    return regime


def _log_uniform(low: float, high: float) -> Callable[..., Values]:
    return lambda random, shape: np.exp(random.uniform(np.log(low), np.log(high), shape))


def _of_mamba(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """1, 2, ..., n in every channel."""
    return np.broadcast_to(1.0 + np.arange(shape[1]), shape)


def _extreme(random: np.random.Generator, shape: tuple[int, ...]) -> Values:
    """Most of it ordinary, some steps of no length, some of hardly any, and some that forget everything."""
    ordinary = random.uniform(0.01, 1, shape)
    special = random.choice((0.0, 2.0**-14, 64.0, 1024.0), shape)
    return np.where(random.random(shape) < 0.3, special, ordinary)


# Slips ---------------------------------------------------------------------------------------------------------------


def _scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    *,
    D: Any = None,
    state: Any = None,
    decays: Callable[[Any], Any] = lambda z: z,
    entering: Callable[..., Any] | None = None,
    before: Callable[[Any], Any] = lambda state: state,
    forgets: int = 0,
    decays_input: bool = False,
    read: Callable[[Any, Any], Any] = lambda states, state: states,
    returned: Callable[[list[Any], Any], Any] = lambda states, state: states[-1],
    skip: Callable[[Any, Any], Any] = lambda D, u: D[:, None] * u,
) -> tuple[Any, Any]:
    """The definition with one thing changed: the logarithms of the decays, what enters, the state before, after how
    many positions it is forgotten, what decays, which states are read, which one is returned, and what D adds."""
    xp = u.xp
    reference.check(u, delta, A, B, C, D, state)
    z, x = reference.exponents_and_inputs(u, delta, A, B)
    if not u.shape[-1]:
        return reference.selective_scan(u, delta, A, B, C, D=D, state=state)
    a, x = xp.exp(decays(z)), x if entering is None else entering(u, delta, A, B)
    zero = xp.zeros(x.shape[:-1])
    start = h = before(zero if state is None else state)
    states = []
    for k in range(u.shape[-1]):
        h = zero if forgets and k and not k % forgets else h
        h = a[..., k] * (h + x[..., k]) if decays_input else a[..., k] * h + x[..., k]
        states.append(h)
    y = reference.read(xp.stack(read(states, start), axis=-1), C)
    return y if D is None else y + skip(D, u), returned(states, start)


def _changed(change: Callable[..., dict[str, Any]]) -> Definition:
    """The definition at other arguments."""

    def slip(u: Any, delta: Any, A: Any, B: Any, C: Any, *, D: Any = None, state: Any = None) -> Any:
        given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "state": state}
        return reference.selective_scan(**given | change(**given))

    return slip


def _held(u: Any, delta: Any, A: Any, B: Any) -> Any:
    """(exp(delta A) - 1) / A B u."""
    xp = u.xp
    none = vanishes(A)
    rate = xp.where(none, xp.ones_like(A), A)[None, :, :, None]
    step = delta[:, :, None, :]
    length = xp.where(none[None, :, :, None], step * xp.ones_like(rate), xp.expm1(step * rate) / rate)
    return length * B[:, None] * u[:, :, None]


def _softplus(delta: Any) -> Any:
    xp = delta.xp
    return xp.maximum(delta, xp.zeros_like(delta)) + xp.log1p(xp.exp(-abs(delta)))


def _late(z: Any) -> Any:
    """The decays of the position before; nothing decays at the first."""
    xp = z.xp
    return xp.concat([xp.zeros_like(z[..., :1]), z[..., :-1]], axis=-1)


def _backwards(u: Any, delta: Any, A: Any, B: Any, C: Any, *, D: Any = None, state: Any = None) -> Any:
    """From the last position to the first."""
    xp = u.xp
    turned = [xp.flip(x, axis=-1) for x in (u, delta, B, C)]
    y, after = reference.selective_scan(turned[0], turned[1], A, turned[2], turned[3], D=D, state=state)
    return xp.flip(y, axis=-1), after


# Properties ----------------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> tuple[Values, ...]:
    return tuple(trial.case.arguments[name] for name in ("u", "delta", "A", "B", "C"))


def _without(trial: Trial, name: str) -> dict[str, Any]:
    """The change of arguments that makes D or the state 0; nothing where there is none."""
    x = trial.case.arguments.get(name)
    return {} if x is None else {name: np.zeros_like(x)}


def _from_nothing(trial: Trial) -> dict[str, Any]:
    return _without(trial, "state")


def _no_step(trial: Trial) -> Array | None:
    state = trial.case.arguments.get("state")
    if state is None:
        return None
    return trial.calls(delta=np.zeros_like(_arrays(trial)[1]))[1] - trial.given(state)


def _long_step(trial: Trial) -> Array | None:
    """After a step that forgets everything, y is that of its position alone."""
    u, delta, A, B, C = _arrays(trial)
    if not u.shape[-1]:
        return None
    k = trial.case.seed % u.shape[-1]
    forgetting = np.array(delta)
    forgetting[..., k] = FORGETS
    rates = trial.rounded(np.asarray(-1 - np.random.default_rng(trial.case.seed).random(A.shape)))
    here = slice(k, k + 1)
    whole = trial.call(delta=forgetting, A=rates)
    cut = {"u": u[..., here], "delta": forgetting[..., here], "B": B[..., here], "C": C[..., here]}
    return whole[..., here] - trial.call(**cut, A=rates, **_without(trial, "state"))


def _steps_add(trial: Trial) -> Array | None:
    """Without input, two steps are one that is as long as both."""
    state, (u, delta, _, B, C) = trial.case.arguments.get("state"), _arrays(trial)
    if state is None or u.shape[-1] < 2:
        return None
    steps = trial.rounded(np.asarray(np.random.default_rng(trial.case.seed).integers(0, 5, delta.shape) / 4))
    nothing = np.zeros_like(u)
    one = trial.rounded(np.add.reduce(steps.astype(np.float64), axis=-1, keepdims=True))
    first = {"u": nothing[..., :1], "B": B[..., :1], "C": C[..., :1]}
    return trial.calls(u=nothing, delta=steps)[1] - trial.calls(**first, delta=one)[1]


def _no_decay(trial: Trial) -> Array | None:
    """A = 0, numbers of few bits: sum_{j <= k} <C_k, B_j> delta_j u_j + D u_k, which is linear attention."""
    u, delta, A, B, C = _arrays(trial)
    given = {"u": u, "delta": delta, "B": B, "C": C}
    few = [few_bits(trial, x.shape, number, most=16) for number, x in enumerate(given.values())]
    values, steps, columns, rows = few
    changes = {name: trial.rounded(x) for name, x in zip(given, few, strict=True)} | _without(trial, "state")
    y = trial.call(**changes, A=np.zeros_like(A))
    weights = np.einsum("bnk,bnj->bkj", rows, columns) * np.tri(u.shape[-1])
    exact = np.einsum("bkj,bdj->bdk", weights, steps * values)
    skip = trial.case.arguments.get("D")
    if skip is None:
        return y - trial.given(exact)
    return y - trial.given(exact) - trial.given(skip)[:, None] * trial.given(values)


def _constant(trial: Trial) -> Array | None:
    """The same step, input and output everywhere: y of the input, one position late, is y one position late."""
    u, delta, _, B, C = _arrays(trial)
    if u.shape[-1] < 2:
        return None
    same = {n: np.repeat(x[..., :1], u.shape[-1], axis=-1) for n, x in (("delta", delta), ("B", B), ("C", C))}
    late = np.concatenate([np.zeros_like(u[..., :1]), u[..., :-1]], axis=-1)
    changes = same | _without(trial, "state")
    return trial.call(**changes, u=late)[..., 1:] - trial.call(**changes)[..., :-1]


def _states_add(trial: Trial) -> Array | None:
    """y is the sum of what the states contribute, each by itself."""
    _, _, A, B, C = _arrays(trial)
    n, state = A.shape[1], trial.case.arguments.get("state")
    if n < 2:
        return None
    cut = 1 + trial.case.seed % (n - 1)
    skip = _without(trial, "D")

    def part(which: slice) -> Array:
        own = {} if state is None else {"state": state[..., which]}
        return trial.call(A=A[:, which], B=B[:, which], C=C[:, which], **own, **skip)

    return trial.call(**skip) - part(slice(cut)) - part(slice(cut, None))


def _channels(trial: Trial) -> Array | None:
    """A channel alone is what it is among others."""
    u, delta, A, _, _ = _arrays(trial)
    if u.shape[1] < 2:
        return None
    here = slice(trial.case.seed % u.shape[1], trial.case.seed % u.shape[1] + 1)
    own = {"u": u[:, here], "delta": delta[:, here], "A": A[here]}
    for name in ("D", "state"):
        x = trial.case.arguments.get(name)
        if x is not None:
            own[name] = x[here] if name == "D" else x[:, here]
    return trial.call()[:, here] - trial.call(**own)


def _future(trial: Trial) -> Array | None:
    """Everything after one position changes: y keeps its bits up to it."""
    t = _arrays(trial)[0].shape[-1]
    if t < 2:
        return None
    last = trial.case.seed % (t - 1)
    changes = {}
    for name, number in (("u", 64.0), ("delta", 0.5), ("B", -8.0), ("C", 3.0)):
        x = trial.case.arguments[name]
        changed = np.where(np.arange(t) > last, np.asarray(number, x.dtype), x)
        changes[name] = place(changed, trial.case.memory.get(name, "contiguous"))
    finite = np.isfinite(trial.bound[0][..., : last + 1])
    if not finite.any():
        return None
    before, after = trial.answer().outputs[0], trial.outputs(**changes)[0]
    before, after = before[..., : last + 1], after[..., : last + 1]
    with np.errstate(invalid="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
    return trial.given((~same & finite).astype(np.int64))


def _handed_over(trial: Trial) -> Array | None:
    """The state after some positions takes their place: what follows is as in the whole."""
    t = _arrays(trial)[0].shape[-1]
    if t < 2:
        return None
    cut = 1 + trial.case.seed % (t - 1)
    names = ("u", "delta", "B", "C")
    first, second = ({n: trial.case.arguments[n][..., part] for n in names} for part in (slice(cut), slice(cut, None)))
    state = trial.calls(**first)[1]
    known = trial.rounded(state.parts[0])
    rest = trial.call(**second, state=known)
    unsure = trial.carried(state, "state", **second)
    return trial.call()[..., cut:] - JUDGE.approximate(rest.parts[0], rest.parts[1] + unsure)


FORMS: dict[str, Definition] = {
    scan.__name__: reference.form(scan) for scan in (reference.sequential, reference.associative, reference.chunked)
}


def _work(*, b: int, d: int, t: int, n: int, itemsize: int, backward: bool, **rest: Any) -> Work:
    """Each state at each position: an exponential of a product, the state before and what comes in multiplied and
    added, and so what goes out. Backward: that of the cotangents, and what B, C, delta and A want of them."""
    passes, products = (2, 3) if backward else (1, 1)
    return Work(
        bytes=passes * itemsize * (3 * b * d * t + d * n + 2 * b * n * t + b * d * n),
        flops=products * 6 * b * d * t * n,
        exponentials=b * d * t * n,
    )


SELECTIVE_SCAN = Operator(
    name="selective_scan",
    definition=reference.selective_scan,
    inputs=(
        Tensor("u", "b d t"),
        Tensor("delta", "b d t"),
        Tensor("A", "d n"),
        Tensor("B", "b n t"),
        Tensor("C", "b n t"),
        Tensor("D", "d", optional=True),
        Tensor("state", "b d n", optional=True),
    ),
    forms=FORMS,
    backward=reference.backward,
    slips={
        "input_by_zero_order_hold": partial(_scan, entering=_held),
        "input_without_step": partial(
            _scan, entering=lambda u, delta, A, B: u[:, :, None] * B[:, None] * u.xp.ones_like(A)[:, :, None]
        ),
        "input_decays_too": partial(_scan, decays_input=True),
        "decay_of_the_position_before": partial(_scan, decays=_late),
        "decay_turned_to_growth": partial(_scan, decays=lambda z: -z),
        "softplus_of_delta": _changed(lambda delta, **rest: {"delta": _softplus(delta)}),
        "minus_exponential_of_A": _changed(lambda A, **rest: {"A": -A.xp.exp(A)}),
        "B_and_C_exchanged": _changed(lambda B, C, **rest: {"B": C, "C": B}),
        "skip_left_out": _changed(lambda **rest: {"D": None}),
        "skip_without_D": partial(_scan, skip=lambda D, u: u),
        "reads_the_state_before": partial(_scan, read=lambda states, start: [start, *states[:-1]]),
        "state_ignored": partial(_scan, before=lambda state: state.xp.zeros_like(state)),
        "state_before_is_returned": partial(_scan, returned=lambda states, start: start),
        "state_without_last_position": partial(_scan, returned=lambda states, start: [start, *states][-2]),
        "from_the_last_position_to_the_first": _backwards,
        **{f"chunks_of_{size}_forget_what_came_before": partial(_scan, forgets=size) for size in CHUNKS},
    },
    mutants={f"unclaimed form {name}": computing(name) for name in ("chunked",)},
    wide=(1,),
    structure=_structure,
    regimes={
        "decays": _steps(_log_uniform(1e-3, 1e-1), _of_mamba),
        "slow decays": _steps(_log_uniform(2.0**-12, 2.0**-8), _log_uniform(2.0**-12, 1)),
        "extreme steps": _steps(_extreme, _log_uniform(0.1, 16)),
    },
    properties=(
        Property("no_step_changes_nothing", "delta = 0: the last state is the first", _no_step, ("state",)),
        Property("a_long_step_forgets", "delta_k A <= -1024: y_k is that of position k alone", _long_step),
        Property("steps_add", "u = 0: steps delta_1, ..., delta_t are one of their sum", _steps_add, ("state",)),
        Property(
            "without_decay_it_is_linear_attention",
            "A = 0: y_k = sum_{j <= k} <C_k, B_j> delta_j u_j + D u_k",
            _no_decay,
        ),
        Property("what_is_constant_commutes_with_time", "delta, B and C constant: a later u, a later y", _constant),
        Property(
            "inputs_add",
            "without state: y(u + u') = y(u) + y(u')",
            adds_in("u", lambda trial: _without(trial, "state")),
        ),
        Property("states_add", "without D: y is the sum of that of some states and of that of the others", _states_add),
        Property("channels_are_apart", "a channel alone is what it is among others", _channels),
        Property("future_is_unseen", "whatever comes later, y keeps its bits", _future),
        Property(
            "state_is_handed_over", "the state after any number of positions stands for them", _handed_over, ("state",)
        ),
    ),
    work=_work,
    timed={
        "short": Structure(sizes={"b": 1, "d": 16, "t": 64, "n": 16}, regime="decays"),
        "long": Structure(sizes={"b": 1, "d": 128, "t": 2048, "n": 16}, regime="decays"),
    },
    source="A. Gu and T. Dao, Mamba, arXiv:2312.00752, section 3.2 and algorithm 2",
)
