"""Commits as the history of speed sees them: measuring one against the steady kernel, and finding the one to blame."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from assay import anchors
from assay.bench import timeable
from assay.compare import Compared, Job, measure
from assay.gate import judged
from assay.history import Record, Step
from assay.kernels import Known, UsageError
from assay.sides import Side, git, kernels_of, prepare
from assay.stopwatch import HARNESS
from assay.timing import Inputs, Setup, device_name, every_thread
from assay.verdict import PAIRS


Tell = Callable[[str], None]


def listed(revisions: str) -> list[str]:
    """The commits that a revision or a range names, the oldest first. Raises: UsageError."""
    if ".." in revisions:
        found = git("rev-list", "--reverse", "--first-parent", "--end-of-options", revisions).split()
        if not found:
            raise UsageError(f"there is no commit in {revisions}")
        return found
    return [git("rev-parse", "--verify", "--end-of-options", f"{revisions}^{{commit}}")]


def recorded(commit: str, named: Sequence[str], setups: Sequence[tuple[str, bool]], tell: Tell) -> list[Record]:
    """Measure the kernels of a commit that keep their contract. `setups`: dtype, and whether with backward.

    Raises: UsageError where the commit cannot be built, or has none of the kernels.
    """
    with tempfile.TemporaryDirectory() as folder, Inputs() as inputs:
        side = prepare(commit, Path(folder))
        jobs = _jobs(side, named, setups, inputs, tell)
        found = [Compared(job) for _, job in jobs]
        measure(found, PAIRS, tell, random.Random(commit))
    for compared in found:
        if compared.reason:
            tell(f"{compared.job.name} is not recorded: {compared.reason}")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        Record(
            operator=c.job.setup.operator,
            kernel=kernel.place,
            case=c.job.setup.case,
            dtype=c.job.setup.dtype,
            mode=c.job.setup.mode,
            threads=c.job.setup.threads,
            machine=machine_class(),
            harness=HARNESS,
            commit=commit,
            time=now,
            answers=tuple(s.answer for s in c.first),
        )
        for (kernel, _), c in zip(jobs, found, strict=True)
        if not c.reason
    ]


def _jobs(
    side: Side, named: Sequence[str], setups: Sequence[tuple[str, bool]], inputs: Inputs, tell: Tell
) -> list[tuple[Known, Job]]:
    kernels, _ = timeable([k for _, k in kernels_of(side, side, named)], "cpu")
    line = np.linspace(-1, 1, anchors.STEADY**2, dtype=np.float32).reshape(anchors.STEADY, -1)
    steady = inputs.anchor("steady", {"a": line, "b": line})
    found = []
    for dtype in dict.fromkeys(dtype for dtype, _ in setups):
        able = [k for k in kernels if dtype in k.claims.dtypes]
        wrong = judged([k.spelling for k in able], dtype, "cpu", tell, python=side.python) if able else {}
        for kernel in able:
            if wrong[kernel.spelling]:
                tell(f"{kernel.name} is not recorded: it {wrong[kernel.spelling]}")
                continue
            case = next(iter(kernel.operator.timed))
            for backward in [b for d, b in setups if d == dtype and not (b and kernel.claims.backward == "none")]:
                setup = Setup(kernel.operator.name, case, dtype, backward, 1)
                told: dict[str, Any] = {**inputs.of(kernel, setup), "paths": list(side.paths)}
                found.append((kernel, Job(kernel.name, setup, steady, told)))
    return found


def machine_class() -> str:
    """What a history holds for."""
    return f"{device_name('cpu')}, {every_thread()} threads"


def culprit(commits: Sequence[str], ratio_to_first: Callable[[str], float], step: float) -> str:
    """The commit from which on kernels are slower (or faster) by the factor `step` than at the first of `commits`.

    The last one is known to be. Each commit that is looked at is given to the level that its ratio is nearer to.
    """
    low, high = 0, len(commits) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if math.log(ratio_to_first(commits[middle])) / math.log(step) > 0.5:
            high = middle
        else:
            low = middle
    return commits[high]


def blamed(step: Step, tell: Tell) -> str:
    """The commit that made a step, found by comparing those between its ends with its beginning. Raises: UsageError."""
    from assay.versions import Question, compared

    before, after = step.before, step.after
    commits = [before.commit, *listed(f"{before.commit}..{after.commit}")]
    question = Question(
        before.commit,
        "",
        kernels=(f"{before.operator}={before.kernel}",),
        dtypes=(before.dtype,),
        cases=(before.case,),
        backward=before.mode != "forward",
        threads=before.threads,
    )

    def ratio(commit: str) -> float:
        from dataclasses import replace

        tell(f"bisecting: {commit[:10]}")
        for found in compared(replace(question, head=commit), tell):
            if found.job.setup.mode == before.mode:
                if found.estimate is None:
                    raise UsageError(f"{commit[:10]} cannot be timed: {found.reason}")
                return found.estimate.ratio
        raise UsageError(f"{commit[:10]} has no {before.kernel} to time")

    return culprit(commits, ratio, step.ratio)
