"""The contract of `rope`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import strategies as st

from assay.properties.contract import Integers, Operator, Positive, Property, Sizes, Structure, Tensor, Work
from assay.properties.emulated import Emulated, keeping
from assay.properties.trial import Answer, Trial
from assay.reference import rope as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.oracle import Arguments
from assay.reference.arithmetic.precision import BFLOAT16, FLOAT16


def _structure(
    draw: Callable[[Any], Any], sizes: Sizes, supports: Callable[[str], bool], conventions: Mapping[str, str]
) -> Structure:
    """Partial rotary, sections with positions of several axes, and given frequencies, where the kernel knows them."""
    d = sizes["d"]
    keywords: dict[str, Any] = {}
    r = d
    if supports("rotary_dim") and draw(st.integers(0, 3)) == 3:
        r = keywords["rotary_dim"] = 2 * draw(st.integers(0, d // 2))
    axes = {}
    if supports("sections") and draw(st.integers(0, 3)) == 3:
        count = draw(st.integers(2, 3))
        cuts = sorted(draw(st.lists(st.integers(0, r // 2), min_size=count - 1, max_size=count - 1)))
        edges = [0, *cuts, r // 2]
        keywords["sections"] = tuple(b - a for a, b in pairwise(edges))
        axes["position"] = "t a"
        sizes = {"a": count}
    else:
        sizes = {}
    if supports("frequencies") and draw(st.integers(0, 3)) == 3:
        random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        keywords["frequencies"] = np.exp(random.uniform(np.log(1e-6), 0, r // 2)).astype(np.float32)
    return Structure(keywords, axes, sizes)


# Slips ---------------------------------------------------------------------------------------------------------------


def _position_off_by_one(x: Any, position: Any, **rest: Any) -> Any:
    return reference.rope(x, position + 1, **rest)


def _position_off_by_minus_one(x: Any, position: Any, **rest: Any) -> Any:
    return reference.rope(x, position - 1, **rest)


def _position_starts_at_zero(x: Any, position: Any, **rest: Any) -> Any:
    return reference.rope(x, position - position[:1], **rest)


def _rotates_backwards(x: Any, position: Any, **rest: Any) -> Any:
    return reference.rope(x, -position, **rest)


def _position_ignored(x: Any, position: Any, **rest: Any) -> Any:
    return reference.rope(x, position * 0, **rest)


def _frequencies_of_all_channels(x: Any, position: Any, *, rotary_dim: int | None = None, **rest: Any) -> Any:
    """Partial rotary with theta_j = base**(-2j/d) instead of base**(-2j/r)."""
    if rotary_dim is None or rest.get("frequencies") is not None:
        return reference.rope(x, position, rotary_dim=rotary_dim, **rest)
    xp = x.__array_namespace__()
    theta = reference.plain_frequencies(xp, rest["base"], x.shape[-1], x.dtype)[: rotary_dim // 2]
    return reference.rope(x, position, rotary_dim=rotary_dim, **{**rest, "frequencies": theta})


def _exponent_without_two(x: Any, position: Any, *, base: Any, **rest: Any) -> Any:
    """theta_j = base**(-j/r)."""
    return reference.rope(x, position, base=x.__array_namespace__().sqrt(base), **rest)


def _attention_factor_ignored(x: Any, position: Any, *, attention_factor: Any = 1, **rest: Any) -> Any:
    return reference.rope(x, position, **rest)


def _norm_scaled(x: Any, position: Any, *, attention_factor: Any = 1, **rest: Any) -> Any:
    """Cosines and sines 1/64 too large."""
    return reference.rope(x, position, attention_factor=attention_factor * 65 / 64, **rest)


def _sections_reversed(x: Any, position: Any, *, sections: tuple[int, ...] | None = None, **rest: Any) -> Any:
    return reference.rope(x, position, sections=sections and sections[::-1], **rest)


def _layouts_mixed(x: Any, position: Any, *, layout: str = "half", rotary_dim: int | None = None, **rest: Any) -> Any:
    """Channels are paired in one layout and take their angles in the other."""
    xp = x.__array_namespace__()
    r = reference.check(x.shape[-1], rotary_dim, layout)
    cos, sin = reference.tabulated(x, position, "float64", layout, rotary_dim, **rest)
    other = reference.LAYOUTS[layout == "half"]
    wide = [_doubled(xp, part, other) for part in (cos, sin)]
    rotated, rest_of_x = x[..., :r], x[..., r:]
    a, b = (
        (rotated[..., : r // 2], rotated[..., r // 2 :])
        if layout == "half"
        else (rotated[..., ::2], rotated[..., 1::2])
    )
    if layout == "half":
        turned = xp.concat([-b, a], axis=-1)
    else:
        turned = xp.reshape(xp.stack([-b, a], axis=-1), rotated.shape)
    return xp.concat([rotated * wide[0] + turned * wide[1], rest_of_x], axis=-1)


def _doubled(xp: Any, part: Any, layout: str) -> Any:
    """A table for every channel, from one for every pair."""
    if layout == "half":
        return xp.concat([part, part], axis=-1)
    return xp.reshape(xp.stack([part, part], axis=-1), (part.shape[0], 2 * part.shape[1]))


# Mutants that no definition describes ------------------------------------------------------------------------------


def _angle_in_single(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """computes angles in float32 while it claims tables from float64"""
    return kernel.but(text=reference.direct).answer(arguments, cotangents)


def _frequencies_in_bfloat16(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """keeps its frequencies in bfloat16"""
    theta = arguments.get("frequencies")
    if theta is None:
        r = arguments.get("rotary_dim")
        r = arguments["x"].shape[-1] if r is None else r
        theta = arguments["base"] ** (-np.arange(0, r, 2) / max(r, 1))
    coarse = BFLOAT16.round(np.asarray(theta, np.longdouble)).astype(np.float32)
    return kernel.answer({**arguments, "frequencies": coarse}, cotangents)


def _offset_overflows(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """computes position times the row length in 32 bits"""
    d = arguments["x"].shape[-1]
    wrapped = (arguments["position"] * d).astype(np.int32).astype(np.int64) // d
    return kernel.answer({**arguments, "position": wrapped}, cotangents)


def _layout_lost_in_backward(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """differentiates layout="half" whatever is asked"""
    found = kernel.answer(arguments, cotangents)
    if cotangents is None:
        return found
    return replace(found, gradients=kernel.answer({**arguments, "layout": "half"}, cotangents).gradients)


def _backward_turns_forward(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """turns the cotangent by +angle instead of -angle"""
    found = kernel.answer(arguments, cotangents)
    if cotangents is None:
        return found
    turned = kernel.answer({**arguments, "position": -arguments["position"]}, cotangents)
    return replace(found, gradients=turned.gradients)


def _last_pairs_unrotated(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """leaves the last two pairs as they are, in the forward pass"""
    found = kernel.answer(arguments, cotangents)
    x = arguments["x"]
    r = arguments.get("rotary_dim")
    r = x.shape[-1] if r is None else r
    first = max(r // 2 - 2, 0)
    half = arguments.get("layout", "half") == "half"
    channels = [*range(first, r // 2), *range(r // 2 + first, r)] if half else range(2 * first, r)
    out = np.array(found.outputs[0])
    out[..., channels] = x[..., channels]
    return replace(found, outputs=(out,))


def _one_head_unrotated(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """returns x where it has one head"""
    found = kernel.answer(arguments, cotangents)
    x = arguments["x"]
    return replace(found, outputs=(np.array(x),)) if x.shape[-3] == 1 else found


def _overwrites_contiguous(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """turns x in place unless x is a view with gaps"""
    found = kernel.answer(arguments, cotangents)
    return replace(found, touched=("x",)) if arguments["x"].flags.c_contiguous else found


def _table_by_length(kernel: Emulated, arguments: Arguments, cotangents: Any, memory: Any) -> Answer:
    """caches positions by their number: a second call of one length takes those of the first"""
    position = arguments["position"]
    first = memory.notes.setdefault(position.shape, position)
    return kernel.answer({**arguments, "position": first}, cotangents)


# Properties ----------------------------------------------------------------------------------------------------


def _x(trial: Trial) -> Any:
    return trial.case.arguments["x"]


def _position(trial: Trial) -> Any:
    return trial.case.arguments["position"]


def _partner(trial: Trial) -> Any:
    """A second array to take inner products with: x with its positions and channels in another order."""
    return np.ascontiguousarray(np.flip(_x(trial), axis=(-1, -2)))


def _factor(trial: Trial) -> Array:
    return trial.given(np.asarray(trial.case.arguments["attention_factor"]))


def _rotated_dim(trial: Trial) -> int:
    given = trial.case.arguments.get("rotary_dim")
    return _x(trial).shape[-1] if given is None else given


def _moderate(trial: Trial) -> bool:
    """Squares of the numbers stay far from overflow: a product of two outputs is meant."""
    return trial.case.regime not in ("huge",)


def _inner(a: Array, b: Array) -> Array:
    return a.xp.sum(a * b, axis=-1)


def _relative_position(trial: Trial) -> Array | None:
    r = _rotated_dim(trial)
    if not _moderate(trial):
        return None
    y = _partner(trial)
    p = _position(trial)
    q = np.roll(p, 1, axis=0)
    turned = trial.call(x=_x(trial))[..., :r], trial.call(x=y, position=q)[..., :r]
    apart = trial.call(x=_x(trial), position=p - q)[..., :r]
    return _inner(*turned) - _factor(trial) * _inner(apart, trial.given(y)[..., :r])


def _common_shift(trial: Trial) -> Array | None:
    if not _moderate(trial):
        return None
    y = _partner(trial)
    p = _position(trial)
    q = np.roll(p, 1, axis=0)
    shift = 1 + trial.case.seed % 61
    here = _inner(trial.call(), trial.call(x=y, position=q))
    there = _inner(trial.call(position=p + shift), trial.call(x=y, position=q + shift))
    return here - there


def _norm(trial: Trial) -> Array | None:
    r = _rotated_dim(trial)
    if not _moderate(trial):
        return None
    before, after = trial.given(_x(trial))[..., :r], trial.call()[..., :r]
    factor = _factor(trial)
    return factor * factor * _inner(before, before) - _inner(after, after)


def _again(trial: Trial, once: Array, **changes: Any) -> Array:
    """The kernel applied to what it returned. That was off by up to its bound, and so is what follows from it."""
    kept = trial.rounded(once.parts[0])
    twice = trial.call(x=kept, **changes)
    return twice.xp.approximate(twice.parts[0], twice.parts[1] + trial.carried(once, "x", **changes))  # type: ignore[attr-defined]


def _compose(trial: Trial) -> Array | None:
    p = _position(trial)
    step = np.flip(p, axis=0) // 2
    factor = _factor(trial)
    r = _rotated_dim(trial)
    once = trial.call()
    return (_again(trial, once, position=step) - factor * trial.call(position=p + step))[..., :r]


def _inverse(trial: Trial) -> Array | None:
    factor = _factor(trial)
    r = _rotated_dim(trial)
    back = _again(trial, trial.call(), position=-_position(trial))
    return back[..., :r] - factor * factor * trial.given(_x(trial))[..., :r]


def _identity_at_zero(trial: Trial) -> Array | None:
    if trial.case.arguments["attention_factor"] != 1:
        return None
    out = trial.call(position=np.zeros_like(_position(trial)))
    return _bit_for_bit(trial, out, _x(trial))


def _untouched_channels(trial: Trial) -> Array | None:
    r = _rotated_dim(trial)
    if r == _x(trial).shape[-1]:
        return None
    return _bit_for_bit(trial, trial.call()[..., r:], _x(trial)[..., r:])


def _bit_for_bit(trial: Trial, out: Array, wanted: Any) -> Array:
    """out - wanted with no error allowed."""
    return trial.given(out.parts[0]) - trial.given(wanted)


def _layouts(trial: Trial) -> Array | None:
    """half(P x) = P interleaved(x), where P gathers the even channels before the odd ones."""
    x, r = _x(trial), _rotated_dim(trial)
    order = np.concatenate([np.arange(0, r, 2), np.arange(1, r, 2), np.arange(r, x.shape[-1])])
    half = trial.call(x=np.ascontiguousarray(x[..., order]), layout="half")
    interleaved = trial.call(layout="interleaved")
    return half - interleaved.xp.take(interleaved, order, axis=-1)


def _doubling(trial: Trial) -> Array | None:
    if trial.case.regime == "huge":
        return None
    doubled = trial.call(x=trial.rounded(2 * _x(trial).astype(np.float64)))
    return doubled - 2 * trial.call()


def _scaling(trial: Trial) -> Array | None:
    """Position interpolation by two: twice the positions at half the frequencies."""
    theta = trial.case.arguments.get("frequencies")
    if theta is None:
        return None
    return trial.call(position=2 * _position(trial), frequencies=theta / np.float32(2)) - trial.call()


def _work(*, b: int, h: int, t: int, d: int, itemsize: int, backward: bool) -> Work:
    """x in, its rotation out, and the positions, of 8 bytes; per pair four products and two sums. Angles are the same
    for every head, and may be had from a table. The gradient is the cotangent turned back."""
    passes = 2 if backward else 1
    return Work(bytes=passes * 2 * itemsize * b * h * t * d + 8 * t, flops=passes * 3 * b * h * t * d)


ROPE = Operator(
    name="rope",
    definition=reference.rope,
    inputs=(Tensor("x", "b h t d", even="d"), Integers("position", "t")),
    parameters=(
        Positive("base", default=10_000, low=100, high=10_000_000),
        Positive("attention_factor", default=1, low=0.5, high=2),
    ),
    conventions={"layout": reference.LAYOUTS},
    forms={"table": reference.table, "reduced": reference.reduced, "direct": reference.direct},
    slips={
        "position_off_by_one": _position_off_by_one,
        "position_off_by_minus_one": _position_off_by_minus_one,
        "position_starts_at_zero": _position_starts_at_zero,
        "position_ignored": _position_ignored,
        "rotates_backwards": _rotates_backwards,
        "frequencies_of_all_channels": _frequencies_of_all_channels,
        "exponent_without_two": _exponent_without_two,
        "attention_factor_ignored": _attention_factor_ignored,
        "norm_scaled": _norm_scaled,
        "sections_reversed": _sections_reversed,
        "layouts_mixed": _layouts_mixed,
    },
    mutants={
        "tables in bfloat16": keeping("table", BFLOAT16),
        "tables in float16": keeping("table", FLOAT16),
        "angles in bfloat16": keeping("angle", BFLOAT16),
        "angles in float16": keeping("angle", FLOAT16),
        "angles in float32": _angle_in_single,
        "frequencies in bfloat16": _frequencies_in_bfloat16,
        "offset overflows": _offset_overflows,
        "layout lost in backward": _layout_lost_in_backward,
        "backward turns forward": _backward_turns_forward,
        "last pairs unrotated": _last_pairs_unrotated,
        "one head unrotated": _one_head_unrotated,
        "overwrites a contiguous input": _overwrites_contiguous,
        "table cached by length": _table_by_length,
    },
    structure=_structure,
    properties=(
        Property("relative_position", "<R_m q, R_n k> = f <R_(m-n) q, k>", _relative_position),
        Property("common_shift", "<R_m q, R_n k> = <R_(m+s) q, R_(n+s) k>", _common_shift),
        Property("norm_is_kept", "|R_m x|^2 = f^2 |x|^2 over the rotated channels", _norm),
        Property("rotations_compose", "R_n R_m x = f R_(m+n) x", _compose),
        Property("inverse", "R_(-m) R_m x = f^2 x", _inverse),
        Property("position_zero_is_identity", "R_0 x = x, bit for bit", _identity_at_zero),
        Property(
            "unrotated_channels_pass",
            "channels from rotary_dim on are x, bit for bit",
            _untouched_channels,
            ("rotary_dim",),
        ),
        Property("layouts_permute", "half(P x) = P interleaved(x), P = even channels first", _layouts, ("layout",)),
        Property("doubles_with_x", "R_m (2 x) = 2 R_m x", _doubling),
        Property("positions_scale_against_frequencies", "R(2 m, theta / 2) = R(m, theta)", _scaling, ("frequencies",)),
    ),
    work=_work,
    timed={
        "short": Structure(sizes={"b": 1, "h": 4, "t": 512, "d": 64}),
        "long": Structure(sizes={"b": 1, "h": 32, "t": 4096, "d": 128}),
    },
    source="J. Su et al., RoFormer, arXiv:2104.09864v5, equations 14, 15 and 34",
)
