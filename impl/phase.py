"""Angular frequencies as integers, so that an angle is reduced exactly at any position.

    w_j = round(theta_j / (2 pi) * 2**64), wrapped into [-2**63, 2**63)
    position * theta_j = 2 pi ((position * w_j) mod 2**64) / 2**64 + rho,    |rho| <= 2 pi |position| 2**-65

A turn is 2**64 units, so the wrap-around of 64-bit integers *is* the reduction modulo a turn: the low 64 bits of
position * w_j, read as a signed integer, are the angle as a fraction of a turn in [-1/2, 1/2). Only the rounding of
w_j is ever lost, however far the position; a product in float32 loses |position| theta_j 2**-24.

Axes: j rotary pair.

Error: w_j is the nearest integer. rho is 4e-10 at position 2**31, 2e-7 at 2**40.
Source: the fixed-point phase of a direct digital synthesizer (Tierney, Rader and Gold, "A digital frequency
    synthesizer", IEEE Trans. Audio Electroacoust. 19, 1971), with the turn as the unit.
"""

from __future__ import annotations

import math
from functools import lru_cache

import mpmath


TURN = 2**64

# A quotient by 2 pi needs 64 bits behind the point and as many before it as theta has; these guard its rounding.
GUARD = 96


@lru_cache(maxsize=256)
def turns(base: float, pairs: int) -> tuple[int, ...]:
    """w[pairs] of theta_j = base**(-j/pairs), the geometric frequencies of RoFormer over r = 2 pairs channels.

    A base in (0, 1) is legal: its frequencies rise.

    Raises:
        ValueError: base is not a positive finite number, or pairs is negative.

    >>> turns(16.0, 2)  # 2**64 / (2 pi), and a quarter of it
    (2935890503282001226, 733972625820500307)
    """
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"base must be positive and finite, got {base}")
    if pairs < 0:
        raise ValueError(f"pairs must not be negative, got {pairs}")
    context = _context(max(0.0, -math.log2(base)))
    exact = context.mpf(base)
    return tuple(_wrapped(context, exact ** (-context.mpf(j) / pairs)) for j in range(pairs))


@lru_cache(maxsize=256)
def turns_of(frequencies: tuple[float, ...]) -> tuple[int, ...]:
    """w[j] of given frequencies theta_j in radians per position, each float taken as the exact number that it is.

    Frequencies may be negative, and beyond a turn per position: whole turns drop out.

    Raises:
        ValueError: a frequency is infinite or not a number.

    >>> turns_of((0.0, 1.0, -1.0))
    (0, 2935890503282001226, -2935890503282001226)
    """
    if not all(map(math.isfinite, frequencies)):
        raise ValueError(f"frequencies must be finite, got {frequencies}")
    context = _context(max((math.frexp(theta)[1] for theta in frequencies), default=0))
    return tuple(_wrapped(context, context.mpf(theta)) for theta in frequencies)


def _context(log2_theta: float) -> mpmath.MPContext:
    """Return a context wide enough for frequencies up to 2**log2_theta; the global one belongs to the user."""
    context = mpmath.mp.clone()
    context.prec = 64 + GUARD + max(0, math.ceil(log2_theta))
    return context


def _wrapped(context: mpmath.MPContext, theta: mpmath.mpf) -> int:
    """Return theta / (2 pi) turns in units of 2**-64 turn, as a signed 64-bit integer."""
    units = int(context.nint(theta / (2 * context.pi) * TURN))
    return (units + TURN // 2) % TURN - TURN // 2
