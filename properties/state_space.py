"""The contracts of `ssm_scan` and `ssm_kernel`, and the systems that both are judged on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Definition, Operator, Property, Sizes, Structure, Tensor, Work
from assay.properties.drawing import LONG, Values, place
from assay.properties.laws import adds_in, few_bits, longer
from assay.properties.trial import Trial
from assay.properties.truth import JUDGE
from assay.reference import state_space as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.precision import Format


LARGEST = 6
"""States of a case: nobody works on them in blocks."""
FEW = 2
"""States where there are many positions: powers of a matrix of many states differ from each other by too much."""
CHUNKS = (16, 64)
SYSTEM = ("Ab", "Bb", "C")


def _scan_structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """As many rows m as columns n, with a state or without."""
    n = min(sizes["n"], FEW if sizes["t"] >= LONG[0] else LARGEST)
    given = ("state",) if supports("state") and draw(st.booleans()) else ()
    return Structure(sizes={"m": n, "n": n}, given=given)


def _kernel_structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """Short kernels, and now and then one that is longer than a chunk."""
    long = draw(st.integers(0, 3)) == 3
    n = min(sizes["n"], FEW if long else LARGEST)
    return Structure({"length": draw(st.integers(*LONG) if long else st.integers(1, 12))}, sizes={"m": n, "n": n})


# Regimes: systems, beside those whose matrix is anything. -------------------------------------------------------------


def system(matrix: Callable[[np.random.Generator, int], Values]) -> Callable[..., dict[str, Values]]:
    """Ab as made, and ordinary numbers for the rest."""

    def regime(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Values]:
        out = {name: random.standard_normal(shape) for name, shape in shapes.items()}
        return out | {"Ab": matrix(random, shapes["C"][0])}

    return regime


def _bilinear(a: Values, dt: float) -> Values:
    one = np.eye(len(a))
    return np.asarray(np.linalg.solve(one - dt / 2 * a, one + dt / 2 * a))


def _dissipative(random: np.random.Generator, n: int) -> Values:
    """A bilinear step of -1/2 and a skew part: a contraction that turns."""
    skew = random.standard_normal((n, n))
    return _bilinear(skew - skew.T - np.eye(n) / 2, float(np.exp2(random.uniform(-8, 0))))


def _legs(random: np.random.Generator, n: int) -> Values:
    """A bilinear step of HiPPO's matrix for Legendre polynomials: far from normal."""
    i = 2 * np.arange(n) + 1.0
    a = -np.tril(np.sqrt(i[:, None] * i), -1) - np.diag((i + 1) / 2)
    return _bilinear(a, float(np.exp2(random.uniform(-8, -1))))


def _slow(random: np.random.Generator, n: int) -> Values:
    """Decays that hardly decay, apart from each other but for what one passes to the next."""
    return np.diag(1 - np.exp2(-random.integers(4, 24, n).astype(float))) + np.diag(random.uniform(0, 0.1, n - 1), -1)


def _shift(random: np.random.Generator, n: int) -> Values:
    """A delay line: what enters is forgotten after n positions."""
    return np.eye(n, k=-1)


SYSTEMS = {
    "dissipative": system(_dissipative),
    "legs": system(_legs),
    "slow decays": system(_slow),
    "delay line": system(_shift),
}


# Slips ----------------------------------------------------------------------------------------------------------------


def _at(definition: Definition, change: Callable[..., dict[str, Any]]) -> Definition:
    """A definition at other arguments."""

    def slip(*first: Any, **rest: Any) -> Any:
        return definition(**{**rest, **change(**rest)})

    return slip


def _scan(
    u: Any,
    Ab: Any,
    Bb: Any,
    C: Any,
    *,
    state: Any = None,
    decays_input: bool = False,
    before: Callable[[Any], Any] = lambda state: state,
    forgets: int = 0,
    read: Callable[[list[Any], Any], list[Any]] = lambda states, start: states,
    returned: Callable[[list[Any], Any], Any] = lambda states, start: states[-1],
    skip: bool = False,
) -> tuple[Any, Any]:
    """The definition with one thing changed: whether an input decays at once, the state before, after how many
    positions it is forgotten, which states are read, which one is returned, and whether u is added to y."""
    xp = u.xp
    reference.check(u, Ab, Bb, C, state)
    if not u.shape[1]:
        return reference.ssm_scan(u, Ab, Bb, C, state=state)
    x = reference.entered(u, Bb)
    zero = xp.zeros(x.shape[1:])
    start = now = zero if state is None else before(state.mT)
    states = []
    for k in range(u.shape[1]):
        now = zero if forgets and k and not k % forgets else now
        now = Ab @ (now + x[k]) if decays_input else Ab @ now + x[k]
        states.append(now)
    y = (xp.permute_dims(xp.stack(read(states, start), axis=0), (0, 2, 1)) @ C[:, None])[..., 0].mT
    return y + u if skip else y, returned(states, start).mT


def _backwards(u: Any, Ab: Any, Bb: Any, C: Any, *, state: Any = None) -> Any:
    """From the last position to the first."""
    y, after = reference.ssm_scan(u.xp.flip(u, axis=1), Ab, Bb, C, state=state)
    return u.xp.flip(y, axis=1), after


def _then(change: Callable[..., Any]) -> Definition:
    """The kernel, and then something done to a longer one."""

    def slip(Ab: Any, Bb: Any, C: Any, *, length: int) -> Any:
        return change(reference.ssm_kernel(Ab, Bb, C, length=length + 1), length)

    return slip


def _powers_of_elements(Ab: Any, Bb: Any, C: Any, *, length: int) -> Any:
    xp, power = Ab.xp, None
    lags = [reference.ssm_kernel(Ab, Bb, C, length=min(length, 1))]
    for _ in range(1, length):
        power = Ab if power is None else power * Ab
        lags.append(C[None, :] @ (power @ Bb[:, None])[:, 0][:, None])
    return xp.concat([xp.reshape(lag, (-1,)) for lag in lags], axis=0)


def _diagonalised(Ab: Values, Bb: Values, C: Values, *, length: int) -> Values | None:
    """powers are taken of the eigenvalues, between the eigenvectors and their inverse"""
    single = np.promote_types(Ab.dtype, np.float32)
    Ab, Bb, C = (x.astype(single) for x in (Ab, Bb, C))
    if not np.isfinite(Ab).all():
        return None
    values, vectors = np.linalg.eig(Ab)
    if not np.isfinite(vectors).all():
        return None
    known = np.linalg.lstsq(vectors, Bb.astype(vectors.dtype), rcond=None)[0]
    return np.asarray(np.real((values[None, :] ** np.arange(length)[:, None] * known) @ (C @ vectors)))


# Properties of both ---------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> dict[str, Values]:
    return {name: trial.case.arguments[name] for name in SYSTEM}


def _without(trial: Trial) -> dict[str, Any]:
    """The change of arguments that makes the state 0; nothing where there is none."""
    state = trial.case.arguments.get("state")
    return {} if state is None else {"state": np.zeros_like(state)}


def _ordered(trial: Trial) -> Array | None:
    """States in another order, which are another similar system without a rounding."""
    given = _arrays(trial)
    n = len(given["C"])
    if n < 2:
        return None
    order = np.random.default_rng(trial.case.seed).permutation(n)
    changes = {"Ab": given["Ab"][np.ix_(order, order)], "Bb": given["Bb"][order], "C": given["C"][order]}
    state = trial.case.arguments.get("state")
    changes |= {} if state is None else {"state": state[:, order]}
    return trial.call(**changes) - trial.call()


def _doubled_states(trial: Trial) -> Array | None:
    """Some states in units twice as large: every second row of Ab and of Bb halved, every second column and C doubled.
    Powers of two, so that it is exact."""
    given = _arrays(trial)
    unit = np.exp2(np.arange(len(given["C"])) % 2)
    with np.errstate(over="ignore"):
        changed = {
            "Ab": given["Ab"].astype(np.float64) / unit[:, None] * unit,
            "Bb": given["Bb"].astype(np.float64) / unit,
            "C": given["C"].astype(np.float64) * unit,
        }
        state = trial.case.arguments.get("state")
        changed |= {} if state is None else {"state": state.astype(np.float64) / unit}
        rounded = {name: trial.rounded(x) for name, x in changed.items()}
    if not all((x.astype(np.float64) == changed[name]).all() for name, x in rounded.items()):
        return None  # a subnormal or a huge number
    return trial.call(**rounded) - trial.call()


def _apart(trial: Trial) -> Array | None:
    """A block-diagonal system is the sum of its blocks."""
    given = _arrays(trial)
    n = len(given["C"])
    if n < 2:
        return None
    cut = 1 + trial.case.seed % (n - 1)
    parts = slice(cut), slice(cut, None)
    apart = np.zeros_like(given["Ab"])
    for part in parts:
        apart[part, part] = given["Ab"][part, part]
    state = trial.case.arguments.get("state")

    def block(part: slice) -> Array:
        own = {} if state is None else {"state": state[:, part]}
        return trial.call(Ab=apart[part, part], Bb=given["Bb"][part], C=given["C"][part], **own)

    return trial.call(Ab=apart) - block(parts[0]) - block(parts[1])


BOTH = (
    Property("states_permute", "P A P^T, P B and C P^T are the same system", _ordered),
    Property("states_have_no_unit", "S^-1 A S, S^-1 B and C S are the same system", _doubled_states),
    Property("states_apart_add", "a block-diagonal system is the sum of its blocks", _apart),
)


# Properties of the scan -----------------------------------------------------------------------------------------------


def _is_convolution(trial: Trial) -> Array | None:
    """Numbers of few bits: y is what the response to an impulse says, sum_j h_{k-j} u_j."""
    shape = trial.case.arguments["u"].shape
    if not shape[1]:
        return None
    impulse = np.zeros(shape)
    impulse[:, 0] = 1
    u, changes = trial.rounded(few_bits(trial, shape)), _without(trial)
    response = trial.call(**changes, u=trial.rounded(impulse))
    y = response * trial.given(u[:, :1])
    for lag in range(1, shape[1]):
        late = y.xp.concat([trial.given(np.zeros((shape[0], lag))), response[:, :-lag]], axis=1)
        y = y + late * trial.given(u[:, lag : lag + 1])
    return trial.call(**changes, u=u) - y


def _is_state(trial: Trial) -> Array | None:
    """Without input, a state B is what an impulse leaves: y_k is its response one position later."""
    u, state = trial.case.arguments["u"], trial.case.arguments.get("state")
    if state is None or u.shape[1] < 2:
        return None
    impulse = np.zeros_like(u)
    impulse[:, 0] = 1
    known = np.broadcast_to(_arrays(trial)["Bb"], state.shape)
    left = trial.call(u=np.zeros_like(u), state=np.array(known))
    return left[:, :-1] - trial.call(u=impulse, **_without(trial))[:, 1:]


def _late(trial: Trial) -> Array | None:
    u = trial.case.arguments["u"]
    if u.shape[1] < 2:
        return None
    changes = _without(trial)
    late = np.concatenate([np.zeros_like(u[:, :1]), u[:, :-1]], axis=1)
    return trial.call(**changes, u=late)[:, 1:] - trial.call(**changes)[:, :-1]


def _future(trial: Trial) -> Array | None:
    """Everything after one position changes: y keeps its bits up to it."""
    u = trial.case.arguments["u"]
    t = u.shape[1]
    if t < 2:
        return None
    last = trial.case.seed % (t - 1)
    changed = np.where(np.arange(t) > last, np.asarray(64.0, u.dtype), u)
    finite = np.isfinite(trial.bound[0][:, : last + 1])
    if not finite.any():
        return None
    before = trial.answer().outputs[0][:, : last + 1]
    after = trial.outputs(u=place(changed, trial.case.memory.get("u", "contiguous")))[0][:, : last + 1]
    with np.errstate(invalid="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
    return trial.given((~same & finite).astype(np.int64))


def _handed_over(trial: Trial) -> Array | None:
    """The state after some positions takes their place: what follows is as in the whole."""
    u = trial.case.arguments["u"]
    if u.shape[1] < 2:
        return None
    cut = 1 + trial.case.seed % (u.shape[1] - 1)
    state = trial.calls(u=u[:, :cut])[1]
    rest = trial.call(u=u[:, cut:], state=trial.rounded(state.parts[0]))
    unsure = trial.carried(state, "state", u=u[:, cut:])
    return trial.call()[:, cut:] - JUDGE.approximate(rest.parts[0], rest.parts[1] + unsure)


def scan_work(*, b: int, t: int, n: int, itemsize: int, backward: bool, **rest: Any) -> Work:
    """Everything is read and written once; each output is one product and one sum at least."""
    passes = 2 if backward else 1
    return Work(bytes=passes * (2 * b * t + n * n + 2 * n + b * n) * itemsize, flops=passes * 2 * b * t)


def kernel_work(*, n: int, length: int, itemsize: int, backward: bool, **rest: Any) -> Work:
    """Likewise."""
    passes = 2 if backward else 1
    return Work(bytes=passes * (length + n * n + 2 * n) * itemsize, flops=passes * 2 * length)


SCANS: dict[str, Definition] = {
    "recurrence": reference.form(reference.one_by_one),
    "convolution": reference.form(reference.convolution),
    "associative": reference.form(reference.associative),
    "chunked": reference.form(reference.chunked),
}

SSM_SCAN = Operator(
    name="ssm_scan",
    definition=reference.ssm_scan,
    inputs=(
        Tensor("u", "b t"),
        Tensor("Ab", "m n"),
        Tensor("Bb", "n"),
        Tensor("C", "n"),
        Tensor("state", "b n", optional=True),
    ),
    forms=SCANS,
    slips={
        "reads_the_state_before": partial(_scan, read=lambda states, start: [start, *states[:-1]]),
        "input_decays_too": partial(_scan, decays_input=True),
        "Ab_transposed": _at(reference.ssm_scan, lambda Ab, **rest: {"Ab": Ab.mT}),
        "B_and_C_exchanged": _at(reference.ssm_scan, lambda Bb, C, **rest: {"Bb": C, "C": Bb}),
        "state_ignored": partial(_scan, before=lambda state: state.xp.zeros_like(state)),
        "state_before_is_returned": partial(_scan, returned=lambda states, start: start),
        "state_without_last_position": partial(_scan, returned=lambda states, start: [start, *states][-2]),
        "input_added_to_the_output": partial(_scan, skip=True),
        "from_the_last_position_to_the_first": _backwards,
        **{f"chunks_of_{size}_forget_what_came_before": partial(_scan, forgets=size) for size in CHUNKS},
    },
    wide=(1,),
    structure=_scan_structure,
    regimes=SYSTEMS,
    properties=(
        *BOTH,
        Property("it_is_a_convolution", "y = h * u, with h the response to an impulse", _is_convolution),
        Property("an_impulse_leaves_B", "state B, u = 0: y_k = h_{k+1}", _is_state, ("state",)),
        Property("commutes_with_time", "without state: a later u, a later y", _late),
        Property("inputs_add", "without state: y(u + u') = y(u) + y(u')", adds_in("u", _without)),
        Property("future_is_unseen", "whatever comes later, y keeps its bits", _future),
        Property(
            "state_is_handed_over", "the state after any number of positions stands for them", _handed_over, ("state",)
        ),
    ),
    work=scan_work,
    timed={
        "short": Structure(sizes={"b": 4, "t": 1024, "m": 16, "n": 16}, regime="dissipative"),
        "long": Structure(sizes={"b": 4, "t": 16_384, "m": 64, "n": 64}, regime="dissipative"),
    },
    source="A. Gu et al., S4, arXiv:2111.00396, equations 3 to 5",
)


# Properties of the kernel ---------------------------------------------------------------------------------------------


def _length(trial: Trial) -> int:
    return int(trial.case.arguments["length"])


def _next(trial: Trial) -> Array | None:
    """Numbers of few bits, so that A B is exact: its kernel is that of B, one lag on."""
    length, n = _length(trial), len(_arrays(trial)["C"])
    if length < 2:
        return None
    A, B = few_bits(trial, (n, n)), few_bits(trial, (n,), 1)
    Ab, Bb, on = (trial.rounded(np.asarray(x)) for x in (A, B, A @ B))
    return trial.call(Ab=Ab, Bb=on, length=length - 1) - trial.call(Ab=Ab, Bb=Bb)[1:]


def _turned(trial: Trial) -> Array | None:
    """C A**l B is B^T (A^T)**l C^T."""
    given = _arrays(trial)
    return trial.call(Ab=np.array(given["Ab"].T), Bb=given["C"], C=given["Bb"]) - trial.call()


def _delay(trial: Trial) -> Array | None:
    """A delay line that an impulse enters: its taps, and then nothing."""
    given, length = _arrays(trial), _length(trial)
    n = len(given["C"])
    taps = np.zeros(length)
    taps[:n] = given["C"][:length].astype(np.float64)
    if not np.isfinite(taps).all():
        return None
    line = {"Ab": trial.rounded(np.eye(n, k=-1)), "Bb": trial.rounded(np.eye(n)[0])}
    return trial.call(**line) - trial.given(taps)


KERNELS: dict[str, Definition] = {
    "recurrence": reference.ssm_kernel,
    "rows": reference.by_rows,
    "powers": reference.by_powers,
    "doubling": reference.doubling,
}

SSM_KERNEL = Operator(
    name="ssm_kernel",
    definition=reference.ssm_kernel,
    inputs=(Tensor("Ab", "m n"), Tensor("Bb", "n"), Tensor("C", "n")),
    forms=KERNELS,
    slips={
        "Ab_transposed": _at(reference.ssm_kernel, lambda Ab, **rest: {"Ab": Ab.mT}),
        "starts_one_lag_late": _then(lambda kernel, length: kernel[1:]),
        "starts_with_nothing": _then(
            lambda kernel, length: kernel.xp.concat([0 * kernel[:1], kernel[: length - 1]])[:length]
        ),
        "from_the_last_lag_to_the_first": _then(lambda kernel, length: kernel.xp.flip(kernel[:length], axis=0)),
        "powers_of_each_element": _powers_of_elements,
    },
    hazards={"naive diagonalisation": _diagonalised},
    structure=_kernel_structure,
    regimes=SYSTEMS,
    properties=(
        *BOTH,
        Property("a_longer_kernel_begins_alike", "K(l) begins with K(m) for m < l, and so does K(l + 3)", longer),
        Property("the_next_lag", "the kernel of A B is that of B, one lag on", _next),
        Property("transposition", "(A^T, C^T, B^T) has the same kernel", _turned),
        Property("rows_add", "K(C + C') = K(C) + K(C')", adds_in("C")),
        Property("a_delay_line_has_its_taps", "A_{i+1,i} = 1, B = e_0: K = C, and then 0", _delay),
    ),
    work=kernel_work,
    timed={
        "short": Structure({"length": 1024}, sizes={"m": 16, "n": 16}, regime="dissipative"),
        "long": Structure({"length": 16_384}, sizes={"m": 64, "n": 64}, regime="dissipative"),
    },
    source="A. Gu et al., S4, arXiv:2111.00396, equation 5",
)
