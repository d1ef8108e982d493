"""What `assay compare BASE HEAD` asks: which kernels, on which cases, are compared between two sides."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from assay.bench import timeable
from assay.compare import Compared, Job, compare
from assay.gate import judged
from assay.instructions import count, countable
from assay.kernels import Known, UsageError
from assay.sides import Side, kernels_of, prepare
from assay.timing import Inputs, Setup


@dataclass(frozen=True)
class Question:
    """BASE and HEAD as they are spelled, and under which setups they are compared."""

    base: str
    head: str
    kernels: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ("float32",)
    cases: tuple[str, ...] = ()
    """Empty: the first case of each contract."""
    backward: bool = True
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    instructions: bool = False
    """Count instructions in place of seconds."""


def compared(question: Question, tell: Callable[[str], None]) -> list[Compared]:
    """Build both sides, judge head, and compare. Raises: UsageError in one line."""
    with tempfile.TemporaryDirectory() as folder, Inputs() as inputs:
        sides = []
        for role, spelling in (("base", question.base), ("head", question.head)):
            tell(f"{role}: {spelling}")
            own = Path(folder) / role
            own.mkdir()
            sides.append(prepare(spelling, own))
        base, head = sides
        pairs = kernels_of(base, head, question.kernels)
        timed, left = timeable([k for _, k in pairs], question.device)
        if not timed:
            raise UsageError(f"there is nothing to compare: {'; '.join(dict.fromkeys(left.values()))}")
        jobs = [
            (here, Job(here.name, setup, _told(inputs, there, base, setup), _told(inputs, here, head, setup)))
            for there, here in pairs
            if here in timed
            for setup in _setups(question, here)
        ]
        if question.instructions:
            countable([job for _, job in jobs])
        wrong = _wrong(question, [(here, job.setup.dtype) for here, job in jobs], head, tell)
        right = [job for here, job in jobs if not wrong.get((here.spelling, job.setup.dtype))]
        failed = [
            Compared(job, "FAILED", f"head {reason}")
            for here, job in jobs
            if (reason := wrong.get((here.spelling, job.setup.dtype)))
        ]
        if question.instructions:
            return [*failed, *count(right, tell)]
        apart = base.native or head.native
        return [*failed, *compare(right, tell, apart=apart, seed=question.seed)]


def _setups(question: Question, kernel: Known) -> list[Setup]:
    timed = list(kernel.operator.timed)
    cases = [c for c in timed if c in question.cases] if question.cases else timed[:1]
    modes = (False, True) if question.backward and kernel.claims.backward != "none" else (False,)
    dtypes = [d for d in question.dtypes if d in kernel.claims.dtypes]
    return [
        Setup(kernel.operator.name, case, dtype, mode, question.threads, question.device)
        for case, dtype, mode in product(cases, dtypes, modes)
    ]


def _told(inputs: Inputs, kernel: Known, side: Side, setup: Setup) -> dict[str, object]:
    return {**inputs.of(kernel, setup), "paths": list(side.paths)}


def _wrong(
    question: Question, asked: list[tuple[Known, str]], head: Side, tell: Callable[[str], None]
) -> dict[tuple[str, str], str | None]:
    """Why head's kernels may not be timed, by spelling and dtype."""
    found = {}
    for dtype in dict.fromkeys(dtype for _, dtype in asked):
        spellings = list(dict.fromkeys(k.spelling for k, d in asked if d == dtype))
        for spelling, reason in judged(spellings, dtype, question.device, tell, python=head.python).items():
            found[spelling, dtype] = reason
    return found
