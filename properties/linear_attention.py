"""The contracts of `linear_attention` and `unnormalized_attention`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Operator, Positive, Property, Sizes, Structure, Tensor, Work
from assay.properties.drawing import Values, place
from assay.properties.emulated import keeping
from assay.properties.laws import few_bits
from assay.properties.trial import Trial
from assay.properties.truth import JUDGE
from assay.reference import linear_attention as reference
from assay.reference.arithmetic.array import Array, Mask, vanishes
from assay.reference.arithmetic.precision import BFLOAT16, FLOAT16


POSITIVE = {"feature_map": ("elu+1", "exp", "softmax")}
"""Maps whose weights are all positive: their sum is never 0."""
DIRECTIONS = {"feature_map": ("relu", "identity", "1+x")}
"""Maps for which a longer query has longer features, or the same."""
SOFTMAX = {"feature_map": ("softmax",)}
OTHERS = {"feature_map": tuple(name for name in reference.FEATURE_MAPS if name != "softmax")}
"""Maps that may be causal, and continued from a state."""


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """As many keys as queries where causal; a state of the features and values that the case has."""
    changed = {"e": sizes["d"]} if draw(st.booleans()) else {}
    keywords: dict[str, Any] = {}
    hands_over = conventions["feature_map"] != "softmax"
    for name in ("causal", "return_state"):
        if supports(name):
            keywords[name] = hands_over and draw(st.booleans())
    if keywords.get("causal"):
        changed["t"] = changed["s"] = max(sizes["t"], sizes["s"])
    if supports("normalize"):
        keywords["normalize"] = draw(st.booleans())
    given = ("state",) if hands_over and supports("state") and draw(st.booleans()) else ()
    changed["r"] = sizes["d"] + (conventions["feature_map"] == "1+x")
    changed["n"] = changed.get("e", sizes["e"]) + keywords.get("normalize", True)
    return Structure(keywords, sizes=changed, given=given)


def _row(arguments: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Query i and, where causal, the keys up to it, which are all that it sees."""
    out = {**arguments, "q": arguments["q"][..., i : i + 1, :], "return_state": False}
    if out.get("causal"):
        out.update({name: arguments[name][..., : i + 1, :] for name in "kv"}, causal=False)
    return out


# Slips ---------------------------------------------------------------------------------------------------------------


def _attend(
    q: Any,
    k: Any,
    v: Any,
    *,
    feature_map: str = "elu+1",
    causal: bool = False,
    normalize: bool = True,
    eps: Any = 0,
    denominator: str = "plus",
    state: Any = None,
    return_state: bool = False,
    features: Callable[..., tuple[Any, Any]] = reference.features,
    sees: Callable[[Values, Values], Values] = lambda i, j: j <= i,
    key: Callable[[int], int] | None = None,
    total_of: Callable[..., Any] | None = None,
    quotient: Callable[[Any, Any], Any] | None = None,
    handed_on: Callable[..., Any] | None = None,
) -> Any:
    """The definition with one thing changed: the features, which keys a query sees where causal, a key that is left out
    by its number, the sum of the weights, what is done with it, or the state that is returned."""
    xp = q.__array_namespace__()
    reference.check(q, k, v, feature_map, causal, normalize, state, return_state)
    a, b = features(q, k, feature_map)
    w, e = a @ b.mT, v.shape[-1]
    zero = xp.zeros_like(w)
    i, j = np.arange(q.shape[-2])[:, None], np.arange(k.shape[-2])[None, :]
    if causal:
        w = xp.where(Mask(sees(i, j)), w, zero)
    if key is not None and k.shape[-2] > 1:
        w = xp.where(Mask(j == key(k.shape[-2])), zero, w)
    values = reference.with_ones(v) if normalize else v
    out = w @ values
    if state is not None:
        out = out + a @ state
    returned = out[..., :e]
    if normalize and feature_map != "softmax":
        total = out[..., e:] if total_of is None else total_of(a, b, w, state, causal)
        total = reference.divisor(total, eps, denominator)
        none = vanishes(total)
        safe = xp.where(none, xp.ones_like(total), total)
        returned = returned / safe if quotient is None else quotient(returned, safe)
        returned = xp.where(none, xp.zeros_like(returned), returned)
    if not return_state:
        return returned
    return returned, (handed_on or reference.final)(b, values, state)


def _features_of(queries: bool, keys: bool) -> Callable[..., tuple[Any, Any]]:
    """The feature map applied to one side only, where features have as many channels."""

    def features(q: Any, k: Any, feature_map: str) -> tuple[Any, Any]:
        a, b = reference.features(q, k, feature_map)
        if a.shape[-1] != q.shape[-1]:
            return a, b
        return (a if queries else q), (b if keys else k)

    return features


def _elu_without_one(q: Any, k: Any, feature_map: str) -> tuple[Any, Any]:
    a, b = reference.features(q, k, feature_map)
    return (a - 1, b - 1) if feature_map == "elu+1" else (a, b)


def _other_axes(q: Any, k: Any, feature_map: str) -> tuple[Any, Any]:
    """The softmax of queries over positions, and of keys over channels."""
    if feature_map != "softmax":
        return reference.features(q, k, feature_map)
    b, a = reference.features(k, q, feature_map)
    return a, b


def _scaled(q: Any, k: Any, feature_map: str) -> tuple[Any, Any]:
    a, b = reference.features(q, k, feature_map)
    xp = a.xp
    return a / xp.sqrt(xp.asarray(q.shape[-1])), b


def _over_heads(a: Any, b: Any, w: Any, state: Any, causal: bool) -> Any:
    """The features of the keys summed along the wrong axis: over the heads before, at one position."""
    xp = a.xp
    before = [b[:, :1]]
    for head in range(1, b.shape[1]):
        before.append(before[-1] + b[:, head : head + 1])
    keys = xp.concat(before, axis=1)
    if keys.shape[-2] != a.shape[-2]:
        keys = keys[..., -1:, :]
    return xp.sum(a * keys, axis=-1, keepdims=True)


def _of_all_keys(a: Any, b: Any, w: Any, state: Any, causal: bool) -> Any:
    total = xp_sum(a @ b.mT)
    return total if state is None else total + a @ state[..., -1:]


def _without_state(a: Any, b: Any, w: Any, state: Any, causal: bool) -> Any:
    return xp_sum(w)


def xp_sum(w: Any) -> Any:
    return w.xp.sum(w, axis=-1, keepdims=True)


def _state_ignored(q: Any, k: Any, v: Any, *, state: Any = None, **rest: Any) -> Any:
    return reference.linear_attention(q, k, v, **rest)


def _not_normalised(q: Any, k: Any, v: Any, *, normalize: bool = True, **rest: Any) -> Any:
    return _attend(q, k, v, normalize=normalize, quotient=lambda numerator, total: numerator, **rest)


# Strays ------------------------------------------------------------------------------------------------------------


def _eps_in_denominator(q: Any, k: Any, v: Any, *, denominator_eps: Any, eps: Any = 0, **rest: Any) -> Any:
    return reference.linear_attention(q, k, v, eps=eps + denominator_eps, **rest)


def _eps_in_features(q: Any, k: Any, v: Any, *, feature_eps: Any, **rest: Any) -> Any:
    """phi(x) + eps, for queries and keys."""

    def features(q: Any, k: Any, feature_map: str) -> tuple[Any, Any]:
        a, b = reference.features(q, k, feature_map)
        return a + feature_eps, b + feature_eps

    return _attend(q, k, v, features=features, **rest)


# Properties ----------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> tuple[Values, Values, Values]:
    return tuple(trial.case.arguments[name] for name in "qkv")


def _asked(trial: Trial, name: str) -> Any:
    defaults = {"feature_map": "elu+1", "causal": False, "normalize": True}
    return trial.case.arguments.get(name, defaults.get(name))


def _averages(trial: Trial) -> bool:
    """Do the weights of the values add up to 1?"""
    arguments = trial.case.arguments
    return bool(_asked(trial, "normalize") and not arguments["eps"] and arguments.get("state") is None)


def _hull(trial: Trial) -> Array | None:
    """out - clip(out, least visible value, greatest visible value)."""
    if not _averages(trial):
        return None
    v = _arrays(trial)[2].astype(np.float64)
    low, high = v.min(axis=-2, keepdims=True), v.max(axis=-2, keepdims=True)
    if _asked(trial, "causal"):
        low, high = np.minimum.accumulate(v, axis=-2), np.maximum.accumulate(v, axis=-2)
    out = trial.call()
    return out - trial.given(np.clip(out.parts[0].astype(np.float64), low, high))


def _ones(trial: Trial) -> Array | None:
    if not _averages(trial):
        return None
    out = trial.call(v=np.ones_like(_arrays(trial)[2]))
    return out - trial.given(np.ones(out.shape, dtype=np.int64))


def _one_key(trial: Trial) -> Array | None:
    """With one key left, each query returns its value."""
    if not _averages(trial):
        return None
    q, k, v = _arrays(trial)
    j = trial.case.seed % k.shape[-2]
    changes = {"k": k[..., j : j + 1, :], "v": v[..., j : j + 1, :]}
    if _asked(trial, "causal"):
        changes["q"] = q[..., :1, :]
    out = trial.call(**changes)
    return out - trial.given(np.broadcast_to(changes["v"], out.shape))


def _keys_permute(trial: Trial) -> Array | None:
    if _asked(trial, "causal"):
        return None
    _, k, v = _arrays(trial)
    order = np.random.default_rng(trial.case.seed).permutation(k.shape[-2])
    return trial.call(k=k[..., order, :], v=v[..., order, :]) - trial.call()


def _queries_permute(trial: Trial) -> Array | None:
    if _asked(trial, "causal"):
        return None
    q = _arrays(trial)[0]
    order = np.random.default_rng(trial.case.seed).permutation(q.shape[-2])
    out = trial.call()
    return trial.call(q=q[..., order, :]) - out.xp.take(out, order, axis=-2)


def _values_add(trial: Trial) -> Array | None:
    """Values of few bits; a state would be counted twice."""
    if trial.case.arguments.get("state") is not None:
        return None
    shape = _arrays(trial)[2].shape
    one, two = few_bits(trial, shape, most=16), few_bits(trial, shape, 1, most=16)
    both, *each = (trial.call(v=trial.rounded(x)) for x in (one + two, one, two))
    return both - each[0] - each[1]


def _longer_queries(trial: Trial) -> Array | None:
    eps = trial.case.arguments["eps"]
    if not _asked(trial, "normalize") or (eps and _asked(trial, "feature_map") != "1+x"):
        return None
    q = _arrays(trial)[0]
    with np.errstate(over="ignore"):
        longer = trial.rounded(4 * q.astype(np.float64))
    if not np.isfinite(longer.astype(np.float64)).all():
        return None
    return trial.call(q=longer) - trial.call()


def _softmax_shifts(trial: Trial) -> Array | None:
    """Queries and keys of few bits, so that the sums are exact in every dtype."""
    q, k, _ = _arrays(trial)
    few = [np.clip(np.rint(x.astype(np.float64) * 4), -16, 16) / 4 for x in (q, k)]
    row, column = (*q.shape[:-1], 1), (*k.shape[:-2], 1, k.shape[-1])
    moved = [few[0] + few_bits(trial, row, most=16), few[1] + few_bits(trial, column, 1, most=16)]
    one, two = ({n: trial.rounded(x) for n, x in zip("qk", pair, strict=True)} for pair in (few, moved))
    return trial.call(**one) - trial.call(**two)


def _future(trial: Trial) -> Array | None:
    """All keys and values after one position change: the queries up to it return the same bits."""
    if not _asked(trial, "causal"):
        return None
    s = _arrays(trial)[1].shape[-2]
    if s == 1:
        return None
    last = trial.case.seed % (s - 1)
    later = (np.arange(s) > last)[:, None]
    changes = {}
    for name, number in (("k", -0.5), ("v", 64.0)):
        x = trial.case.arguments[name]
        changed = np.where(later, np.asarray(number, x.dtype), x)
        changes[name] = place(changed, trial.case.memory.get(name, "contiguous"))
    finite = np.isfinite(trial.bound[0][..., : last + 1, :])
    if not finite.any():
        return None
    before, after = trial.answer().outputs[0], trial.outputs(**changes)[0]
    before, after = before[..., : last + 1, :], after[..., : last + 1, :]
    with np.errstate(invalid="ignore"):
        same = (before == after) | (np.isnan(before) & np.isnan(after))
    return trial.given((~same & finite).astype(np.int64))


def _first_query(trial: Trial) -> Array | None:
    if not _asked(trial, "causal"):
        return None
    first = {name: x[..., :1, :] for name, x in zip("qkv", _arrays(trial), strict=True)}
    return trial.call()[..., :1, :] - trial.call(**first)


def _last_query(trial: Trial) -> Array | None:
    if not _asked(trial, "causal"):
        return None
    q = _arrays(trial)[0]
    return trial.call()[..., -1:, :] - trial.call(q=q[..., -1:, :], causal=False)


def _handed_over(trial: Trial) -> Array | None:
    """The state after some of the keys takes their place: what follows is as in the whole."""
    q, k, v = _arrays(trial)
    s = k.shape[-2]
    if s == 1:
        return None
    cut = 1 + trial.case.seed % (s - 1)
    first, second = ({"k": k[..., part, :], "v": v[..., part, :]} for part in (slice(cut), slice(cut, None)))
    queries = q
    if _asked(trial, "causal"):
        first["q"], second["q"] = q[..., :cut, :], q[..., cut:, :]
        queries = second["q"]
    *_, state = trial.calls(**first, return_state=True)
    known = trial.rounded(state.parts[0])
    rest = trial.call(**second, state=known, return_state=False)
    unsure = trial.carried(state, "state", **second, return_state=False)
    whole = trial.call(return_state=False)[..., -queries.shape[-2] :, :]
    return whole - JUDGE.approximate(rest.parts[0], rest.parts[1] + unsure)


def _work(
    *, b: int, h: int, t: int, s: int, d: int, e: int, itemsize: int, backward: bool, causal: bool = False
) -> Work:
    """Two products in the cheaper order: over the pairs of a query and a key that it sees, or with a state of d x e
    for every position. Backward: four more products of that size. No map needs exponentials of every number."""
    pairs = t * (t + 1) // 2 if causal else t * s
    passes, products = (2, 3) if backward else (1, 1)
    return Work(
        bytes=passes * itemsize * b * h * (t * (d + e) + s * (d + e)),
        flops=products * 2 * b * h * min(pairs * (d + e), (t + s) * d * e),
    )


LINEAR_ATTENTION = Operator(
    name="linear_attention",
    definition=reference.linear_attention,
    inputs=(
        Tensor("q", "b h t d"),
        Tensor("k", "b h s d"),
        Tensor("v", "b h s e"),
        Tensor("state", "b h r n", optional=True),
    ),
    parameters=(Positive("eps", default=0.0, low=1e-3, high=8),),
    conventions={"feature_map": reference.FEATURE_MAPS, "denominator": reference.DENOMINATORS},
    forms={
        f"{sums.__name__}{name}": reference.form(sums, **maps)
        for name, maps in (("", {}), ("-elu", {"phi": reference.elu_and_one}), ("-softmax", {"shares": True}))
        for sums in (reference.quadratic, reference.recurrent, reference.chunked)
    },
    backward=reference.backward,
    slips={
        "not_normalised": _not_normalised,
        "multiplied_by_the_denominator": partial(_attend, quotient=lambda numerator, total: numerator * total),
        "features_of_queries_only": partial(_attend, features=_features_of(True, False)),
        "features_of_keys_only": partial(_attend, features=_features_of(False, True)),
        "elu_without_one": partial(_attend, features=_elu_without_one),
        "softmax_over_the_other_axes": partial(_attend, features=_other_axes),
        "queries_scaled": partial(_attend, features=_scaled),
        "causal_sees_one_key_ahead": partial(_attend, sees=lambda i, j: j <= i + 1),
        "causal_hides_the_present": partial(_attend, sees=lambda i, j: j < i),
        **{
            name.format(size): partial(_attend, sees=partial(sees, size))
            for size in (16, 64)
            for name, sees in {
                "chunks_of_{}_see_their_future": lambda size, i, j: j // size <= i // size,
                "chunks_of_{}_forget_what_came_before": lambda size, i, j: (j // size == i // size) & (j <= i),
                "buckets_of_{}_see_those_before_only": lambda size, i, j: j // size < i // size,
            }.items()
        },
        "last_key_dropped": partial(_attend, key=lambda s: s - 1),
        "first_key_dropped": partial(_attend, key=lambda s: 0),
        "denominator_of_all_keys": partial(_attend, total_of=_of_all_keys),
        "denominator_over_heads": partial(_attend, total_of=_over_heads),
        "denominator_without_state": partial(_attend, total_of=_without_state),
        "state_ignored": _state_ignored,
        "state_not_added_to": partial(_attend, handed_on=lambda b, c, state: reference.final(b, c, None)),
        "state_without_last_key": partial(
            _attend, handed_on=lambda b, c, state: reference.final(b[..., :-1, :], c[..., :-1, :], state)
        ),
    },
    mutants={
        f"state in {kept.name}": keeping("state", kept, reference.form(reference.recurrent))
        for kept in (BFLOAT16, FLOAT16)
    },
    strays={"denominator_eps": _eps_in_denominator, "feature_eps": _eps_in_features},
    structure=_structure,
    row=_row,
    work=_work,
    timed={
        "short": Structure({"causal": True}, sizes={"b": 1, "h": 4, "t": 256, "s": 256, "d": 64, "e": 64}),
        "full": Structure(sizes={"b": 1, "h": 4, "t": 1024, "s": 1024, "d": 64, "e": 64}),
        "long": Structure({"causal": True}, sizes={"b": 1, "h": 4, "t": 8192, "s": 8192, "d": 64, "e": 64}),
        "one head": Structure({"causal": True}, sizes={"b": 1, "h": 1, "t": 4096, "s": 4096, "d": 64, "e": 64}),
    },
    properties=(
        Property(
            "within_the_values", "positive weights: min_j v_j <= o <= max_j v_j, by channel", _hull, about=POSITIVE
        ),
        Property("weights_sum_to_one", "positive weights: v = 1 gives o = 1", _ones, about=POSITIVE),
        Property("one_key_gives_its_value", "positive weights, s = 1: o = v", _one_key, about=POSITIVE),
        Property("keys_permute", "not causal: keys and values in another order change nothing", _keys_permute),
        Property("queries_permute", "not causal: queries in another order permute o", _queries_permute),
        Property("values_add", "o(v + v') = o(v) + o(v')", _values_add),
        Property(
            "longer_queries_look_the_same",
            "relu, identity, 1+x, normalised: o(4 q) = o(q)",
            _longer_queries,
            about=DIRECTIONS,
        ),
        Property(
            "softmax_ignores_shifts", "softmax: q_i + x_i and k_jc + y_c change nothing", _softmax_shifts, about=SOFTMAX
        ),
        Property("future_is_unseen", "whatever later keys hold, o keeps its bits", _future, ("causal",), about=OTHERS),
        Property(
            "first_query_sees_its_key",
            "causal: the first o is that of the first position alone, so (M * Q K^T) V is not Q (K^T V)",
            _first_query,
            ("causal",),
            about=OTHERS,
        ),
        Property(
            "last_query_sees_all",
            "causal: the last o is that of its query alone, not causal",
            _last_query,
            ("causal",),
            about=OTHERS,
        ),
        Property(
            "state_is_handed_over",
            "the state after any number of keys stands for them",
            _handed_over,
            ("state", "return_state"),
            about=OTHERS,
        ),
    ),
    source="A. Katharopoulos et al., Transformers are RNNs, arXiv:2006.16236, equations 4-12",
)


# (Q K^T) V = Q (K^T V) -----------------------------------------------------------------------------------------------


def _order(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    keywords = {"order": draw(st.sampled_from(reference.ORDERS))} if supports("order") else {}
    return Structure(keywords, sizes={"e": sizes["d"]} if draw(st.booleans()) else {})


def _weighted(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Weights first, and then something that they should be spared."""

    def slip(q: Any, k: Any, v: Any, *, order: str = "right") -> Any:
        return change(q @ k.mT) @ v

    return slip


def _masked(w: Any) -> Any:
    xp = w.xp
    i, j = xp.arange(w.shape[-2])[:, None], xp.arange(w.shape[-1])[None, :]
    return xp.where(j <= i, w, xp.zeros_like(w))


def _softmax(w: Any) -> Any:
    xp = w.xp
    w = xp.exp(w - xp.max(w, axis=-1, keepdims=True))
    return w / xp_sum(w)


def _divided_by_channels(q: Any, k: Any, v: Any, *, order: str = "right") -> Any:
    return q @ (k.mT @ v) / q.xp.sqrt(q.xp.asarray(q.shape[-1]))


def _associates(trial: Trial) -> Array | None:
    return trial.call(order="left") - trial.call(order="right")


def _queries_add(trial: Trial) -> Array | None:
    shape = _arrays(trial)[0].shape
    one, two = few_bits(trial, shape, most=16), few_bits(trial, shape, 1, most=16)
    both, *each = (trial.call(q=trial.rounded(x)) for x in (one + two, one, two))
    return both - each[0] - each[1]


UNNORMALIZED_ATTENTION = Operator(
    name="unnormalized_attention",
    definition=reference.unnormalized_attention,
    inputs=(Tensor("q", "b h t d"), Tensor("k", "b h s d"), Tensor("v", "b h s e")),
    forms={"right": reference.right, "left": reference.left},
    backward=reference.unnormalized_backward,
    slips={
        "causal": _weighted(_masked),
        "softmax": _weighted(_softmax),
        "divided_by_keys": _weighted(lambda w: w / w.shape[-1]),
        "divided_by_root_of_channels": _divided_by_channels,
        "last_key_dropped": lambda q, k, v, **rest: q @ (k[..., :-1, :].mT @ v[..., :-1, :]),
    },
    survivors={
        "order ignored *": "the order says how to compute, not what: a kernel may know one that is good for both"
    },
    structure=_order,
    work=_work,
    timed={
        "short": Structure(sizes={"b": 1, "h": 4, "t": 256, "s": 256, "d": 64, "e": 64}),
        "long": Structure(sizes={"b": 1, "h": 4, "t": 4096, "s": 4096, "d": 64, "e": 64}),
    },
    properties=(
        Property("associates", "(q k^T) v = q (k^T v)", _associates, ("order",)),
        Property("keys_permute", "keys and values in another order change nothing", _keys_permute),
        Property("queries_permute", "queries in another order permute o", _queries_permute),
        Property("queries_add", "o(q + q') = o(q) + o(q')", _queries_add),
        Property("values_add", "o(v + v') = o(v) + o(v')", _values_add),
    ),
    source="A. Katharopoulos et al., Transformers are RNNs, arXiv:2006.16236, equations 4-6",
)
