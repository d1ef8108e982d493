"""The contract of `softmax_attention`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Operator, Property, Real, Sizes, Structure, Tensor, Work
from assay.properties.drawing import Values, place
from assay.properties.trial import Trial
from assay.reference import attention as reference
from assay.reference.arithmetic.array import Array


MOST_HEADS = 4

MASKS = ("boolean", "padding", "bias", "bias that hides")


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """Query heads in groups, and masks where the kernel knows them."""
    g = sizes["g"]
    h = g * draw(st.integers(1, max(1, MOST_HEADS // g)))
    # Many kernels take values of as many channels as keys alone.
    e = sizes["d"] if draw(st.booleans()) else sizes["e"]
    keywords: dict[str, Any] = {}
    if supports("causal"):
        keywords["causal"] = draw(st.booleans())
    if supports("mask") and draw(st.booleans()):
        seed = draw(st.integers(0, 2**32 - 1))
        spread = tuple(n if draw(st.booleans()) else 1 for n in (sizes["b"], h))
        keywords["mask"] = _mask(draw(st.sampled_from(MASKS)), seed, (*spread, sizes["t"], sizes["s"]))
    if supports("return_lse"):
        keywords["return_lse"] = draw(st.booleans())
    return Structure(keywords, sizes={"h": h, "e": e})


def _mask(kind: str, seed: int, shape: tuple[int, ...]) -> Values:
    """Numbers are of few bits, so that any dtype holds them."""
    random = np.random.default_rng(seed)
    b, *_, s = shape
    if kind == "boolean":
        return random.random(shape) < random.choice((0.1, 0.5, 0.9))
    if kind == "padding":
        return np.arange(s) < random.integers(0, s, (b, 1, 1, 1), endpoint=True)
    bias = random.integers(-16, 17, shape) / 4
    if kind == "bias that hides":
        bias = np.where(random.random(shape) < random.choice((0.1, 0.5)), -np.inf, bias)
    return bias.astype(np.float32)


# Slips ---------------------------------------------------------------------------------------------------------------


def _scale_missing(q: Any, k: Any, v: Any, *, scale: Any = None, **rest: Any) -> Any:
    return reference.softmax_attention(q, k, v, scale=1, **rest)


def _scale_applied_twice(q: Any, k: Any, v: Any, *, scale: Any = None, **rest: Any) -> Any:
    c = reference.scale_of(q, scale)
    return reference.softmax_attention(q, k, v, scale=c * c, **rest)


def _scale_of_the_values(q: Any, k: Any, v: Any, *, scale: Any = None, **rest: Any) -> Any:
    """c = e**(-1/2)."""
    return reference.softmax_attention(q, k, v, scale=reference.scale_of(v, scale), **rest)


def _with_causal_mask(ahead: int) -> Callable[..., Any]:
    """The causal mask, by so many keys too far."""

    def slip(q: Any, k: Any, v: Any, *, causal: bool = False, alignment: str = "bottom-right", **rest: Any) -> Any:
        if not causal:
            return reference.softmax_attention(q, k, v, **rest)
        xp = q.__array_namespace__()
        t, s = q.shape[-2], k.shape[-2]
        last = xp.arange(t)[:, None] + (ahead + (s - t if alignment == "bottom-right" else 0))
        return _also(q, k, v, xp.arange(s)[None, :] <= last, **rest)

    return slip


def _without_key(which: int) -> Callable[..., Any]:
    def slip(q: Any, k: Any, v: Any, **rest: Any) -> Any:
        xp = q.__array_namespace__()
        return _also(q, k, v, xp.arange(k.shape[-2])[None, :] != which % k.shape[-2], **rest)

    return slip


def _also(q: Any, k: Any, v: Any, visible: Any, *, mask: Any = None, **rest: Any) -> Any:
    """Only what is visible by both masks."""
    xp = q.__array_namespace__()
    if mask is None:
        mask = visible
    else:
        mask = mask & visible if reference.is_boolean(mask) else xp.where(visible, mask, -xp.inf)
    return reference.softmax_attention(q, k, v, mask=mask, **rest)


def _mask_ignored(q: Any, k: Any, v: Any, *, mask: Any = None, **rest: Any) -> Any:
    return reference.softmax_attention(q, k, v, **rest)


def _mask_inverted(q: Any, k: Any, v: Any, *, mask: Any = None, **rest: Any) -> Any:
    if mask is not None and reference.is_boolean(mask):
        mask = ~mask
    return reference.softmax_attention(q, k, v, mask=mask, **rest)


def _bias_before_scale(q: Any, k: Any, v: Any, *, mask: Any = None, scale: Any = None, **rest: Any) -> Any:
    """c (<q, k> + bias)."""
    c = reference.scale_of(q, scale)
    if mask is not None and not reference.is_boolean(mask):
        xp = q.__array_namespace__()
        mask = xp.where(mask == 2 * mask, mask, mask * c)
    return reference.softmax_attention(q, k, v, mask=mask, scale=c, **rest)


def _first_key_head(q: Any, k: Any, v: Any, **rest: Any) -> Any:
    """All query heads attend to the first key head."""
    return reference.softmax_attention(q, k[:, :1], v[:, :1], **rest)


@reference.grouped
def _softmax_over_queries(q: Any, k: Any, v: Any, **rest: Any) -> Any:
    """Weights that add up to 1 over the queries of a head."""
    xp = q.__array_namespace__()
    h, g = q.shape[1], k.shape[1]
    k, v = (xp.stack([x[:, n * g // h] for n in range(h)], axis=1) for x in (k, v))
    lse = rest.pop("return_lse", False)
    s, visible = reference.scores(
        q, k, **{"mask": None, "causal": False, "alignment": "bottom-right", "scale": None, **rest}
    )
    s, visible = xp.matrix_transpose(s), None if visible is None else xp.matrix_transpose(visible)
    w = reference.weights(s, reference.shift_of(s, visible), visible)
    total = reference.or_one(xp.sum(w, axis=-1, keepdims=True), visible)
    out = xp.matrix_transpose(w / total) @ v
    return (out, reference.softmax_attention(q, k, v, return_lse=True, **rest)[1]) if lse else out


def _denominator_without_last_key(q: Any, k: Any, v: Any, **rest: Any) -> Any:
    """The last key counts in the numerator only."""
    if k.shape[-2] == 1:
        return reference.softmax_attention(q, k, v, **rest)
    xp = q.__array_namespace__()
    lse = rest.pop("return_lse", False)
    out, full = reference.softmax_attention(q, k, v, return_lse=True, **rest)
    _, without = _without_key(-1)(q, k, v, return_lse=True, **rest)
    low = -xp.inf
    both = (full > low) & (without > low)
    zero = xp.zeros_like(full)
    ratio = xp.exp(xp.where(both, full, zero) - xp.where(both, without, zero))
    out = out * ratio[..., None]
    return (out, full) if lse else out


# Strays ------------------------------------------------------------------------------------------------------------


@reference.grouped
def _eps_in_denominator(q: Any, k: Any, v: Any, *, eps: Any, return_lse: bool = False, **rest: Any) -> Any:
    """The sum of exp(s - m), m the row's maximum, plus eps."""
    xp = q.__array_namespace__()
    usual = {"mask": None, "causal": False, "alignment": "bottom-right", "scale": None}
    s, visible = reference.scores(q, k, **{**usual, **rest})
    w = reference.weights(s, reference.shift_of(s, visible), visible)
    total = reference.or_one(xp.sum(w, axis=-1, keepdims=True), visible)
    out = xp.reshape(w @ v / (total + eps), (*q.shape[:-1], v.shape[-1]))
    return (out, reference.softmax_attention(q, k, v, return_lse=True, **rest)[1]) if return_lse else out


# Properties ----------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> tuple[Values, Values, Values]:
    return tuple(trial.case.arguments[name] for name in "qkv")


def visible(trial: Trial) -> Values:
    """Which keys each query sees, [b, h, t, s]."""
    q, k, _ = _arrays(trial)
    shape = (*q.shape[:-1], k.shape[-2])
    t, s = shape[-2:]
    mask = trial.case.arguments.get("mask")
    seen = np.ones(shape, dtype=bool)
    if mask is not None:
        seen &= mask if mask.dtype == bool else mask > -np.inf
    if trial.case.arguments.get("causal"):
        ahead = s - t if trial.case.arguments.get("alignment", "bottom-right") == "bottom-right" else 0
        seen &= np.arange(s) <= np.arange(t)[:, None] + ahead
    if trial.case.arguments.get("unseeing") == "mean":
        seen |= ~seen.any(axis=-1, keepdims=True)
    return seen


def _by_query_head(trial: Trial, x: Values) -> Values:
    """x[b, g, ...] as [b, h, ...]."""
    h = trial.case.arguments["q"].shape[1]
    g = x.shape[1]
    interleaved = trial.case.arguments.get("grouping") == "interleaved"
    return np.asarray(x[:, [n % g if interleaved else n * g // h for n in range(h)]])


def _lone(trial: Trial) -> bool:
    """No mask of any kind."""
    return trial.case.arguments.get("mask") is None and not trial.case.arguments.get("causal")


def _hull(trial: Trial) -> Array | None:
    """out - clip(out, least visible value, greatest visible value)."""
    seen = visible(trial)[..., None]
    values = _by_query_head(trial, _arrays(trial)[2]).astype(np.float64)[:, :, None]
    low = np.min(np.where(seen, values, np.inf), axis=-2)
    high = np.max(np.where(seen, values, -np.inf), axis=-2)
    some = seen.any(axis=-2)
    out = trial.call()
    got = out.parts[0].astype(np.float64)
    return out - trial.given(np.clip(got, np.where(some, low, 0), np.where(some, high, 0)))


def _ones(trial: Trial) -> Array | None:
    v = _arrays(trial)[2]
    some = visible(trial).any(axis=-1, keepdims=True)
    out = trial.call(v=np.ones_like(v))
    return out - trial.given(np.broadcast_to(some.astype(np.int64), out.shape))


def _common_shift(trial: Trial) -> Array | None:
    """Keys of few bits, so that the sum with x is exact in every dtype."""
    k = _arrays(trial)[1]
    few = np.clip(np.rint(k.astype(np.float64) * 4), -16, 16) / 4
    random = np.random.default_rng(trial.case.seed)
    x = random.integers(-16, 17, (*k.shape[:2], 1, k.shape[-1])) / 4
    return trial.call(k=trial.rounded(few)) - trial.call(k=trial.rounded(few + x))


def _bias_shift(trial: Trial) -> Array | None:
    """A number added to all scores of a row."""
    q, k, _ = _arrays(trial)
    random = np.random.default_rng(trial.case.seed)
    row = random.integers(-64, 65, (1, 1, q.shape[-2], 1)) / 4
    mask = trial.case.arguments.get("mask")
    if mask is None:
        mask = np.zeros((1, 1, q.shape[-2], k.shape[-2]))
    elif mask.dtype == bool:
        mask = np.where(mask, 0.0, -np.inf)
    return trial.call(mask=mask.astype(np.float32)) - trial.call(mask=(mask + row).astype(np.float32))


def _keys_permute(trial: Trial) -> Array | None:
    if trial.case.arguments.get("causal"):
        return None
    _, k, v = _arrays(trial)
    order = np.random.default_rng(trial.case.seed).permutation(k.shape[-2])
    changes = {"k": k[..., order, :], "v": v[..., order, :]}
    mask = trial.case.arguments.get("mask")
    if mask is not None:
        changes["mask"] = np.ascontiguousarray(mask[..., order])
    return trial.call(**changes) - trial.call()


def _queries_permute(trial: Trial) -> Array | None:
    if trial.case.arguments.get("causal"):
        return None
    q = _arrays(trial)[0]
    order = np.random.default_rng(trial.case.seed).permutation(q.shape[-2])
    changes = {"q": q[..., order, :]}
    mask = trial.case.arguments.get("mask")
    if mask is not None and mask.shape[-2] > 1:
        changes["mask"] = np.ascontiguousarray(mask[..., order, :])
    out = trial.call()
    return trial.call(**changes) - out.xp.take(out, order, axis=-2)


def _replaced(trial: Trial, places: Values, key: float, value: float) -> dict[str, Values]:
    """k and v with other numbers at places[b, s], lying in memory as before."""
    out = {}
    for name, number in (("k", key), ("v", value)):
        x = trial.case.arguments[name]
        changed = np.where(places[:, None, :, None], np.asarray(number, x.dtype), x)
        out[name] = place(changed, trial.case.memory.get(name, "contiguous"))
    return out


def _hidden_key(trial: Trial) -> Array | None:
    """One key, hidden to some queries: they return the same bits whatever it holds."""
    hidden = ~visible(trial)
    candidates = np.flatnonzero(hidden.any(axis=(0, 1, 2)))
    if not candidates.size:
        return None
    j = candidates[trial.case.seed % candidates.size]
    places = np.broadcast_to(np.arange(hidden.shape[-1]) == j, (hidden.shape[0], hidden.shape[-1]))
    return _unmoved(trial, _replaced(trial, places, 0.5, 64.0), hidden[..., j])


def _future(trial: Trial) -> Array | None:
    """All keys after one position change: the queries that see none of them return the same bits."""
    if not trial.case.arguments.get("causal"):
        return None
    seen = visible(trial)
    s = seen.shape[-1]
    if s == 1:
        return None
    changed = np.asarray(np.arange(s) > trial.case.seed % (s - 1))
    places = np.broadcast_to(changed, (seen.shape[0], s))
    return _unmoved(trial, _replaced(trial, places, -0.5, 64.0), ~(seen & changed).any(axis=-1))


def _padding_is_nan(trial: Trial) -> Array | None:
    """Keys that no query of their batch sees."""
    unseen = np.asarray(~visible(trial).any(axis=(1, 2)))
    if not unseen.any():
        return None
    return _unmoved(trial, _replaced(trial, unseen, np.nan, np.nan), np.ones(trial.exact[0].shape[:-1], dtype=bool))


def _unmoved(trial: Trial, changes: dict[str, Values], rows: Values) -> Array | None:
    """1 where a number of the rows [b, h, t] is not the same bit for bit (any NaN is), 0 elsewhere."""
    rows = rows & np.isfinite(trial.bound[0]).all(axis=-1)  # where a score overflows, nothing is demanded
    if not rows.any():
        return None
    before, after = trial.answer().outputs[0], trial.outputs(**changes)[0]
    with np.errstate(invalid="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
    return trial.given((~same & rows[..., None]).astype(np.int64))


def _one_key(trial: Trial) -> Array | None:
    """With one key left, each query returns its value, whatever the scores."""
    if not _lone(trial):
        return None
    _, k, v = _arrays(trial)
    j = trial.case.seed % k.shape[-2]
    out = trial.call(k=k[..., j : j + 1, :], v=v[..., j : j + 1, :])
    wanted = np.broadcast_to(_by_query_head(trial, v)[..., j : j + 1, :], out.shape)
    return out - trial.given(wanted)


def _equal_keys(trial: Trial) -> Array | None:
    mask = trial.case.arguments.get("mask")
    if mask is not None and mask.dtype != bool:
        return None
    _, k, v = _arrays(trial)
    out = trial.call(k=np.repeat(k[..., :1, :], k.shape[-2], axis=-2))
    return out - _mean(trial, v)


def _mean(trial: Trial, v: Values) -> Array:
    """The mean of the visible values; 0 where there is none."""
    seen = visible(trial)
    count = np.maximum(seen.sum(axis=-1, keepdims=True), 1)
    total = trial.given(seen.astype(np.int64)) @ trial.given(_by_query_head(trial, v))
    return total / trial.given(count)


def _no_scale(trial: Trial) -> Array | None:
    mask = trial.case.arguments.get("mask")
    if mask is not None and mask.dtype != bool:
        return None
    return trial.call(scale=0.0) - _mean(trial, _arrays(trial)[2])


def _scale_moves(trial: Trial) -> Array | None:
    q, scale = _arrays(trial)[0], trial.case.arguments["scale"]
    if trial.case.regime == "huge":
        return None
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return trial.call(q=trial.rounded(2 * q.astype(np.float64)), scale=scale / 2) - trial.call(scale=scale)


def _groups(trial: Trial) -> Array | None:
    """Query heads of a group share a key head: the same as key heads repeated."""
    q, k, v = _arrays(trial)
    if q.shape[1] == k.shape[1]:
        return None
    return trial.call(k=_by_query_head(trial, k), v=_by_query_head(trial, v)) - trial.call()


def _work(
    *, b: int, g: int, h: int, t: int, s: int, d: int, e: int, itemsize: int, backward: bool, causal: bool = False
) -> Work:
    """Two products of matrices over the pairs of a query and a key that it sees, and one exponential for each pair.
    Backward: four more products of that size, and no exponential if the weights are kept."""
    pairs = b * h * (sum(min(s, max(0, i + 1 + s - t)) for i in range(t)) if causal else t * s)
    passes, products = (2, 3) if backward else (1, 1)
    return Work(
        bytes=passes * itemsize * b * (h * t * (d + e) + g * s * (d + e)),
        flops=products * 2 * pairs * (d + e),
        exponentials=pairs,
    )


SOFTMAX_ATTENTION = Operator(
    name="softmax_attention",
    definition=reference.softmax_attention,
    inputs=(Tensor("q", "b h t d"), Tensor("k", "b g s d"), Tensor("v", "b g s e")),
    parameters=(Real("scale", default=None, low=-2, high=2, implied=lambda a: a["q"].shape[-1] ** -0.5),),
    conventions={
        "alignment": reference.ALIGNMENTS,
        "unseeing": reference.UNSEEING,
        "grouping": reference.GROUPINGS,
    },
    forms={"shifted": reference.shifted, "online": reference.online, "naive": reference.naive},
    backward=reference.backward,
    slips={
        "scale_missing": _scale_missing,
        "scale_applied_twice": _scale_applied_twice,
        "scale_of_the_values": _scale_of_the_values,
        "causal_sees_one_key_ahead": _with_causal_mask(1),
        "causal_hides_the_present": _with_causal_mask(-1),
        "causal_ignored": lambda q, k, v, *, causal=False, **rest: reference.softmax_attention(q, k, v, **rest),
        "last_key_dropped": _without_key(-1),
        "first_key_dropped": _without_key(0),
        "mask_ignored": _mask_ignored,
        "mask_inverted": _mask_inverted,
        "bias_before_scale": _bias_before_scale,
        "first_key_head": _first_key_head,
        "softmax_over_queries": _softmax_over_queries,
        "denominator_without_last_key": _denominator_without_last_key,
    },
    strays={"eps": _eps_in_denominator},
    structure=_structure,
    properties=(
        Property("within_the_values", "min_j v_j <= o <= max_j v_j over the visible keys, by channel", _hull),
        Property("weights_sum_to_one", "v = 1 gives o = 1, and 0 where nothing is visible", _ones),
        Property("keys_shift_together", "k_j + x for all j changes nothing", _common_shift),
        Property("bias_shifts_rows", "a bias that is the same for a whole row changes nothing", _bias_shift, ("mask",)),
        Property("keys_permute", "keys, values and mask columns in another order change nothing", _keys_permute),
        Property("queries_permute", "queries and mask rows in another order permute o", _queries_permute),
        Property("hidden_keys_are_unseen", "whatever a hidden key holds, o keeps its bits", _hidden_key, ("mask",)),
        Property("future_is_unseen", "whatever later keys hold, o keeps its bits", _future, ("causal",)),
        Property("padding_may_be_nan", "a NaN in keys that no query sees has no effect", _padding_is_nan, ("mask",)),
        Property("one_key_gives_its_value", "s = 1: o = v", _one_key),
        Property("equal_keys_give_the_mean", "k_j = k: o = mean of the visible v_j", _equal_keys),
        Property("scale_zero_gives_the_mean", "c = 0: o = mean of the visible v_j", _no_scale, ("scale",)),
        Property("scale_moves_into_queries", "o(2 q; c / 2) = o(q; c)", _scale_moves, ("scale",)),
        Property("groups_are_repeated_heads", "o(q; k, v repeated for each query head) = o(q; k, v)", _groups),
    ),
    work=_work,
    timed={
        "short": Structure(sizes={"b": 1, "h": 4, "g": 4, "t": 128, "s": 128, "d": 64, "e": 64}),
        "causal": Structure({"causal": True}, sizes={"b": 1, "h": 4, "g": 4, "t": 128, "s": 128, "d": 64, "e": 64}),
        "long": Structure(sizes={"b": 1, "h": 8, "g": 8, "t": 1024, "s": 1024, "d": 64, "e": 64}),
    },
    source="A. Vaswani et al., Attention Is All You Need, arXiv:1706.03762v7, equation 1",
)
