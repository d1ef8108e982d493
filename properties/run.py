"""One pass over drawn cases, on which every demand is tried, and one for each that was broken, to find a smaller case.

A demand is believed only where it could have failed: in each case the null kernels (zeros, a copy of the input, the
mean of the right answer, a stale answer) are held to the same bound, and the case counts if all of them are rejected. A
run in which too few cases count is undecided, not passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis.strategies import SearchStrategy

from assay.properties.contract import Operator, Property
from assay.properties.counterexample import Counterexample
from assay.properties.drawing import DTYPES, Case, Values, cases
from assay.properties.examples import suited
from assay.properties.gains import gains
from assay.properties.results import MEANT, SIZED, Progress, Result
from assay.properties.robustness import AGREEMENT, Check, Group
from assay.properties.shifts import FEWEST, Shift, shifts
from assay.properties.statistics import Samples, rejects_nulls, samples
from assay.properties.trial import (
    GivenUp,
    KernelError,
    Miss,
    NotCovered,
    Subject,
    Trial,
    Violation,
    outside,
)
from assay.properties.truth import NotApplicable


COUNTED = 20
"""Cases in which every null kernel must have been rejected, for a run to mean anything."""
ROUNDS = 4
"""At most this many times as many cases are drawn, where too few have counted so far."""
RECALLED = "from the database of examples"
"""Told of a case that was not drawn."""


@dataclass(frozen=True)
class Effort:
    """How hard to look."""

    examples: int = 48
    seed: int = 0
    shrink_seconds: float = 6.0
    """At most this long is spent on making failing cases smaller: half of what is left for each."""
    shares: int = 2
    """How many of the contract's own properties are tried on each case; they take turns."""
    robustness: int = 2
    """Likewise, of what every kernel owes beside agreement."""
    largest: int = 1 << 62
    """Elements of a case up to which both are tried: they take several calls, some a dozen."""
    thin: bool = False
    """Where an axis of a case is long, there is one of everything along which nobody works in blocks."""
    climb: int = 24
    """After the drawn cases, so many that are varied so as to raise the headroom."""
    pooled: int = 100
    """Small ordinary cases that are taken together, to see shifts of parameters."""
    stop: Literal["", "first", "each"] = ""
    """End with the first demand that is broken, or do not try a broken demand again: for wrong kernels by the
    hundred. Neither shrinks nor diagnoses."""


QUICK = Effort(examples=32, shrink_seconds=0.7, climb=0, pooled=32)


@dataclass
class _Tally:
    """What happened to one demand during a run."""

    cases: int = 0
    tries: int = 0
    """Cases tried, in the domain or not."""
    headroom: float = 0.0
    seconds: float = 0.0
    failed: Case | None = None
    message: str = ""
    miss: Miss | None = None
    round: int = 0
    refused: bool = False
    """The kernel said that it does not support what was asked."""
    reason: str = ""
    """Why it could not be asked."""
    broken: bool = False
    """The kernel raised, as against returned something wrong."""


class Run:
    """One pass over the drawn cases, then a shrinking pass for each demand that was broken."""

    def __init__(
        self,
        operator: Operator,
        subject: Subject,
        dtype: str,
        conventions: Mapping[str, tuple[str, ...]],
        effort: Effort,
        demands: Sequence[Check],
        progress: Progress | None,
    ) -> None:
        self.operator = operator
        self.subject = subject
        self.dtype = dtype
        self.effort = effort
        self.demands = demands
        self.able = [c for c in demands if not c.lacking(subject)]
        self.progress = progress
        self.conventions = conventions
        self.strategy = cases(operator, dtype, subject.supports, conventions, thin=effort.thin)
        self.tallies = {check.name: _Tally() for check in demands}
        self.recalled = {check.name: _Tally() for check in demands}
        """The same of cases that were not drawn: what is drawn does not depend on them."""
        self.kept: list[Trial] = []
        self.seen = 0
        self.round = 0
        self.left = effort.shrink_seconds
        self.counted = 0
        self.refusal = ""
        self.about = {p.name: p.about for p in operator.properties if isinstance(p, Property)}
        self._stale: dict[tuple[int, ...], tuple[Values, Values]] = {}
        """The last answer of each shape, and what would have been right."""

    def recall(self, examples: Sequence[Counterexample]) -> None:
        """Try known counterexamples: what is always demanded, and the demand that each of them broke."""
        drawn, self.tallies = self.tallies, self.recalled
        for example in () if self.operator.random else examples:
            case = suited(self.operator, example.case, self.subject.supports, self.conventions)
            if case is None:
                continue
            trial = Trial(self.operator, self.subject, case)
            own = [c for c in self.able if c.name == example.property and not c.universal and self._small(case)]
            if all(self._attempt(check, trial) for check in self.able if check.universal):
                for check in own:
                    if check.group == "contract" or not trial.broken:
                        self._attempt(check, trial)
        self.tallies = drawn

    def _small(self, case: Case) -> bool:
        return _elements(case) <= self.effort.largest

    def collect(self) -> None:
        """Try every demand on every case, going on after failures."""
        if self.operator.random:
            self.take(samples(self.operator, self.subject, self.dtype, self.effort.seed))
            return

        def one(case: Case) -> None:
            trial = Trial(self.operator, self.subject, case)
            self._try(trial)
            target(min(trial.headroom, 1e300), label="headroom")

        while self.round < ROUNDS and self.counted < COUNTED and not self._agreement_failed():
            self._drawn(one, self.effort.examples, (Phase.generate,))
            self.round += 1
            if not self.kept:
                return
        self._look_for_missing()
        if self.effort.climb and not self._agreement_failed():
            self._drawn(one, self.effort.climb, (Phase.generate, Phase.target))

    def take(self, trials: Sequence[Trial]) -> None:
        """The same on cases that another run has drawn."""
        for trial in trials:
            self._try(trial.under(self.subject))
            if self._stopped():
                return

    def _try(self, trial: Trial) -> None:
        """Every demand on one case."""
        self.seen += 1
        if all(self._attempt(check, trial) for check in self.able if check.universal):
            small = self._small(trial.case) and not trial.undecided
            # Where the kernel is wrong anyway, what it owes beside that would only be told a dozen times.
            self._take_turns(trial, "robustness", self.effort.robustness if small and not trial.broken else 0)
            self._take_turns(trial, "contract", self.effort.shares if small else 0)
        if isinstance(trial, Samples):
            self.counted += trial.drew and not self.effort.stop and rejects_nulls(trial, [c.holds for c in self.able])
        elif trial.answered and not trial.undecided:
            self._count(trial)
            self.kept.append(trial)

    def tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.seen, max((t.headroom for t in self.tallies.values()), default=0.0), what)

    def keep(self, failed: Sequence[Case]) -> None:
        """Smaller cases that fail are evidence too: what explains the larger ones may not explain them."""
        for case in failed:
            trial = Trial(self.operator, self.subject, case)
            try:
                trial.agree()
            except Violation as violation:
                if violation.miss is not None:  # otherwise there is nothing to compare
                    trial.headroom = np.inf
                    self.kept.append(trial)
            except (KernelError, NotCovered):
                continue

    def _stopped(self) -> bool:
        return self.effort.stop == "first" and any(t.failed is not None for t in self.tallies.values())

    def _take_turns(self, trial: Trial, group: Group, left: int) -> None:
        """The demands of a group: those tried least so far come first, until enough had the case in domain."""
        for check in sorted((c for c in self.able if c.group == group), key=lambda c: self.tallies[c.name].tries):
            if left > 0:
                before = self.tallies[check.name].cases
                self._attempt(check, trial)
                left -= self.tallies[check.name].cases - before

    def _look_for_missing(self) -> None:
        """Properties that no case so far was in the domain of are tried, alone, on more cases."""

        class Enough(Exception):
            pass

        def missing() -> list[Check]:
            own = [c for c in self.able if c.group == "contract" and not self._elsewhere(c)]
            return [c for c in own if not self.tallies[c.name].cases and not self.tallies[c.name].refused]

        def one(case: Case) -> None:
            trial = Trial(self.operator, self.subject, case)
            for check in missing():
                self._attempt(check, trial)
            if not missing():
                raise Enough

        if missing():
            with suppress(Enough):
                self._drawn(one, ROUNDS * self.effort.examples, (Phase.generate,))
            self.round += 1

    def _elsewhere(self, check: Check) -> str:
        """Why a property is not about any of the conventions that the kernel is judged under; empty if it is."""
        for name, values in self.about.get(check.name, {}).items():
            if not set(values) & set(self.conventions[name]):
                return f"it is not about {name}={', '.join(self.conventions[name])}"
        return ""

    def _concerns(self, check: Check, case: Case) -> bool:
        """Is the property about the conventions of the case?"""
        about = self.about.get(check.name, {})
        return all(case.arguments.get(n, self.conventions[n][0]) in values for n, values in about.items())

    def _agreement_failed(self) -> bool:
        tally = self.tallies.get(AGREEMENT.name)
        return tally is not None and tally.failed is not None

    def _attempt(self, check: Check, trial: Trial) -> bool:
        """One demand on one case. False if the kernel does not cover the case at all, or nothing more is asked."""
        tally = self.tallies[check.name]
        if (self.effort.stop and tally.failed is not None) or not self._concerns(check, trial.case):
            return True
        started = time.perf_counter()
        self.tell(check.name)
        tally.tries += 1
        trial.headroom = 0.0 if check.differentiates or check is AGREEMENT else trial.headroom
        try:
            if check.holds(trial):
                tally.cases += 1
        except NotApplicable as reason:
            tally.reason = str(reason)
            trial.undecided |= check.universal
        except NotCovered as refusal:
            self.refusal = str(refusal)
            tally.refused = True
            # Where the case itself is refused, nothing is judged; a property may ask for more than a case does.
            return not check.universal
        except Violation as violation:
            tally.cases += 1
            trial.broken = True
            if violation.miss is not None and violation.miss.bound:
                ratio = abs(violation.miss.got - violation.miss.exact) / violation.miss.bound
                trial.headroom = max(trial.headroom, ratio if ratio == ratio else np.inf)
            elif violation.miss is not None:
                trial.headroom = np.inf
            if tally.failed is None:
                tally.failed, tally.message, tally.round = trial.case, str(violation), self.round
                tally.miss = violation.miss
        except KernelError as error:
            tally.cases += 1
            trial.broken = True
            # What was not called tells nothing of its case, where another one is known.
            known = isinstance(error, GivenUp) and self.recalled[check.name].failed is not None
            if tally.failed is None and not known:
                tally.failed, tally.message, tally.round = trial.case, str(error), self.round
                tally.broken = True
        finally:
            tally.seconds += time.perf_counter() - started
        tally.headroom = max(tally.headroom, trial.headroom)
        return not self._stopped()

    def _count(self, trial: Trial) -> None:
        """Does the bound reject every null kernel here?"""
        exact, bound = trial.exact[0], trial.bound[0]
        dtype = DTYPES[self.dtype]
        with np.errstate(all="ignore"):
            mean = np.full(exact.shape, exact.midpoint.mean() if exact.midpoint.size else 0).astype(dtype)
        nulls = [np.zeros(exact.shape, dtype)]
        if exact.midpoint.size > 1:
            nulls.append(mean)
        first = trial.case.arguments[self.operator.tensors[0]] if self.operator.tensors else None
        if first is not None and first.shape == exact.shape and trial.case.regime != "zeros":
            nulls.append(first.real)
        stale, of = self._stale.get(exact.shape, (None, None))
        # What is made from sizes alone comes again: then the stale answer is the right one.
        if stale is not None and of is not None and (self.operator.tensors or not np.array_equal(of, exact.midpoint)):
            nulls.append(stale)
        self._stale[exact.shape] = trial.answer().outputs[0], exact.midpoint
        self.counted += all(bool(outside(null, exact, bound, self.dtype)[0].any()) for null in nulls)

    def pooled(self) -> list[Trial]:
        """Small ordinary cases that the kernel answers."""
        trials: list[Trial] = []

        def one(case: Case) -> None:
            trial = Trial(self.operator, self.subject, case)
            self.tell(MEANT)
            with suppress(NotCovered, KernelError, Violation):
                trial.answer()
                trials.append(trial)

        small = cases(self.operator, self.dtype, self.subject.supports, self.conventions, pooled=True)
        self._drawn(one, self.effort.pooled, (Phase.generate,), small)
        return trials

    def parameters(self) -> tuple[Result, list[Shift]]:
        """Does it compute with the parameters that it was passed?"""
        out = Result(MEANT, "pass")
        started = time.perf_counter()
        trials = self.pooled()
        out.cases = len(trials)
        found = shifts(self.operator, trials)
        if len(trials) < FEWEST:
            out.verdict, out.message = "skipped", f"the kernel answered only {len(trials)} of the cases"
        elif found and all(found[0].explains(t) for t in trials):
            out.verdict, out.message = "fail", "; ".join(map(str, found))
        elif not all(t.fits(self.operator.definition, t.case.arguments) for t in trials):
            out.verdict, out.message = "skipped", "the outputs are outside their bounds, and no parameter explains it"
        out.seconds = time.perf_counter() - started
        return out, found if out.verdict == "fail" else []

    def sizes(self) -> Result:
        """Are the gradients of all cases together as large as they should be?"""
        out = Result(SIZED, "pass")
        started = time.perf_counter()
        broken = any(c.differentiates and self.tallies[c.name].failed is not None for c in self.demands)
        found = [] if broken else gains([t for t in self.kept if t.differentiated])
        out.cases = max((g.cases for g in found), default=0)
        if off := [str(g) for g in found if g.counts]:
            out.verdict, out.message = "fail", "; ".join(off)
        elif not found:
            told = "gradients are outside their bounds" if broken else "too few of the cases have gradients that tell"
            out.verdict, out.message = "skipped", told
        out.seconds = time.perf_counter() - started
        return out

    def result(self, check: Check) -> Result:
        tally, recalled = self.tallies[check.name], self.recalled[check.name]
        headroom = max(tally.headroom, recalled.headroom) if check is AGREEMENT or check.differentiates else None
        out = Result(check.name, "pass", tally.cases + recalled.cases, headroom, tally.seconds + recalled.seconds)
        if tally.failed is not None:
            out.verdict = "error" if tally.broken else "fail"
            out.case, out.message, out.miss = self._shrunk(check, tally)
            out.counterexample, out.values = out.case.shapes(), out.case.small()
        if recalled.failed is not None and (out.case is None or _elements(recalled.failed) <= _elements(out.case)):
            out.verdict = "error" if recalled.broken else "fail"
            out.case, out.message, out.miss = recalled.failed, recalled.message, recalled.miss
            out.counterexample, out.values = f"{out.case.shapes()}, {RECALLED}", out.case.small()
        if out.case is not None:
            return out
        if not tally.cases:
            outside_domain = f"none of {self.seen} cases was in its domain"
            reason = check.lacking(self.subject) or self._elsewhere(check) or tally.reason or self.refusal
            if reason:
                unknown = check.universal and reason == tally.reason
                out.verdict, out.message = "undecided" if unknown else "skipped", reason
            elif check.group == "robustness" and not tally.tries:
                out.verdict, out.message = (
                    "skipped",
                    f"in none of {self.seen} cases were the outputs and gradients right",
                )
            elif check.group == "robustness":  # an operator may leave it nothing to ask
                out.verdict, out.message = "skipped", outside_domain
            else:
                out.verdict, out.message = "undecided", outside_domain
        elif check is (self.demands[0] if self.operator.random else AGREEMENT) and self.counted < self._needed():
            out.verdict = "undecided"
            out.message = f"the null kernels were rejected in only {self.counted} of {self.seen} cases"
        return out

    def _needed(self) -> int:
        """In so many cases null kernels must have been rejected. A setting in which a kernel draws is a case of
        hundreds of samples: where there are fewer settings, it must have been so in each."""
        return min(COUNTED, max(self.seen, 1)) if self.operator.random else COUNTED

    def _shrunk(self, check: Check, tally: _Tally) -> tuple[Case, str, Miss | None]:
        """A smaller case that fails in the same way, as far as the time allows."""
        assert tally.failed is not None
        smallest: tuple[Case, str, Miss | None] = (tally.failed, tally.message, tally.miss)
        if self.effort.stop or self.operator.random:
            return smallest
        started = time.perf_counter()
        self.tell(f"{check.name}: looking for a smaller case")
        deadline = started + self.left / 2
        kind = KernelError if tally.broken else Violation

        class Found(Exception):
            pass

        class Over(BaseException):
            """The time is over; no ordinary exception, which Hypothesis would take for one more failure."""

        first = _identity(tally.failed)
        known: dict[str, bool] = {}

        def fails(case: Case) -> bool:
            nonlocal smallest
            try:
                check.holds(Trial(self.operator, self.subject, case))
            except GivenUp:
                return False
            except (Violation, KernelError) as found:
                if isinstance(found, kind):
                    smallest = (case, str(found), getattr(found, "miss", None))
                    return True
            except (NotApplicable, NotCovered):
                pass
            return False

        def one(case: Case) -> None:
            key = _identity(case)
            if not known and key != first:
                return  # the round begins again with the cases that did not fail
            if not known:
                known[key] = True
            if time.perf_counter() > deadline:
                raise Over
            if key not in known:
                known[key] = fails(case)
            if known[key]:
                raise Found

        self.round = tally.round
        with suppress(Found, Over):
            self._drawn(one, self.effort.examples, (Phase.generate, Phase.shrink))
        self.left -= time.perf_counter() - started
        return smallest

    def _drawn(
        self,
        one: Callable[[Case], None],
        examples: int,
        phases: Sequence[Phase],
        strategy: SearchStrategy[Case] | None = None,
    ) -> None:
        """Cases of the present round; the same round draws the same cases."""
        configured = settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=phases,
            backend="hypothesis" if Phase.target in phases else "assay",
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        seed(self.effort.seed + (self.round << 32))(
            configured(given(self.strategy if strategy is None else strategy)(one))
        )()


def _identity(case: Case) -> str:
    return repr((case.shapes(), case.seed, [a.tobytes() for a in _arrays(case)]))


def _elements(case: Case) -> int:
    return sum(a.size for a in _arrays(case))


def _arrays(case: Case) -> list[Values]:
    return [v for v in case.arguments.values() if isinstance(v, np.ndarray)]
