"""The rule that says SLOW, on simulated samples whose truth is known.

The counts of alarms are random, with fixed seeds; the rates that they must be consistent with are derived, or stated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from assay.verdict import (
    AGAIN,
    MARGIN,
    PAIRS,
    RATE,
    SURE,
    TRIM,
    Change,
    Estimate,
    confirm,
    decide,
    estimate,
    of_process,
    ranked,
)


ERROR = 1e-9
"""Of each statistical test here: how probable it is that a right rule fails it, for a seed drawn at random."""
BETWEEN = 0.005
"""How much processes differ where samples are short or neighbours quiet: 0.4 to 0.6 per cent. In docs/power.jsonl, with
samples of a millisecond, it is up to 2."""


def answers(random: np.random.Generator, change: float, n: int, between: float = BETWEEN, wild: float = 0.0) -> Any:
    """What processes answer of a head that takes 1 + change times as long. Some are wild: 20 per cent off."""
    off = 0.2 * random.standard_normal(n) * (random.random(n) < wild)
    return list(math.log1p(change) + between * random.standard_normal(n) + off)


def compared(random: np.random.Generator, changes: Sequence[float], between: float, wild: float) -> list[Change]:
    """The verdicts of a comparison of so many cases."""
    first = [estimate(answers(random, c, PAIRS, between, wild)) for c in changes]
    again = [
        confirm(answers(random, c, AGAIN, between, wild)) if e.suspicion() in ("SLOW", "FAST") else None
        for c, e in zip(changes, first, strict=True)
    ]
    return decide(first, again)


def consistent(hits: int, trials: int, rate: float, alternative: Any = "two-sided") -> bool:
    return bool(stats.binomtest(hits, trials, rate, alternative).pvalue > ERROR)


@pytest.mark.parametrize(("n", "trim"), [(PAIRS, 0.0), (AGAIN, 0.0), (AGAIN, TRIM)])
def test_probabilities_are_those_that_they_say(n: int, trim: float) -> None:
    """A change of exactly SURE looks larger, with a probability of at most RATE, in RATE of all measurements."""
    random = np.random.default_rng(1)
    trials = 4000
    found = [estimate(answers(random, SURE, n), trim=trim) for _ in range(trials)]
    sided = "greater" if trim else "two-sided"
    assert consistent(sum(e.p_slow <= RATE for e in found), trials, RATE, sided)
    assert consistent(sum(e.p_slow <= 0.5 for e in found), trials, 0.5)
    found = [estimate(answers(random, 1 / (1 + SURE) - 1, n), trim=trim) for _ in range(trials)]
    assert consistent(sum(e.p_fast <= RATE for e in found), trials, RATE, sided)


@pytest.mark.parametrize("n", [3, 6, 10, AGAIN])
def test_signed_ranks_are_those_of_scipy(n: int) -> None:
    random = np.random.default_rng(2)
    for shift in (-0.05, 0.0, SURE, 0.05):
        seen = shift + 0.05 * random.standard_normal(n)
        for sign, p in ((1, ranked(seen).p_slow), (-1, ranked(seen).p_fast)):
            beyond = sign * seen - math.log1p(SURE)
            assert p == pytest.approx(stats.wilcoxon(beyond, alternative="greater", method="exact").pvalue, rel=1e-12)


@pytest.mark.parametrize("wild", [0.0, 0.2])
def test_second_measurements_keep_their_rate(wild: float) -> None:
    """Also where some processes are far off; and the bounds of the interval say the same as the probabilities."""
    random = np.random.default_rng(2)
    trials = 4000
    found = [confirm(answers(random, SURE, AGAIN, BETWEEN, wild)) for _ in range(trials)]
    assert consistent(sum(e.p_slow <= RATE for e in found), trials, RATE, "greater")
    assert consistent(sum(e.low > 1 + SURE for e in found), trials, RATE, "greater")
    assert consistent(sum(e.high < 1 + SURE for e in found), trials, RATE, "greater")
    assert all((e.p_slow <= RATE) == (e.low > 1 + SURE) for e in found)
    assert all((e.p_fast <= RATE) == (e.high < 1 / (1 + SURE)) for e in found)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(3)
    trials = 4000
    found = [estimate(answers(random, 0.04, PAIRS)) for _ in range(trials)]
    assert consistent(sum(e.low > 1.04 for e in found), trials, RATE)
    assert consistent(sum(e.high < 1.04 for e in found), trials, RATE)


@pytest.mark.parametrize("change", [0.0, SURE])
@pytest.mark.parametrize(("between", "wild"), [(BETWEEN, 0.0), (4 * BETWEEN, 0.0), (BETWEEN, 0.3)])
def test_what_does_not_count_raises_no_alarm(between: float, wild: float, change: float) -> None:
    """Of what the first measurement suspects, the second confirms at most RATE."""
    random = np.random.default_rng(4)
    suspects = alarms = 0
    for _ in range(2000):
        first = estimate(answers(random, change, PAIRS, between, wild))
        if first.suspicion() in ("SLOW", "FAST"):
            suspects += 1
            second = confirm(answers(random, change, AGAIN, between, wild))
            alarms += decide([first], [second])[0] in ("SLOW", "FAST")
    assert alarms == 0 or consistent(alarms, suspects, RATE, "greater")


def test_nothing_changed_is_the_same_where_processes_agree() -> None:
    verdicts = compared(np.random.default_rng(5), [0.0] * 500, BETWEEN / 5, 0.0)
    assert verdicts == ["SAME"] * 500


@pytest.mark.parametrize(
    ("change", "wild", "least"), [(0.03, 0.0, 0.7), (0.05, 0.0, 0.99), (0.10, 0.0, 0.99), (0.10, 0.2, 0.9)]
)
@pytest.mark.parametrize("sign", [1, -1])
def test_real_changes_are_found(change: float, wild: float, least: float, sign: int) -> None:
    random = np.random.default_rng(6)
    n = 1000
    real = change if sign > 0 else 1 / (1 + change) - 1
    found = [v for _ in range(n // 20) for v in compared(random, [real] * 20, BETWEEN, wild)]
    assert consistent(found.count("SLOW" if sign > 0 else "FAST"), n, least, "less")
    assert ("FAST" if sign > 0 else "SLOW") not in found


def test_one_real_change_among_many_is_found() -> None:
    random = np.random.default_rng(7)
    verdicts = [compared(random, [0.0] * 99 + [0.05], BETWEEN, 0.0) for _ in range(50)]
    assert consistent(sum(v[-1] == "SLOW" for v in verdicts), 50, 0.99, "less")
    assert not any("SLOW" in v[:-1] or "FAST" in v for v in verdicts)


def test_the_rate_of_false_discoveries_is_kept_over_a_comparison() -> None:
    """Ninety cases are slower by just SURE, which does not count, ten by 5 per cent; second measurements alone.

    The mean of false / all alarms is at most RATE. Beside ten true alarms one false one makes it 1 / 11 or more, so
    comparisons with a false alarm are at most 11 RATE of all.
    """
    random = np.random.default_rng(8)
    suspect = Estimate(1.04, 1.02, 1.06, 0.0, 1.0)
    n, spoilt = 100, 0
    for _ in range(n):
        again = [confirm(answers(random, c, AGAIN, BETWEEN / 2)) for c in [SURE] * 90 + [0.05] * 10]
        verdicts = decide([suspect] * 100, again)
        assert verdicts[90:] == ["SLOW"] * 10
        spoilt += "SLOW" in verdicts[:90]
    assert consistent(spoilt, n, 11 * RATE, "greater")


def test_the_second_measurement_alone_raises_the_alarm() -> None:
    slow, same = estimate([0.05, 0.051, 0.049, 0.05, 0.05]), estimate([0.0, 0.001, -0.001, 0.0, 0.0005])
    assert (slow.suspicion(), same.suspicion()) == ("SLOW", "SAME")
    assert decide([slow, same], [same, None]) == ["SAME", "SAME"]
    assert decide([slow, same], [slow, None]) == ["SLOW", "SAME"]
    assert decide([slow], [None]) == ["UNSURE"]


def test_what_scatters_is_unsure() -> None:
    assert estimate([0.3, -0.3, 0.005, -0.2, 0.25]).suspicion() == "UNSURE"
    scattered = confirm([0.3, -0.3, 0.1, -0.2, 0.25, 0.2, -0.1, 0.1, 0.2, -0.2])
    assert decide([estimate([0.3, -0.3, 0.1, -0.2, 0.25])], [scattered]) == ["UNSURE"]


def test_a_few_wild_processes_do_not_hide_a_change() -> None:
    """As seen on an overloaded machine, with a tenth more work planted."""
    for seen in (
        [0.075, 0.072, 0.099, 0.087, 0.088, 0.083, 0.077, 0.129, 0.352, 0.133],
        [0.371, 0.181, 0.255, 0.123, 0.267, 0.528, 0.050, 0.093, 0.403, 0.069],
    ):
        assert decide([estimate(seen[:5])], [confirm(seen)]) == ["SLOW"]


def test_answers_without_any_scatter_are_believed() -> None:
    assert estimate([0.05] * 5).suspicion() == "SLOW"
    assert estimate([0.0] * 5).suspicion() == "SAME"
    assert estimate([-0.05] * 5).suspicion() == "FAST"


def test_what_slows_neighbours_alike_does_not_show() -> None:
    """Load that doubles the time of some rounds, for both sides of a pair, leaves their ratio as it is."""
    random = np.random.default_rng(8)
    load = 1 + (random.random(40) < 0.4)
    base, head = load * 1e-3, load * 1.05e-3
    assert of_process(list(base), list(head)) == pytest.approx(math.log(1.05))


def test_the_margins_are_in_order() -> None:
    assert 0 < SURE < MARGIN
