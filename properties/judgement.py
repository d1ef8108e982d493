"""Judging one kernel in one dtype: draw cases, try every demand on them, shrink what fails, and say what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from assay.properties.atlas import atlas
from assay.properties.contract import Operator
from assay.properties.counterexample import Counterexample
from assay.properties.diagnosis import Inferred, agrees, diagnose, infer
from assay.properties.drawing import COMPLEX
from assay.properties.results import MEANT, SIZED, Examination, Progress, Result
from assay.properties.robustness import AGREEMENT, checks
from assay.properties.run import Effort, Run
from assay.properties.shifts import Shift
from assay.properties.statistics import samples
from assay.properties.trial import Subject, Trial
from assay.reference.arithmetic.precision import natural


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
    examples: Sequence[Counterexample] = (),
) -> Examination:
    """Judge a kernel. `conventions`: those that it claims to follow; `only`: the names of the properties to try;
    `prepared`: trials of another kernel with the same claims, whose cases and truth are taken instead of drawn;
    `examples`: known counterexamples of the operator in this dtype, which are tried first."""
    demands = [c for c in checks(operator) if only is None or c.name in only or (SIZED in only and c.differentiates)]
    if operator.complex and dtype not in COMPLEX:
        told = f"{operator.name} takes complex numbers, of which there are none in {dtype}"
        return Examination(subject.name, dtype, [Result(c.name, "skipped", message=told) for c in demands])
    judged, uncovered = _conventions(operator, subject, dict(conventions or {}))
    run = Run(operator, subject, dtype, judged, effort, demands, progress)
    run.recall(examples)
    if prepared is None:
        run.collect()
    else:
        run.take(prepared)
    results = [run.result(check) for check in demands]
    if effort.stop:
        return Examination(subject.name, dtype, results)
    curves = atlas(operator, run.kept)
    run.keep([r.case for r in results if r.property == AGREEMENT.name and r.verdict == "fail" and r.case is not None])
    inferred = infer(operator, run.kept) if run.kept else None
    off: list[Shift] = []
    if (operator.parameters or operator.strays) and effort.pooled and (only is None or MEANT in only):
        meant, off = run.parameters()
        results.append(meant)
    if operator.differentiated and subject.differentiable and (only is None or SIZED in only):
        results.append(run.sizes())
    if any(r.verdict == "fail" for r in results):
        run.tell("diagnosis")
        findings = diagnose(operator, run.kept, inferred, off)
        for r in results:
            if r.verdict == "fail":
                r.diagnosis = findings
    uncovered = (*uncovered, *(p.name for p in operator.parameters if not subject.supports(p.name)))
    return Examination(subject.name, dtype, results, inferred, tuple(dict.fromkeys(uncovered)), curves)


def prepare(operator: Operator, subject: Subject, dtype: str, effort: Effort) -> list[Trial]:
    """The trials of a right kernel: cases with their truth, for `examine` to take instead of drawing."""
    if operator.random:
        return list(samples(operator, subject, dtype, effort.seed))
    judged, _ = _conventions(operator, subject, {})
    demands = [c for c in checks(operator) if c is AGREEMENT or c.differentiates]
    run = Run(operator, subject, dtype, judged, effort, demands, None)
    run.collect()
    # Ordinary numbers show most mistakes, and small arrays show them soon.
    return sorted(run.kept, key=lambda t: (t.case.regime != "ordinary", t.exact[0].midpoint.size < 8))


def pool(operator: Operator, subject: Subject, dtype: str, effort: Effort) -> list[Trial]:
    """The small ordinary cases that are taken together to see shifts of parameters."""
    return Run(operator, subject, dtype, _conventions(operator, subject, {})[0], effort, (), None).pooled()


@dataclass(frozen=True)
class Identified:
    """What a kernel follows, whatever it claims, on so many of the cases that it answered."""

    conventions: Mapping[str, str]
    inferred: Inferred
    cases: int
    answered: int


def identify(
    operator: Operator, subject: Subject, dtype: str, effort: Effort, progress: Progress | None = None
) -> Identified | None:
    """The conventions, form and precision that a kernel follows: on all cases, or else on the most; None if it follows
    no published ones on more than half of them. A convention for which the kernel has a keyword is the caller's choice
    and is not named."""
    if operator.random:
        passes = examine(operator, subject, dtype, effort=effort, progress=progress).verdict == "pass"
        settings = len(operator.settings)
        return Identified({}, Inferred("definition", natural(dtype).name, 0.0), settings, settings) if passes else None
    if operator.complex and dtype not in COMPLEX:
        return None
    fixed = {n: v for n, v in operator.conventions.items() if not subject.supports(n)}
    judged = {n: v[:1] for n, v in operator.conventions.items()}
    run = Run(operator, subject, dtype, judged, effort, (AGREEMENT,), progress)
    run.collect()
    best, misses = None, (len(run.kept) - 1) // 2
    for values in product(*fixed.values()):
        conventions = dict(zip(fixed, values, strict=True))
        run.tell(", ".join(f"{n}={v}" for n, v in conventions.items()) or "form and precision")
        answer = agrees(operator, run.kept, conventions, misses)
        if answer is not None and (best is None or answer[1] > best.cases):
            best = Identified(conventions, *answer, len(run.kept))
            misses = len(run.kept) - best.cases - 1
            if misses < 0:
                break
    return best


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
