"""Has a kernel become slower? The rule, on log ratios of head to base, one from each pair of fresh processes.

Within a process the two take turns, and the median of the log ratios of neighbours is that process's answer.
Processes differ by more than their own samples tell (memory lies elsewhere), so the interval is taken over processes,
and a change counts only beyond a margin, never beyond zero. What is suspected is measured again, in twice as many fresh
processes, and only that second measurement can raise an alarm: it was not chosen for being large. Over all cases of a
comparison the false discovery rate is kept at `RATE`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Literal

from scipy import special, stats


Change = Literal["FAST", "SAME", "SLOW", "UNSURE", "FAILED"]

MARGIN = 0.025
"""A change of speed counts from here on."""
SURE = 0.01
"""A change that counts must be more than this for certain."""
RATE = 0.01
"""The false discovery rate over a comparison, and one minus the confidence of each bound of an interval."""
PAIRS = 5
"""Pairs of fresh processes; twice as many for what is suspected."""


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
        if self.ratio > 1 + MARGIN and self.p_slow <= RATE:
            return "SLOW"
        if self.ratio < 1 / (1 + MARGIN) and self.p_fast <= RATE:
            return "FAST"
        return self.unalarmed()

    def unalarmed(self) -> Change:
        """SAME if the whole interval is within the margin."""
        return "SAME" if self.low > 1 / (1 + MARGIN) and self.high < 1 + MARGIN else "UNSURE"


def of_process(base: Sequence[float], head: Sequence[float]) -> float:
    """The answer of one process: the median log ratio of samples taken side by side."""
    return median(math.log(h / b) for b, h in zip(base, head, strict=True))


def estimate(answers: Sequence[float]) -> Estimate:
    """From the answers of at least two processes."""
    n, mean, spread = len(answers), fmean(answers), stdev(answers)
    error = spread / math.sqrt(n)
    reach = float(special.stdtrit(n - 1, 1 - RATE)) * error
    sure = math.log1p(SURE)
    return Estimate(
        ratio=math.exp(median(answers)),
        low=math.exp(mean - reach),
        high=math.exp(mean + reach),
        p_slow=_exceeds(mean - sure, error, n),
        p_fast=_exceeds(-mean - sure, error, n),
    )


def _exceeds(excess: float, error: float, n: int) -> float:
    if error == 0:
        return 0.0 if excess > 0 else 1.0
    return float(special.stdtr(n - 1, -excess / error))


def decide(first: Sequence[Estimate], second: Sequence[Estimate | None]) -> list[Change]:
    """The verdicts of a comparison. `second`: the second measurements, of what the first suspects, None elsewhere."""
    suspected = [e.suspicion() for e in first]
    adjusted = {
        kind: _adjusted(
            [_p(e, kind) if e is not None and s == kind else 1.0 for e, s in zip(second, suspected, strict=True)]
        )
        for kind in ("SLOW", "FAST")
    }
    found: list[Change] = []
    for i, (kind, again) in enumerate(zip(suspected, second, strict=True)):
        if again is None:
            found.append(kind if kind in ("SAME", "UNSURE") else "UNSURE")
        elif again.suspicion() == kind and adjusted[kind][i] <= RATE:
            found.append(kind)
        else:
            found.append(again.unalarmed())
    return found


def _p(e: Estimate, kind: str) -> float:
    return e.p_slow if kind == "SLOW" else e.p_fast


def _adjusted(values: Sequence[float]) -> list[float]:
    return [float(p) for p in stats.false_discovery_control(values)] if values else []
