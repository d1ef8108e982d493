"""The contracts of `random_features` and `performer_attention`, for a projection that is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Operator, Positive, Property, Sizes, Structure, Tensor, Work
from assay.properties.drawing import Values
from assay.properties.trial import Trial
from assay.properties.truth import JUDGE
from assay.reference import performer as reference
from assay.reference.arithmetic.array import Array, vanishes
from assay.reference.arithmetic.precision import Format
from assay.reference.projection import KINDS


def _kind(trial: Trial) -> str:
    return str(trial.case.arguments.get("kind", KINDS[0]))


def _given(trial: Trial, *names: str) -> list[Values]:
    return [trial.case.arguments[name] for name in names]


def _few_bits(trial: Trial, shape: tuple[int, ...], number: int = 0) -> Values:
    """Numbers whose sums are exact in every dtype."""
    return trial.rounded(np.random.default_rng((trial.case.seed, number)).integers(-8, 9, shape) / 8)


def _order(trial: Trial, n: int) -> Values:
    return np.random.default_rng(trial.case.seed).permutation(n)


def _sides(trial: Trial, order: Values) -> Values:
    """An order of rows, for the features of them: one side after the other."""
    return order if _kind(trial) == "positive" else np.concatenate([order, len(order) + order])


# Features: slips -----------------------------------------------------------------------------------------------------


def _norm_times(factor: int) -> Callable[..., Any]:
    """h times so much in the exponent."""

    def slip(x: Any, projection: Any, *, kind: str = "positive") -> Any:
        xp = x.__array_namespace__()
        half = xp.sum(x * x, axis=-1, keepdims=True) / 2
        more = (factor - 1) * half
        phi = reference.random_features(x, projection, kind=kind)
        return phi * xp.exp(more if kind == "trigonometric" else -more)

    return slip


def _count_of(of: Callable[[int, str], tuple[int, int]]) -> Callable[..., Any]:
    """The root of another number than that of the features: of n / m."""

    def slip(x: Any, projection: Any, *, kind: str = "positive") -> Any:
        xp = x.__array_namespace__()
        n, m = of(projection.shape[0], kind)
        return reference.random_features(x, projection, kind=kind) * xp.sqrt(xp.asarray(n)) / xp.sqrt(xp.asarray(m))

    return slip


def _features_scaled(x: Any, projection: Any, *, kind: str = "positive") -> Any:
    return reference.random_features(reference.scale_of(x) * x, projection, kind=kind)


def _sides_exchanged(x: Any, projection: Any, *, kind: str = "positive") -> Any:
    phi = reference.random_features(x, projection, kind=kind)
    r = projection.shape[0]
    return phi if kind == "positive" else phi.xp.concat([phi[..., r:], phi[..., :r]], axis=-1)


def _sides_interleaved(x: Any, projection: Any, *, kind: str = "positive") -> Any:
    phi = reference.random_features(x, projection, kind=kind)
    r = projection.shape[0]
    if kind == "positive":
        return phi
    return phi.xp.reshape(phi.xp.stack([phi[..., :r], phi[..., r:]], axis=-1), phi.shape)


def _first_row_for_all(x: Any, projection: Any, *, kind: str = "positive") -> Any:
    return reference.random_features(x, projection[:1] + 0 * projection, kind=kind)


# Features: properties ------------------------------------------------------------------------------------------------


def _not_negative(trial: Trial) -> Array | None:
    if _kind(trial) == "trigonometric":
        return None
    out = trial.answer().outputs[0]
    return trial.given(np.where(out < 0, out, np.zeros_like(out)))


def _sides_meet(trial: Trial) -> Array | None:
    """Of x and -x, of both sides, or of cosine and sine."""
    x, projection = _given(trial, "x", "projection")
    kind, r = _kind(trial), projection.shape[0]
    phi = trial.call()
    square = (lambda g: g.xp.sum(g * g, axis=-1, keepdims=True))(trial.given(x))
    if kind == "trigonometric":
        cos, sin = phi[..., :r], phi[..., r:]
        return r * (cos * cos + sin * sin) - phi.xp.exp(square)
    if kind == "hyperbolic":
        return 2 * r * (phi[..., :r] * phi[..., r:]) - phi.xp.exp(-square)
    return r * (phi * trial.call(x=-x)) - phi.xp.exp(-square)


def _signs_cancel(trial: Trial) -> Array | None:
    x, projection = _given(trial, "x", "projection")
    return trial.call(x=-x, projection=-projection) - trial.call()


def _rows_permute(trial: Trial) -> Array | None:
    (projection,) = _given(trial, "projection")
    order = _order(trial, projection.shape[0])
    out = trial.call()
    return trial.call(projection=projection[order]) - out.xp.take(out, _sides(trial, order), axis=-1)


def _positions_permute(trial: Trial) -> Array | None:
    (x,) = _given(trial, "x")
    order = _order(trial, x.shape[-2])
    out = trial.call()
    return trial.call(x=x[..., order, :]) - out.xp.take(out, order, axis=-2)


def _zero(trial: Trial) -> Array | None:
    x, projection = _given(trial, "x", "projection")
    kind, r = _kind(trial), projection.shape[0]
    out = trial.call(x=np.zeros_like(x))
    wanted = np.ones(out.shape)
    if kind == "trigonometric":
        wanted[..., r:] = 0
    root = JUDGE.sqrt(JUDGE.lift(np.asarray(2 * r if kind == "hyperbolic" else r)))
    return out * root - trial.given(wanted)


def _estimate(trial: Trial) -> Array | None:
    """Few bits, so that sums and differences are exact in every dtype: positive features see x + y, cosines x - y."""
    x, projection = _given(trial, "x", "projection")
    kind = _kind(trial)
    few, other, moved = (_few_bits(trial, x.shape, number) for number in range(3))
    rows = np.clip(projection, -4, 4)

    def estimate(a: Values, b: Values) -> Array:
        a, b = (trial.rounded(v) for v in (a, b))
        phi, psi = (trial.call(x=v, projection=rows) for v in (a, b))
        inner = phi.xp.sum(phi * psi, axis=-1)
        squares = trial.given(a) ** 2 + trial.given(b) ** 2
        half = phi.xp.sum(squares, axis=-1) / 2
        return inner * phi.xp.exp(-half if kind == "trigonometric" else half)

    wide = [v.astype(np.float64) for v in (few, other, moved)]
    sign = 1 if kind == "trigonometric" else -1
    return estimate(few, other) - estimate(wide[0] + wide[2], wide[1] + sign * wide[2])


def _work_of_features(
    *, b: int, h: int, t: int, d: int, r: int, itemsize: int, backward: bool, kind: str = "positive"
) -> Work:
    """One product; an exponential for each feature, or its inverse for the other side of it, and for each row where
    features are sines. Backward: two more products of that size."""
    passes, products = (2, 3) if backward else (1, 1)
    two = 1 if kind == "positive" else 2
    return Work(
        bytes=passes * itemsize * (b * h * t * (d + two * r) + r * d),
        flops=products * 2 * b * h * t * r * d,
        exponentials=b * h * t * (1 if kind == "trigonometric" else r),
    )


RANDOM_FEATURES = Operator(
    name="random_features",
    definition=reference.random_features,
    inputs=(Tensor("x", "b h t d"), Tensor("projection", "r d")),
    conventions={"kind": KINDS},
    forms={"exponent": reference.exponent, "factors": reference.factors},
    slips={
        "norm_missing": _norm_times(0),
        "norm_not_halved": _norm_times(2),
        "norm_with_the_wrong_sign": _norm_times(-1),
        "factor_missing": _count_of(lambda r, kind: (2 * r if kind == "hyperbolic" else r, 1)),
        "factor_without_root": _count_of(lambda r, kind: (1, 2 * r if kind == "hyperbolic" else r)),
        "factor_of_the_other_kind": _count_of(lambda r, kind: (2, 1) if kind == "hyperbolic" else (1, 2)),
        "scaled_as_in_attention": _features_scaled,
        "sides_exchanged": _sides_exchanged,
        "sides_interleaved": _sides_interleaved,
        "first_row_for_all": _first_row_for_all,
    },
    properties=(
        Property("never_negative", "phi >= 0, but for cosines and sines", _not_negative),
        Property(
            "sides_meet",
            "r phi(x) phi(-x) = exp(-|x|^2), 2 r phi+ phi- = exp(-|x|^2), r (cos^2 + sin^2) = exp(|x|^2)",
            _sides_meet,
        ),
        Property("signs_cancel", "phi(-x; -W) = phi(x; W)", _signs_cancel),
        Property("rows_permute", "rows of W in another order permute the features of a side", _rows_permute),
        Property("positions_permute", "positions in another order permute phi", _positions_permute),
        Property("zero_is_known", "phi(0) is one over the root of their number; sines are 0", _zero),
        Property(
            "estimates_see_sums",
            "<phi(x), phi(y)> exp((|x|^2 + |y|^2) / 2) depends on x + y alone; that of cosines, with exp(-), on x - y",
            _estimate,
        ),
    ),
    work=_work_of_features,
    timed={
        "short": Structure(sizes={"b": 1, "h": 4, "t": 256, "d": 64, "r": 128}),
        "long": Structure(sizes={"b": 1, "h": 4, "t": 4096, "d": 64, "r": 256}),
    },
    source="K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, lemma 1",
)


# Attention: structure and slips --------------------------------------------------------------------------------------


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """As many keys as queries where causal."""
    changed = {"e": sizes["d"]} if draw(st.booleans()) else {}
    keywords = {"causal": draw(st.booleans())} if supports("causal") else {}
    if keywords.get("causal"):
        changed["t"] = changed["s"] = max(sizes["t"], sizes["s"])
    return Structure(keywords, sizes=changed)


def _long(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Values]:
    """Queries and keys so long that exp(<w, y> - |y|^2 / 2) underflows for all of them in float32, and exp(|y|^2 / 2)
    overflows: |y| is from 14 to 16."""
    return _of_length(random, shapes, 14, 16)


def _short(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Values]:
    """Queries and keys so short that cosines do not cancel in the sum of the weights, and so long that they differ:
    |y| is from 1/2 to 1."""
    return _of_length(random, shapes, 0.5, 1)


def _of_length(
    random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], low: float, high: float
) -> dict[str, Values]:
    """Queries and keys in random directions; low <= |y| <= high for what is scaled, y = c x."""
    out = {}
    for name in ("q", "k"):
        x = random.standard_normal(shapes[name])
        length = random.uniform(low, high, (*x.shape[:-1], 1)) * x.shape[-1] ** 0.25
        out[name] = x / np.linalg.norm(x, axis=-1, keepdims=True) * length
    return out


def _attend(
    q: Any,
    k: Any,
    v: Any,
    projection: Any,
    *,
    kind: str = "positive",
    causal: bool = False,
    eps: Any = 0,
    stabilizer: str = "none",
    scale: Callable[[Any, bool], Any] | None = None,
    keys: Callable[[Any, Any], Any] | None = None,
    ahead: int = 0,
    dropped: int | None = None,
    divided: Callable[[Any, Any, Any], Any] | None = None,
) -> Any:
    """The definition with one thing changed: the scale, the features of the keys, how far a query sees, a key that is
    left out, or what the sums are divided by."""
    xp = q.__array_namespace__()
    a, b = (
        reference.weighing(x, projection, kind, eps, stabilizer, queries, None if scale is None else scale(x, queries))
        for x, queries in ((q, True), (k, False))
    )
    if keys is not None:
        b = keys(b, k)
    w = a @ b.mT
    whole = w
    i, j = xp.arange(q.shape[-2])[:, None], xp.arange(k.shape[-2])[None, :]
    if causal:
        w = xp.where(j <= i + ahead, w, xp.zeros_like(w))
    if dropped is not None and k.shape[-2] > 1:
        w = xp.where(j == dropped % k.shape[-2], xp.zeros_like(w), w)
    total = xp.sum(w, axis=-1, keepdims=True)
    total = total if divided is None else divided(w, whole, total)
    none = vanishes(total)
    out = w @ v / xp.where(none, xp.ones_like(total), total)
    return xp.where(none, xp.zeros_like(out), out)


def _root_scale(x: Any, queries: bool) -> Any:
    """d^(-1/2), as softmax attention has for queries and keys together."""
    c = reference.scale_of(x)
    return c * c


def _on_queries(x: Any, queries: bool) -> Any:
    return _root_scale(x, queries) if queries else x.xp.asarray(1)


def _keys_without_norm(b: Any, k: Any) -> Any:
    c = reference.scale_of(k)
    return b * b.xp.exp(c * c * b.xp.sum(k * k, axis=-1, keepdims=True) / 2)


def _keys_by_their_own_greatest(b: Any, k: Any) -> Any:
    return b / b.xp.max(b.xp.abs(b), axis=-1, keepdims=True)


def _features_stray(q: Any, k: Any, v: Any, projection: Any, *, feature_eps: Any, eps: Any = 0, **rest: Any) -> Any:
    return reference.performer_attention(q, k, v, projection, eps=eps + feature_eps, **rest)


def _denominator_stray(q: Any, k: Any, v: Any, projection: Any, *, denominator_eps: Any, **rest: Any) -> Any:
    return _attend(q, k, v, projection, divided=lambda w, whole, total: total + denominator_eps, **rest)


# Attention: properties -----------------------------------------------------------------------------------------------


def _causal(trial: Trial) -> bool:
    return bool(trial.case.arguments.get("causal"))


def _ones(trial: Trial) -> Array | None:
    (v,) = _given(trial, "v")
    out = trial.call(v=np.ones_like(v))
    return out - trial.given(np.ones(out.shape, dtype=np.int64))


def _hull(trial: Trial) -> Array | None:
    """out - clip(out, least visible value, greatest visible value)."""
    if _kind(trial) == "trigonometric":
        return None
    v = _given(trial, "v")[0].astype(np.float64)
    low, high = v.min(axis=-2, keepdims=True), v.max(axis=-2, keepdims=True)
    if _causal(trial):
        low, high = np.minimum.accumulate(v, axis=-2), np.maximum.accumulate(v, axis=-2)
    out = trial.call()
    return out - trial.given(np.clip(out.parts[0].astype(np.float64), low, high))


def _one_key(trial: Trial) -> Array | None:
    q, k, v = _given(trial, "q", "k", "v")
    j = trial.case.seed % k.shape[-2]
    changes = {"k": k[..., j : j + 1, :], "v": v[..., j : j + 1, :]}
    if _causal(trial):
        changes["q"] = q[..., :1, :]
    out = trial.call(**changes)
    return out - trial.given(np.broadcast_to(changes["v"], out.shape))


def _keys_permute(trial: Trial) -> Array | None:
    if _causal(trial):
        return None
    k, v = _given(trial, "k", "v")
    order = _order(trial, k.shape[-2])
    return trial.call(k=k[..., order, :], v=v[..., order, :]) - trial.call()


def _queries_permute(trial: Trial) -> Array | None:
    if _causal(trial):
        return None
    (q,) = _given(trial, "q")
    order = _order(trial, q.shape[-2])
    out = trial.call()
    return trial.call(q=q[..., order, :]) - out.xp.take(out, order, axis=-2)


def _projection_permutes(trial: Trial) -> Array | None:
    (projection,) = _given(trial, "projection")
    return trial.call(projection=projection[_order(trial, projection.shape[0])]) - trial.call()


def _mirrored(trial: Trial) -> Array | None:
    """The two sides are exchanged with W; but sines change their sign, which shows where eps is added to them."""
    q, k, projection = _given(trial, "q", "k", "projection")
    sided = _kind(trial) == "hyperbolic" or (_kind(trial) == "trigonometric" and not trial.case.arguments.get("eps"))
    changes = {} if sided else {"q": -q, "k": -k}
    return trial.call(projection=-projection, **changes) - trial.call()


def _values_add(trial: Trial) -> Array | None:
    (v,) = _given(trial, "v")
    one, two = (_few_bits(trial, v.shape, number) for number in (0, 1))
    both = trial.rounded(one.astype(np.float64) + two.astype(np.float64))
    return trial.call(v=both) - trial.call(v=one) - trial.call(v=two)


def _future(trial: Trial) -> Array | None:
    """All keys and values after one position change: what the queries up to it return does not. With eps a stabilizer
    over all keys does see the future."""
    k, v = _given(trial, "k", "v")
    if trial.case.arguments.get("eps") and trial.case.arguments.get("stabilizer", "none") != "none":
        return None
    s = k.shape[-2]
    if not _causal(trial) or s == 1:
        return None
    last = trial.case.seed % (s - 1)
    later = (np.arange(s) > last)[:, None]
    changed = trial.call(k=np.where(later, np.asarray(1.5, k.dtype), k), v=np.where(later, np.asarray(64, v.dtype), v))
    return (changed - trial.call())[..., : last + 1, :]


def _last_query(trial: Trial) -> Array | None:
    if not _causal(trial):
        return None
    (q,) = _given(trial, "q")
    return trial.call()[..., -1:, :] - trial.call(q=q[..., -1:, :], causal=False)


def _no_projection(trial: Trial) -> Array | None:
    """W = 0: all features of a key are alike, exp(-c^2 |k|^2 / 2), or exp(+) for cosines."""
    _, k, v, projection = _given(trial, "q", "k", "v", "projection")
    if _causal(trial) or trial.case.arguments.get("eps"):
        return None
    out = trial.call(projection=np.zeros_like(projection))
    xp, keys = out.xp, trial.given(k)
    power = xp.sum(keys * keys, axis=-1) / (2 * xp.sqrt(xp.asarray(k.shape[-1])))
    power = power if _kind(trial) == "trigonometric" else -power
    w = xp.exp(power - xp.max(power, axis=-1, keepdims=True))[..., None, :]
    mean = w @ trial.given(v) / xp.sum(w, axis=-1, keepdims=True)
    return out - xp.broadcast_to(mean, out.shape)


def _work(
    *,
    b: int,
    h: int,
    t: int,
    s: int,
    d: int,
    e: int,
    r: int,
    itemsize: int,
    backward: bool,
    kind: str = "positive",
    causal: bool = False,
    **rest: Any,
) -> Work:
    """The features of queries and of keys, then two products in the cheaper order, as of linear attention. Backward:
    two more of each size."""
    passes, products = (2, 3) if backward else (1, 1)
    features, pairs = r if kind == "positive" else 2 * r, t * (t + 1) // 2 if causal else t * s
    of_features, of_weights = (t + s) * r * d, min(pairs * (features + e), (t + s) * features * e)
    return Work(
        bytes=passes * itemsize * (b * h * (t + s) * (d + e) + r * d),
        flops=products * 2 * b * h * (of_features + of_weights),
        exponentials=b * h * (t + s) * (1 if kind == "trigonometric" else r),
    )


PERFORMER_ATTENTION = Operator(
    name="performer_attention",
    definition=reference.performer_attention,
    inputs=(Tensor("q", "b h t d"), Tensor("k", "b h s d"), Tensor("v", "b h s e"), Tensor("projection", "r d")),
    parameters=(Positive("eps", default=0.0, low=1e-3, high=1.0),),
    conventions={"kind": KINDS, "stabilizer": reference.STABILIZERS},
    forms={"plain": reference.plain, "shifted": reference.shifted},
    backward=reference.backward,
    slips={
        "scale_missing": partial(_attend, scale=lambda x, queries: x.xp.asarray(1)),
        "scale_of_softmax": partial(_attend, scale=_root_scale),
        "scale_on_the_queries": partial(_attend, scale=_on_queries),
        "keys_without_norm": partial(_attend, keys=_keys_without_norm),
        "keys_shifted_one_by_one": partial(_attend, keys=_keys_by_their_own_greatest),
        "causal_sees_one_key_ahead": partial(_attend, ahead=1),
        "causal_hides_the_present": partial(_attend, ahead=-1),
        "last_key_dropped": partial(_attend, dropped=-1),
        "first_key_dropped": partial(_attend, dropped=0),
        "not_normalised": partial(_attend, divided=lambda w, whole, total: w.xp.ones_like(total)),
        "denominator_of_all_keys": partial(
            _attend, divided=lambda w, whole, total: w.xp.sum(whole, axis=-1, keepdims=True)
        ),
    },
    strays={"feature_eps": _features_stray, "denominator_eps": _denominator_stray},
    structure=_structure,
    regimes={"long": _long, "short": _short},
    properties=(
        Property("weights_sum_to_one", "v = 1 gives o = 1", _ones),
        Property("within_the_values", "min_j v_j <= o <= max_j v_j by channel, but for cosines", _hull),
        Property("one_key_gives_its_value", "s = 1: o = v", _one_key),
        Property("keys_permute", "not causal: keys and values in another order change nothing", _keys_permute),
        Property("queries_permute", "not causal: queries in another order permute o", _queries_permute),
        Property("rows_permute", "rows of W in another order change nothing", _projection_permutes),
        Property(
            "mirrored",
            "o(-q, -k; -W) = o(q, k; W); two-sided, but for sines with eps: o(q, k; -W) = o(q, k; W)",
            _mirrored,
        ),
        Property("values_add", "o(v + v') = o(v) + o(v')", _values_add),
        Property(
            "future_is_unseen", "causal: whatever later keys and values hold, o is the same", _future, ("causal",)
        ),
        Property("last_query_sees_all", "causal: the last o is that of its query alone", _last_query, ("causal",)),
        Property(
            "without_projection_lengths_weigh", "W = 0: o = sum exp(-c^2 |k|^2 / 2) v / sum exp(-)", _no_projection
        ),
    ),
    work=_work,
    timed={
        "short": Structure(sizes={"b": 1, "h": 4, "t": 128, "s": 128, "d": 64, "e": 64, "r": 64}),
        "full": Structure(sizes={"b": 1, "h": 4, "t": 4096, "s": 4096, "d": 64, "e": 64, "r": 256}),
        "long": Structure({"causal": True}, sizes={"b": 1, "h": 4, "t": 4096, "s": 4096, "d": 64, "e": 64, "r": 256}),
    },
    source="K. Choromanski et al., Rethinking Attention with Performers, arXiv:2009.14794v4, equations 4 to 6",
)
