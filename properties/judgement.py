"""Judging one kernel in one dtype: draw cases, try every demand on them, shrink what fails, and say what it is.

A demand is believed only where it could have failed: in each case the null kernels (zeros, a copy of the input, the
mean of the right answer, a stale answer) are held to the same bound, and the case counts if all of them are rejected. A
run in which too few cases count is undecided, not passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis.strategies import SearchStrategy

from assay.properties.contract import Operator
from assay.properties.diagnosis import Finding, Inferred, agrees, diagnose, infer
from assay.properties.drawing import Case, Values, cases
from assay.properties.robustness import AGREEMENT, Check, checks
from assay.properties.shifts import FEWEST, Shift, shifts
from assay.properties.trial import KernelError, Miss, NotCovered, Subject, Trial, Violation, outside


Verdict = Literal["pass", "fail", "error", "undecided", "skipped"]

MEANT = "parameters_are_meant"
"""The property of every operator with parameters: no shift of one that counts, even within all bounds."""
COUNTED = 20
"""Cases in which every null kernel must have been rejected, for a run to mean anything."""
ROUNDS = 4
"""At most this many times as many cases are drawn, where too few have counted so far."""


@dataclass(frozen=True)
class Effort:
    """How hard to look."""

    examples: int = 64
    seed: int = 0
    shrink_seconds: float = 6.0
    """At most this long is spent on making failing cases smaller: half of what is left for each."""
    shares: int = 2
    """How many of the contract's own properties are tried on each case; they take turns."""
    climb: int = 32
    """After the drawn cases, so many that are varied so as to raise the headroom."""
    pooled: int = 100
    """Small ordinary cases that are taken together, to see shifts of parameters."""
    stop: Literal["", "first", "each"] = ""
    """End with the first demand that is broken, or do not try a broken demand again: for wrong kernels by the
    hundred. Neither shrinks nor diagnoses."""


QUICK = Effort(examples=40, shrink_seconds=1.0, climb=0, pooled=32)


@dataclass
class Result:
    """The verdict of one kernel on one property in one dtype."""

    property: str
    verdict: Verdict
    cases: int = 0
    headroom: float | None = None
    """max |error| / bound over the cases; None for properties without a bound of their own."""
    seconds: float = 0.0
    message: str = ""
    """Why it failed, erred or was not judged, in one line."""
    case: Case | None = None
    """The shrunk case in which it failed."""
    counterexample: str = ""
    """The same in one line."""
    miss: Miss | None = None
    """The worst element of that case, if it returned something to compare."""
    diagnosis: list[Finding] = field(default_factory=list)
    stored: str = ""
    """The file in which the counterexample is stored, once it is."""


@dataclass
class Examination:
    """Everything that is known of one kernel in one dtype after a run."""

    kernel: str
    dtype: str
    results: list[Result]
    inferred: Inferred | None = None
    not_covered: tuple[str, ...] = ()
    """Keywords and convention values that the kernel does not have."""

    @property
    def verdict(self) -> Verdict:
        """The worst of its results."""
        found = {r.verdict for r in self.results}
        for verdict in ("error", "fail", "undecided", "pass"):
            if verdict in found:
                return verdict
        return "skipped"

    @property
    def headroom(self) -> float | None:
        return next((r.headroom for r in self.results if r.property == AGREEMENT.name), None)


Progress = Callable[[int, float], None]
"""Called after each case with the number of cases so far and the headroom so far."""


def examine(
    operator: Operator,
    subject: Subject,
    dtype: str,
    *,
    conventions: Mapping[str, str] | None = None,
    effort: Effort = Effort(),
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    prepared: Sequence[Trial] | None = None,
) -> Examination:
    """Judge a kernel. `conventions`: those that it claims to follow; `only`: the names of the properties to try;
    `prepared`: trials of another kernel with the same claims, whose cases and truth are taken instead of drawn."""
    demands = [c for c in checks(operator) if only is None or c.name in only]
    judged, uncovered = _conventions(operator, subject, dict(conventions or {}))
    run = _Run(operator, subject, dtype, judged, effort, demands, progress)
    if prepared is None:
        run.collect()
    else:
        run.take(prepared)
    results = [run.result(check) for check in demands]
    if effort.stop:
        return Examination(subject.name, dtype, results)
    inferred = infer(operator, run.kept) if run.kept else None
    off: list[Shift] = []
    if (operator.parameters or operator.strays) and effort.pooled and (only is None or MEANT in only):
        meant, off = run.parameters()
        results.append(meant)
    if any(r.verdict == "fail" for r in results):
        findings = diagnose(operator, run.kept, inferred, off)
        for r in results:
            if r.verdict == "fail":
                r.diagnosis = findings
    uncovered = (*uncovered, *(p.name for p in operator.parameters if not subject.supports(p.name)))
    return Examination(subject.name, dtype, results, inferred, tuple(dict.fromkeys(uncovered)))


def prepare(operator: Operator, subject: Subject, dtype: str, effort: Effort) -> list[Trial]:
    """The trials of a right kernel: cases with their truth, for `examine` to take instead of drawing."""
    judged, _ = _conventions(operator, subject, {})
    demands = [c for c in checks(operator) if c is AGREEMENT or c.differentiates]
    run = _Run(operator, subject, dtype, judged, effort, demands, None)
    run.collect()
    # Ordinary numbers show most mistakes, and small arrays show them soon.
    return sorted(run.kept, key=lambda t: (t.case.regime != "ordinary", t.exact[0].midpoint.size < 8))


def pool(operator: Operator, subject: Subject, dtype: str, effort: Effort) -> list[Trial]:
    """The small ordinary cases that are taken together to see shifts of parameters."""
    return _Run(operator, subject, dtype, _conventions(operator, subject, {})[0], effort, (), None).pooled()


def identify(
    operator: Operator, subject: Subject, dtype: str, effort: Effort
) -> tuple[dict[str, str], Inferred] | None:
    """The conventions, form and precision that a kernel follows, whatever it claims; None if it follows no published
    ones. A convention for which the kernel has a keyword is the caller's choice and is not named."""
    fixed = {n: v for n, v in operator.conventions.items() if not subject.supports(n)}
    judged = {n: v[:1] for n, v in operator.conventions.items()}
    run = _Run(operator, subject, dtype, judged, effort, (AGREEMENT,), None)
    run.collect()
    found = []
    for values in product(*fixed.values()):
        conventions = dict(zip(fixed, values, strict=True))
        inferred = agrees(operator, run.kept, conventions)
        if inferred is not None:
            found.append((conventions, inferred))
    return found[0] if found else None


@dataclass
class _Tally:
    """What happened to one demand during a run."""

    cases: int = 0
    headroom: float = 0.0
    seconds: float = 0.0
    failed: Case | None = None
    message: str = ""
    miss: Miss | None = None
    round: int = 0
    refused: bool = False
    """The kernel said that it does not support what was asked."""
    broken: bool = False
    """The kernel raised, as against returned something wrong."""


class _Run:
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
        self.progress = progress
        self.conventions = conventions
        self.strategy = cases(operator, dtype, subject.supports, conventions)
        self.tallies = {check.name: _Tally() for check in demands}
        self.kept: list[Trial] = []
        self.seen = 0
        self.round = 0
        self.left = effort.shrink_seconds
        self.counted = 0
        self.refusal = ""
        self.about = {p.name: p.about for p in operator.properties}
        self._stale: dict[tuple[int, ...], Values] = {}

    def collect(self) -> None:
        """Try every demand on every case, going on after failures."""

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
        if all(self._attempt(check, trial) for check in self.demands if check.universal):
            self._take_turns(trial)
        if trial.answered:
            self._count(trial)
            self.kept.append(trial)
        if self.progress is not None:
            self.progress(self.seen, max((t.headroom for t in self.tallies.values()), default=0.0))

    def _stopped(self) -> bool:
        return self.effort.stop == "first" and any(t.failed is not None for t in self.tallies.values())

    def _take_turns(self, trial: Trial) -> None:
        """The contract's own properties: those tried least so far come first, until enough had the case in domain."""
        left = self.effort.shares
        for check in sorted(self.demands, key=lambda c: self.tallies[c.name].cases):
            if left and not check.universal:
                before = self.tallies[check.name].cases
                self._attempt(check, trial)
                left -= self.tallies[check.name].cases - before

    def _look_for_missing(self) -> None:
        """Properties that no case so far was in the domain of are tried, alone, on more cases."""

        class Enough(Exception):
            pass

        def missing() -> list[Check]:
            able = [c for c in self.demands if not c.universal and all(map(self.subject.supports, c.needs))]
            able = [c for c in able if not self._elsewhere(c)]
            return [c for c in able if not self.tallies[c.name].cases and not self.tallies[c.name].refused]

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
        """The name of a convention of which the property is about other values than the kernel is judged under."""
        about = self.about.get(check.name, {})
        return next((n for n, values in about.items() if not set(values) & set(self.conventions[n])), "")

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
        trial.headroom = 0.0 if check.differentiates or check is AGREEMENT else trial.headroom
        try:
            if check.holds(trial):
                tally.cases += 1
        except NotCovered as refusal:
            self.refusal = str(refusal)
            tally.refused = True
            # Where the case itself is refused, nothing is judged; a property may ask for more than a case does.
            return not check.universal
        except Violation as violation:
            tally.cases += 1
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
            if tally.failed is None:
                tally.failed, tally.message, tally.round = trial.case, str(error), self.round
                tally.broken = True
        finally:
            tally.seconds += time.perf_counter() - started
        tally.headroom = max(tally.headroom, trial.headroom)
        return not self._stopped()

    def _count(self, trial: Trial) -> None:
        """Does the bound reject every null kernel here?"""
        exact, bound = trial.exact[0], trial.bound[0]
        first = trial.case.arguments[self.operator.tensors[0]]
        dtype = first.dtype
        with np.errstate(all="ignore"):
            mean = np.full(exact.shape, exact.midpoint.mean() if exact.midpoint.size else 0).astype(dtype)
        nulls = [np.zeros(exact.shape, dtype), mean]
        if first.shape == exact.shape and trial.case.regime != "zeros":
            nulls.append(first)
        stale = self._stale.get(exact.shape)
        if stale is not None:
            nulls.append(stale)
        self._stale[exact.shape] = trial.answer().outputs[0]
        self.counted += all(bool(outside(null, exact, bound, self.dtype)[0].any()) for null in nulls)

    def pooled(self) -> list[Trial]:
        """Small ordinary cases that the kernel answers."""
        trials: list[Trial] = []

        def one(case: Case) -> None:
            trial = Trial(self.operator, self.subject, case)
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

    def result(self, check: Check) -> Result:
        tally = self.tallies[check.name]
        headroom = tally.headroom if check is AGREEMENT or check.differentiates else None
        out = Result(check.name, "pass", tally.cases, headroom, tally.seconds)
        if tally.failed is not None:
            out.verdict = "error" if tally.broken else "fail"
            out.case, out.message, out.miss = self._shrunk(check, tally)
            out.counterexample = out.case.shapes()
        elif not tally.cases:
            lacking = [k for k in check.needs if not self.subject.supports(k)]
            if check.differentiates and not self.subject.differentiable:
                out.verdict, out.message = "skipped", "the kernel claims no backward"
            elif lacking:
                out.verdict, out.message = "skipped", f"the kernel does not have {', '.join(lacking)}"
            elif other := self._elsewhere(check):
                out.verdict, out.message = "skipped", f"it is not about {other}={', '.join(self.conventions[other])}"
            elif self.refusal:
                out.verdict, out.message = "skipped", self.refusal
            else:
                out.verdict, out.message = "undecided", f"none of {self.seen} cases was in its domain"
        elif check is AGREEMENT and self.counted < COUNTED:
            out.verdict = "undecided"
            out.message = f"the null kernels were rejected in only {self.counted} of {self.seen} cases"
        return out

    def _shrunk(self, check: Check, tally: _Tally) -> tuple[Case, str, Miss | None]:
        """A smaller case that fails in the same way, as far as the time allows."""
        assert tally.failed is not None
        smallest: tuple[Case, str, Miss | None] = (tally.failed, tally.message, tally.miss)
        if self.effort.stop:
            return smallest
        started = time.perf_counter()
        deadline = started + self.left / 2
        kind = KernelError if tally.broken else Violation

        class Found(Exception):
            pass

        known: dict[str, bool] = {}

        def fails(case: Case) -> bool:
            nonlocal smallest
            try:
                check.holds(Trial(self.operator, self.subject, case))
            except (Violation, KernelError) as found:
                if isinstance(found, kind):
                    smallest = (case, str(found), getattr(found, "miss", None))
                    return True
            except NotCovered:
                pass
            return False

        def one(case: Case) -> None:
            key = repr((case.shapes(), case.seed, [a.tobytes() for a in _arrays(case)]))
            if key not in known:
                # Once the time is over, what is not known to fail passes, and the search ends with what it has.
                known[key] = time.perf_counter() < deadline and fails(case)
            if known[key]:
                raise Found

        self.round = tally.round
        with suppress(Found):
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


def _arrays(case: Case) -> list[Values]:
    return [v for v in case.arguments.values() if isinstance(v, np.ndarray)]


def _conventions(
    operator: Operator, subject: Subject, claimed: Mapping[str, str]
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Under which values of each convention a kernel is judged, and what it leaves uncovered."""
    judged: dict[str, tuple[str, ...]] = {}
    uncovered: list[str] = []
    for name, values in operator.conventions.items():
        if name in claimed:
            judged[name] = (claimed[name],)
        elif subject.supports(name):
            judged[name] = values
        else:
            judged[name] = values[:1]
        uncovered += [f"{name}={value}" for value in values if value not in judged[name]]
    return judged, tuple(uncovered)
