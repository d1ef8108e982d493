"""The kill matrix: which demand rejects which mutant, why a survivor survives, and how other suites' rules fare.

A mutant that survives must be explained. Machine-checked reasons:

equivalent   it returns the same bits as the right kernel on every case. Believed only of mutants that change roundings
             or lose a term, where that can be so; elsewhere it means that the drawing never shows the mistake.
legal        it moves every result, before the last rounding, by no more than twice the bound, as far as two right
             kernels can be apart; and where a parameter is shifted, or a gradient made too large by a factor, by no
             more than the legal coherent shift: what it appears to be off by when all elements of one rounding move
             together by the unit roundoff, summed over the roundings; or by less than eight standard errors of the
             shift that rounding noise shows on these cases.

What remains needs a reason by hand, in the contract's `survivors`, which must name a mutant that does survive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Literal

import numpy as np

from assay.properties.contract import Operator
from assay.properties.drawing import COMPLEX, Values, parted
from assay.properties.emulated import Emulated, Fault, Site, Wrong, passed
from assay.properties.gains import gains
from assay.properties.judgement import examine, pool, prepare
from assay.properties.mutants import Mutant, mutants, right, right_kernels
from assay.properties.others import RULES
from assay.properties.results import MEANT, SIZED
from assay.properties.robustness import checks
from assay.properties.run import Effort
from assay.properties.shifts import shifts
from assay.properties.trial import KernelError, Trial
from assay.reference.arithmetic.array import Part
from assay.reference.arithmetic.formatted import EXTENDED
from assay.reference.arithmetic.precision import PRECISIONS


Fate = Literal["killed", "equivalent", "legal", "explained", "survived"]

DTYPES = ("float32", "bfloat16", "float16")
"""The dtypes in which mutants are judged unless others are asked for; of complex numbers, the first alone."""
FIRST_KILL = Effort(examples=64, climb=0, shrink_seconds=0, stop="first")
EVERY_DEMAND = replace(FIRST_KILL, stop="each", shares=99)
STEP = 2.0**-12
"""The relative shift of a parameter whose effect gives the slope."""
APART = 2
"""Two right kernels may lie on both sides of the exact value: so many bounds apart."""
SIGMAS = 8
COHERENT = 12
"""The legal coherent shift is taken over so many cases."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant in one dtype."""

    mutant: str
    kind: str
    text: str
    dtype: str
    fate: Fate
    by: tuple[str, ...] = ()
    """The demands that reject it: the first one, or in a full matrix all of them."""
    cases: int = 0
    """How many cases it took; for a survivor, how many there were."""
    seconds: float = 0.0
    """Until it was rejected; for a survivor, until nothing was left to try."""
    message: str = ""
    """What the first demand said, or why the mutant rightly survives."""


def dtypes(operator: Operator, asked: Sequence[str]) -> list[str]:
    """Those of the dtypes asked for that an operator is judged in."""
    return [name for name in asked if not operator.complex or name in COMPLEX]


@dataclass
class Bench:
    """One operator in one dtype: the right kernel, the cases, and their truth, shared by all mutants."""

    operator: Operator
    dtype: str
    effort: Effort = FIRST_KILL
    share: int = 0
    shares: int = 1
    """The bench has every mutant and right kernel number share, share + shares, ..."""
    _raw: dict[int, tuple[tuple[Part, ...], dict[str, Part]]] = field(default_factory=dict, repr=False)

    @cached_property
    def right(self) -> Emulated:
        return right(self.operator, self.dtype)

    @cached_property
    def trials(self) -> list[Trial]:
        found = prepare(self.operator, self.right, self.dtype, replace(self.effort, stop=""))
        if not found:
            raise ValueError(f"{self.operator.name} has no case in {self.dtype} that the right kernel can compute")
        return found

    @cached_property
    def mutants(self) -> list[Mutant]:
        return mutants(self.operator, self.dtype, self.trials)[self.share :: self.shares]

    @property
    def right_kernels(self) -> tuple[Emulated, ...]:
        """Those that must pass."""
        return right_kernels(self.operator, self.dtype)[self.share :: self.shares]

    @cached_property
    def legal_shifts(self) -> dict[str, float]:
        """For each parameter, the legal coherent shift."""
        return {p.name: self._coherent(p.name) for p in self.operator.parameters}

    @cached_property
    def resolutions(self) -> dict[str, float]:
        """For each parameter, SIGMAS standard errors of the shift that the right kernel shows on these cases: what is
        smaller cannot be told from its rounding noise."""
        return {p.name: self._resolution(p.name) for p in self.operator.parameters}

    def raw(self, trial: Trial) -> tuple[tuple[Part, ...], dict[str, Part]]:
        """Outputs and gradients of the right kernel before the last rounding, computed once for all mutants."""
        if id(trial) not in self._raw:
            by = trial.by
            self._raw[id(trial)] = self.right.raw(trial.case.arguments, trial.cotangents, by)
        return self._raw[id(trial)]

    def _smooth(self, trial: Trial, site: Site | None = None, name: str = "", shift: float = 0.0) -> Any:
        """The outputs without any rounding, over the bound; one site moved by its unit roundoff, or a parameter."""
        kernel = self.right.but(fault=Fault(site, coherent=True))
        arguments = {n: v * (1 + shift) if n == name else v for n, v in trial.case.arguments.items()}
        return _weighed(kernel.raw(arguments)[0], trial)

    def _slope(self, trial: Trial, name: str) -> Any:
        """How a relative shift of a parameter moves the outputs, over the bound."""
        return (self._smooth(trial, None, name, STEP) - self._smooth(trial)) / EXTENDED(STEP)

    @cached_property
    def _ordinary(self) -> list[Trial]:
        return [t for t in self.trials if t.case.regime == "ordinary"]

    def _coherent(self, name: str) -> float:
        trials = self._ordinary[:COHERENT]
        sites = list(dict.fromkeys(s for t in trials for s in passed(self.right, t.case.arguments, None)[0]))
        here = [self._smooth(t) for t in trials]
        slopes = [self._slope(t, name) for t in trials]
        energy = sum(float(s @ s) for s in slopes)
        if not energy:
            return np.inf  # the function does not depend on it: nothing can be seen
        total = self.right.kept(0).u * abs(sum(float(s @ h) for s, h in zip(slopes, here, strict=True))) / energy
        for site in sites:
            moved = (self._smooth(t, site) - h for t, h in zip(trials, here, strict=True))
            total += abs(sum(float(s @ m) for s, m in zip(slopes, moved, strict=True))) / energy
        return total

    def _resolution(self, name: str) -> float:
        slopes = [self._slope(t, name) for t in self._ordinary]
        errors = [
            _weighed([o - e.midpoint for o, e in zip(t.answer().outputs, t.exact, strict=True)], t)
            for t in self._ordinary
        ]
        energy = sum(float(s @ s) for s in slopes)
        if not energy:
            return np.inf
        shown = sum(float(s @ e) for s, e in zip(slopes, errors, strict=True)) / energy
        left = sum(float(s @ (e - shown * s)) ** 2 for s, e in zip(slopes, errors, strict=True))  # clustered by case
        return SIGMAS * left**0.5 / energy


def _weighed(outputs: Sequence[Values], trial: Trial) -> Any:
    """All outputs in one line, over the bound; nothing where nothing is demanded, or all of it."""
    with np.errstate(all="ignore"):
        parts = [
            (np.asarray(o, EXTENDED) / np.where(b > 0, b, np.inf)).ravel()
            for o, b in zip(outputs, trial.bound, strict=True)
        ]
    return np.nan_to_num(np.concatenate(parts), nan=0.0, posinf=0.0, neginf=0.0)


def kill(bench: Bench, mutant: Mutant, *, full: bool = False) -> Outcome:
    """Judge one mutant. `full`: try every demand, not only until one rejects it."""
    trials = bench.trials
    effort = EVERY_DEMAND if full else FIRST_KILL
    started = time.perf_counter()
    judged = examine(bench.operator, mutant.kernel(), bench.dtype, effort=effort, prepared=trials)
    seconds = time.perf_counter() - started
    broken = [r for r in judged.results if r.verdict in ("fail", "error")]
    if full and broken:
        started = time.perf_counter()
        first = examine(bench.operator, mutant.kernel(), bench.dtype, effort=FIRST_KILL, prepared=trials)
        seconds = time.perf_counter() - started
        broken.sort(
            key=lambda r: r.property not in {q.property for q in first.results if q.verdict in ("fail", "error")}
        )
        judged = first

    def outcome(fate: Fate, message: str, by: tuple[str, ...] = ()) -> Outcome:
        cases = max((r.cases for r in judged.results), default=0)
        return Outcome(mutant.name, mutant.kind, mutant.text, bench.dtype, fate, by, cases, seconds, message)

    if broken:
        return outcome("killed", broken[0].message, tuple(r.property for r in broken))
    fate, message = _reason(bench, mutant)
    if fate == "survived" and mutant.kind in ("parameter", "gradient"):
        fate, message, by = _together(bench, mutant) or (fate, message, ())
        seconds = time.perf_counter() - started
        return outcome(fate, message, by)
    return outcome(fate, message)


def _together(bench: Bench, mutant: Mutant) -> tuple[Fate, str, tuple[str, ...]] | None:
    """What all cases together say of a mutant that is within all bounds: of its parameters, or of its gradients."""
    kernel = mutant.kernel()
    if mutant.kind == "parameter":
        trials = pool(bench.operator, kernel, bench.dtype, Effort())
        found = shifts(bench.operator, trials)
        meant = not found or not all(found[0].explains(t) for t in trials)
        return None if meant else ("killed", "; ".join(map(str, found)), (MEANT,))
    grown = gains([t.under(kernel) for t in bench.trials])
    if off := [str(g) for g in grown if g.counts]:
        return "killed", "; ".join(off), (SIZED,)
    seen = [str(g) for g in grown if g.name == mutant.scaled]
    return ("legal", f"as far as roundings or noise may move all of it: {seen[0]}", ()) if seen else None


def _reason(bench: Bench, mutant: Mutant) -> tuple[Fate, str]:
    """Why a mutant survives."""
    for pattern, reason in bench.operator.survivors.items():
        if fnmatchcase(f"{mutant.name} {bench.dtype}", pattern):
            return "explained", reason
    if bench.operator.random:
        return "survived", f"no test rejects it, in {len(bench.trials)} settings"
    may_vanish = mutant.kind in ("step", "parameter") or mutant.base.lost is not None
    same = all(_same(bench, mutant.kernel(), t) for t in bench.trials)
    if same and may_vanish:
        return "equivalent", f"the same bits as the right kernel in all {len(bench.trials)} cases"
    if same:
        return "survived", "no case shows it: it returns the same bits as the right kernel"
    if mutant.kind not in ("step", "parameter"):
        return "survived", "its results differ from the right ones, within the bound"
    share = max(_share(bench, mutant.kernel(), t) for t in bench.trials)
    if share > APART:
        return "survived", f"it moves a result by {share:.2g} times the bound"
    if mutant.parameter:
        legal, seen = bench.legal_shifts[mutant.parameter], bench.resolutions[mutant.parameter]
        told = f"the legal coherent shift is {legal:.2g}, {SIGMAS} standard errors are {seen:.2g}"
        return ("legal" if mutant.shift <= max(legal, seen) else "survived"), f"within the bound; {told}"
    return "legal", f"it moves no result by more than {share:.2g} of the bound"


def _same(bench: Bench, wrong: Wrong, trial: Trial) -> bool:
    """Are outputs and gradients the same bits as those of the right kernel?"""
    by = trial.by
    one = wrong(trial.case.arguments, trial.cotangents, by)
    two = bench.right(trial.case.arguments, trial.cotangents, by)
    pairs = [*zip(one.outputs, two.outputs, strict=True), *((one.gradients[n], two.gradients[n]) for n in by)]
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def _share(bench: Bench, wrong: Wrong, trial: Trial) -> float:
    """max |wrong - right| / bound, before the last rounding, over outputs and gradients."""
    by = trial.by
    one, by_one = wrong.base.raw(wrong.arguments(trial.case.arguments), trial.cotangents, by)
    two, by_two = bench.raw(trial)
    worst = 0.0
    pairs: list[tuple[int | str, Values, Values, Values]] = [
        *zip(range(len(one)), one, two, trial.bound, strict=True),
        *((n, by_one[n], by_two[n], trial.gradient_bound[n]) for n in by),
    ]
    for what, a, b, bound in pairs:
        with np.errstate(all="ignore"):
            # What the last rounding hides is no movement: the bound is zero where the exact result is representable.
            hidden = (wrong.base.returned(a, what) == bench.right.returned(b, what)) & (bound == 0)
            ratio = np.where((a == b) | hidden | np.isinf(bound) | ~np.isfinite(b), 0, np.abs(a - b) / bound)
        worst = max(worst, float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0)))
    return worst


def unused(operator: Operator, outcomes: Sequence[Outcome]) -> list[str]:
    """Explanations by hand that match no survivor."""
    left = [f"{o.mutant} {o.dtype}" for o in outcomes if o.fate == "explained"]
    return [p for p in operator.survivors if not any(fnmatchcase(name, p) for name in left)]


def idle(operator: Operator, outcomes: Sequence[Outcome]) -> list[str]:
    """Demands that reject no mutant in a full matrix, of those that say something of emulated kernels."""
    busy = {name for o in outcomes for name in o.by}
    return [c.name for c in checks(operator) if c.name not in busy and not c.hosted]


# The rules of other suites, on the same mutants and cases ----------------------------------------------------------


@dataclass
class Score:
    """How one rule fares: over all cases, and over those with ordinary numbers alone."""

    rule: str
    mutants: int = 0
    killed: int = 0
    killed_on_ordinary: int = 0
    right: int = 0
    false_alarms: int = 0
    false_alarms_on_ordinary: int = 0
    missed: list[str] = field(default_factory=list)
    """The mutants that it accepts in all cases."""

    def __add__(self, other: Score) -> Score:
        numbers = {k: v + getattr(other, k) for k, v in vars(self).items() if k not in ("rule", "missed")}
        return Score(self.rule, **numbers, missed=self.missed + other.missed)


Compared = tuple[Values, Values, Values]


class Field:
    """The cases of a bench as other suites see them: the exact answer, and a naive kernel's.

    They do not test where nothing is demanded (an infinite bound: a step may overflow), nor compare infinities (the log
    of the sum of a row that sees nothing), so that is left out, in fairness.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        naive = f"{bench.dtype}-steps"
        self.naive = bench.right.but(computes_in=PRECISIONS.get(naive), order="pairwise")
        self.known: dict[int, list[Compared]] = {}

    def truth(self, trial: Trial) -> list[Compared]:
        """Exact, naive, and which elements count, for each output and gradient."""
        if id(trial) not in self.known:
            by = trial.by
            answer = self.naive(trial.case.arguments, trial.cotangents, by)
            exact = [*(e.midpoint for e in trial.exact), *(trial.exact_gradient[n].midpoint for n in by)]
            naive = list(map(parted, (*answer.outputs, *(answer.gradients[n] for n in by))))
            bounds = [*trial.bound, *(trial.gradient_bound[n] for n in by)]
            asked = [np.isfinite(e) & np.isfinite(b) for e, b in zip(exact, bounds, strict=True)]
            self.known[id(trial)] = list(zip(exact, naive, asked, strict=True))
        return self.known[id(trial)]

    def rejected(self, kernel: Emulated | Wrong) -> dict[str, tuple[bool, bool]]:
        """For each rule: does it reject the kernel in some case, and in some ordinary case?"""
        out = dict.fromkeys(RULES, (False, False))
        for trial in self.bench.trials:
            by = trial.by
            ordinary = trial.case.regime == "ordinary"
            asked = [rule for rule, (some, plain) in out.items() if not (plain if ordinary else some)]
            if not asked:
                continue
            try:
                answer = kernel(trial.case.arguments, trial.cotangents, by)
                arrays = list(map(parted, (*answer.outputs, *(answer.gradients[n] for n in by))))
            except KernelError:
                arrays = None
            for rule in asked:
                if arrays is None or not self._accepts(rule, arrays, trial):
                    out[rule] = (True, out[rule][1] or ordinary)
        return out

    def _accepts(self, rule: str, arrays: Sequence[Values], trial: Trial) -> bool:
        try:
            with np.errstate(all="ignore"):
                return all(
                    RULES[rule](*_asked(got, exact, naive, asked), str(naive.dtype))
                    for got, (exact, naive, asked) in zip(arrays, self.truth(trial), strict=True)
                )
        except ValueError:  # shapes that do not broadcast
            return False


def _asked(got: Values, exact: Values, naive: Values, asked: Values) -> tuple[Values, Values, Values]:
    """The elements that count; all of them, if the kernel returned another shape."""
    if got.shape != exact.shape or asked.all():
        return got, exact, naive
    return got[asked], exact[asked], naive[asked]


OURS = "derived bound and properties (assay)"


def scores(bench: Bench, outcomes: Sequence[Outcome]) -> list[Score]:
    """Ours first, then the rules of others. Mutants that are equivalent to the right kernel do not count."""
    if bench.operator.random:  # other suites compare numbers
        return []
    field_ = Field(bench)
    judged = {o.mutant: o for o in outcomes if o.dtype == bench.dtype and o.fate != "equivalent"}
    good = bench.right_kernels
    ours = Score(OURS, right=len(good))
    for outcome in judged.values():
        ours.mutants += 1
        ours.killed += outcome.fate == "killed"
    ours.missed = [f"{o.mutant} {o.dtype}" for o in judged.values() if o.fate != "killed"]
    plain = sum(t.case.regime == "ordinary" for t in bench.trials)  # they come first
    ours.killed_on_ordinary = sum(o.fate == "killed" and o.cases <= plain for o in judged.values())
    own: dict[str | None, list[Trial]] = {}
    for kernel in good:
        trials = own.setdefault(kernel.form, [t.under(kernel) for t in bench.trials])
        ours.false_alarms += _rejects(bench, kernel, trials)
        if ours.false_alarms:
            ours.false_alarms_on_ordinary += _rejects(bench, kernel, [t for t in trials if t.case.regime == "ordinary"])
    others = {rule: Score(rule, mutants=len(judged), right=len(good)) for rule in RULES}
    for mutant in bench.mutants:
        if mutant.name in judged:
            for rule, (some, plain) in field_.rejected(mutant.kernel()).items():
                others[rule].killed += some
                others[rule].killed_on_ordinary += plain
                others[rule].missed += [] if some else [f"{mutant.name} {bench.dtype}"]
    for kernel in good:
        for rule, (some, plain) in field_.rejected(kernel).items():
            others[rule].false_alarms += some
            others[rule].false_alarms_on_ordinary += plain
    return [ours, *others.values()]


def _rejects(bench: Bench, kernel: Emulated, trials: Sequence[Trial]) -> bool:
    """Is a right kernel rejected on these cases?"""
    found = examine(bench.operator, kernel, bench.dtype, effort=FIRST_KILL, prepared=trials)
    return found.verdict in ("fail", "error")


# The matrix --------------------------------------------------------------------------------------------------------

Progress = Callable[[int, int, str], None]


def matrix(bench: Bench, *, full: bool = False, progress: Progress | None = None) -> Iterator[Outcome]:
    """Every mutant of a bench, judged as they come."""
    total = len(bench.mutants)
    for number, mutant in enumerate(bench.mutants):
        outcome = kill(bench, mutant, full=full)
        if progress is not None:
            progress(number + 1, total, f"{mutant.name}: {outcome.fate}")
        yield outcome
