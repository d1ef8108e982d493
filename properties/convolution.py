"""The contract of `fft_convolve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from assay.properties.contract import Definition, Operator, Property, Structure, Tensor, Work
from assay.properties.drawing import Values
from assay.properties.emulated import computing
from assay.properties.laws import adds_in, few_bits
from assay.properties.trial import Trial
from assay.reference import convolution as reference
from assay.reference.arithmetic.array import Array
from assay.reference.arithmetic.precision import Format


# Regimes --------------------------------------------------------------------------------------------------------------


def _decaying(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Values]:
    """A kernel that decays, as those of state spaces do."""
    t = shapes["K"][-1]
    rates = np.exp2(random.uniform(-6, 1, shapes["K"][:-1]))[..., None]
    return {
        "u": random.standard_normal(shapes["u"]),
        "K": random.standard_normal(shapes["K"]) * np.exp(-rates * np.arange(t)),
    }


def _at_the_end(random: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], dtype: Format) -> dict[str, Values]:
    """All of both lies at the end, from where a circle would lead to the start."""
    out = {name: np.zeros(shape) for name, shape in shapes.items()}
    for name in ("u", "K"):
        out[name][..., -1:] = random.integers(1, 9, out[name][..., -1:].shape)
    return out


# Slips, by transforms, as whose bound is the looser one. --------------------------------------------------------------


def _circular(short: int) -> Definition:
    """On a circle of 2 t - 1 - short positions, where the last lags wrap around; of t, if that is more."""

    def slip(u: Any, K: Any) -> Any:
        reference.check(u, K)
        t = u.shape[-1]
        n = max(t, 2 * t - 1 - short) if short else t
        y, xp = reference.by_transform(u, K), u.xp
        if not t or n >= 2 * t - 1:
            return y
        # Beyond the end: what lags from t on would show.
        zeros = [xp.zeros((*x.shape[:-1], t), dtype=x.dtype) for x in (u, K)]
        longer = [xp.concat([x, zero], axis=-1) for x, zero in zip((u, K), zeros, strict=True)]
        around = reference.by_transform(*longer)[..., n : 2 * t]
        return y + xp.concat([around, xp.zeros((*y.shape[:-1], t - around.shape[-1]))], axis=-1)[..., :t]

    return slip


def _correlation(u: Any, K: Any) -> Any:
    """sum_j K_j u_{i+j}."""
    xp = u.xp
    return xp.flip(reference.by_transform(xp.flip(u, axis=-1), K), axis=-1)


def _shown(start: Callable[[int], int]) -> Definition:
    """The t positions of the full convolution from another one on."""

    def slip(u: Any, K: Any) -> Any:
        reference.check(u, K)
        xp, t = u.xp, u.shape[-1]
        zeros = [xp.zeros((*x.shape[:-1], t), dtype=x.dtype) for x in (u, K)]
        longer = [xp.concat([x, zero], axis=-1) for x, zero in zip((u, K), zeros, strict=True)]
        return reference.by_transform(*longer)[..., start(t) : start(t) + t]

    return slip


def _turned(u: Any, K: Any) -> Any:
    return reference.by_transform(u, u.xp.flip(K, axis=-1))


# Properties -----------------------------------------------------------------------------------------------------------


def _arrays(trial: Trial) -> tuple[Values, Values]:
    return trial.case.arguments["u"], trial.case.arguments["K"]


def _direct(trial: Trial) -> Array | None:
    """Numbers of few bits, so that the sums are exact here too."""
    u, K = _arrays(trial)
    one, two = few_bits(trial, u.shape), few_bits(trial, K.shape, 1)
    exact = np.zeros(np.broadcast_shapes(one.shape, two.shape))
    for lag in range(u.shape[-1]):
        exact[..., lag:] += two[..., lag, None] * one[..., : u.shape[-1] - lag]
    return trial.call(u=trial.rounded(one), K=trial.rounded(two)) - trial.given(exact)


def _impulse(trial: Trial) -> Array | None:
    """An impulse at any position: the kernel from there on, and nothing before."""
    u, K = _arrays(trial)
    t = u.shape[-1]
    at = trial.case.seed % t if t else 0
    impulse, late = np.zeros(u.shape), np.zeros(u.shape)
    impulse[..., at : at + 1] = 1
    late[..., at:] = K[..., : t - at].astype(np.float64)
    if not np.isfinite(late).all():
        return None
    return trial.call(u=trial.rounded(impulse)) - trial.given(late)


def _commutes(trial: Trial) -> Array | None:
    u, K = _arrays(trial)
    own = u[:1]
    return trial.call(u=K[None], K=own[0]) - trial.call(u=own)


def _late(trial: Trial) -> Array | None:
    u, _ = _arrays(trial)
    if u.shape[-1] < 2:
        return None
    late = np.concatenate([np.zeros_like(u[..., :1]), u[..., :-1]], axis=-1)
    return trial.call(u=late)[..., 1:] - trial.call()[..., :-1]


def _future(trial: Trial) -> Array | None:
    """Whatever comes later in u or K: within the bounds of both, for a transform sees all."""
    t = _arrays(trial)[0].shape[-1]
    if t < 2:
        return None
    last = trial.case.seed % (t - 1)
    changes = {}
    for name, number in (("u", 4.0), ("K", -2.0)):
        x = trial.case.arguments[name]
        changes[name] = np.where(np.arange(t) > last, np.asarray(number, x.dtype), x)
    return trial.call(**changes)[..., : last + 1] - trial.call()[..., : last + 1]


def _channels(trial: Trial) -> Array | None:
    """A channel alone is what it is among others."""
    u, K = _arrays(trial)
    if u.shape[1] < 2:
        return None
    here = slice(trial.case.seed % u.shape[1], trial.case.seed % u.shape[1] + 1)
    return trial.call()[:, here] - trial.call(u=u[:, here], K=K[here])


def _work(*, b: int, d: int, t: int, itemsize: int, backward: bool) -> Work:
    """Everything is read and written once; each output is one product at least."""
    passes = 2 if backward else 1
    return Work(bytes=passes * (2 * b * d * t + d * t) * itemsize, flops=passes * b * d * t)


FFT_CONVOLVE = Operator(
    name="fft_convolve",
    definition=reference.fft_convolve,
    inputs=(Tensor("u", "b d t"), Tensor("K", "d t")),
    forms={"direct": reference.fft_convolve, "fft": reference.by_transform},
    slips={
        "circular": _circular(0),
        "padding_one_position_short": _circular(1),
        "correlation": _correlation,
        "kernel_turned": _turned,
        "shown_one_position_late": _shown(lambda t: 1),
        "shown_from_the_middle": _shown(lambda t: t // 2),
    },
    backward=reference.backward,
    mutants={"unclaimed form fft": computing("fft")},
    regimes={"decaying kernel": _decaying, "at the end": _at_the_end},
    properties=(
        Property("it_is_the_sum", "of numbers of few bits: y_i = sum_{j <= i} K_j u_{i-j}", _direct),
        Property("an_impulse_shows_the_kernel", "u = e_i: y is K, i positions late", _impulse),
        Property("it_commutes", "K * u = u * K", _commutes),
        Property("it_commutes_with_time", "a later u, a later y", _late),
        Property("future_weighs_nothing", "whatever comes later, y stays within its bound", _future),
        Property("inputs_add", "y(u + u') = y(u) + y(u')", adds_in("u")),
        Property("channels_are_apart", "a channel alone is what it is among others", _channels),
    ),
    work=_work,
    timed={
        "short": Structure(sizes={"b": 1, "d": 64, "t": 1024}),
        "long": Structure(sizes={"b": 4, "d": 64, "t": 16_384}),
    },
    source="A. Gu et al., S4, arXiv:2111.00396, equation 5",
)
