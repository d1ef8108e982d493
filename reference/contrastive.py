"""Contrastive losses of pairs of an image and a text: CLIP's softmax over rows and columns, SigLIP's sigmoid per pair.

    s_ij = c <image_i, text_j>                          c is `scale`, which multiplies; features are taken as given

    clip:    row_i = ln sum_j exp(s_ij) - s_ii,         columns likewise,   loss = (mean of rows + mean of columns) / 2
    siglip:  l_ij = s_ij + bias,                        loss = 1/n sum_ij ln(1 + exp(-z_ij l_ij)),   z_ii = 1, else -1

Axes: n pair, d channel.

With `positives`[n, n], True where image i and text j belong together: z_ij = 1 there, and s_ii becomes the mean of the
positive s_ij of a row (of a column); a row without any counts 0.

Source: A. Radford et al., arXiv:2103.00020, figure 3 (CLIP); X. Zhai et al., arXiv:2303.15343, algorithm 1 (SigLIP).
Several positives: P. Khosla et al., arXiv:2004.11362, equation 2, with the anchor's positives in the denominator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from array_api_compat import array_namespace

from assay.reference.arithmetic.array import either, narrow, store
from assay.reference.attention import powers_of_two, rescaled, shift_of, weights


NORMALISATIONS = {"clip": ("n", "sum"), "siglip": ("n", "n*n", "sum")}
DIRECTIONS = ("averaged", "summed", "image", "text")


def clip_loss(
    image: Any,
    text: Any,
    *,
    scale: Any,
    positives: Any = None,
    normalisation: str = "n",
    directions: str = "averaged",
) -> Any:
    """loss[] of image[n, d] and text[n, d].

    Each row is ln(1 + sum over j != i of exp(s_ij - s_ii)), which loses nothing where the loss is small.
    `normalisation`: the mean over n rows, or their "sum". `directions`: rows and columns "averaged" or "summed"; rows
    alone ("image") or columns alone ("text").

    Error: none in exact arithmetic; over balls the result is an enclosure.
    Raises: ValueError for an unknown normalisation or direction, or for positives of another shape.

    >>> import numpy as np
    >>> float(clip_loss(np.eye(2), np.zeros((2, 2)), scale=1)) == np.log(2)
    True
    """
    return clip_of_rows(one_against_the_rest, image, text, scale, positives, normalisation, directions)


def clip_of_rows(
    loss: Callable[[Any, Any], Any],
    image: Any,
    text: Any,
    scale: Any,
    positives: Any = None,
    normalisation: str = "n",
    directions: str = "averaged",
) -> Any:
    """`loss` of (scores, which are positive) by row, taken over rows and over columns."""
    xp = array_namespace(image)
    s = scale * (image @ xp.matrix_transpose(text))
    losses = [loss(*pair) for pair in _both(s, positive_pairs(s, positives))]
    return _both_directions(losses, s.shape[0], normalisation, directions)


def siglip_loss(
    image: Any, text: Any, *, scale: Any, bias: Any, positives: Any = None, normalisation: str = "n"
) -> Any:
    """loss[] of image[n, d] and text[n, d]. `normalisation`: the sum over pairs is divided by n, by n*n or not.

    Error: none in exact arithmetic; over balls the result is an enclosure.
    Raises: ValueError for an unknown normalisation, or for positives of another shape.

    >>> import numpy as np
    >>> float(siglip_loss(np.zeros((1, 1)), np.zeros((1, 1)), scale=1, bias=0)) == np.log(2)
    True
    """
    xp = array_namespace(image)
    s = scale * (image @ xp.matrix_transpose(text)) + bias
    total = xp.sum(softplus(xp.where(positive_pairs(s, positives), -s, s)))
    return total / divisor_of("siglip", s.shape[0], normalisation)


def softplus(y: Any) -> Any:
    """ln(1 + exp(y)), with a shift, which has no kink at 0."""
    xp = array_namespace(y)
    m = xp.max(xp.stack([y, xp.zeros_like(y)], axis=-1), axis=-1)
    return m + xp.log1p(xp.expm1(-m) + xp.exp(y - m))


def one_against_the_rest(s: Any, own: Any) -> Any:
    """ln sum_j exp(s_ij - mean of the positive s_ij), by row [n]."""
    xp = array_namespace(s)
    count, mean = mean_of_positives(s, own)
    d = s - mean
    m = xp.max(d, axis=-1, keepdims=True)
    # One positive alone has d = 0: it is the 1 of ln(1 + ...), and no term of the sum.
    sole = own & (count == xp.ones_like(count))
    rest = xp.sum(xp.where(sole, xp.zeros_like(d), xp.exp(d - m)), axis=-1, keepdims=True)
    one = xp.ones_like(m)
    row = m + xp.log1p(xp.where(count == one, xp.expm1(-m), -one) + rest)
    return xp.where(count > xp.zeros_like(count), row, xp.zeros_like(row))[..., 0]


# Forms: the same functions, equal in exact arithmetic, with the roundings of a way to compute them. ------------------
# Where kernels of one form differ among themselves, `either` names the ways, and the loosest of them bounds the form.
# Sums are bounded for any order, so that a form covers every tiling of rows and columns.


def logsumexp(image: Any, text: Any, *, scale: Any, positives: Any = None, **conventions: str) -> Any:
    """CLIP as two cross entropies: exponentials below the row's maximum; the log of their sum, less the diagonal."""
    return _clip(image, text, scale, positives, conventions, lambda s: (shift_of(s, None), _shifted(s)))


def online(image: Any, text: Any, *, scale: Any, positives: Any = None, **conventions: str) -> Any:
    """CLIP with columns in blocks of any size: a running maximum, and a sum that is rescaled when it grows."""
    return _clip(image, text, scale, positives, conventions, lambda s: (shift_of(s, None), _blocked(s)))


def merged(image: Any, text: Any, *, scale: Any, positives: Any = None, **conventions: str) -> Any:
    """CLIP with columns in blocks, or shards, of any size: log-sum-exps are merged, max + ln(1 + exp(-|difference|)).

    Blocks of one column are the loosest: each merge rounds the whole log-sum-exp.
    """
    s = _scores(image, text, scale)
    losses = []
    for t, own in _both(s, positive_pairs(s, positives)):
        lse = t[..., :1]
        for j in range(1, t.shape[-1]):
            lse = _merged(lse, t[..., j : j + 1])
        losses.append(_where_any(own, (lse - mean_of_positives(t, own)[1])[..., 0]))
    return _both_directions(losses, s.shape[0], **conventions)


def _clip(
    image: Any,
    text: Any,
    scale: Any,
    positives: Any,
    conventions: dict[str, str],
    summands: Callable[[Any], tuple[Any, Any]],
) -> Any:
    """`summands` of scores: a shift m of each row, and exp(s - m)."""
    s = _scores(image, text, scale)
    losses = [_where_any(own, cross_entropy(t, own, *summands(t))) for t, own in _both(s, positive_pairs(s, positives))]
    return _both_directions(losses, s.shape[0], **conventions)


def cross_entropy(s: Any, own: Any, m: Any, w: Any) -> Any:
    """ln sum exp(s) less the mean of the positive scores, by row [n], from a shift m[n, 1] and w = exp(s - m)."""
    xp = array_namespace(s)
    log, mean = xp.log(xp.sum(w, axis=-1, keepdims=True)), mean_of_positives(s, own)[1]

    def of_logarithms_to_base_2() -> Any:
        unit = xp.log(xp.asarray(2, dtype=s.dtype))
        return unit * (m * (1 / unit) + log * (1 / unit)) - mean

    return either(s, lambda: log - (mean - m), lambda: (m + log) - mean, of_logarithms_to_base_2)[..., 0]


def _merged(a: Any, b: Any) -> Any:
    """ln(exp(a) + exp(b)). Of equal numbers each passes half of a gradient."""
    xp = array_namespace(a)
    high, low = xp.maximum(a, b), xp.minimum(b, a)
    e = xp.exp(low - high)
    return either(a, lambda: high + xp.log1p(e), lambda: high + xp.log(1 + e))


def log_sigmoid(
    image: Any, text: Any, *, scale: Any, bias: Any, positives: Any = None, normalisation: str = "n"
) -> Any:
    """SigLIP through max(y, 0) + log1p(exp(-|y|)), y = -z l: exact to a few units however small it is."""
    return _siglip(image, text, scale, bias, positives, normalisation, _softplus)


def logarithm(image: Any, text: Any, *, scale: Any, bias: Any, positives: Any = None, normalisation: str = "n") -> Any:
    """SigLIP through max(y, 0) + ln(1 + exp(-|y|)): what is far below 1 is lost."""
    return _siglip(image, text, scale, bias, positives, normalisation, _softplus_of_sum)


def subtracted(image: Any, text: Any, *, scale: Any, bias: Any, positives: Any = None, normalisation: str = "n") -> Any:
    """SigLIP as softplus(l) of every pair, less l of the positive ones, pair by pair or one sum less the other.

    The binary cross entropy of logits: (1 - y) l - log_sigmoid(l), and softplus(l) - y l.
    """
    xp = array_namespace(image)
    logits = _scores(image, text, scale) + bias
    own, zero = positive_pairs(logits, positives), xp.zeros_like(logits)
    plus = softplus_of_kernels(logits)
    divisor = divisor_of("siglip", logits.shape[0], normalisation)
    return either(
        logits,
        lambda: xp.sum(xp.where(own, plus - logits, plus)) / divisor,
        lambda: (xp.sum(plus) - xp.sum(xp.where(own, logits, zero))) / divisor,
        lambda: xp.sum(xp.where(own, plus - logits, plus) * (1 / xp.asarray(divisor, dtype=logits.dtype))),
    )


def _siglip(
    image: Any, text: Any, scale: Any, bias: Any, positives: Any, normalisation: str, loss: Callable[[Any], Any]
) -> Any:
    """`loss` of y = -z l, summed over all pairs; the division comes last, or each pair is divided."""
    xp = array_namespace(image)
    logits = _scores(image, text, scale) + bias
    each = loss(xp.where(positive_pairs(logits, positives), -logits, logits))
    divisor = divisor_of("siglip", logits.shape[0], normalisation)
    return either(
        logits,
        lambda: xp.sum(xp.sum(each, axis=-1)) / divisor,
        lambda: xp.sum(each) / divisor,
        lambda: xp.sum(each * (1 / xp.asarray(divisor, dtype=logits.dtype))),
        lambda: xp.sum(xp.sum(each, axis=-1) * (1 / xp.asarray(divisor, dtype=logits.dtype))),
    )


# Backward, as kernels write it. -------------------------------------------------------------------------------------
# With G = d loss / d s, stored as weights are before it is multiplied by features:
#
#     d image = c G text,   d text = c G^T image,   d scale = sum of G * <image, text>,   d bias = sum of G


def clip_backward(
    cotangents: tuple[Any, ...],
    image: Any,
    text: Any,
    *,
    scale: Any,
    positives: Any = None,
    normalisation: str = "n",
    directions: str = "averaged",
) -> tuple[Any, ...]:
    """The gradients of image, text and scale.

    G = (P - target) / n over rows and over columns; P is exp(s - lse), or exponentials divided by their sum; the two
    directions are added before they are multiplied by features, or after.
    """
    xp = array_namespace(image)
    s = _scores(image, text, scale)
    parts = []
    for t, own in _both(s, positive_pairs(s, positives)):
        p, count = _softmax(t), mean_of_positives(t, own)[0]
        none = count == xp.zeros_like(count)
        target = xp.where(own, xp.ones_like(t), xp.zeros_like(t)) / xp.where(none, xp.ones_like(count), count)
        parts.append(xp.where(none, xp.zeros_like(p), p - target))
    rows, columns = parts[0], xp.matrix_transpose(parts[1])
    kept = {"image": (rows,), "text": (columns,)}.get(directions, (rows, columns))
    divisor = divisor_of("clip", s.shape[0], normalisation) * (2 if directions == "averaged" else 1)
    return _features(kept, cotangents[0], divisor, image, text, scale)


def _softmax(s: Any) -> Any:
    """Exponentials over their sum, or of the score less the log-sum-exp, found in blocks of any size; to base 2 too."""
    xp = array_namespace(s)
    w = _shifted(s)
    total, online = (xp.sum(x, axis=-1, keepdims=True) for x in (w, rescaled(s, None)))
    unit = xp.log(xp.asarray(2, dtype=s.dtype))
    return either(
        s,
        lambda: w / total,
        lambda: w * (1 / total),
        lambda: (w / total) * (unit * (1 / unit)),  # the derivative of powers of two and their logarithm
        lambda: weights(s, shift_of(s, None) + xp.log(either(s, lambda: total, lambda: online)), None),
    )


def siglip_backward(
    cotangents: tuple[Any, ...],
    image: Any,
    text: Any,
    *,
    scale: Any,
    bias: Any,
    positives: Any = None,
    normalisation: str = "n",
) -> tuple[Any, ...]:
    """The gradients of image, text, scale and bias: G = -z sigmoid(-z l) / n, or (sigmoid(l) - y) / n."""
    xp = array_namespace(image)
    logits = _scores(image, text, scale) + bias
    own = positive_pairs(logits, positives)
    one, zero = xp.ones_like(logits), xp.zeros_like(logits)

    def sigmoid(x: Any) -> Any:
        small = xp.exp(-xp.abs(x))
        return xp.where(x >= zero, one, small) / (1 + small)

    g = either(
        logits,
        lambda: xp.where(own, -sigmoid(-logits), sigmoid(logits)),
        lambda: sigmoid(logits) - xp.where(own, one, zero),
    )
    divisor = divisor_of("siglip", logits.shape[0], normalisation)
    return _features((g,), cotangents[0], divisor, image, text, scale, summed=True)


def _features(
    parts: tuple[Any, ...], g: Any, divisor: int, image: Any, text: Any, scale: Any, *, summed: bool = False
) -> tuple[Any, ...]:
    """What follows from G = g / divisor times the sum of `parts`; with `summed` also the sum of G.

    Divisor, cotangent and scale are applied to G, to a feature, or to what comes out.
    """
    xp = array_namespace(image)
    c = narrow(scale)
    share = either(g, lambda: g / divisor, lambda: g * (1 / xp.asarray(divisor, dtype=image.dtype)))
    whole = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    product = image @ xp.matrix_transpose(text)

    def through(raw: Any, x: Any) -> Any:
        return either(
            raw,
            lambda: c * (store(share * raw, "weights") @ x),
            lambda: (c * share) * (store(raw, "weights") @ x),
            lambda: store((c * share) * raw, "weights") @ x,
            lambda: store(share * raw, "weights") @ (c * x),
        )

    def feature(x: Any, transposed: bool) -> Any:
        def of(raw: Any) -> Any:
            return through(xp.matrix_transpose(raw) if transposed else raw, x)

        if len(parts) == 1:
            return of(whole)
        return either(image, lambda: of(whole), lambda: of(parts[0]) + of(parts[1]))

    # A product with ones adds up, and says that a subnormal number may count as zero: 1 / (1 + exp(x)) is zero where
    # exp overflows.
    def added(x: Any) -> Any:
        return xp.reshape(xp.reshape(x, (1, -1)) @ xp.ones((x.shape[0] * x.shape[1], 1), dtype=x.dtype), ())

    ds = either(whole, lambda: share * whole, lambda: store(share * whole, "weights"))
    d_scale = either(
        image,
        lambda: added(ds * product),
        lambda: added((ds @ text) * image),
        lambda: added((xp.matrix_transpose(ds) @ image) * text),
        lambda: share * added(whole * product),
        lambda: share * added((store(whole, "weights") @ text) * image),
    )
    out = (feature(text, False), feature(image, True), d_scale)
    return (*out, either(whole, lambda: added(ds), lambda: share * added(whole))) if summed else out


# Parts of the formulas ------------------------------------------------------------------------------------------------


def _scores(image: Any, text: Any, scale: Any) -> Any:
    """The scale on the scores, or on a feature."""
    xp = array_namespace(image)
    c, other = narrow(scale), xp.matrix_transpose(text)

    return either(image, lambda: c * (image @ other), lambda: (c * image) @ other, lambda: image @ (c * other))


def positive_pairs(s: Any, positives: Any) -> Any:
    """Which pairs belong together, [n, n]; None: the diagonal."""
    n = s.shape[0]
    if positives is not None:
        if positives.shape != (n, n):
            raise ValueError(f"positives must be [{n}, {n}], not {list(positives.shape)}")
        return positives
    xp = array_namespace(s)
    i = xp.arange(n)
    return i[:, None] == i[None, :]


def _both(s: Any, own: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Scores and positives by row, and by column."""
    xp = array_namespace(s)
    return (s, own), (xp.matrix_transpose(s), xp.matrix_transpose(own))


def mean_of_positives(s: Any, own: Any) -> tuple[Any, Any]:
    """How many positives a row has, and the mean of their scores (of none: 0), both [n, 1]."""
    xp = array_namespace(s)
    one, zero = xp.ones_like(s), xp.zeros_like(s)
    count = xp.sum(xp.where(own, one, zero), axis=-1, keepdims=True)
    some = xp.where(count > xp.zeros_like(count), count, xp.ones_like(count))
    return count, xp.sum(xp.where(own, s, zero), axis=-1, keepdims=True) / some


def _where_any(own: Any, rows: Any) -> Any:
    """The loss of each row, and 0 of one without a positive."""
    xp = array_namespace(rows)
    return xp.where(xp.any(own, axis=-1), rows, xp.zeros_like(rows))


def _shifted(s: Any) -> Any:
    """exp(s - m), m the maximum of the row; as exp, or as powers of two."""
    return either(s, lambda: weights(s, shift_of(s, None), None), lambda: powers_of_two(s, None))


def _blocked(s: Any) -> Any:
    """The same as blocks give it."""
    return either(s, lambda: rescaled(s, None), lambda: rescaled(s, None, log2=True))


def softplus_of_kernels(y: Any) -> Any:
    """ln(1 + exp(y)) in any of the ways in use."""
    return either(y, lambda: _softplus(y), lambda: _softplus_of_sum(y), lambda: y - (-_softplus(-y)))


def _softplus(y: Any) -> Any:
    xp = array_namespace(y)
    return xp.maximum(y, xp.zeros_like(y)) + xp.log1p(xp.exp(_below(y)))


def _softplus_of_sum(y: Any) -> Any:
    xp = array_namespace(y)
    return xp.maximum(y, xp.zeros_like(y)) + xp.log(1 + xp.exp(_below(y)))


def _below(y: Any) -> Any:
    """-|y|, whose slope at 0 makes up for that of max(y, 0)."""
    xp = array_namespace(y)
    return xp.where(y >= xp.zeros_like(y), -y, y)


def divisor_of(family: str, n: int, normalisation: str) -> int:
    if normalisation not in NORMALISATIONS[family]:
        raise ValueError(f"normalisation must be one of {', '.join(NORMALISATIONS[family])}, not {normalisation!r}")
    return {"n": n, "n*n": n * n, "sum": 1}[normalisation]


def _both_directions(losses: list[Any], n: int, normalisation: str = "n", directions: str = "averaged") -> Any:
    """Rows and columns together: mean by mean, or each row with its share of the whole."""
    if directions not in DIRECTIONS:
        raise ValueError(f"directions must be one of {', '.join(DIRECTIONS)}, not {directions!r}")
    kept = {"image": losses[:1], "text": losses[1:]}.get(directions, losses)
    xp = array_namespace(kept[0])
    divisor = divisor_of("clip", n, normalisation)
    half = 2 if directions == "averaged" else 1

    def shares() -> Any:
        return xp.sum(xp.concat(kept) * (1 / xp.asarray(divisor * half, dtype=kept[0].dtype)))

    def means() -> Any:
        total = xp.sum(kept[0]) / divisor
        return (total if len(kept) == 1 else total + xp.sum(kept[1]) / divisor) / half

    return either(kept[0], means, shares, lambda: xp.sum(xp.concat(kept)) / (divisor * half))
