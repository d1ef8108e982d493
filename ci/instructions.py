"""`assay compare --instructions`: by how many instructions do two versions of a kernel differ? A second instrument.

Callgrind runs the calls on a processor of its own making, and counts: what else the machine does is not in it, and a
repetition differs by some hundred-thousandths. So one process of each side is enough, and a margin of one per cent
holds. It does not know what an instruction costs: of waiting for memory, or for another thread, it says nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assay.compare import Compared, Job, Samples
from assay.kernels import UsageError
from assay.timing import NotTimed, Stopwatch, StopwatchError
from assay.verdict import of_counts


CALLS = 10
"""Calls that are counted together; as many come before, unseen."""
REPEATS = 2
NEEDED = ("valgrind", "callgrind_control", "callgrind_annotate")


def countable(jobs: Sequence[Job]) -> None:
    """Raises: UsageError if instructions cannot be counted here."""
    if any(job.setup.threads != 1 or job.setup.device != "cpu" for job in jobs):
        raise UsageError("instructions are counted on one thread of the CPU: leave out --threads and --device")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        raise UsageError(f"instructions are counted by Valgrind, which is not installed here ({missing[0]} is missing)")


def count(jobs: Sequence[Job], tell: Callable[[str], None]) -> list[Compared]:
    """Count on both sides, and decide. A side that fails is told as in a comparison of times."""
    found = []
    for number, job in enumerate(jobs, 1):
        compared = Compared(job)
        found.append(compared)
        counts = {}
        for side, told in (("base", job.base), ("head", job.head)):
            tell(f"counting {number} of {len(jobs)}: {job.name}, {job.setup.mode}, {side}")
            try:
                counts[side] = _counted(told)
            except (NotTimed, StopwatchError) as error:
                compared.verdict = "FAILED" if side == "head" else "UNSURE"
                compared.reason = f"{side}: {error}"
                break
        else:
            pairs = zip(counts["base"], counts["head"], strict=True)
            compared.first = [Samples((base,), (head,)) for base, head in pairs]
            assert compared.estimate is not None
            compared.verdict = of_counts(compared.estimate)
    return found


def _counted(told: Mapping[str, Any]) -> list[float]:
    with Stopwatch(1) as watch:
        answer = watch.ask("instructions", calls=CALLS, repeats=REPEATS, **told)
    counts: list[float] = answer["instructions"]
    return counts
