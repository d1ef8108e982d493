"""The contracts of `clip_loss` and `siglip_loss`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Operator, Positive, Property, Real, Regime, Sizes, Structure, Tensor, Work
from assay.properties.drawing import Values
from assay.properties.trial import Trial
from assay.reference import contrastive as reference
from assay.reference.arithmetic.array import Array, Mask
from assay.reference.arithmetic.precision import Format
from assay.reference.attention import shift_of, weights


BLOCK = 64
"""What a kernel that works in tiles may take for the whole: every long case has a second tile."""


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """Several positives in some cases: pairs of one label, or any; each pair belongs together in any case."""
    if not supports("positives") or not draw(st.booleans()):
        return Structure()
    n = sizes["n"]
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    label = random.integers(0, max(1, n // 2), n)
    own = label[:, None] == label if draw(st.booleans()) else random.random((n, n)) < 0.2
    return Structure({"positives": own | np.eye(n, dtype=bool)})


# Regimes -------------------------------------------------------------------------------------------------------------
# Features that have nothing to do with each other hide most mistakes: the loss is near ln n whatever is done. Each
# regime draws both towers together, and the scale.

Shapes = Mapping[str, tuple[int, ...]]
Drawn = dict[str, Any]


def _units(x: Values) -> Values:
    return x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), 1e-30)


def _aligned(random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """Pairs alike but for noise: scale times its variance is about 1. The bias lies between positives and negatives."""
    scale = float(np.exp(random.uniform(np.log(4), np.log(60))))
    image = _units(random.standard_normal(shapes["image"]))
    text = _units(image + random.standard_normal(shapes["text"]) / np.sqrt(scale))
    return {"image": image, "text": text, "scale": scale, "bias": -scale * random.uniform(0.2, 0.9)}


def _asymmetric(random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """One text belongs to several images."""
    drawn = _aligned(random, shapes, dtype)
    drawn["text"][random.random(shapes["text"][0]) < 0.5] = drawn["text"][0]
    return drawn


def _duplicated(random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """Whole pairs come several times."""
    drawn = _aligned(random, shapes, dtype)
    n = shapes["image"][0]
    again = random.integers(0, max(1, n // 2), n)
    return {**drawn, "image": drawn["image"][again], "text": drawn["text"][again]}


def _antipodal(random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """Each text is the opposite of its image."""
    drawn = _aligned(random, shapes, dtype)
    return {**drawn, "text": -drawn["text"]}


def _saturated(random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """Where losses are far below 1, or a few terms are all of them."""
    return {**_aligned(random, shapes, dtype), "scale": float(random.choice((100.0, 1000.0)))}


def _stretched(length: float, random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """Logits of 100 times the square of `length`."""
    drawn = _aligned(random, shapes, dtype)
    return {**drawn, "image": length * drawn["image"], "text": length * drawn["text"], "scale": 100.0}


def _opposed(random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """Each pair costs thousands: of few pairs, as of a large batch of cheap ones, the mean is a float16 and the sum is
    none."""
    drawn = _stretched(float(np.sqrt(np.exp(random.uniform(np.log(10), np.log(240))))), random, shapes, dtype)
    return {**drawn, "text": -drawn["text"]}


def _logits(random: np.random.Generator, shapes: Shapes, dtype: Format) -> Drawn:
    """One tower is the identity: the other one holds logits, and its gradient is the gradient of each logit."""
    n, d = shapes["text"]
    identity = np.eye(n, d)
    logits = random.standard_normal(shapes["image"]) * 3
    one, other = ("image", "text") if random.random() < 0.5 else ("text", "image")
    return {one: logits, other: identity, "scale": 1.0, "bias": random.uniform(-3, 3)}


REGIMES: dict[str, Regime] = {
    "aligned": _aligned,
    "asymmetric": _asymmetric,
    "duplicated": _duplicated,
    "antipodal": _antipodal,
    "saturated": _saturated,
    "far logits": partial(_stretched, 10.0),
    "beyond float16": partial(_stretched, 32.0),
    "sum beyond float16": _opposed,
    "logits": _logits,
}


# Slips ---------------------------------------------------------------------------------------------------------------
# Each is written with the roundings of kernels (through a form), for it bounds those that make the mistake.


def _clip_labels_shifted(image: Any, text: Any, *, scale: Any, positives: Any = None, **rest: Any) -> Any:
    """Both cross entropies are told that row i belongs to column i + 1."""

    def row(s: Any, own: Any) -> Any:
        m = shift_of(s, None)
        return reference.cross_entropy(s, _next(own), m, weights(s, m, None))

    return reference.clip_of_rows(row, image, text, scale, positives, **rest)


def _siglip_labels_shifted(image: Any, text: Any, *, positives: Any = None, **rest: Any) -> Any:
    """Image i is taken to belong to text i + 1."""
    return reference.subtracted(image, text, positives=_next(reference.positive_pairs(image, positives)), **rest)


def _next(own: Mask) -> Mask:
    return Mask(np.roll(own.bits, 1, axis=1))


def _scale_as_logarithm(definition: Callable[..., Any]) -> Callable[..., Any]:
    """The scale is exp(scale)."""
    return lambda image, text, *, scale, **rest: definition(
        image, text, scale=image.__array_namespace__().exp(scale), **rest
    )


def _normalised_features(definition: Callable[..., Any]) -> Callable[..., Any]:
    """Features are divided by their lengths first."""

    def slip(image: Any, text: Any, **rest: Any) -> Any:
        xp = image.__array_namespace__()
        units = []
        for x in (image, text):
            square = xp.sum(x * x, axis=-1, keepdims=True)
            units.append(x / xp.sqrt(xp.where(square > xp.zeros_like(square), square, xp.ones_like(square))))
        return definition(*units, **rest)

    return slip


def _without_last_pair(definition: Callable[..., Any]) -> Callable[..., Any]:
    def slip(image: Any, text: Any, *, positives: Any = None, **rest: Any) -> Any:
        if image.shape[0] == 1:
            return definition(image, text, positives=positives, **rest)
        own = None if positives is None else positives[:-1, :-1]
        return definition(image[:-1], text[:-1], positives=own, **rest)

    return slip


def _divided_again(definition: Callable[..., Any]) -> Callable[..., Any]:
    """The mean is divided by n once more."""
    return lambda image, text, **rest: definition(image, text, **rest) / image.shape[0]


def _without_positives_in_denominator(image: Any, text: Any, *, scale: Any, positives: Any = None, **rest: Any) -> Any:
    """ln of the sum over the negatives alone, less the positive; where there are any negatives."""

    def row(s: Any, own: Any) -> Any:
        xp = s.__array_namespace__()
        one, zero = xp.ones_like(s), xp.zeros_like(s)
        negatives = xp.sum(xp.where(own, zero, one), axis=-1, keepdims=True)
        kept = ~own | (negatives == xp.zeros_like(negatives))
        m = shift_of(s, kept)
        return reference.cross_entropy(s, own, m, weights(s, m, kept))

    return reference.clip_of_rows(row, image, text, scale, positives, **rest)


def _columns_past_the_first_block(image: Any, text: Any, *, scale: Any, positives: Any = None, **rest: Any) -> Any:
    """Only the first 64 scores of a row count in its sum."""

    def row(s: Any, own: Any) -> Any:
        m = shift_of(s[:, :BLOCK], None)
        return reference.cross_entropy(s, own, m, weights(s[:, :BLOCK], m, None))

    return reference.clip_of_rows(row, image, text, scale, positives, **rest)


def _eps_in_logarithm_of_clip(
    image: Any, text: Any, *, scale: Any, eps: Any, positives: Any = None, **rest: Any
) -> Any:
    """-ln(p + eps), p the weight of the positive."""

    def row(s: Any, own: Any) -> Any:
        xp = s.__array_namespace__()
        m = shift_of(s, None)
        return -xp.log(xp.exp(-reference.cross_entropy(s, own, m, weights(s, m, None))) + eps)

    return reference.clip_of_rows(row, image, text, scale, positives, **rest)


def _of_pairs(loss: Callable[..., Any]) -> Callable[..., Any]:
    """SigLIP with another loss of (logits, which are positive), both [n, n]."""

    def slip(
        image: Any, text: Any, *, scale: Any, bias: Any, positives: Any = None, normalisation: str = "n", **rest: Any
    ) -> Any:
        xp = image.__array_namespace__()
        logits = scale * (image @ xp.matrix_transpose(text)) + bias
        own = reference.positive_pairs(logits, positives)
        total = xp.sum(loss(logits, own, **rest))
        return total / reference.divisor_of("siglip", logits.shape[0], normalisation)

    return slip


def _signed(x: Any, own: Any) -> Any:
    """-z l."""
    return x.__array_namespace__().where(own, -x, x)


def _only(positive: bool) -> Callable[[Any, Any], Any]:
    def loss(x: Any, own: Any) -> Any:
        xp = x.__array_namespace__()
        return xp.where(own if positive else ~own, reference.softplus_of_kernels(_signed(x, own)), xp.zeros_like(x))

    return loss


def _labels_of_zero(x: Any, own: Any) -> Any:
    xp = x.__array_namespace__()
    return reference.softplus_of_kernels(xp.where(own, -x, xp.zeros_like(x)))


def _first_block(x: Any, own: Any) -> Any:
    return reference.softplus_of_kernels(_signed(x, own))[:, :BLOCK]


def _eps_in_logarithm_of_siglip(x: Any, own: Any, *, eps: Any) -> Any:
    xp = x.__array_namespace__()
    return -xp.log(xp.exp(-reference.softplus_of_kernels(_signed(x, own))) + eps)


def _scaled_bias(image: Any, text: Any, *, scale: Any, bias: Any, **rest: Any) -> Any:
    """c (<image, text> + bias)."""
    return reference.subtracted(image, text, scale=scale, bias=scale * bias, **rest)


# Properties ------------------------------------------------------------------------------------------------------


def _towers(trial: Trial) -> tuple[Values, Values]:
    return trial.case.arguments["image"], trial.case.arguments["text"]


def _own(trial: Trial) -> Values | None:
    return trial.case.arguments.get("positives")


def _count(trial: Trial) -> int:
    return len(_towers(trial)[0])


def _random(trial: Trial) -> np.random.Generator:
    return np.random.default_rng(trial.case.seed)


def _number(trial: Trial, value: float) -> Array:
    return trial.given(np.asarray(value, dtype=np.float64))


def _with_channel(trial: Trial, image: float, text: float) -> dict[str, Values]:
    """Both towers with one more channel, of one number each."""
    x, y = _towers(trial)
    wider = [
        np.concatenate([z, np.full((len(z), 1), number, dtype=z.dtype)], axis=1)
        for z, number in ((x, image), (y, text))
    ]
    return dict(zip(("image", "text"), wider, strict=True))


def _pairs_permute(trial: Trial) -> Array | None:
    image, text = _towers(trial)
    order = _random(trial).permutation(_count(trial))
    own = _own(trial)
    changes = {"image": image[order], "text": text[order]}
    if own is not None:
        changes["positives"] = np.ascontiguousarray(own[order][:, order])
    return trial.call(**changes) - trial.call()


def _channels_rotate(trial: Trial) -> Array | None:
    """By a signed permutation, which is exact in every dtype."""
    image, text = _towers(trial)
    random = _random(trial)
    order = random.permutation(image.shape[1])
    signs = (2 * random.integers(0, 2, image.shape[1]) - 1).astype(image.dtype)
    return trial.call(image=image[:, order] * signs, text=text[:, order] * signs) - trial.call()


def _sides_swap(trial: Trial) -> Array | None:
    if trial.case.arguments.get("directions") in ("image", "text"):
        return None
    image, text = _towers(trial)
    own = _own(trial)
    return trial.call(image=text, text=image, **({} if own is None else {"positives": own.T.copy()})) - trial.call()


def _scale_moves(trial: Trial) -> Array | None:
    image, scale = _towers(trial)[0], trial.case.arguments["scale"]
    if trial.case.regime == "huge":
        return None
    return trial.call(image=trial.rounded(2 * image.astype(np.float64)), scale=scale / 2) - trial.call()


def _few_bits(x: Values) -> Values:
    return np.clip(np.rint(x.astype(np.float64) * 4), -16, 16) / 4


def _convex(trial: Trial) -> Array | None:
    """The scores are linear in one tower. Features of few bits, so that the middle is one in every dtype."""
    middle = _few_bits(_towers(trial)[0])
    step = _random(trial).integers(-8, 9, middle.shape) / 4
    ends = [trial.call(image=trial.rounded(middle + sign * step)) for sign in (1, -1)]
    above = trial.call(image=trial.rounded(middle)) - (ends[0] + ends[1]) / 2
    return above.xp.maximum(above, above.xp.zeros_like(above))


def _homogeneous(trial: Trial) -> Array | None:
    """Euler's rule: the loss depends on c times each tower alone."""
    found = trial.gradients()
    if found is None:
        return None
    side = ("image", "text")[trial.case.seed % 2]
    inner = found[side] * trial.given(trial.case.arguments[side])
    return inner.xp.sum(inner) - found["scale"] * _number(trial, trial.case.arguments["scale"])


def _zero_sum(trial: Trial) -> Array | None:
    """A channel that is 1 in one tower: the other's gradient there is c times the sum of a row of G."""
    side = ("image", "text")[trial.case.seed % 2]
    found = trial.gradients(**_with_channel(trial, *((0, 1) if side == "image" else (1, 0))))
    return None if found is None else found[side].xp.sum(found[side][:, -1])


def _bias_is_a_channel(trial: Trial) -> Array | None:
    """The same sum is the gradient of the bias, times c."""
    found = trial.gradients(**_with_channel(trial, 0, 1))
    if found is None:
        return None
    total = found["image"].xp.sum(found["image"][:, -1])
    return total - found["bias"] * _number(trial, trial.case.arguments["scale"])


# of CLIP


def _times(trial: Trial, n: int) -> int:
    """What one row is multiplied by."""
    rows = n if trial.case.arguments.get("normalisation") == "sum" else 1
    return rows * (2 if trial.case.arguments.get("directions") == "summed" else 1)


def _logarithm(trial: Trial, n: int) -> Array:
    one = trial.given(np.asarray(n))
    return one.xp.log(one)


def _constant(trial: Trial) -> Array | None:
    return trial.call(**_with_channel(trial, 1, -1)) - trial.call()


def _one_pair(trial: Trial) -> Array | None:
    image, text = _towers(trial)
    return trial.call(image=image[:1], text=text[:1], positives=None)


def _equal_pairs(trial: Trial) -> Array | None:
    image, text = _towers(trial)
    n = len(image)
    out = trial.call(image=np.repeat(image[:1], n, axis=0), text=np.repeat(text[:1], n, axis=0))
    return out - _logarithm(trial, n) * _times(trial, n)


def _copies(trial: Trial) -> Array | None:
    image, text = _towers(trial)
    own = _own(trial)
    changes = {"image": np.concatenate([image, image]), "text": np.concatenate([text, text])}
    if own is not None:
        changes["positives"] = np.kron(np.eye(2, dtype=bool), own)
    out = trial.call(**changes)
    again = 2 if trial.case.arguments.get("normalisation") == "sum" else 1
    return out - (trial.call() * again + _logarithm(trial, 2) * _times(trial, 2 * len(image)))


def _simplex(trial: Trial) -> Array | None:
    """Rows of equal length: ln(1 + (n - 1) exp(-c <x, x> n / (n - 1))) is the least, and a simplex attains it.

    The scale is about 1 / <x, x>, so that the loss is no smaller than its bound.
    """
    attained = trial.case.seed % 2
    if attained:
        n = 2 << trial.case.seed // 2 % 3
        rows = np.ones((1, 1))
        while len(rows) < n:
            rows = np.block([[rows, rows], [rows, -rows]])
        image = text = rows[:, 1:]  # <x, x> = n - 1, <x, y> = -1
    else:
        image, text = (np.where(np.signbit(x.astype(np.float64)), -1.0, 1.0) for x in _towers(trial))
        n = len(image)
    if n == 1:
        return None
    d = image.shape[1]
    scale = 2.0 ** -d.bit_length()
    out = trial.call(image=trial.rounded(image), text=trial.rounded(text), positives=None, scale=scale)
    exponent = _number(trial, scale) * d * n / (n - 1)
    least = out.xp.log1p(out.xp.exp(-exponent) * (n - 1)) * _times(trial, n)
    below = least - out
    return below if attained else below.xp.maximum(below, below.xp.zeros_like(below))


# of SigLIP


def _divisor(trial: Trial, n: int) -> int:
    return reference.divisor_of("siglip", n, trial.case.arguments.get("normalisation", "n"))


def _constant_is_a_bias(trial: Trial) -> Array | None:
    """Unlike CLIP's, the loss knows it. A scale of few bits, so that the bias is moved exactly."""
    bias = trial.case.arguments["bias"]
    moved = trial.call(**_with_channel(trial, 1, -1), scale=8.0, bias=float(np.rint(bias)))
    return moved - trial.call(scale=8.0, bias=float(np.rint(bias)) - 8)


def _reflection(trial: Trial) -> Array | None:
    """softplus(-x) - softplus(x) = -x, for every pair."""
    image, text = _towers(trial)
    own = _own(trial)
    scale, bias = trial.case.arguments["scale"], trial.case.arguments["bias"]
    n = len(image)
    z = 2 * (np.eye(n, dtype=bool) if own is None else own).astype(np.int64) - 1
    x = trial.given(image) @ trial.given(text).mT * _number(trial, scale) + _number(trial, bias)
    linear = x.xp.sum(trial.given(z) * x) / _divisor(trial, n)
    return trial.call() - trial.call(image=-image, bias=-bias) + linear


def _additive(trial: Trial) -> Array | None:
    """f(ABC) = f(AB) + f(BC) + f(AC) - f(A) - f(B) - f(C), of three parts: each pair lies in the union of two."""
    n = _count(trial)
    if n < 3:
        return None
    image, text = _towers(trial)
    own = _own(trial)
    cuts = np.sort(_random(trial).choice(np.arange(1, n), 2, replace=False))
    parts = np.split(np.arange(n), cuts)

    def total(*chosen: int) -> Array:
        rows = np.concatenate([parts[i] for i in chosen])
        changes = {"image": image[rows], "text": text[rows]}
        if own is not None:
            changes["positives"] = np.ascontiguousarray(own[rows][:, rows])
        return trial.call(**changes) * _divisor(trial, len(rows))

    pairs = total(0, 1) + total(1, 2) + total(0, 2)
    return total(0, 1, 2) - (pairs - total(0) - total(1) - total(2))


def _work(*, n: int, d: int, itemsize: int, backward: bool) -> Work:
    """One product of matrices, and an exponential of each of its elements. Backward: two more products of that size;
    the loss is in float32 at least."""
    passes, products = (2, 3) if backward else (1, 1)
    return Work(
        bytes=passes * (itemsize * 2 * n * d + max(4, itemsize)),
        flops=products * 2 * n * n * d,
        exponentials=n * n,
    )


TIMED = {name: Structure(sizes={"n": n, "d": 512}, regime="aligned") for name, n in (("short", 128), ("long", 2048))}
"""Of towers as training has them: numbers without a norm of one saturate every score, and exp then underflows."""


COMMON = (
    Property("pairs_permute", "pairs in another order change nothing", _pairs_permute),
    Property("channels_rotate", "L(x Q, y Q) = L(x, y), Q a signed permutation", _channels_rotate),
    Property("sides_swap", "L(y, x) = L(x, y)", _sides_swap),
    Property("scale_moves_into_features", "L(2 x, y; c / 2) = L(x, y; c)", _scale_moves, ("scale",)),
    Property("convex_in_the_scores", "L((x + x') / 2, y) <= (L(x, y) + L(x', y)) / 2", _convex),
    Property("gradients_are_homogeneous", "<x, dL/dx> = <y, dL/dy> = c dL/dc", _homogeneous, ("scale",)),
)

CLIP_LOSS = Operator(
    name="clip_loss",
    definition=reference.clip_loss,
    inputs=(Tensor("image", "n d"), Tensor("text", "n d")),
    parameters=(Positive("scale", default=1 / 0.07, low=1, high=100, differentiated=True),),
    conventions={"normalisation": reference.NORMALISATIONS["clip"], "directions": reference.DIRECTIONS},
    forms={"logsumexp": reference.logsumexp, "online": reference.online, "merged": reference.merged},
    backward=reference.clip_backward,
    slips={
        "labels_shifted_by_one": _clip_labels_shifted,
        "positives_missing_from_denominator": _without_positives_in_denominator,
        "scale_as_logarithm": _scale_as_logarithm(reference.logsumexp),
        "features_normalised": _normalised_features(reference.logsumexp),
        "divided_by_n_again": _divided_again(reference.logsumexp),
        "last_pair_dropped": _without_last_pair(reference.logsumexp),
        "columns_past_the_first_64_dropped": _columns_past_the_first_block,
    },
    strays={"eps": _eps_in_logarithm_of_clip},
    structure=_structure,
    work=_work,
    timed=TIMED,
    regimes=REGIMES,
    paired=("n",),
    wide=(0,),
    properties=(
        *COMMON,
        Property("a_constant_changes_nothing", "the same number added to all scores changes nothing", _constant),
        Property("one_pair_costs_nothing", "n = 1: L = 0", _one_pair),
        Property("equal_pairs_cost_ln_n", "x_i = x, y_i = y: L = ln n", _equal_pairs),
        Property("copies_cost_ln_2", "L of every pair twice = L + ln 2", _copies),
        Property(
            "simplex_is_least", "|x| = |y| = r: L >= ln(1 + (n - 1) exp(-c r**2 n / (n - 1)))", _simplex, ("scale",)
        ),
        Property("gradients_sum_to_zero", "sum over i, j of dL / d s_ij = 0", _zero_sum),
    ),
    source="A. Radford et al., Learning transferable visual models from natural language supervision, "
    "arXiv:2103.00020, figure 3",
)

SIGLIP_LOSS = Operator(
    name="siglip_loss",
    definition=reference.siglip_loss,
    inputs=(Tensor("image", "n d"), Tensor("text", "n d")),
    parameters=(
        Positive("scale", default=10.0, low=1, high=100, differentiated=True),
        Real("bias", default=-10.0, low=-12, high=4, differentiated=True),
    ),
    conventions={"normalisation": reference.NORMALISATIONS["siglip"]},
    forms={
        "log_sigmoid": reference.log_sigmoid,
        "logarithm": reference.logarithm,
        "subtracted": reference.subtracted,
    },
    backward=reference.siglip_backward,
    slips={
        "labels_shifted_by_one": _siglip_labels_shifted,
        "bias_missing": lambda image, text, *, bias, **rest: reference.subtracted(image, text, bias=0 * bias, **rest),
        "bias_subtracted": lambda image, text, *, bias, **rest: reference.subtracted(image, text, bias=-bias, **rest),
        "bias_scaled": _scaled_bias,
        "scale_as_logarithm": _scale_as_logarithm(reference.subtracted),
        "negatives_missing": _of_pairs(_only(True)),
        "positives_missing": _of_pairs(_only(False)),
        "labels_of_zero": _of_pairs(_labels_of_zero),
        "features_normalised": _normalised_features(reference.subtracted),
        "last_pair_dropped": _without_last_pair(reference.subtracted),
        "columns_past_the_first_64_dropped": _of_pairs(_first_block),
    },
    strays={"eps": _of_pairs(_eps_in_logarithm_of_siglip)},
    structure=_structure,
    work=_work,
    timed=TIMED,
    regimes=REGIMES,
    paired=("n",),
    wide=(0,),
    properties=(
        *COMMON,
        Property(
            "a_constant_is_a_bias", "a added to all scores is a added to the bias", _constant_is_a_bias, ("bias",)
        ),
        Property("reflection", "L(x, y; b) - L(-x, y; -b) = -1/n sum z_ij (c <x_i, y_j> + b)", _reflection, ("bias",)),
        Property("parts_add_up", "n L is a sum over pairs, whatever the tiling", _additive),
        Property("bias_gradient_is_the_sum", "dL/db = sum over i, j of dL / d s_ij", _bias_is_a_channel, ("bias",)),
    ),
    source="X. Zhai et al., Sigmoid loss for language image pre-training, arXiv:2303.15343, algorithm 1",
)
