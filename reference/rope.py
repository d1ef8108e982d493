"""Rotary position embedding: pairs of channels, turned by an angle proportional to the position.

Channel pair (a, b) number j at position p, with r rotated channels:

    a' = a cos(p theta_j) - b sin(p theta_j)
    b' = b cos(p theta_j) + a sin(p theta_j),        theta_j = base**(-2j / r),  j = 0 ... r/2 - 1

Axes: ... leading, t position, d channel; r <= d channels rotate.

Source: J. Su et al., RoFormer, arXiv:2104.09864v5, equations 14, 15 and 34. Sections: P. Wang et al., Qwen2-VL,
arXiv:2409.12191, section 2.1. Frequency schedules: see `rope_frequencies`.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy
from array_api_compat import array_namespace

from assay.reference.arithmetic.array import narrow, store, widen, wrap


LAYOUTS = ("half", "interleaved")


def rope(
    x: Any,
    position: Any,
    *,
    base: Any = 10_000,
    frequencies: Any = None,
    layout: str = "half",
    rotary_dim: int | None = None,
    sections: tuple[int, ...] | None = None,
    attention_factor: Any = 1,
) -> Any:
    """Rotate the channel pairs of x[..., t, d] by position[t] times the frequency of the pair.

    position[t], or [t, axes]: pair j then takes its position from the axis of the section that it lies in;
    `sections` says how many pairs each axis has (None: the same for all). `frequencies`[r/2] replaces
    base**(-2j/r). `layout`: "half" pairs (j, j + r/2), "interleaved" pairs (2j, 2j+1). Channels from r = `rotary_dim`
    on pass through. `attention_factor` multiplies cosines and sines.

    Error: none in exact arithmetic; over balls the result is an enclosure.
    Raises: ValueError for an odd r, an r above d, an unknown layout, or sections or frequencies that do not fit r.

    >>> import numpy as np
    >>> rope(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1])).round(4).tolist()
    [[1.0, 0.0], [0.5403, 0.8415]]
    """
    xp = array_namespace(x)
    r = check(x.shape[-1], rotary_dim, layout, frequencies)
    theta = plain_frequencies(xp, base, r, x.dtype) if frequencies is None else frequencies
    angle = spread(xp.astype(position, x.dtype), r // 2, sections) * theta
    return rotate(x, attention_factor * xp.cos(angle), attention_factor * xp.sin(angle), layout)


# Forms: the same function, equal in exact arithmetic, with the roundings of a way to compute it. ----------------------


def table(x: Any, position: Any, *, layout: str = "half", rotary_dim: int | None = None, **rest: Any) -> Any:
    """Cosines and sines in double precision, each rounded once to the working format."""
    return rotate(x, *tabulated(x, position, "float64", layout, rotary_dim, **rest), layout)


def direct(x: Any, position: Any, *, layout: str = "half", rotary_dim: int | None = None, **rest: Any) -> Any:
    """Frequencies, angles, cosines and sines in single precision: the error grows with |position|."""
    return rotate(x, *tabulated(x, position, "float32", layout, rotary_dim, **rest), layout)


def reduced(
    x: Any,
    position: Any,
    *,
    base: Any = 10_000,
    frequencies: Any = None,
    layout: str = "half",
    rotary_dim: int | None = None,
    sections: tuple[int, ...] | None = None,
    attention_factor: Any = 1,
) -> Any:
    """The angle as a 64-bit fraction of a turn, reduced exactly; from there on in the working format."""
    xp = array_namespace(x)
    r = check(x.shape[-1], rotary_dim, layout, frequencies)
    if frequencies is None:
        theta = plain_frequencies(xp, widen(base, "quad"), r, x.dtype, "quad")
    else:
        theta = widen(frequencies, "quad")
    turns = widen(theta / (2 * xp.pi), "turn64")
    fraction = wrap(spread(widen(xp.astype(widen(position, "quad"), x.dtype), "turn64"), r // 2, sections) * turns)
    angle = 2 * xp.pi * narrow(fraction)
    return rotate(
        x,
        store(attention_factor * xp.cos(angle), "table"),
        store(attention_factor * xp.sin(angle), "table"),
        layout,
    )


def tabulated(
    x: Any,
    position: Any,
    width: str,
    layout: str,
    rotary_dim: int | None,
    *,
    base: Any = 10_000,
    frequencies: Any = None,
    sections: tuple[int, ...] | None = None,
    attention_factor: Any = 1,
) -> tuple[Any, Any]:
    """Cosines and sines [t, r/2], computed in `width` at least."""
    xp = array_namespace(x)
    r = check(x.shape[-1], rotary_dim, layout, frequencies)
    theta = plain_frequencies(xp, base, r, x.dtype, width) if frequencies is None else widen(frequencies, width)
    angle = store(spread(xp.astype(widen(position, width), x.dtype), r // 2, sections) * theta, "angle")
    cos, sin = attention_factor * xp.cos(angle), attention_factor * xp.sin(angle)
    return store(narrow(cos), "table"), store(narrow(sin), "table")


# Parts of the formula ---------------------------------------------------------------------------------------------


def check(d: int, rotary_dim: int | None, layout: str, frequencies: Any = None) -> int:
    """The number r of rotated channels."""
    r = d if rotary_dim is None else rotary_dim
    if r % 2 or not 0 <= r <= d:
        raise ValueError(f"rotary_dim must be even and between 0 and d = {d}, not {r}")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, not {layout!r}")
    if frequencies is not None and frequencies.shape != (r // 2,):
        raise ValueError(f"{r} rotated channels need {r // 2} frequencies, not {list(frequencies.shape)}")
    return r


def plain_frequencies(xp: Any, base: Any, r: int, dtype: Any, width: str = "") -> Any:
    """theta[r/2] = base**(-2j / r), written as it is commonly computed."""
    even = xp.arange(0, r, 2, dtype=dtype)
    return 1 / base ** ((widen(even, width) if width else even) / max(r, 1))


def spread(position: Any, pairs: int, sections: tuple[int, ...] | None) -> Any:
    """The position of every pair: [t, pairs], or [t, 1] where all pairs share one."""
    if position.ndim == 1:
        if sections is not None and len(sections) > 1:
            raise ValueError("sections need position[t, axes]")
        return position[:, None]
    axes = position.shape[-1]
    if sections is None:
        if pairs % axes:
            raise ValueError(f"{pairs} pairs do not divide evenly among {axes} axes: pass sections")
        sections = (pairs // axes,) * axes
    if len(sections) != axes or sum(sections) != pairs:
        raise ValueError(f"sections {sections} must be {axes} numbers that add up to {pairs} pairs")
    xp = array_namespace(position)
    columns = [position[:, axis : axis + 1] for axis, count in enumerate(sections) for _ in range(count)]
    return xp.concat(columns, axis=1) if columns else position[:, :0]


def rotate(x: Any, cos: Any, sin: Any, layout: str) -> Any:
    """Turn the pairs of x[..., t, d] by cos[t, r/2] and sin[t, r/2]; channels from r on pass through."""
    xp = array_namespace(x)
    pairs = cos.shape[-1]
    rotated, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if layout == "half":
        a, b = rotated[..., :pairs], rotated[..., pairs:]
    else:
        a, b = rotated[..., ::2], rotated[..., 1::2]
    turned = a * cos - b * sin, b * cos + a * sin
    if layout == "half":
        return xp.concat([*turned, rest], axis=-1)
    shape = (*x.shape[:-1], 2 * pairs)
    return xp.concat([xp.reshape(xp.stack(turned, axis=-1), shape), rest], axis=-1)


# Frequency schedules -----------------------------------------------------------------------------------------------

SCHEDULES = ("plain", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope")


def rope_frequencies(
    d: int,
    *,
    base: Any = 10_000,
    schedule: str = "plain",
    factor: Any = 1,
    length: Any = None,
    original_length: Any = None,
    beta_fast: Any = 32,
    beta_slow: Any = 1,
    low_frequency_factor: Any = 1,
    high_frequency_factor: Any = 4,
    factors: tuple[Any, ...] = (),
) -> Any:
    """The frequencies theta[d/2] of d rotated channels under a schedule that stretches the context.

    With s = `factor`, L = `length`, L0 = `original_length`, theta_j = base**(-2j/d):

    plain      theta
    linear     theta / s
    ntk        theta of base s**(d/(d-2)); the first frequency is kept, the last becomes theta / s
    dynamic    theta of base (s L/L0 - (s-1))**(d/(d-2)) where L > L0, else plain
    yarn       theta/s r + theta (1-r), r_j = clip((j - low) / (high - low), 0, 1), low and high from the channels
               that turn beta_fast and beta_slow times over L0
    llama3     theta/s for wavelengths above L0/low_frequency_factor, theta below L0/high_frequency_factor, a blend
               between
    longrope   theta_j / factors_j

    Error: none in exact arithmetic. Raises: ValueError for an unknown schedule or a missing length.

    Source: linear S. Chen et al. arXiv:2306.15595; yarn B. Peng et al. arXiv:2309.00071, equations 17 to 23;
    longrope Y. Ding et al. arXiv:2402.13753; ntk, dynamic and llama3 as released with the models that use them.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}")
    if schedule in ("dynamic", "yarn", "llama3") and original_length is None:
        raise ValueError(f"the schedule {schedule} needs original_length")
    xp = _namespace(base, factor)
    base, s = xp.asarray(base), xp.asarray(factor)
    pairs = xp.arange(0, d // 2, dtype=base.dtype)
    if schedule in ("ntk", "dynamic"):
        stretch = s
        if schedule == "dynamic":
            longer = xp.asarray(original_length if length is None else length)
            stretch = s * longer / original_length - (s - 1) if longer > original_length else xp.asarray(1)
        base = base * stretch ** (xp.asarray(d) / (d - 2))
    theta = 1 / base ** (2 * pairs / d)
    if schedule == "linear":
        return theta / s
    if schedule == "longrope":
        return theta / xp.stack([xp.asarray(f) for f in factors])
    if schedule == "yarn":
        low, high = (_yarn_channel(xp, turns, d, base, original_length) for turns in (beta_fast, beta_slow))
        low, high = xp.maximum(xp.floor(low), xp.asarray(0)), xp.minimum(xp.ceil(high), xp.asarray(d - 1))
        width = high - low if high > low else xp.asarray(1) / 1000
        ramp = xp.minimum(xp.maximum((pairs - low) / width, xp.asarray(0)), xp.asarray(1))
        return theta / s * ramp + theta * (1 - ramp)
    if schedule == "llama3":
        turns = original_length * theta / (2 * xp.pi)
        smooth = (turns - low_frequency_factor) / (high_frequency_factor - xp.asarray(low_frequency_factor))
        blend = (1 - smooth) * theta / s + smooth * theta
        slow, fast = turns < low_frequency_factor, turns > high_frequency_factor
        return xp.where(slow, theta / s, xp.where(fast, theta, blend))
    return theta


def attention_factor(schedule: str, *, factor: Any, original_length: Any = None) -> Any:
    """What a schedule multiplies cosines and sines by: yarn 1 + ln(s)/10, longrope sqrt(1 + ln s / ln L0), both 1 for
    s <= 1; otherwise 1.

    Source: as `rope_frequencies`; yarn equation 22.
    """
    xp = _namespace(factor)
    s = xp.asarray(factor)
    if schedule not in ("yarn", "longrope") or s <= 1:
        return xp.asarray(1)
    if schedule == "yarn":
        return 1 + xp.log(s) / 10
    return xp.sqrt(1 + xp.log(s) / xp.log(xp.asarray(original_length)))


def _yarn_channel(xp: Any, turns: Any, d: int, base: Any, length: Any) -> Any:
    """The channel pair, as a real number, that turns so many times over the length."""
    return d * xp.log(length / (2 * xp.pi * xp.asarray(turns))) / (2 * xp.log(base))


def _namespace(*values: Any) -> Any:
    """The namespace of the first array among the values; NumPy's if all are plain numbers."""
    arrays = [v for v in values if hasattr(v, "shape")]
    return array_namespace(*arrays) if arrays else array_api_compat.numpy
