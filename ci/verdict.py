"""Has a kernel become slower? The rule, on log ratios of head to base, one from each pair of fresh processes.

Within a process the two take turns, and the median of the log ratios of neighbours is that process's answer. Processes
differ by more than their own samples tell (memory lies elsewhere), so intervals are taken over processes; and on a busy
machine a few of them are far off, so that the median of their answers is what counts, and a change counts only beyond a
margin, never beyond zero.

What may be beyond half the margin is suspected, and measured again in more fresh processes. Only that second
measurement can raise an alarm: it was not chosen for being large. Two tests judge it, each at half the rate: one drops
what is far off at either end, as a few processes are on a busy machine; one goes by ranks, for answers that all scatter
to one side, as they do on an overloaded one. Among all that is suspected in a comparison the false discovery rate is
kept at `RATE`.

Source: J. Tukey, D. McLaughlin, Sankhya A 25 (1963) 331, for Student's t of a trimmed mean; F. Wilcoxon, Biometrics
Bulletin 1 (1945) 80, for signed ranks, and J. Hodges, E. Lehmann, Ann. Math. Statist. 34 (1963) 598, for their
intervals; Y. Benjamini, Y. Hochberg, JRSS B 57 (1995) 289, for the rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Any, Literal

import numpy as np
from scipy import special, stats


Change = Literal["FAST", "SAME", "SLOW", "UNSURE", "FAILED"]

MARGIN = 0.02
"""A change of speed counts from here on."""
COUNTED = 0.01
"""The same for instructions, which do not scatter."""
SURE = 0.01
"""A change that counts must be more than this for certain, and what seems to be more is suspected."""
RATE = 0.01
"""The false discovery rate over a comparison, and one minus the confidence of each bound of an interval."""
PAIRS = 5
"""Pairs of fresh processes."""
AGAIN = 12
"""The same for what is suspected: enough that an answer of one sign stays clear among some twenty suspects."""
TRIM = 0.2
"""The part of second answers that the first test drops at each end."""


@dataclass(frozen=True)
class Estimate:
    """Head over base: 1.05 is five per cent slower."""

    ratio: float
    low: float
    high: float
    """The bounds of an interval; each holds with a probability of 1 - RATE."""
    p_slow: float
    """How probable so large an answer would be if head were not slower than by `SURE`."""
    p_fast: float

    def suspicion(self) -> Change:
        """What one measurement by itself points to; SLOW and FAST are to be measured again."""
        return self.beyond(SURE)

    def beyond(self, margin: float) -> Change:
        if self.ratio > 1 + margin:
            return "SLOW"
        return "FAST" if self.ratio < 1 / (1 + margin) else self.unalarmed()

    def unalarmed(self) -> Change:
        """SAME if the whole interval is within the margin."""
        return "SAME" if self.low > 1 / (1 + MARGIN) and self.high < 1 + MARGIN else "UNSURE"


def of_counts(found: Estimate) -> Change:
    """What instruction counts say."""
    if found.low > 1 + COUNTED:
        return "SLOW"
    if found.high < 1 / (1 + COUNTED):
        return "FAST"
    return "SAME" if found.low > 1 / (1 + COUNTED) and found.high < 1 + COUNTED else "UNSURE"


def of_process(base: Sequence[float], head: Sequence[float]) -> float:
    """The answer of one process: the median log ratio of samples taken side by side."""
    return median(math.log(h / b) for b, h in zip(base, head, strict=True))


def estimate(answers: Sequence[float], *, trim: float = 0.0, rate: float = RATE) -> Estimate:
    """From the answers of at least two processes, a part of them dropped at each end: by Student's t."""
    found = np.sort(np.asarray(answers, np.float64))
    n = len(found)
    dropped = int(trim * n)
    kept = found[dropped : n - dropped]
    drawn_in = np.clip(found, kept[0], kept[-1])
    mean, freedom = float(kept.mean()), len(kept) - 1
    error = float(drawn_in.std(ddof=1)) * math.sqrt(n) / len(kept)
    reach = float(special.stdtrit(freedom, 1 - rate)) * error
    sure = math.log1p(SURE)
    return Estimate(
        ratio=math.exp(median(answers)),
        low=math.exp(mean - reach),
        high=math.exp(mean + reach),
        p_slow=_exceeds(mean - sure, error, freedom),
        p_fast=_exceeds(-mean - sure, error, freedom),
    )


def _exceeds(excess: float, error: float, freedom: int) -> float:
    if error == 0:
        return 0.0 if excess > 0 else 1.0
    return float(special.stdtr(freedom, -excess / error))


def ranked(answers: Sequence[float], *, rate: float = RATE) -> Estimate:
    """The same by signed ranks, whatever the law of the scatter, if it is as likely to either side. The sum of the
    ranks with a plus sign is the number of means of two answers (or one) above zero."""
    found = np.asarray(answers, np.float64)
    means = np.sort((found[:, None] + found)[np.triu_indices(len(found))] / 2)
    tail = _at_least(len(found))
    bounded = bool(tail[-1] <= rate)
    beyond = int(np.argmax(tail <= rate))  # so many means lie beyond a bound that holds
    sure = math.log1p(SURE)
    return Estimate(
        ratio=math.exp(median(answers)),
        low=math.exp(means[len(means) - beyond]) if bounded else 0.0,
        high=math.exp(means[beyond - 1]) if bounded else math.inf,
        p_slow=float(tail[(means > sure).sum()]),
        p_fast=float(tail[(means < -sure).sum()]),
    )


def confirm(answers: Sequence[float]) -> Estimate:
    """From the answers of second measurements: what either test finds, each at half the rate."""
    one, other = estimate(answers, trim=TRIM, rate=RATE / 2), ranked(answers, rate=RATE / 2)
    return Estimate(
        ratio=one.ratio,
        low=max(one.low, other.low),
        high=min(one.high, other.high),
        p_slow=min(1.0, 2 * min(one.p_slow, other.p_slow)),
        p_fast=min(1.0, 2 * min(one.p_fast, other.p_fast)),
    )


@lru_cache
def _at_least(n: int) -> Any:
    """The probabilities that the sum of the ranks 1 ... n with a plus sign is at least 0, 1, ..., n (n + 1) / 2."""
    ways = np.ones(1)
    for rank in range(1, n + 1):
        ways = np.convolve(ways, [1, *[0] * (rank - 1), 1])
    return np.cumsum(ways[::-1])[::-1] / 2**n


def decide(first: Sequence[Estimate], second: Sequence[Estimate | None]) -> list[Change]:
    """The verdicts of a comparison. `second`: the second measurements, of what the first suspects, None elsewhere."""
    suspected = [e.suspicion() for e in first]
    again = [(e, kind) for e, kind in zip(second, suspected, strict=True) if e is not None]
    # Second answers do not depend on what was suspected, so the rate is one over these alone.
    chances = iter(_adjusted([e.p_slow if kind == "SLOW" else e.p_fast for e, kind in again]))
    found: list[Change] = []
    for kind, e in zip(suspected, second, strict=True):
        if e is None:
            found.append(kind if kind in ("SAME", "UNSURE") else "UNSURE")
        elif next(chances) <= RATE and e.beyond(MARGIN) == kind:
            found.append(kind)
        else:
            found.append(e.unalarmed())
    return found


def _adjusted(values: Sequence[float]) -> list[float]:
    return [float(p) for p in stats.false_discovery_control(values)] if values else []
