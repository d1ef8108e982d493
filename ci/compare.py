"""`assay compare`: two versions of the same kernels, timed against each other.

Both are opened in one process where it can hold both, and otherwise in a pair of processes that are driven by turns.
In each round they run in random order. About twenty cases share a process: starting torch costs more than timing.

On one thread the time is that for which the process had a processor: what other programs take away is not in it. On
several it is wall time, since there waiting for each other is part of the cost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from assay.timing import NotTimed, Setup, Stopwatch, StopwatchError
from assay.verdict import AGAIN, COUNTED, MARGIN, PAIRS, RATE, Change, Estimate, confirm, decide, estimate, of_process


SHARED = 24
"""Cases that share a pair of processes."""
FINE = 1e-4
"""Seconds that a sample takes at least. What disturbs a machine comes and goes within a millisecond: two long samples
have a share of their own of that, two short neighbours are both disturbed or neither is, and medians do the rest."""
FEWEST = 5
"""Rounds of a case in one process, at least."""
BUDGET = 2.0
"""Seconds of timed work for a case and comparison,"""
FIRST = 0.3
"""and how much of them the first measurement takes, which only has to suspect."""


@dataclass(frozen=True)
class Job:
    """One case of one kernel, on both sides: what a stopwatch is told to open."""

    name: str
    setup: Setup
    base: Mapping[str, Any]
    head: Mapping[str, Any]


@dataclass(frozen=True)
class Samples:
    """Seconds (or instructions) per call in one process, round by round."""

    base: tuple[float, ...]
    head: tuple[float, ...]

    @property
    def answer(self) -> float:
        return of_process(self.base, self.head)


@dataclass
class Compared:
    """What is known of one job after a comparison."""

    job: Job
    verdict: Change = "UNSURE"
    reason: str = ""
    """Why it failed, or why it says nothing of head: base could not be timed."""
    first: list[Samples] = field(default_factory=list)
    second: list[Samples] = field(default_factory=list)

    @property
    def estimate(self) -> Estimate | None:
        if len(self.second) > 1:
            return confirm([s.answer for s in self.second])
        return _estimate(self.first) if len(self.first) > 1 else None


class _Failed(Exception):
    """A side of a job could not be timed."""

    def __init__(self, side: str, message: str) -> None:
        super().__init__(message)
        self.side = side


Told = Callable[[str], None]


def compare(
    jobs: Sequence[Job], tell: Told, *, apart: bool = False, seed: int = 0, pairs: int = PAIRS
) -> list[Compared]:
    """Measure, measure again what is suspected, and decide. `apart`: the sides cannot share a process."""
    found = [Compared(job) for job in jobs]
    order = random.Random(seed)
    measure(found, pairs, tell, order, apart=apart)
    left = [c for c in found if not c.reason]
    estimates = [_estimate(c.first) for c in left]
    suspected = [c for c, e in zip(left, estimates, strict=True) if e.suspicion() in ("SLOW", "FAST")]
    if suspected:
        tell(f"measuring again what is suspected: {len(suspected)} of {len(left)}")
        measure(suspected, pairs * AGAIN // PAIRS, tell, order, apart=apart, again=True)
    again = [c.estimate if len(c.second) > 1 and not c.reason else None for c in left]
    for compared, verdict in zip(left, decide(estimates, again), strict=True):
        if not compared.reason:
            compared.verdict = verdict
    return found


def _estimate(samples: Sequence[Samples]) -> Estimate:
    return estimate([s.answer for s in samples])


def budget_of(again: bool) -> float:
    """Seconds of timed work in one pair of processes, of the first measurement or of the second."""
    return BUDGET * (1 - FIRST) / AGAIN if again else BUDGET * FIRST / PAIRS


def measure(
    found: Sequence[Compared], pairs: int, tell: Told, order: random.Random, *, apart: bool = False, again: bool = False
) -> None:
    """Give each job the samples of so many more fresh pairs of processes, as its first or its second measurement."""
    by_place: dict[tuple[int, str], list[Compared]] = {}
    for compared in found:
        by_place.setdefault((compared.job.setup.threads, compared.job.setup.device), []).append(compared)
    for (threads, device), members in by_place.items():
        for start in range(0, len(members), SHARED):
            together = members[start : start + SHARED]
            for pair in range(pairs):
                left = [c for c in together if not c.reason]
                if not left:
                    break
                tell(f"pair {pair + 1} of {pairs}: {len(left)} cases from {left[0].job.name}")
                budget = budget_of(again)
                for compared, samples in _pair(left, threads, device, order, budget, apart=apart):
                    (compared.second if again else compared.first).append(samples)


def _pair(
    found: Sequence[Compared], threads: int, device: str, order: random.Random, budget: float, *, apart: bool
) -> Iterator[tuple[Compared, Samples]]:
    """The samples of each job from one fresh pair of processes, of so many seconds; a job that cannot be timed gets its
    reason."""
    left = list(found)
    while left:
        with ExitStack() as stack:
            base = stack.enter_context(Stopwatch(threads, device, steady=True))
            head = stack.enter_context(Stopwatch(threads, device, steady=True)) if apart else base
            while left:
                compared = left.pop(0)
                try:
                    yield compared, sampled(compared.job, {"base": base, "head": head}, order, budget)
                except _Failed as failed:
                    compared.verdict = "FAILED" if failed.side == "head" else "UNSURE"
                    compared.reason = f"{failed.side}: {failed}"
                    break  # the process may be gone, and what it holds is in doubt: the others get a fresh one


def sampled(job: Job, watches: Mapping[str, Stopwatch], order: random.Random, budget: float) -> Samples:
    """The samples of a job from processes that are there, within so many seconds where FEWEST rounds are."""
    told = {"base": job.base, "head": job.head}
    sides = ["base", "head"]
    order.shuffle(sides)  # who comes first gets other memory
    alone = job.setup.threads == 1
    # Between processes each sample begins with the other's caches.
    how = {"least": FINE} if watches["base"] is watches["head"] else {}
    calls, cost = 0, 0.0
    for side in sides:
        try:
            answer = watches[side].ask("open", key=side, calls=calls, processor=alone, **how, **told[side])
        except (NotTimed, StopwatchError) as error:
            raise _Failed(side, str(error)) from None
        calls, cost = answer["calls"], cost + answer["seconds"] * answer["calls"]
    rounds = max(FEWEST, int(budget / cost))
    found: dict[str, list[float]] = {side: [] for side in sides}
    try:
        if watches["base"] is watches["head"]:
            found = watches["base"].ask("samples", keys=sides, rounds=rounds, seed=order.getrandbits(32))["samples"]
        else:
            for _ in range(rounds):
                order.shuffle(sides)
                for side in sides:
                    found[side] += watches[side].ask("samples", keys=[side], rounds=1, seed=0)["samples"][side]
    except NotTimed as error:
        raise _Failed(error.key, str(error)) from None
    except StopwatchError as error:
        raise _Failed("head", f"one of the two {error}") from None
    return Samples(tuple(found["base"]), tuple(found["head"]))


def as_json(found: Sequence[Compared], unit: str = "seconds") -> dict[str, Any]:
    """Verdicts, intervals, and every sample: so many of the unit, per call."""
    from assay.report import versions

    rows = []
    for c in found:
        e = c.estimate
        rows.append(
            {
                "kernel": c.job.name,
                "setup": {**asdict(c.job.setup), "mode": c.job.setup.mode},
                "verdict": c.verdict,
                "reason": c.reason,
                "estimate": None if e is None else asdict(e),
                "first": [asdict(s) for s in c.first],
                "second": [asdict(s) for s in c.second],
            }
        )
    margin = COUNTED if unit == "instructions" else MARGIN
    return {**versions(), "unit": unit, "margin": margin, "rate": RATE, "results": rows}
